package pg_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// TestBatcherModel puts random values to random keys, poisoned ones among them,
// under random limits, and compares answers and rows with what one caller after
// the other would have got.
func TestBatcherModel(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	base := newLogbook(t, pool)
	var round int
	rapid.Check(t, func(rt *rapid.T) {
		round++
		cfg := base
		cfg.MaxBatch = rapid.IntRange(1, 20).Draw(rt, "MaxBatch")
		cfg.Parallel = rapid.IntRange(1, 3).Draw(rt, "Parallel")
		if rapid.Bool().Draw(rt, "by arrival") {
			cfg.Compare = nil
		}
		if rapid.Bool().Draw(rt, "sized") {
			cfg.Size = func(_, v string) int { return len(v) }
			cfg.MaxBatchBytes = rapid.IntRange(6, 40).Draw(rt, "MaxBatchBytes")
		}
		var mu sync.Mutex
		heard := map[string]int{}
		cfg.Failed = func(_, v string, _ error) {
			mu.Lock()
			defer mu.Unlock()
			heard[v]++
		}
		type op struct {
			Key          int
			Poison, Wait bool
		}
		ops := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) op {
			return op{
				Key:    rapid.IntRange(0, 3).Draw(rt, "key"),
				Poison: rapid.IntRange(0, 5).Draw(rt, "poison") == 0,
				Wait:   rapid.Bool().Draw(rt, "wait"),
			}
		}), 1, 40).Draw(rt, "ops")
		start := rapid.IntRange(0, len(ops)).Draw(rt, "start")

		b := pg.NewBatcher(cfg)
		ctx := soon(t)
		runCtx, stop := context.WithCancel(ctx)
		defer stop()
		ran := make(chan error, 1)
		want := map[string]string{}
		failed := map[string]int{}
		answers := make([]<-chan answer, len(ops))
		lengths := make([]int, len(ops))
		for i, op := range ops {
			if i == start {
				go func() { ran <- b.Run(runCtx) }()
			}
			key, val := fmt.Sprint(round, " ", op.Key), fmt.Sprintf("%d,", i)
			if op.Poison {
				val = "poison"
			} else {
				want[key] += val
			}
			lengths[i] = len(want[key])
			if op.Wait && i < start { // then its arrival can be waited for
				answers[i] = put(ctx, b, key, val)
				taken(t, b, i+1)
				continue
			}
			if err := b.Post(ctx, key, val); err != nil {
				rt.Fatalf("Post = %v", err)
			}
			if op.Poison {
				failed[val]++
			}
		}
		if start == len(ops) {
			go func() { ran <- b.Run(runCtx) }()
		}
		if rapid.Bool().Draw(rt, "sync") {
			if err := b.Sync(ctx); err != nil {
				rt.Fatalf("Sync = %v", err)
			}
		}
		stop()
		if err := pgtest.Receive(t, ran, "the end of Run"); err != nil {
			rt.Fatalf("Run = %v", err)
		}
		for i, a := range answers {
			if a == nil {
				continue
			}
			got := answered(t, a)
			if ops[i].Poison != (got.err != nil) || got.err == nil && got.n != lengths[i] {
				rt.Errorf("Put %d = %v, want %d, poisoned: %v", i, got, lengths[i], ops[i].Poison)
			}
		}
		if fmt.Sprint(heard) != fmt.Sprint(failed) {
			rt.Errorf("Failed heard of %v, want %v", heard, failed)
		}
		rows := logged(t, pool)
		for k := range 4 {
			key := fmt.Sprint(round, " ", k)
			if rows[key] != want[key] {
				rt.Errorf("%s = %q, want %q", key, rows[key], want[key])
			}
		}
		if s := b.Stats(); s.Pending != 0 || int(s.Written+s.Failed) != len(ops) {
			rt.Errorf("Stats = %+v, want %d decided", s, len(ops))
		}
	})
}

