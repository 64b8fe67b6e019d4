package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// newList returns a store on a database of the test's own with n items on "l".
func newList(t *testing.T, url string, n int) (*checklists.Store, *pgxpool.Pool) {
	t.Helper()
	if strings.Contains(url, "?") {
		url += "&search_path=iidy"
	} else {
		url += "?search_path=iidy"
	}
	pool := pgtest.Pool(t, url)
	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	if _, err := s.Import(t.Context(), "l", source(numbered(n)...), checklists.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	return s, pool
}

// Sixteen processes share a list, and one of them is killed every 200 ms: each item
// is done or dead in the end, no attempt begins twice, and each but an item's first
// follows a lease that ended.
func TestWorkersThatAreKilled(t *testing.T) {
	t.Parallel()
	total := pgtest.Size(100_000, 10_000)
	url := pgtest.Database(t)
	s, pool := newList(t, url, total)
	c := &crew{t: t, url: url, does: "nothing", began: map[string]int{}}
	c.work(16, 1000, 200*time.Millisecond)
	if p := progress(t, s, "l"); p.Done+p.Dead != int64(total) || p.Left != 0 || p.Leased != 0 {
		t.Errorf("%+v", p)
	}
	items, repeats := map[string]bool{}, 0
	for attempt, n := range c.began {
		item, number, _ := strings.Cut(attempt, " ")
		items[item] = true
		if n != 1 {
			t.Errorf("attempt %s began %d times", attempt, n)
		}
		if number != "1" {
			repeats++
		}
	}
	// Of an item whose worker was killed before it began there is no line.
	for _, item := range numbered(total) {
		if !items[item] {
			if _, err := s.Get(t.Context(), "l", item); err != nil {
				t.Errorf("%s is gone, and nobody did it", item)
			}
		}
	}
	if len(c.wrong) > 0 {
		t.Errorf("repeated without the end of a lease: %q", c.wrong)
	}
	t.Logf("%d killed, %d attempts were not the first", c.killed, repeats)
	if c.killed == 0 {
		t.Error("nobody was killed: the test shows nothing")
	}
	mustNotDrift(t, pool)
}

// What DoTx writes is there once for each item that is done, whoever is killed.
func TestEffectsOfWorkersThatAreKilled(t *testing.T) {
	t.Parallel()
	const total = 4000
	url := pgtest.Database(t)
	s, pool := newList(t, url, total)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE public.effects (item text)`); err != nil {
		t.Fatal(err)
	}
	c := &crew{t: t, url: url, does: "effect", began: map[string]int{}}
	c.work(4, 20, 100*time.Millisecond)
	var effects, items int64
	if err := pool.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT item) FROM public.effects`).Scan(&effects, &items); err != nil {
		t.Fatal(err)
	}
	p := progress(t, s, "l")
	t.Logf("%d killed, %+v", c.killed, p)
	if effects != items || effects != p.Done || p.Done+p.Dead != total || p.Left != 0 {
		t.Errorf("%d effects of %d items, %+v", effects, items, p)
	}
	if c.killed < 3 { // of 20, where there is time for them
		t.Errorf("only %d were killed: the test shows little", c.killed)
	}
	mustNotDrift(t, pool)
}

