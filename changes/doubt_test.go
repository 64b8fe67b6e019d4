package changes_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
)

// unheard is a transaction the answer to whose COMMIT is lost with the connection.
type unheard struct{ pgx.Tx }

func (tx *unheard) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return &unheardResults{tx.Tx.SendBatch(ctx, b), tx.Conn()}
}

type unheardResults struct {
	pgx.BatchResults
	conn *pgx.Conn
}

func (r *unheardResults) Close() error {
	if err := r.BatchResults.Close(); err != nil {
		return err
	}
	r.conn.PgConn().Conn().Close()
	return errors.New("the answer was lost")
}

// Calls are counted where PostgreSQL refused what a handler had left to its COMMIT, too.
func TestFailuresAtCommitAreCounted(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE waiting (id int REFERENCES b DEFERRABLE INITIALLY DEFERRED); INSERT INTO a VALUES (1, 1), (2, 1)`)
	var calls atomic.Int64
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 1}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			switch {
			case calls.Add(1) == 1:
				return errors.New("not now")
			case string(cs[0].Key) == `{"id":2}`:
				_, err := tx.Exec(ctx, `INSERT INTO public.waiting VALUES (1)`)
				return err
			}
			return nil
		})
	})
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	eventually(t, "it is given up", func() bool {
		all := parked(t, l, "c")
		return len(all) == 1 && all[0].Dead
	})
	v, err := l.Vitals(t.Context())
	if err != nil || len(v.Shards) != 1 || v.Shards[0].Failed != calls.Load()-1 {
		t.Errorf("Vitals() = %+v, %v; want %d calls that failed", v.Shards, err, calls.Load()-1)
	}
}

// Calls that failed are counted once, though nobody has heard that the checkpoint which
// tells of them was committed.
func TestFailuresAreCountedOnce(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 1), (3, 1)`)
	var calls, lost atomic.Int64
	const failures = 2
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			if calls.Add(1) <= failures {
				return errors.New("not now")
			}
			return effect("c")(ctx, tx, cs)
		})
		c.Failpoint(func(b changes.Batch) {
			if b.Step == "moving" && lost.Add(1) <= 2 {
				*b.Tx = &unheard{*b.Tx}
			}
		})
	})
	handled(t, l, "c")
	v, err := l.Vitals(t.Context())
	if err != nil || len(v.Shards) != 1 || v.Shards[0].Failed != failures || v.Shards[0].Handled != 3 || lost.Load() < 2 {
		t.Errorf("Vitals() = %+v, %v; want %d calls that failed and 3 changes, when %d answers were lost", v.Shards, err, failures, lost.Load())
	}
}
