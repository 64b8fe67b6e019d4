package counters_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// keysOf returns the keys of all rows, as stored has them, that begin so.
func keysOf(t testing.TB, s *counters.Store, prefix string) (n int) {
	t.Helper()
	for key := range stored(t, s) {
		if strings.HasPrefix(key, prefix) {
			n++
		}
	}
	return n
}

// The buckets that a query would show are deleted, and nothing of metrics whose names
// begin so.
func TestDelete(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h", "1d"}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		times := []time.Time{time.Unix(-86400, 0), time.Unix(86400, 0), at, at.Add(time.Hour), at.AddDate(0, 0, 1), time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC)}
		names := []string{"k", "k::1h", "k::7", "k2", "K"}
		for _, name := range names {
			for _, when := range times {
				if _, err := s.Apply(ctx, counters.Event{Key: name, At: when, Values: counters.Values{"n": 1}}, counters.Event{Key: name, At: when, Values: counters.Values{"n": 1}, Granularities: []counters.Granularity{"5m"}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		const each = 6 + 5 + 6 // hours, days, five minutes
		for i, step := range []struct {
			g        []counters.Granularity
			from, to time.Time
			want     int64
		}{
			{[]counters.Granularity{"1h"}, at.Add(20 * time.Minute), at.Add(20 * time.Minute), 1},
			{[]counters.Granularity{"1h", "1d"}, at, at, 1}, // the hour is gone
			{[]counters.Granularity{"1mo"}, time.Time{}, time.Time{}, 0},
			{nil, at.AddDate(0, 0, 1), at, 0},
			{nil, time.Time{}, time.Unix(0, 0), 3},
			{nil, at.AddDate(1, 0, 0), time.Time{}, 3},
			{nil, time.Time{}, time.Time{}, each - 8},
			{nil, time.Time{}, time.Time{}, 0},
		} {
			if n, err := s.Delete(ctx, "k", step.g, step.from, step.to); err != nil || n != step.want {
				t.Errorf("step %d: %d, %v, want %d", i, n, err, step.want)
			}
		}
		for _, name := range names[1:] {
			if n := keysOf(t, s, name+" "); n != each {
				t.Errorf("%s has %d rows, want %d", name, n, each)
			}
		}
		for text, do := range map[string]func() error{
			"key: empty":        func() error { return second(s.Delete(ctx, "", nil, at, at)) },
			`granularity: "1x"`: func() error { return second(s.Delete(ctx, "k2", []counters.Granularity{"1h", "1x"}, at, at)) },
			"from: year 10000": func() error {
				return second(s.Delete(ctx, "k2", nil, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), at))
			},
			"key: invalid UTF-8": func() error { return second(s.Delete(ctx, "\xff", nil, at, at)) },
		} {
			if err := do(); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
				t.Errorf("%v, want Invalid: %s", err, text)
			}
		}
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if n, err := s.WithTx(tx).Delete(ctx, "k2", nil, time.Time{}, time.Time{}); err != nil || n != each {
				t.Errorf("in a transaction: %d, %v", n, err)
			}
			return errors.New("no")
		})
		if n := keysOf(t, s, "k2 "); err == nil || n != each {
			t.Errorf("after a rollback there are %d rows", n)
		}
	})
}

