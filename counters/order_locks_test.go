package counters_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What writes many rows in a transaction of the caller's does not meet others in a circle:
// it waits for a row before it has one that comes after. Those who count here are a program
// of the original's, which goes from the shorter buckets to the longer and repeats nothing.
func TestInATransactionBesideTheOriginal(t *testing.T) {
	t.Parallel()
	type bucket struct {
		key string
		g   counters.Granularity
		at  time.Time
	}
	before := at.Add(-2 * time.Hour)
	day := at.Truncate(24 * time.Hour)
	early := time.Date(2001, 9, 9, 0, 0, 0, 0, time.UTC) // the next day has ten digits
	event := func(key string, at time.Time, g ...counters.Granularity) counters.Event {
		return counters.Event{Key: key, At: at, Values: counters.Values{"n": 1}, Granularities: g}
	}
	for _, mode := range modes {
		for what, one := range map[string]struct {
			striped   []string
			folded    []counters.Event // are in rows
			more      []counters.Event // of striped names are in slots
			fill      bool             // with metrics between a and z
			retention counters.Retention
			counted   []bucket // by the other: the first before, the others when that is waited for
			call      func(context.Context, *counters.Store) (int64, error)
			n         int64
			err       error
			left      string // of the 1h rows
		}{
			"Fold": {
				striped: []string{"k"},
				more:    []counters.Event{event("k", at)},
				counted: []bucket{{"k", "1m", at}, {"k", "1h", at}, {"k", "1d", at}},
				call:    func(ctx context.Context, s *counters.Store) (int64, error) { return s.Fold(ctx) },
				n:       7,
				left:    `k::1h::1746522000 {"n": 2}`,
			},
			"Delete": {
				striped: []string{"k"},
				folded:  []counters.Event{event("k", before)},
				more:    []counters.Event{event("k", at)},
				counted: []bucket{{"k", "1m", before}, {"k", "1h", before}, {"k", "1d", before}},
				call: func(ctx context.Context, s *counters.Store) (int64, error) {
					return s.Delete(ctx, "k", nil, time.Time{}, time.Time{})
				},
				n: 9,
			},
			"Prune": {
				folded:    []counters.Event{event("a", at), event("z", at)},
				fill:      true,
				retention: counters.Retention{"1m": 24 * time.Hour, "1h": 24 * time.Hour},
				counted:   []bucket{{"z", "1m", at}, {"a", "1h", at}},
				call: func(ctx context.Context, s *counters.Store) (int64, error) {
					return s.Prune(ctx, at.AddDate(1, 0, 0))
				},
				n: 1104,
			},
			"Rename of a striped name": {
				striped: []string{"k"},
				folded:  []counters.Event{event("k", before)},
				more:    []counters.Event{event("k", at)},
				counted: []bucket{{"k", "1m", before}, {"k", "1h", before}, {"k", "1d", before}},
				call: func(ctx context.Context, s *counters.Store) (int64, error) {
					return s.Rename(ctx, "k", "to")
				},
				n:    9,
				left: `to::1h::1746514800 {"n": 2} to::1h::1746522000 {"n": 1}`,
			},
			"Rename to what comes before": {
				folded:  []counters.Event{event("k", at, "1m", "1h")},
				counted: []bucket{{"b", "1m", at}, {"k", "1m", at}, {"k", "1h", at}},
				call: func(ctx context.Context, s *counters.Store) (int64, error) {
					return s.Rename(ctx, "k", "b")
				},
				err:  counters.ErrExists,
				left: `k::1h::1746522000 {"n": 2}`,
			},
			"Replace": {
				folded:  []counters.Event{event("k", at), event("k", at.AddDate(0, 0, 1))},
				counted: []bucket{{"k", "1m", at.AddDate(0, 0, 1)}, {"k", "1h", at.AddDate(0, 0, 1)}, {"k", "1mo", at}},
				call: func(ctx context.Context, s *counters.Store) (int64, error) {
					return s.Replace(ctx, "k", day, day.AddDate(0, 0, 2), sequenceOf([]counters.Event{event("", at), event("", at), event("", at.AddDate(0, 0, 1))}, nil))
				},
				n:    3,
				left: `k::1h::1746522000 {"n": 2} k::1h::1746608400 {"n": 1}`,
			},
			"Rebuild": {
				folded:  []counters.Event{event("k", early, "1h", "1d"), event("k", early.AddDate(0, 0, 1), "1h", "1d")},
				counted: []bucket{{"k", "1d", early.AddDate(0, 0, 1)}, {"k", "1d", early}},
				call: func(ctx context.Context, s *counters.Store) (int64, error) {
					return s.Rebuild(ctx, "k", "1d", early, early.AddDate(0, 0, 1))
				},
				n:    2,
				left: `k::1h::1000080000 {"n": 1} k::1h::999993600 {"n": 1}`,
			},
		} {
			if mode != counters.Full && what == "Rebuild" {
				one.counted[0], one.counted[1] = one.counted[1], one.counted[0]
			}
			t.Run(string(mode)+" "+what, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
				defer cancel()
				s, pool := newStriped(t, counters.Config{Mode: mode, Striped: one.striped, System: counters.Off, Retention: one.retention})
				for _, events := range [][]counters.Event{one.folded, one.more} {
					if _, err := s.Fold(ctx); err != nil {
						t.Fatal(err)
					}
					if _, err := s.Apply(ctx, events...); err != nil {
						t.Fatal(err)
					}
				}
				if one.fill {
					var events []counters.Event
					for i := range 1100 {
						events = append(events, event(fmt.Sprint("k", i), at, "1m"))
					}
					if _, err := s.Apply(ctx, events...); err != nil {
						t.Fatal(err)
					}
				}
				watched, _ := countingDeadlocks(t, pool)
				ours, theirs := begun(t, watched), begun(t, watched)
				o := original{mode: mode, calendar: counters.Calendar{Location: time.UTC, WeekStart: counters.Monday}}
				count := func(rows ...bucket) error {
					for _, b := range rows {
						if err := o.upsert(ctx, theirs, b.key, b.g, b.at, map[string]int{"n": 1}); err != nil {
							return err
						}
					}
					return nil
				}
				if err := count(one.counted[0]); err != nil {
					t.Fatal(err)
				}
				type result struct {
					n   int64
					err error
				}
				done := make(chan result, 1)
				go func() {
					n, err := one.call(ctx, s.WithTx(ours))
					done <- result{n, errors.Join(err, ours.Commit(ctx))} // or, had it met the other, that would wait on
				}()
				pgtest.Until(t, "one waits for the other", func() bool {
					if len(done) > 0 {
						t.Fatalf("%v, and did not wait", <-done)
					}
					return scalar[bool](t, pool, `SELECT $2::int = ANY (pg_blocking_pids($1::int))`, ours.Conn().PgConn().PID(), theirs.Conn().PgConn().PID())
				})
				if err := errors.Join(count(one.counted[1:]...), theirs.Commit(ctx)); err != nil {
					t.Errorf("who counts: %v", err)
					_ = theirs.Rollback(ctx)
				}
				did := <-done
				if !errors.Is(did.err, one.err) {
					t.Fatalf("%v, want %v", did.err, one.err)
				}
				if did.n != one.n {
					t.Errorf("%d, want %d", did.n, one.n)
				}
				whole := map[counters.Mode]string{
					counters.Full:      `key`,
					counters.Partial:   `key || '::' || extract(epoch FROM at)::bigint`,
					counters.Separated: `key || '::' || granularity || '::' || extract(epoch FROM at)::bigint`,
				}[mode]
				rows := `FROM (SELECT ` + whole + ` AS key, data FROM trifle_stats) AS t`
				if left := scalar[string](t, pool, `SELECT coalesce(string_agg(key || ' ' || data, ' ' ORDER BY key COLLATE "C"), '') `+rows+` WHERE key LIKE '%::1h::%'`); left != one.left {
					t.Errorf("%s is left, want %s", left, one.left)
				}
				if n := scalar[int](t, pool, `SELECT count(*) FROM trifle_stats WHERE data = '{}'`); n > 0 {
					t.Errorf("%d rows are empty", n)
				}
			})
		}
	}
}

