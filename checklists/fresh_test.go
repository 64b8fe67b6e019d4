package checklists_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

// refusals counts the statements of batches that meet an item which is there.
type refusals struct{ n atomic.Int64 }

func (r *refusals) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	if pgErr := (*pgconn.PgError)(nil); errors.As(data.Err, &pgErr) && pgErr.Code == "23505" {
		r.n.Add(1)
	}
}

func (r *refusals) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (r *refusals) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}
func (r *refusals) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (r *refusals) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// watched is a store on the table of another, whose refusals are counted.
func watched(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) (*checklists.Store, *refusals) {
	t.Helper()
	r := new(refusals)
	cfg := pool.Config()
	cfg.ConnConfig.Tracer = r
	traced, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	return checklists.New(traced, checklists.Config{Table: s.Table()}), r
}

// Of many items those that are there stay as they are, whatever was tried first;
// and a list that had some is not tried with every call.
func TestInsertOfManySkipsWhatIsThere(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	made, pool := newStore(t)
	s, refused := watched(t, made, pool)
	mustAdd := func(want, refusals int64, items ...string) {
		t.Helper()
		before := refused.n.Load()
		if n, err := s.Insert(ctx, "l", items...); err != nil || n != want {
			t.Fatalf("Insert of %d = %d, %v, want %d", len(items), n, err, want)
		}
		if n := refused.n.Load() - before; n != refusals {
			t.Errorf("%d statements were refused, want %d", n, refusals)
		}
	}
	mustAdd(300, 0, numbered(300)...)
	mustAdd(200, 0, append(numbered(500)[300:], numbered(500)[400:]...)...) // each once
	if n, err := s.Increment(ctx, "l", "item-00299"); err != nil || n != 1 {
		t.Fatalf("Increment = %d, %v", n, err)
	}
	mustAdd(100, 1, numbered(600)[299:]...)
	mustAdd(0, 0, numbered(600)[299:]...)
	if item := get(t, s, "l", "item-00299"); item.Attempts != 1 {
		t.Errorf("%+v, want 1 attempt", item)
	}
	for i := range 16 {
		mustAdd(100, 0, numbered(1100 + 100*i)[1000+100*i:]...)
	}
	mustAdd(100, 1, numbered(700)[550:]...)
	mustAdd(1500, 0, append(numbered(4500)[3000:], numbered(4500)[3000:]...)...)
	if n := progress(t, s, "l").Left; n != 3800 {
		t.Errorf("%d are left, want 3,800", n)
	}
	mustNotDrift(t, pool)
}

// Items of one call are due in the order given, many of them too.
func TestInsertOfManyIsDueInTheOrderGiven(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	given := numbered(3000)
	slices.Reverse(given)
	insert(t, s, "l", given...)
	insert(t, s, "l", numbered(5900)[5000:]...)
	for _, want := range [][]string{given[:1000], given[1000:2000], given[2000:]} {
		got := claimed(claim(t, s, "l", 1000))
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("claimed %s to %s, want %s to %s", got[0], got[len(got)-1], want[len(want)-1], want[0])
		}
	}
}

// In a transaction of the caller's nothing is tried that could fail it.
func TestInsertOfManyInATransactionDoesNotFailIt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", numbered(200)...)
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if n, err := s.WithTx(tx).Insert(ctx, "l", numbered(300)[100:]...); err != nil || n != 100 {
			t.Errorf("Insert = %d, %v, want 100", n, err)
		}
		_, err := s.WithTx(tx).Insert(ctx, "l", "after")
		return err
	})
	if err != nil || len(names(t, s, "l")) != 301 {
		t.Errorf("%d items, %v, want 301", len(names(t, s, "l")), err)
	}
}

// Where a list keeps what is done, many items do not come back either.
func TestInsertOfManySkipsWhatIsKeptAsDone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if err := s.Set(ctx, "l", checklists.Settings{KeepDone: true, BackoffMax: time.Hour}); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "l", numbered(150)...)
	if n, err := s.Delete(ctx, "l", numbered(50)...); err != nil || n != 50 {
		t.Fatalf("Delete = %d, %v", n, err)
	}
	for _, want := range []int64{50, 0} {
		if n, err := s.Insert(ctx, "l", numbered(200)...); err != nil || n != want {
			t.Errorf("Insert = %d, %v, want %d", n, err, want)
		}
	}
	mustNotDrift(t, pool)
}

// Sixteen put overlapping parts of the same items on a list: each item is added
// once, and counted by one of them.
func TestInsertsOfManyAtOnceAddEachOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	var added atomic.Int64
	var all errgroup.Group
	for i := range 16 {
		all.Go(func() error {
			own := checklists.New(pool, checklists.Config{Table: s.Table()}) // which knows nothing of the others
			for j := range 4 {
				n, err := own.Insert(ctx, "l", numbered(1100)[100*((i+5*j)%8):][:400]...)
				if added.Add(n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := len(names(t, s, "l")); n != 1100 || added.Load() != 1100 {
		t.Errorf("%d items, %d added, want 1,100", n, added.Load())
	}
	mustNotDrift(t, pool)
}

// So it is on a connection on which the caller has begun a transaction by hand.
func TestInsertOfManyAfterABeginByHandDoesNotFailIt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	made, pool := newStore(t)
	insert(t, made, "l", numbered(200)...)
	pooled, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer pooled.Release()
	for name, db := range map[string]pg.DB{"a connection": pooled.Conn(), "one of a pool": pooled} {
		s := checklists.New(db, checklists.Config{Table: made.Table()}) // which knows nothing of the list
		if _, err := db.Exec(ctx, `BEGIN`); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Insert(ctx, "l", numbered(300)[100:]...); err != nil || n != 100 {
			t.Errorf("%s: Insert = %d, %v, want 100", name, n, err)
		}
		if n, err := s.Insert(ctx, "l", "after"); err != nil || n != 1 {
			t.Errorf("%s: then Insert = %d, %v, want 1", name, n, err)
		}
		if _, err := db.Exec(ctx, `ROLLBACK`); err != nil {
			t.Fatal(err)
		}
	}
}
