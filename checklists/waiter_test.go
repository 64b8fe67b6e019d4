package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// newHub returns a hub that listens, until the test ends.
func newHub(t testing.TB, url string) *pg.Hub {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	hub := pg.NewHub(pg.HubConfig{Conn: cfg, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { hub.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	return hub
}

// newHeard returns a store and a hub on a database of the test's own.
func newHeard(t testing.TB) (*checklists.Store, *pgxpool.Pool, *pg.Hub) {
	t.Helper()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	return s, pool, newHub(t, url)
}

// patience is how long what must not take for ever may take, on a machine that is busy.
const patience = pgtest.Patience

// within bounds what must not take for ever.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// bellOf returns a subscription to the bell that has begun.
func bellOf(t testing.TB, hub *pg.Hub) <-chan pg.Notice {
	t.Helper()
	sub, err := hub.Subscribe("howdah_checklists")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sub.Close)
	hear(t, sub.C())
	return sub.C()
}

func hear(t testing.TB, c <-chan pg.Notice) pg.Notice {
	t.Helper()
	select {
	case n := <-c:
		return n
	case <-within(t, patience).Done():
		t.Fatal("the bell did not ring")
		return pg.Notice{}
	}
}

// Whatever makes items ready, and each change of settings, rings once; nothing else
// does, and nothing in a transaction of the caller's.
func TestTheBellRings(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool, hub := newHeard(t)
	bell := bellOf(t, hub)
	var lease checklists.Lease
	step := func(what string, rings bool, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		// What is sent after it arrives after it.
		if _, err := pool.Exec(ctx, `SELECT pg_notify('howdah_checklists', $1)`, what); err != nil {
			t.Fatal(err)
		}
		n := hear(t, bell)
		if rings {
			if n.Payload != "" || n.Gap {
				t.Errorf("%s: heard %+v, want a ring", what, n)
				return
			}
			n = hear(t, bell)
		}
		if n.Payload != what {
			t.Errorf("%s: heard %+v, want no ring", what, n)
		}
	}
	only := func(_ int64, err error) error { return err }
	step("insert", true, only(s.Insert(ctx, "l", "a", "b", "c")))
	step("claim", false, func() error {
		c, err := s.Claim(ctx, "l", "w", 3, time.Minute)
		lease = c.Lease
		return err
	}())
	step("done", false, only(s.Done(ctx, lease, "a")))
	step("release", true, only(s.Release(ctx, lease, "b")))
	step("fail", false, only(s.Fail(ctx, lease, checklists.Failure{Item: "c", RetryIn: -1})))
	step("redrive", true, only(s.Redrive(ctx, "l", checklists.Query{})))
	step("pause", true, s.Pause(ctx, "l", true))
	step("resume", true, s.Pause(ctx, "l", false))
	step("set", true, s.Set(ctx, "l", checklists.DefaultSettings))
	_, err := s.Import(ctx, "l", source("x", "y"), checklists.ImportOptions{})
	step("import", true, err)
	_, err = s.Import(ctx, "l", source("y", "z"), checklists.ImportOptions{})
	step("import of some that are there", true, err)
	w := running(t, s)
	step("a Writer's insert", true, only(w.Insert(ctx, "l", "shared")))
	step("a Writer's increment", false, only(w.Increment(ctx, "l", "shared")))
	step("a Writer's delete", false, only(w.Delete(ctx, "l", "shared")))
	step("transaction", false, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := s.WithTx(tx).Insert(ctx, "l", "tx")
		_, imported := s.WithTx(tx).Import(ctx, "l", source("ty"), checklists.ImportOptions{})
		return errors.Join(err, imported)
	}))
}

