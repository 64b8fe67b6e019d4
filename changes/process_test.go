package changes_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// What makes the test binary a consumer "c": the database, its shards, and at which
// time of which step of a batch it kills itself ("moved 2").
const (
	consumerVar = "HOWDAH_TEST_CONSUMER"
	shardsVar   = "HOWDAH_TEST_SHARDS"
	killVar     = "HOWDAH_TEST_KILL"
)

// consumerProcess hands on the changes of a database, until it is killed. It writes
// a line for each change that its handler is called with, before it does anything.
func consumerProcess(url string) int {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	shards, err := strconv.Atoi(os.Getenv(shardsVar))
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, withConns(url, shards+2))
	if err != nil {
		panic(err)
	}
	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	go hub.Run(ctx)
	c := changes.NewConsumer(pool, hub, changes.ConsumerConfig{Name: "c", From: "start", Shards: shards, Batch: 5})
	c.Hurry()
	if step, nth, ok := strings.Cut(os.Getenv(killVar), " "); ok {
		left, err := strconv.Atoi(nth)
		if err != nil {
			panic(err)
		}
		var mu sync.Mutex
		c.Failpoint(func(b changes.Batch) {
			mu.Lock()
			defer mu.Unlock()
			if b.Step != step {
				return
			}
			if left--; left == 0 {
				if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
					panic(err)
				}
				select {} // until it has come
			}
		})
	}
	write := effect("c")
	c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		var lines bytes.Buffer
		for _, c := range cs {
			fmt.Fprintln(&lines, c.Position)
		}
		os.Stdout.Write(lines.Bytes()) // in one write
		for _, c := range cs {
			if string(c.Key) == `{"id":13}` {
				return errors.New("unlucky")
			}
		}
		return write(ctx, tx, cs)
	})
	fmt.Fprintln(os.Stderr, c.Run(ctx))
	return 1
}

