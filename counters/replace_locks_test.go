package counters_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Replace takes the slots of the finest buckets before those of coarser ones where they
// come before them, or none of them: also those of a bucket that had none when it began,
// and those that are put.
func TestReplaceLocksSlotsInOrder(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		for _, op := range []counters.Op{counters.OpAdd, counters.OpPut} {
			t.Run(string(mode)+" "+string(op), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				s, pool := newStriped(t, counters.Config{Mode: mode, Granularities: []counters.Granularity{"15m", "1h", "1d"}, System: counters.Off, Striped: []string{"k"}, Slots: 1})
				replacing, counting, day, hour := begun(t, pool), begun(t, pool), begun(t, pool), begun(t, pool)
				count := func(tx pgx.Tx, granularities ...counters.Granularity) error {
					_, err := s.WithTx(tx).Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 1}, Granularities: granularities})
					return err
				}
				start := at.Truncate(24 * time.Hour)
				// It has seen that there are no slots, and waits for the row of the day.
				if _, err := s.WithTx(day).Set(ctx, []counters.Key{{"k", "1d", "1746489600"}}, counters.Values{}); err != nil {
					t.Fatal(err)
				}
				replaced, counted := make(chan error, 1), make(chan error, 1)
				go func() {
					_, err := s.WithTx(replacing).Replace(ctx, "k", start, start.AddDate(0, 0, 1), sequenceOf([]counters.Event{{Op: op, At: at, Values: counters.Values{"n": 10}}}, nil))
					replaced <- err
				}()
				waitsFor(t, pool, replacing, day)
				// Then it has the slots of the day, and waits for those of the hour.
				if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
					t.Fatal(err)
				}
				if err := count(hour, "1h"); err != nil {
					t.Fatal(err)
				}
				if err := day.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				waitsFor(t, pool, replacing, hour)
				go func() { counted <- count(counting) }()
				waitsFor(t, pool, counting, replacing)
				if err := hour.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				if err := pgtest.Receive(t, replaced, "the end of Replace"); err != nil {
					t.Fatal(err)
				}
				if err := replacing.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				if err := pgtest.Receive(t, counted, "the end of Apply"); err != nil {
					t.Fatal(err)
				}
				if err := counting.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				if n, err := s.Fold(ctx); err != nil || slots(t, pool, "k") > 0 {
					t.Errorf("Fold = %d, %v; slots are left", n, err)
				}
				if found := differ(t, s, "k", "1d", "15m", at, at); len(found) > 0 {
					t.Errorf("%v", found)
				}
			})
		}
	}
}

// begun returns a transaction on a connection of its own.
func begun(t testing.TB, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// waitsFor waits until one transaction waits for another.
func waitsFor(t testing.TB, pool *pgxpool.Pool, one, other pgx.Tx) {
	t.Helper()
	pgtest.UntilSQL(t, pool, "one waits for the other", `SELECT $2::int = ANY (pg_blocking_pids($1::int))`,
		one.Conn().PgConn().PID(), other.Conn().PgConn().PID())
}