// TestBatcherUnderChaos puts from many callers while connections are cut around
// COMMIT and elsewhere and backends are killed. Every value is acknowledged and
// in its row once, in its caller's order.
func TestBatcherUnderChaos(t *testing.T) {
	t.Parallel()
	direct := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, direct)
	admin := pgtest.Pool(t, direct)
	cfg := newLogbook(t, admin)
	cfg.Pool = pgtest.Pool(t, proxy.URL())
	cfg.Parallel, cfg.MaxBatch = 2, 50
	b := pg.NewBatcher(cfg)
	stop := run(t, b)

	ctx, over := context.WithTimeout(context.Background(), 5*patience) // of all of it
	defer over()
	var stir, callers sync.WaitGroup
	calm := make(chan struct{})
	stir.Go(func() {
		for written := uint64(0); ; {
			// One trouble at a time, or pauses grow and the test with them.
			for wait := time.Duration(0); b.Stats().Flushes == written || wait == 0; wait++ {
				select {
				case <-calm:
					return
				case <-time.After(rand.N(10 * time.Millisecond)):
				}
			}
			written = b.Stats().Flushes
			switch rand.N(5) {
			case 0:
				proxy.Cut()
			case 1:
				proxy.CutOn([]byte("commit"))
			case 2:
				proxy.Drop([]byte("commit"))
			case 3:
				proxy.CutOn([]byte("begin"))
			case 4:
				_, _ = admin.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL`)
			}
		}
	})
	const clients, each, keys = 12, 40, 3
	var bad atomic.Int32
	for c := range clients {
		callers.Go(func() {
			for i := range each {
				v, key := fmt.Sprintf("%d.%d;", c, i), fmt.Sprint(c%keys)
				if i%8 == 5 {
					if _, err := b.Put(ctx, key, "poison"); err == nil || errors.Is(err, pg.ErrOutcomeUnknown) {
						t.Errorf("Put(poison) = %v", err)
						bad.Add(1)
					}
				}
				if _, err := b.Put(ctx, key, v); err != nil {
					t.Errorf("Put(%s) = %v", v, err)
					bad.Add(1)
				}
			}
		})
	}
	callers.Wait()
	close(calm)
	stir.Wait()
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	rows := logged(t, admin)
	for c := range clients {
		next := 0
		for _, v := range strings.Split(rows[fmt.Sprint(c%keys)], ";") {
			if mine, ok := strings.CutPrefix(v, fmt.Sprint(c, ".")); ok {
				if mine != fmt.Sprint(next) {
					t.Errorf("client %d: %s comes where %d should", c, mine, next)
				}
				next++
			}
		}
		if next != each {
			t.Errorf("client %d: %d values in the table, want %d", c, next, each)
		}
	}
	t.Logf("%+v", b.Stats())
}

// proxied returns a journal behind a proxy in front of url, and a pool past it.
func proxied(t *testing.T, url string) (logbookConfig, *pgtest.Proxy, *pgxpool.Pool) {
	t.Helper()
	proxy := pgtest.NewProxy(t, url)
	direct := pgtest.Pool(t, url)
	cfg := newLogbook(t, direct)
	cfg.Pool = pgtest.Pool(t, proxy.URL())
	return cfg, proxy, direct
}

func TestBatcherAsksAfterALostCommit(t *testing.T) {
	t.Parallel()
	cfg, proxy, direct := proxied(t, pgtest.Database(t))
	b := pg.NewBatcher(cfg)
	run(t, b)
	for i, lose := range []func([]byte){proxy.CutOn, proxy.Drop} {
		lose([]byte("commit"))
		if n, err := b.Put(soon(t), "k", "x"); n != i+1 || err != nil {
			t.Errorf("Put = %d, %v, want %d", n, err, i+1)
		}
	}
	if got := logged(t, direct)["k"]; got != "xx" {
		t.Errorf("k = %q, want xx", got)
	}
	// The COMMIT that was dropped is repeated. The one that was forwarded is, too,
	// where the backend was so slow to read it that it was ended first.
	if s := b.Stats(); s.Retries < 1 || s.Retries > 2 || s.Flushes != 2 {
		t.Errorf("Stats = %+v, want a repeat of the COMMIT that was dropped", s)
	}
}

// An Idempotent Flush may not be asked about, but it is repeated as it was.
func TestBatcherRepeatsWithTheSameSeq(t *testing.T) {
	t.Parallel()
	cfg, proxy, direct := proxied(t, pgtest.Database(t))
	if _, err := direct.Exec(soon(t), "CREATE TABLE receipt (seq bigint PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	var skipped atomic.Int32
	cfg.Idempotent = true
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		tag, err := tx.Exec(ctx, "INSERT INTO receipt VALUES ($1) ON CONFLICT DO NOTHING", batch.Seq)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			skipped.Add(1)
			return nil
		}
		return flushLogbook(ctx, tx, batch)
	}
	b := pg.NewBatcher(cfg)
	run(t, b)
	for _, lose := range []func([]byte){proxy.CutOn, proxy.Drop} {
		lose([]byte("commit"))
		if _, err := b.Put(soon(t), "k", "x"); err != nil {
			t.Errorf("Put = %v", err)
		}
	}
	if got := logged(t, direct)["k"]; got != "xx" || skipped.Load() != 1 {
		t.Errorf("k = %q, %d flushes skipped, want xx, 1", got, skipped.Load())
	}
}

func TestBatcherSaysWhatNobodyKnows(t *testing.T) {
	t.Parallel()
	cfg, proxy, _ := proxied(t, pgtest.Database(t))
	cfg.DrainFor = 10 * time.Millisecond
	var flushed atomic.Bool
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		flushed.Store(true)
		proxy.CutOn([]byte("commit"))
		proxy.Refuse(true)
		return flushLogbook(ctx, tx, batch)
	}
	b := pg.NewBatcher(cfg)
	stop := run(t, b)
	a := put(soon(t), b, "k", "x")
	eventually(t, "the connection is cut", func() bool { return flushed.Load() && cfg.Pool.Stat().TotalConns() == 0 })
	if err := stop(); err == nil || !strings.Contains(err.Error(), "of 1 it is unknown") {
		t.Errorf("Run = %v, want 1 unknown", err)
	}
	if got := answered(t, a); !errors.Is(got.err, pg.ErrOutcomeUnknown) {
		t.Errorf("Put = %v, want ErrOutcomeUnknown", got.err)
	}
}

// A network that goes silent leaves a backend that waits for COMMIT and holds the
// row: it must be ended, or the repeat would wait for hours.
func TestBatcherEndsWhatItLeftBehind(t *testing.T) {
	t.Parallel()
	for _, silent := range []string{"in flush", "in commit"} {
		t.Run(silent, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			cfg, proxy, direct := proxied(t, url)
			pc, err := pgxpool.ParseConfig(proxy.URL())
			if err != nil {
				t.Fatal(err)
			}
			there, err := pgx.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			var dialed, flushed atomic.Int32
			pc.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
				if dialed.Add(1) > 1 { // another way is open
					c.Host, c.Port, c.TLSConfig, c.Fallbacks = there.Host, there.Port, there.TLSConfig, nil
				}
				return nil
			}
			if cfg.Pool, err = pgxpool.NewWithConfig(soon(t), pc); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cfg.Pool.Close)
			cfg.Timeout = 500 * time.Millisecond
			cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
				err := flushLogbook(ctx, tx, batch)
				if flushed.Add(1) == 1 {
					proxy.Stall(true)
					if silent == "in flush" {
						_, err = tx.Exec(ctx, "SELECT 1")
					}
				}
				return err
			}
			b := pg.NewBatcher(cfg)
			run(t, b)
			if n, err := b.Put(soon(t), "k", "x"); n != 1 || err != nil {
				t.Errorf("Put = %d, %v, want 1", n, err)
			}
			proxy.Stall(false) // or the pool cannot close
			if got := logged(t, direct)["k"]; got != "x" {
				t.Errorf("k = %q, want x", got)
			}
		})
	}
}

// What a server says of a transaction number after it has been away is only
// believed as far as the number must still be ours.
func TestBatcherAcrossRestarts(t *testing.T) {
	t.Parallel()
	var conf localpg.Config
	server := pgtest.Server(t, func(c *localpg.Config) { c.Settings = map[string]string{"fsync": "off"}; conf = *c })
	conf.Dir = server.Dir()

	restart := func() {
		stop(t, server)
		// A clean restart; the server that pgtest stops at the end is another handle of it.
		again, err := localpg.Start(soon(t), conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(t, again) })
	}
	crash := func() { // one backend dies and the server throws out all and recovers
		victim, err := pgx.Connect(soon(t), server.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer victim.Close(soon(t))
		witness, err := pgx.Connect(soon(t), server.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer witness.Close(soon(t))
		if err := syscall.Kill(int(victim.PgConn().PID()), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the crash", func() bool { return witness.Ping(soon(t)) != nil })
	}
	cfg, proxy, direct := proxied(t, server.URL())
	for _, c := range []struct {
		name    string
		done    bool // COMMIT, before the server goes away
		away    func()
		unknown bool
	}{
		{"lost on the way there, crash", false, crash, false},
		{"lost on the way back, crash", true, crash, true},
		{"lost on the way there, restart", false, restart, false},
		{"lost on the way back, restart", true, restart, false},
	} {
		proxy.Refuse(false)
		var flushed atomic.Int32
		cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
			if flushed.Add(1) == 1 {
				if c.done {
					proxy.CutOn([]byte("commit"))
				} else {
					proxy.Drop([]byte("commit"))
				}
				proxy.Refuse(true)
			}
			return flushLogbook(ctx, tx, batch)
		}
		b := pg.NewBatcher(cfg)
		end := run(t, b)
		a := put(soon(t), b, c.name, "x")
		eventually(t, "the connection is cut", func() bool { return flushed.Load() == 1 && cfg.Pool.Stat().TotalConns() == 0 })
		if c.done {
			eventually(t, "the commit", func() bool { return logged(t, direct)[c.name] == "x" })
		}
		direct.Reset() // does not survive what comes
		c.away()
		proxy.Refuse(false)
		if got := answered(t, a); errors.Is(got.err, pg.ErrOutcomeUnknown) != c.unknown || got.err != nil && !c.unknown {
			t.Errorf("%s: Put = %v, want unknown: %v", c.name, got, c.unknown)
		}
		if err := end(); err != nil {
			t.Errorf("%s: Run = %v", c.name, err)
		}
		var val string
		if err := cfg.Pool.QueryRow(soon(t), "SELECT val FROM journal WHERE key = $1", c.name).Scan(&val); err != nil || val != "x" {
			t.Errorf("%s: row = %q, %v, want x", c.name, val, err)
		}
	}
}
