package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Workers that vanish with what they have, leases that end, and workers that
// come back late: in the end each item is done or dead, and none is done twice.
func TestLeasesThatEndUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	leasesEndUnderLoad(t, s, pool)
}

func leasesEndUnderLoad(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) {
	ctx := within(t, patience)
	const total = 2000
	items := make([]string, total)
	for i := range items {
		items[i] = fmt.Sprintf("item-%04d", i)
	}
	insert(t, s, "l", items...)
	s = checklists.New(wide(t, pool), checklists.Config{Table: tableOf(t, pool)})
	var done atomic.Int64
	ended := make(chan struct{})
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var clock, workers errgroup.Group
	clock.Go(func() error { // time passes in the rows only
		for {
			select {
			case <-ended:
				return nil
			default:
			}
			// In the order that everybody locks items in: a deadlock is an error here.
			_, err := pool.Exec(ctx, `
				WITH k AS MATERIALIZED (
					SELECT item FROM lists WHERE list = 'l' AND due < 'infinity' AND due > now() ORDER BY item COLLATE "C" FOR NO KEY UPDATE)
				UPDATE lists l SET due = due - interval '1 hour' FROM k WHERE l.list = 'l' AND l.item = k.item`)
			if err != nil {
				stop(err) // or the workers would wait for ever
				return err
			}
		}
	})
	for w := range 8 {
		workers.Go(func() error {
			random := rand.New(rand.NewPCG(3, uint64(w)))
			for {
				c, err := s.Claim(ctx, "l", fmt.Sprint(w), 20, time.Minute)
				if err != nil {
					return err
				}
				if len(c.Items) == 0 {
					if p, err := s.Progress(ctx, "l"); err != nil || p.Left == 0 {
						return err
					}
					continue
				}
				switch random.IntN(4) {
				case 0: // vanishes
				case 1:
					fs := []checklists.Failure{{Item: c.Items[0].Name, Error: "no"}}
					if _, err := s.Fail(ctx, c.Lease, fs...); ignoreLost(err) != nil {
						return err
					}
				default:
					n, err := s.Done(ctx, c.Lease, claimed(c)...)
					if ignoreLost(err) != nil {
						return err
					}
					done.Add(n)
				}
			}
		})
	}
	err := workers.Wait()
	close(ended)
	if err != nil {
		t.Fatal(err)
	}
	if err := clock.Wait(); err != nil {
		t.Fatal(err)
	}
	p, err := s.Progress(t.Context(), "l")
	if err != nil || p.Done != done.Load() || p.Done+p.Dead != total || p.Left != 0 || p.Leased != 0 {
		t.Errorf("%d done as told; %+v, %v", done.Load(), p, err)
	}
	if p.Failed == 0 {
		t.Error("nothing failed: the test shows nothing")
	}
	mustNotDrift(t, pool)
}

// Rows that change while a call waits for them are not where it saw them; they are
// done all the same, and once.
func TestDoneWaitsForWhoChangesItsItems(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	// However the rows are found: few items, many of a lease that holds no more, and of
	// one that holds many more.
	for i, size := range []struct{ held, done int64 }{{3, 3}, {150, 150}, {400, 120}} {
		list := fmt.Sprint("list ", i)
		insert(t, s, list, numbered(int(size.held))...)
		c := claim(t, s, list, int(size.held))
		items := numbered(int(size.done))
		whileChanging(t, pool, `
			UPDATE lists SET due = due + interval '1 minute' WHERE item = '`+items[1]+`';
			UPDATE lists SET lease = gen_random_uuid() WHERE item = '`+items[2]+`'`, func(ctx context.Context) error {
			n, err := s.Done(ctx, c.Lease, append(items, "unknown")...)
			if n != size.done-1 || !errors.Is(err, checklists.ErrLost) || !strings.Contains(err.Error(), "lost 2 of") {
				return fmt.Errorf("%d, %w; want all but 2", n, err)
			}
			return nil
		})
		if got := progress(t, s, list); got.Done != size.done-1 || got.Left != size.held-size.done+1 {
			t.Errorf("%+v: %+v", size, got)
		}
	}
	mustNotDrift(t, pool)
}

func TestIncrementAndDeleteWaitForWhoChangesTheirItems(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b", "c", "d")
	all := []string{"a", "b", "c", "d", "unknown"}
	for _, call := range []struct {
		do   func(context.Context, string, ...string) (int64, error)
		want int64
	}{{s.Increment, 3}, {s.Delete, 2}} { // each time the last but one is gone
		whileChanging(t, pool, `
			UPDATE lists SET attempts = attempts + 10 WHERE item = 'b';
			DELETE FROM lists WHERE item = (SELECT max(item) FROM lists)`, func(ctx context.Context) error {
			if n, err := call.do(ctx, "l", all...); n != call.want || err != nil {
				return fmt.Errorf("%d, %w; want %d", n, err, call.want)
			}
			return nil
		})
		for name, want := range map[string]int{"a": 1, "b": 11} {
			if item, err := s.Get(t.Context(), "l", name); call.want == 3 && (err != nil || item.Attempts != want) {
				t.Errorf("%+v, %v, want %d attempts", item, err, want)
			}
		}
	}
	if got := progress(t, s, "l"); got.Done != 4 || got.Left != 0 {
		t.Errorf("%+v", got)
	}
}

// What waited for another, and then fails on what that one changed, has done nothing.
func TestIncrementAndDeleteAreWholeWhoeverTheyWaitedFor(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b", "c")
	if _, err := pool.Exec(t.Context(), `
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'as asked'; END $$;
		CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON lists FOR EACH ROW WHEN (OLD.attempts >= 10) EXECUTE FUNCTION refuse()`); err != nil {
		t.Fatal(err)
	}
	for round, do := range []func(context.Context, string, ...string) (int64, error){s.Increment, s.Delete} {
		item := []string{"b", "c"}[round]
		whileChanging(t, pool, `UPDATE lists SET attempts = 10 WHERE item = '`+item+`'`, func(ctx context.Context) error {
			if n, err := do(ctx, "l", "a", item); n != 0 || err == nil || !strings.Contains(err.Error(), "as asked") {
				return fmt.Errorf("%d, %w", n, err)
			}
			return nil
		})
		if a, err := s.Get(t.Context(), "l", "a"); err != nil || a.Attempts != 0 {
			t.Errorf("%+v, %v", a, err)
		}
	}
}

// whileChanging runs sql in a transaction, which commits when do waits for it.
func whileChanging(t *testing.T, pool *pgxpool.Pool, sql string, do func(context.Context) error) {
	t.Helper()
	ctx := t.Context()
	other, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(context.WithoutCancel(ctx))
	if _, err := other.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
	var done errgroup.Group
	done.Go(func() error { return do(ctx) })
	pgtest.UntilSQL(t, pool, "the call waits for the other", `
		SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid)))`, other.Conn().PgConn().PID())
	if err := other.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := done.Wait(); err != nil {
		t.Error(err)
	}
}
