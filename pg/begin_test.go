package pg_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// A transaction that an SQL statement began is never ended by one in it. On a connection
// without one, on a pool and in a transaction there is nothing to refuse.
func TestBeginAfterABeginByHand(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Schema(t)
	pooled, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer pooled.Release()
	nothing := func(pgx.Tx) error { return nil }
	for name, db := range map[string]pg.DB{"a connection": pooled.Conn(), "one of a pool": pooled} {
		for _, end := range []string{`SELECT 1`, `SELECT 1/0`} { // of one that has failed, too
			if pg.Begun(db) {
				t.Errorf("%s: it has begun", name)
			}
			if err := pg.BeginFunc(ctx, db, nothing); err != nil {
				t.Errorf("%s: BeginFunc = %v", name, err)
			}
			if _, err := db.Exec(ctx, `BEGIN`); err != nil {
				t.Fatal(err)
			}
			_, _ = db.Exec(ctx, end)
			called := false
			err := pg.BeginFunc(ctx, db, func(pgx.Tx) error { called = true; return nil })
			if _, again := pg.Begin(ctx, db); !errors.Is(err, pg.ErrBegun) || !errors.Is(again, pg.ErrBegun) || !errors.Is(err, fault.Invalid) || called || !pg.Begun(db) {
				t.Errorf("%s: BeginFunc = %v, Begin = %v, called %v", name, err, again, called)
			}
			if tag, err := db.Exec(ctx, `COMMIT`); err != nil || pg.Begun(db) || end == `SELECT 1` && tag.String() != "COMMIT" {
				t.Errorf("%s: it was not the caller's to end: %v, %v", name, tag, err)
			}
		}
	}
	err = pg.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if !pg.Begun(tx) {
			t.Error("a transaction has not begun")
		}
		return pg.BeginFunc(ctx, tx, nothing)
	})
	if err != nil || pg.Begun(pool) {
		t.Errorf("on a pool: %v", err)
	}
}