// consumerCommand is a process that is a consumer.
func consumerCommand(t testing.TB, url string, shards int, kill string) *osexec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.Command(self)
	cmd.Env = append(os.Environ(), consumerVar+"="+url, shardsVar+"="+strconv.Itoa(shards), killVar+"="+kill, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// A consumer is killed at each step of its batches, and another goes on: what its
// handler wrote is there once for each change, in order, and what it did elsewhere at
// least once, under the same position; what it could not handle is parked once.
func TestC1KilledAtEveryStep(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	next := 0
	grow := func() {
		for range 6 { // transactions of one, two or three changes; 13 is parked, and then more of it
			exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series($1::int, $1 + $2) g ON CONFLICT (id) DO UPDATE SET v = a.v + 1`, next%17, next%3)
			next += 2
		}
	}
	called := map[string]int{}
	for i, step := range []string{"begun", "locked", "read", "calling", "called", "parked", "moving", "committed", "calling", "moving", "parked"} {
		grow()
		cmd := consumerCommand(t, url, 1, fmt.Sprintf("%s %d", step, 1+i%3))
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Some steps come only with more changes than there may be left.
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		deadline := time.NewTimer(patience)
		defer deadline.Stop()
		for more := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-more.C:
				exec(t, pool, `INSERT INTO a VALUES (13, 0) ON CONFLICT (id) DO UPDATE SET v = a.v + 1`)
				grow()
				continue
			case <-deadline.C:
				t.Fatalf("was not killed at %s: %s", step, log.String())
			case err := <-ended:
				if exit := (*osexec.ExitError)(nil); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("at %s: %v: %s", step, err, log.String())
				}
			}
			break
		}
		for line := range strings.Lines(out.String()) {
			called[strings.TrimSuffix(line, "\n")]++
		}
	}
	last := consumerCommand(t, url, 1, "")
	var out bytes.Buffer
	last.Stdout = &out
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all has been gone through", func() bool { return status(t, l, "c").Lag == 0 })
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatalf("Wait: %v", err)
	}
	if err := last.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	last.Wait()
	for line := range strings.Lines(out.String()) {
		called[strings.TrimSuffix(line, "\n")]++
	}

	feed, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	var want, unlucky, put []string
	repeats := 0
	for _, c := range feed {
		if string(c.Key) == `{"id":13}` {
			unlucky = append(unlucky, c.Position.String())
			continue
		}
		want = append(want, c.Position.String())
		if n := called[c.Position.String()]; n == 0 {
			t.Errorf("%s was not handed over", c.Position)
		} else if n > 1 {
			repeats++
		}
	}
	if diff := cmp.Diff(want, effectsOf(t, pool, "c")); diff != "" {
		t.Errorf("effects: %s", diff)
	}
	for _, p := range parked(t, l, "c") {
		put = append(put, p.Change.Position.String())
	}
	if diff := cmp.Diff(unlucky, put); diff != "" {
		t.Errorf("parked: %s", diff)
	}
	if repeats == 0 || len(unlucky) < 3 {
		t.Errorf("%d repeats, %d parked of %d: the test shows little", repeats, len(unlucky), len(want))
	}
}

// Three instances share four shards, and one of them is killed every now and then,
// under load: each change is handled once, those of a shard in order, by one instance
// at a time.
func TestC1C3C5InstancesKilledAtRandom(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	seed := chaosSeed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writing sync.WaitGroup
	for w := range 3 {
		writing.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(10+w)))
			for ctx.Err() == nil {
				first := random.IntN(40) + 14
				exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series($1::int, $1 + $2) g ON CONFLICT (id) DO UPDATE SET v = a.v + 1`, first, random.IntN(3))
				if random.IntN(50) == 0 {
					exec(t, pool, `INSERT INTO b VALUES (13, 0) ON CONFLICT (id) DO UPDATE SET v = b.v + 1`)
				}
			}
		})
	}
	var instances [3]*osexec.Cmd
	launch := func(i int) {
		instances[i] = consumerCommand(t, url, 4, "")
		if err := instances[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	end := func(i int) {
		if err := instances[i].Process.Kill(); err != nil {
			t.Fatal(err)
		}
		instances[i].Wait()
	}
	for i := range instances {
		launch(i)
	}
	eventually(t, "one has begun", func() bool { return registered(l, "c") })
	killed := 0
	for tick := time.NewTicker(150 * time.Millisecond); killed < 20; <-tick.C {
		i := random.IntN(len(instances))
		end(i)
		launch(i)
		killed++
	}
	stop()
	writing.Wait()
	eventually(t, "all has been gone through", func() bool {
		_, err := l.Sync(t.Context())
		return err == nil && status(t, l, "c").Lag == 0
	})
	for i := range instances {
		end(i)
	}
	all := positions(t, l, changes.Filter{Patterns: patterns(t, "public.a")})
	rows, _ := pool.Query(t.Context(), `SELECT position, abs(howdah.change_lane('public', 'a', key) % 4)::int FROM effects ORDER BY n`)
	var position string
	var shard int
	var got []string
	last := map[int]string{}
	if _, err := pgx.ForEachRow(rows, []any{&position, &shard}, func() error {
		if last[shard] != "" && inFeedOrder(last[shard], position) >= 0 {
			t.Errorf("on shard %d %s after %s", shard, position, last[shard])
		}
		last[shard] = position
		got = append(got, position)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, inFeedOrder)
	if diff := cmp.Diff(all, got); diff != "" {
		t.Errorf("seed %d: %s", seed, diff)
	}
	var unlucky, put []string
	for _, p := range parked(t, l, "c") {
		put = append(put, p.Change.Position.String())
	}
	unlucky = append(unlucky, positions(t, l, changes.Filter{Patterns: patterns(t, "public.b")})...)
	if diff := cmp.Diff(unlucky, put); diff != "" {
		t.Errorf("parked: %s", diff)
	}
	t.Logf("seed %d: %d changes, %d killed, %d parked", seed, len(all), killed, len(put))
	if len(last) != 4 {
		t.Errorf("%d shards: the test shows little", len(last))
	}
}

// The server is killed under load; consumers go on by themselves.
func TestC1ServerKilled(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, func(c *localpg.Config) { c.Settings = map[string]string{"max_connections": "30"} })
	ctx, stop := context.WithCancel(t.Context())
	var supervisor sync.WaitGroup
	defer supervisor.Wait()
	defer stop()
	l, pool := logOf(t, server.URL())
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	effects(t, pool)
	supervisor.Go(func() { server.Run(ctx) })
	start(t, server.URL(), changes.ConsumerConfig{Name: "c", From: "start", Batch: 3, Shards: 2}, func(c *changes.Consumer) { c.Handle("*", effect("c")) })
	write := func(n int) {
		eventually(t, "it can be written", func() bool {
			_, err := pool.Exec(t.Context(), `INSERT INTO a SELECT $1 * 10 + g, 1 FROM generate_series(0, 9) g ON CONFLICT (id) DO UPDATE SET v = a.v + 1`, n)
			return err == nil
		})
	}
	for i := range 60 {
		if i%20 == 10 {
			old := server.PID()
			if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is back", func() bool { return server.PID() != old })
		}
		write(i)
	}
	eventually(t, "the pool has found its lost connections", func() bool {
		_, err := l.Sync(t.Context())
		return err == nil && l.Wait(t.Context(), "c", changes.Position{}) == nil
	})
	handled(t, l, "c")
	got := effectsOf(t, pool, "c")
	slices.SortFunc(got, inFeedOrder)
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), got); diff != "" {
		t.Error(diff)
	}
	if s := status(t, l, "c"); s.Parked != 0 {
		t.Errorf("%+v", s)
	}
}