// A process that is frozen for longer than its lease, and comes back, touches
// nothing that is another's now.
func TestAWorkerThatWasFrozen(t *testing.T) {
	t.Parallel()
	ctx := within(t, patience)
	url := pgtest.Database(t)
	s, _ := newList(t, url, 1)
	began := make(chan string, 8)
	p := startWorker(t, url, "ask", func(line string) { began <- line })
	pgtest.Receive(t, began, "an attempt begins")
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var mine checklists.Claim
	eventually(t, "the lease ends", func() bool {
		var err error
		mine, err = s.Claim(ctx, "l", "me", 1, time.Minute)
		return err == nil && len(mine.Items) == 1
	})
	if mine.Items[0].Attempts != 2 || mine.Items[0].Error != "lease expired" {
		t.Errorf("%+v", mine)
	}
	if err := p.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(p.in) // its handler says done
	eventually(t, "it is told", func() bool { return strings.Contains(p.log.String(), "was not recorded: its lease was lost") })
	if item := get(t, s, "l", "item-00000"); item.Worker != "me" || item.State != checklists.StateLeased {
		t.Errorf("%+v", item)
	}
	if n, err := s.Done(ctx, mine.Lease); n != 1 || err != nil {
		t.Errorf("Done = %d, %v", n, err)
	}
	if err := pgtest.Receive(t, p.ended, "the end of the worker"); err != nil {
		t.Error(err)
	}
	if len(began) != 0 {
		t.Errorf("%d more began", len(began))
	}
	if got := progress(t, s, "l"); got.Done != 1 || got.Left != 0 {
		t.Errorf("%+v", got)
	}
}

// kill -9 of PostgreSQL under load: what was acknowledged as done is never handed
// out again, and nothing is gone that nobody wanted done.
func TestPostgresKilledUnderClaims(t *testing.T) {
	t.Parallel()
	total, kills := pgtest.Size(20_000, 8_000), 3
	server := pgtest.Server(t, func(c *localpg.Config) { c.Settings = map[string]string{"max_connections": "30"} })
	ctx, stop := context.WithCancel(within(t, 3*patience)) // of all of it
	var supervisor sync.WaitGroup
	defer supervisor.Wait()
	defer stop()
	s, pool := newList(t, server.URL(), total)
	supervisor.Go(func() { server.Run(ctx) })

	var mu sync.Mutex
	acknowledged, wanted := map[string]bool{}, map[string]bool{}
	var failures int
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	away := func(err error) bool {
		if errors.Is(err, fault.Unavailable) {
			mu.Lock()
			failures++
			mu.Unlock()
			return true
		}
		return false
	}
	var workers errgroup.Group
	for w := range 8 {
		workers.Go(func() error {
			for ctx.Err() == nil {
				c, err := s.Claim(ctx, "l", fmt.Sprint(w), 20, time.Second)
				switch {
				case away(err):
					continue
				case err != nil:
					return err
				case len(c.Items) == 0:
					left, err := s.AnyLeft(ctx, "l")
					if err == nil && !left {
						return nil
					}
					if err != nil && !away(err) {
						return err
					}
					continue
				}
				mu.Lock()
				for _, item := range claimed(c) {
					if acknowledged[item] {
						err = fmt.Errorf("%s was done, and is handed out again", item)
					}
					wanted[item] = true
				}
				mu.Unlock()
				if err != nil {
					return err
				}
				n, err := s.Done(ctx, c.Lease, claimed(c)...)
				switch {
				case away(err):
				case errors.Is(err, checklists.ErrLost) && n < int64(len(c.Items)): // it took longer than a second
				case err != nil:
					return err
				default:
					mu.Lock()
					for _, item := range claimed(c) {
						acknowledged[item] = true
					}
					mu.Unlock()
				}
			}
			return ctx.Err()
		})
	}
	for n := range kills {
		eventually(t, "some are done", func() bool { return count() > (n+1)*total/(kills+2) })
		old := server.PID()
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is back", func() bool { return server.PID() != old && pool.Ping(ctx) == nil })
	}
	if err := workers.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d acknowledged, %d calls failed", len(acknowledged), failures)
	for _, item := range numbered(total) {
		if !wanted[item] {
			t.Errorf("%s is gone, and nobody had it", item)
		}
	}
	if p := progress(t, s, "l"); p.Left != 0 || p.Done+p.Dead != int64(total) {
		t.Errorf("%+v", p)
	}
	if failures == 0 {
		t.Error("nothing failed: the test shows nothing")
	}
	mustNotDrift(t, pool)
}