// A Fold in a transaction makes no rows of what others hold, and leaves that to the next.
func TestFoldInATransactionLeavesWhatIsHeld(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		ctx := t.Context()
		s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"k", "l"}, Granularities: []counters.Granularity{"1h"}, System: counters.Off})
		if _, err := s.Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 1}}, counters.Event{Key: "l", At: at, Values: counters.Values{"n": 1}}); err != nil {
			t.Fatal(err)
		}
		ours, theirs := begun(t, pool), begun(t, pool)
		if _, err := theirs.Exec(ctx, `SELECT FROM howdah.counter_slots WHERE tbl = quote_ident(current_schema()) || '.trifle_stats' AND key LIKE 'k::%' FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		n, err := s.WithTx(ours).Fold(ctx)
		if err := errors.Join(err, ours.Commit(ctx)); err != nil || n != 1 {
			t.Errorf("%s: Fold = %d, %v, want 1", mode, n, err)
		}
		if n := scalar[int](t, pool, `SELECT count(*) FROM trifle_stats`); n != 1 {
			t.Errorf("%s: %d rows, want 1", mode, n)
		}
		if err := theirs.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Fold(ctx); err != nil || n != 1 {
			t.Errorf("%s: Fold = %d, %v, want 1", mode, n, err)
		}
	}
}

// What another has deleted while a Rename or a Delete waited for him was not there.
func TestDeletedWhileAnotherWaits(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		for name, do := range map[string]func(context.Context, *counters.Store) (int64, error){
			"rename": func(ctx context.Context, s *counters.Store) (int64, error) { return s.Rename(ctx, "k", "to") },
			"delete": func(ctx context.Context, s *counters.Store) (int64, error) {
				return s.Delete(ctx, "k", nil, time.Time{}, time.Time{})
			},
		} {
			t.Run(fmt.Sprint(name, " ", mode), func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
				defer cancel()
				s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"k"}, Granularities: []counters.Granularity{"1h"}, System: counters.Off})
				if _, err := s.Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 1}}); err != nil {
					t.Fatal(err)
				}
				ours, theirs := begun(t, pool), begun(t, pool)
				if n, err := s.WithTx(theirs).Delete(ctx, "k", nil, time.Time{}, time.Time{}); err != nil || n != 1 {
					t.Fatalf("their Delete = %d, %v, want 1", n, err)
				}
				done := make(chan error, 1)
				go func() {
					n, err := do(ctx, s.WithTx(ours))
					if err == nil && n != 0 {
						err = fmt.Errorf("%d rows, want 0", n)
					}
					done <- errors.Join(err, ours.Commit(ctx))
				}()
				pgtest.UntilSQL(t, pool, "one waits for the other", `SELECT $2::int = ANY (pg_blocking_pids($1::int))`,
					ours.Conn().PgConn().PID(), theirs.Conn().PgConn().PID())
				if err := errors.Join(theirs.Commit(ctx), pgtest.Receive(t, done, "the end of the other")); err != nil {
					t.Error(err)
				}
				if n := scalar[int](t, pool, `SELECT count(*) FROM trifle_stats`); n != 0 {
					t.Errorf("%d rows are left", n)
				}
			})
		}
	}
}

// A row that is of no bucket, as its time is no whole second, is deleted beside slots, too.
func TestDeleteOfWhatIsOfNoBucket(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Mode: counters.Separated, Striped: []string{"k"}, Granularities: []counters.Granularity{"1h"}, System: counters.Off})
	if _, err := s.Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 1}}); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `INSERT INTO trifle_stats (key, granularity, at, data) VALUES ('k', '1h', '2025-01-01 00:00:00.5Z', '{"n": 1}')`)
	ours := begun(t, pool)
	n, err := s.WithTx(ours).Delete(ctx, "k", nil, time.Time{}, time.Time{})
	if err := errors.Join(err, ours.Commit(ctx)); err != nil || n != 2 {
		t.Errorf("Delete = %d, %v, want 2", n, err)
	}
	if n := scalar[int](t, pool, `SELECT count(*) FROM trifle_stats`); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}