// More rows than go at a time.
func TestDeleteMany(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats SELECT 'k::1m::' || 1746522000 + 60 * i FROM generate_series(1, 25000) AS i`); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Delete(ctx, "k", nil, time.Time{}, time.Time{}); err != nil || n != 25_000 {
		t.Errorf("Delete = %d, %v", n, err)
	}
}

// A metric is renamed with all of its rows, or not at all.
func TestRename(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h", "1d"}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		for i, name := range []string{"a", "a::1h", "b", "ab"} {
			for _, when := range []time.Time{time.Unix(-3600, 0), at, at.AddDate(0, 0, 1)} {
				if err := s.Track(ctx, name, when, counters.Values{"n": i}); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := stored(t, s)
		if n, err := s.Rename(ctx, "a", "ü::new"); err != nil || n != 6 {
			t.Errorf("Rename = %d, %v, want 6", n, err)
		}
		want := map[string]counters.Values{}
		for key, v := range before {
			if rest, ok := strings.CutPrefix(key, "a "); ok {
				key = "ü::new " + rest
			}
			want[key] = v
		}
		if diff := cmp.Diff(want, stored(t, s)); diff != "" {
			t.Error(diff)
		}
		if _, err := s.Rename(ctx, "ü::new", "b"); !errors.Is(err, counters.ErrExists) || !errors.Is(err, fault.Conflict) {
			t.Errorf("%v, want ErrExists", err)
		}
		if n, err := s.Rename(ctx, "none", "new"); err != nil || n != 0 {
			t.Errorf("of nothing: %d, %v", n, err)
		}
		for text, names := range map[string][2]string{
			"key: empty": {"", "x"}, "to: empty": {"b", ""}, `to: "b" is its name`: {"b", "b"}, "to: invalid UTF-8": {"b", "\xff"}, "to: of 1": {"b", strings.Repeat("x", 256)},
		} {
			if _, err := s.Rename(ctx, names[0], names[1]); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
				t.Errorf("%v, want Invalid: %s", err, text)
			}
		}
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { // which goes on after a refusal
			if _, err := s.WithTx(tx).Rename(ctx, "b", "ab"); !errors.Is(err, counters.ErrExists) {
				t.Errorf("%v, want ErrExists", err)
			}
			return second(s.WithTx(tx).Rename(ctx, "ü::new", "a"))
		})
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, stored(t, s)); diff != "" {
			t.Error(diff)
		}
	})
}

// Of two that want the same name one gets it; what is counted meanwhile is under one of
// the names.
func TestRenameAtOnce(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, _ := newStore(t, counters.Config{Mode: mode, System: counters.Off, Granularities: []counters.Granularity{"1h", "1d"}})
			for round := range 20 {
				target := fmt.Sprint("target", round)
				sources := []string{fmt.Sprint("a", round), fmt.Sprint("b", round)}
				for _, name := range sources {
					if err := s.Track(ctx, name, at, counters.Values{"n": 1}); err != nil {
						t.Fatal(err)
					}
				}
				var wg sync.WaitGroup
				errs := make([]error, 2)
				for i, name := range sources {
					wg.Go(func() { errs[i] = second(s.Rename(ctx, name, target)) })
					wg.Go(func() {
						if err := s.Track(ctx, name, at, counters.Values{"n": 1}); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				won := 0
				for _, err := range errs {
					if err == nil {
						won++
					} else if !errors.Is(err, counters.ErrExists) {
						t.Error(err)
					}
				}
				if won != 1 {
					t.Errorf("%d of two got the name: %v", won, errs)
				}
				sum := number(0)
				for _, name := range append(sources, target) {
					series, err := s.Values(ctx, counters.Query{Key: name, From: at, To: at, Granularity: "1d"})
					if err != nil {
						t.Fatal(err)
					}
					n, _ := series.Values[0]["n"].(counters.Number)
					sum = sum.Add(n)
				}
				if !sum.Equal(number(4)) {
					t.Errorf("%v is left of 4", sum)
				}
			}
		})
	}
}

// Buckets are kept for as long as was said, from their end, system rows too.
func TestPrune(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{System: counters.Sync, Granularities: []counters.Granularity{"1h", "1d"}, Retention: counters.Retention{"1h": 36 * time.Hour, "1d": 10 * 24 * time.Hour}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		now := at
		for _, name := range []string{"k", "k::x", "z"} {
			for _, ago := range []time.Duration{0, 35 * time.Hour, 36 * time.Hour, 37 * time.Hour, 9 * 24 * time.Hour, 10 * 24 * time.Hour, 11 * 24 * time.Hour} {
				if err := s.Track(ctx, name, now.Add(-ago), counters.Values{"n": 1}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Apply(ctx, counters.Event{Key: name, At: now.AddDate(-1, 0, 0), Granularities: []counters.Granularity{"1mo"}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Track(ctx, "k", time.Unix(0, 0), nil); err != nil { // does not age
			t.Fatal(err)
		}
		before := len(stored(t, s))
		n, err := s.Prune(ctx, now)
		if err != nil {
			t.Fatal(err)
		}
		got := stored(t, s)
		if len(got) != before-int(n) {
			t.Errorf("%d of %d rows are left, and %d were deleted", len(got), before, n)
		}
		for _, name := range []string{"k", "k::x", "z", counters.SystemKey} {
			for key, want := range map[string]bool{
				fmt.Sprint(name, " 1h ", now.Truncate(time.Hour).Unix()):                       true,
				fmt.Sprint(name, " 1h ", now.Truncate(time.Hour).Add(-36*time.Hour).Unix()):    true,
				fmt.Sprint(name, " 1h ", now.Truncate(time.Hour).Add(-37*time.Hour).Unix()):    false,
				fmt.Sprint(name, " 1d ", now.Truncate(24*time.Hour).AddDate(0, 0, -10).Unix()): true,
				fmt.Sprint(name, " 1d ", now.Truncate(24*time.Hour).AddDate(0, 0, -11).Unix()): false,
				fmt.Sprint(name, " 1mo ", time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC).Unix()):  true,
				"k 1d 0": true,
			} {
				if _, ok := got[key]; ok != want {
					t.Errorf("%s: %t, want %t", key, ok, want)
				}
			}
		}
		if n, err := s.Prune(ctx, now); err != nil || n != 0 {
			t.Errorf("again: %d, %v", n, err)
		}
		if _, err := s.Prune(ctx, time.Time{}); !errors.Is(err, fault.Invalid) {
			t.Errorf("%v, want Invalid", err)
		}
	})
}

// How long buckets are kept, and how fields merge, is recorded with the table.
func TestRetentionIsRecorded(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{Retention: counters.Retention{"1m": 7 * 24 * time.Hour, "1h": 90 * time.Minute}, Rollup: []counters.Rule{{Path: "stock", Op: counters.OpPut}}})
	for range 2 {
		set, err := s.Settings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		text, err := set.Retention.MarshalJSON()
		if err != nil || string(text) != `{"1h":"1h30m0s","1m":"7d"}` || len(set.Rollup) != 1 {
			t.Errorf("%s, %v, %v", text, set.Rollup, err)
		}
		s = counters.New(pool, counters.Config{})
	}
	for _, cfg := range []counters.Config{{Retention: counters.Retention{"1m": time.Hour}}, {Retention: counters.Retention{}, Rollup: []counters.Rule{}}} {
		if err := counters.New(pool, cfg).Setup(ctx); err != nil {
			t.Fatal(err)
		}
		set, err := counters.New(pool, counters.Config{}).Settings(ctx)
		if err != nil || len(set.Retention) != len(cfg.Retention) || set.Retention["1m"] != cfg.Retention["1m"] || (len(set.Rollup) == 0) != (cfg.Rollup != nil) {
			t.Errorf("%v, %v, want %v", set, err, cfg)
		}
	}
	for text, cfg := range map[string]counters.Config{
		`retention: "1x"`:                 {Retention: counters.Retention{"1x": time.Hour}},
		"retention.1m: 0s":                {Retention: counters.Retention{"1m": 0}},
		"rollup[0].path: empty":           {Rollup: []counters.Rule{{Op: counters.OpMax}}},
		`rollup[1].op: "last"; want add,`: {Rollup: []counters.Rule{{Path: "a", Op: counters.OpMax}, {Path: "b", Op: "last"}}},
	} {
		if _, err := counters.New(pool, cfg).Page(ctx, "", 1); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want Invalid: %s", err, text)
		}
	}
	for text, want := range map[string]time.Duration{"7d": 168 * time.Hour, "2w": 336 * time.Hour, "36h": 36 * time.Hour, "1h30m": 90 * time.Minute, "0d": 0, "-1d": 0, "1x": 0, "": 0, "d": 0, "1.5d": 0, "999999999d": 0, "1ms": 0} {
		got, err := counters.ParseAge(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("ParseAge(%q) = %s, %v, want %s", text, got, err, want)
		}
	}
}

// What cannot be added to its row does not keep that from being deleted, nor from being
// imported anew.
func TestDeleteWhatCannotBeFolded(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"k"}, System: counters.Off, Granularities: []counters.Granularity{"1h", "1d"}})
			later := at.AddDate(0, 0, 2)
			count := func() {
				t.Helper()
				if err := s.Assert(ctx, "k", at, counters.Values{"n": "many"}); err != nil {
					t.Fatal(err)
				}
				for _, when := range []time.Time{at, later} {
					if err := s.Track(ctx, "k", when, counters.Values{"n": 1}); err != nil {
						t.Fatal(err)
					}
				}
			}
			count()
			if _, err := s.Rename(ctx, "k", "k2"); !errors.Is(err, counters.ErrNotNumber) {
				t.Errorf("Rename: %v, want ErrNotNumber", err)
			}
			rows := func(yield func(counters.Row, error) bool) {
				yield(counters.Row{Key: "k", Granularity: "1h", At: at.Truncate(time.Hour), Values: counters.Values{"n": 7}}, nil)
			}
			if report, err := s.Import(ctx, rows); err != nil || report.Rows != 1 {
				t.Errorf("Import = %+v, %v", report, err)
			}
			if diff := cmp.Diff(counters.Values{"n": number(7)}, hour(t, s, "k")); diff != "" {
				t.Error(diff)
			}
			if n, err := s.Delete(ctx, "k", nil, at, at); err != nil || n != 2 {
				t.Errorf("Delete of a time = %d, %v, want 2", n, err)
			}
			if n := slots(t, pool, "k"); n != 2 {
				t.Errorf("%d slots are left, want those of the other day", n)
			}
			count()
			if n, err := s.Delete(ctx, "k", nil, time.Time{}, time.Time{}); err != nil || n != 4 {
				t.Errorf("Delete = %d, %v, want 4", n, err)
			}
			if n := slots(t, pool, "k") + keysOf(t, s, "k"); n != 0 {
				t.Errorf("%d are left", n)
			}
		})
	}
}