// Nobody waits for somebody else's bell.
func TestABellThatIsBeingRungIsLeftOut(t *testing.T) {
	t.Parallel()
	s, pool, _ := newHeard(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock(1752135524, 3)`); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Insert(within(t, patience), "l", "a"); n != 1 || err != nil {
		t.Errorf("Insert = %d, %v", n, err)
	}
}

// Who is told to wait no longer before the first look has found nothing, and no error.
func TestAClaimThatMayNotWait(t *testing.T) {
	t.Parallel()
	s, _, hub := newHeard(t)
	insert(t, s, "l", "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := checklists.NewWaiter(s, hub)
	if c, err := w.Claim(ctx, "l", "w", 1, time.Minute, time.Minute); err != nil || c.Items == nil || len(c.Items) != 0 {
		t.Errorf("Claim = %+v, %v, want no items and no error", c, err)
	}
	if c, err := w.Claim(ctx, "l", "w", 1, time.Minute, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Claim that does not wait = %+v, %v, want Canceled", c, err)
	}
}

func TestAWaitingClaim(t *testing.T) {
	t.Parallel()
	ctx := within(t, patience)
	s, pool, hub := newHeard(t)
	for name, w := range map[string]*checklists.Waiter{"woken": checklists.NewWaiter(s, hub), "looking": checklists.NewWaiter(s, nil)} {
		insert(t, s, name, "a", "b")
		if c, err := w.Claim(ctx, name, "w", 1, time.Minute, time.Minute); err != nil || len(c.Items) != 1 || c.Token == "" {
			t.Fatalf("%s: what is ready: %+v, %v", name, c, err)
		}
		if _, err := s.Delete(ctx, name, "a", "b"); err != nil {
			t.Fatal(err)
		}
		if c, err := w.Claim(ctx, name, "w", 1, time.Minute, 30*time.Millisecond); err != nil || c.Items == nil || len(c.Items) != 0 || c.Paused {
			t.Errorf("%s: nothing is ready: %+v, %v", name, c, err)
		}
		// Ten wait for ten, each for one; a paused list keeps them waiting.
		if err := s.Pause(ctx, name, true); err != nil {
			t.Fatal(err)
		}
		if c, err := w.Claim(ctx, name, "w", 1, time.Minute, 0); err != nil || !c.Paused {
			t.Errorf("%s: paused: %+v, %v", name, c, err)
		}
		var group errgroup.Group
		for i := range 10 {
			group.Go(func() error {
				c, err := w.Claim(ctx, name, fmt.Sprint(i), 1, time.Minute, time.Minute)
				if err == nil && len(c.Items) != 1 {
					err = fmt.Errorf("%+v", c)
				}
				return err
			})
		}
		for i := range 10 {
			insert(t, s, name, fmt.Sprint(i))
		}
		if err := s.Pause(ctx, name, false); err != nil {
			t.Fatal(err)
		}
		if err := group.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Time makes ready without a bell.
		var waiting errgroup.Group
		waiting.Go(func() error {
			c, err := w.Claim(ctx, name, "w", 10, time.Minute, time.Minute)
			if err == nil && len(c.Items) == 0 {
				err = errors.New("no items")
			}
			return err
		})
		if _, err := pool.Exec(ctx, `UPDATE iidy.lists SET due = now() - interval '1 second' WHERE list = $1`, name); err != nil {
			t.Fatal(err)
		}
		if err := waiting.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAWaitingClaimThatIsGivenUp(t *testing.T) {
	t.Parallel()
	s, pool, hub := newHeard(t)
	w := checklists.NewWaiter(s, hub)
	ctx, stop := context.WithCancel(t.Context())
	var group errgroup.Group
	for range 2 {
		group.Go(func() error {
			c, err := w.Claim(ctx, "l", "w", 1, time.Minute, time.Minute)
			if err == nil && len(c.Items) > 0 {
				err = errors.New("something")
			}
			if errors.Is(err, context.Canceled) {
				err = nil // on a busy machine it had not looked yet
			}
			return err
		})
	}
	time.AfterFunc(20*time.Millisecond, stop)
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	// Somebody who leaves while the claim is under way has not used it up.
	insert(t, s, "l", "a")
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `LOCK iidy.lists`); err != nil {
		t.Fatal(err)
	}
	ctx, stop = context.WithCancel(t.Context())
	group.Go(func() error {
		c, err := w.Claim(ctx, "l", "w", 1, time.Minute, time.Minute)
		if err != nil || len(c.Items) > 0 {
			return fmt.Errorf("%+v, %v", c, err)
		}
		return nil
	})
	eventually(t, "the claim waits", func() bool {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'iidy.lists'::regclass
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n)
		return err == nil && n > 0
	})
	stop()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if item := get(t, s, "l", "a"); item.Attempts != 0 || item.State != checklists.StateReady {
		t.Errorf("%+v", item)
	}
}

func TestAWaitingClaimRefuses(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	w := checklists.NewWaiter(s, nil)
	for _, wait := range []time.Duration{-1, time.Minute + 1} {
		if _, err := w.Claim(t.Context(), "l", "w", 1, time.Minute, wait); !errors.Is(err, fault.Invalid) {
			t.Errorf("wait %v: %v", wait, err)
		}
	}
	if _, err := w.Claim(t.Context(), "l", "w", 0, time.Minute, time.Second); !errors.Is(err, fault.Invalid) {
		t.Errorf("count 0: %v", err)
	}
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := checklists.NewWaiter(s.WithTx(tx), nil).Claim(t.Context(), "l", "w", 1, time.Minute, time.Second)
		return err
	})
	if !errors.Is(err, fault.Invalid) {
		t.Errorf("in a transaction: %v", err)
	}
}

var eventually = pgtest.Until
