package counters_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// count returns how many points Rows has, and an error of theirs.
func countRows(s *counters.Store, t testing.TB, q counters.Query) (n int) {
	t.Helper()
	for _, err := range s.Rows(t.Context(), q) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// Series have every bucket, at any time, of tables in the order of bytes and of others.
func TestValuesAtAnyTime(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	times := []time.Time{
		time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(1969, 12, 31, 23, 59, 59, 500, time.UTC), time.Unix(0, 0),
		time.Unix(999_999_999, 0), time.Unix(1_000_000_000, 0), at, time.Unix(9_999_999_999, 0), time.Unix(10_000_000_000, 0), time.Date(9999, 12, 30, 0, 0, 0, 0, time.UTC),
	}
	for _, mode := range modes {
		for _, collation := range []string{"", `"und-x-icu"`, `"C"`} {
			t.Run(fmt.Sprint(mode, collation), func(t *testing.T) {
				t.Parallel()
				s, pool := newStore(t, counters.Config{Mode: mode})
				if collation != "" { // as it might come from elsewhere
					if _, err := pool.Exec(ctx, `ALTER TABLE trifle_stats ALTER key TYPE varchar(255) COLLATE `+collation); err != nil {
						t.Fatal(err)
					}
					s = counters.New(pool, counters.Config{})
				}
				for i, at := range times {
					for _, key := range []string{"k", "k::1h", "K"} { // neighbours, in bytes
						if err := s.Track(ctx, key, at, counters.Values{"n": i + 1}); err != nil {
							t.Fatal(err)
						}
					}
					for _, g := range counters.DefaultGranularities {
						got, err := s.Values(ctx, counters.Query{Key: "k", From: at, To: at, Granularity: g})
						if err != nil || len(got.At) != 1 || got.At[0].After(at) || got.Values[0]["n"] == nil {
							t.Errorf("%s of %s = %v, %v", g, at, got, err)
						}
					}
				}
				all := counters.Query{Key: "k", From: times[0], To: times[len(times)-1], Granularity: "1y"}
				got, err := s.Values(ctx, all)
				if err != nil || len(got.At) != 9999 {
					t.Fatalf("%d years, %v", len(got.At), err)
				}
				sum, err := got.Aggregate(counters.FnSum, "n", 1)
				if err != nil || !sum[0].Equal(number(45)) {
					t.Errorf("the sum of all years is %v, %v, want 45", sum, err)
				}
				all.SkipBlanks = true
				some, err := s.Values(ctx, all)
				if n := countRows(s, t, all); err != nil || n != len(some.At) || n != 7 {
					t.Errorf("%d rows, %d points that are not blank, %v, want 7", n, len(some.At), err)
				}
			})
		}
	}
}

// D12: a query that has no buckets is empty, and one of many is answered.
func TestD12Queries(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1s"}, System: counters.Off})
	q := counters.Query{Key: "k", From: at.Add(time.Second), To: at, Granularity: "1s"}
	got, err := s.Values(ctx, q)
	if err != nil || got.At == nil || got.Values == nil || len(got.At)+len(got.Values)+countRows(s, t, q) > 0 {
		t.Errorf("from after to: %v, %v", got, err)
	}
	if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats SELECT 'k::1s::' || i, jsonb_build_object('n', i) FROM generate_series(1746522000, 1746522000 + 69999) AS i`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats VALUES ('k::1s::-1746522000', '{"bad": 1}'), ('k::1s::17465220001', '{"bad": 1}'), ('k::1s::174652200x', '{"bad": 1}'), ('k::1s::1746522000::1h::1746522000', '{"bad": 1}'), ('k::1s::1746522001 ', '{"bad": 1}')`); err != nil {
		t.Fatal(err)
	}
	q.From, q.To = time.Unix(1746522000, 0), time.Unix(1746522000+69_999, 0)
	got, err = s.Values(ctx, q)
	if err != nil || len(got.At) != 70_000 || countRows(s, t, q) != 70_000 {
		t.Errorf("%d points, %v", len(got.At), err)
	}
	for i, v := range got.Values {
		if diff := cmp.Diff(counters.Values{"n": number(got.At[i].Unix())}, v); diff != "" {
			t.Fatal(diff)
		}
	}
	seen := 0
	for range s.Rows(ctx, q) { // a loop may end early
		if seen++; seen == 1500 {
			break
		}
	}
	for text, change := range map[string]func(*counters.Query){
		"key: empty":            func(q *counters.Query) { q.Key = "" },
		"from: missing":         func(q *counters.Query) { q.From = time.Time{} },
		"to: missing":           func(q *counters.Query) { q.To = time.Time{} },
		"to: year 10000":        func(q *counters.Query) { q.To = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		`granularity: "1x"`:     func(q *counters.Query) { q.Granularity = "1x" },
		"key: of 1s it is":      func(q *counters.Query) { q.Key = strings.Repeat("x", 250) },
		"1000001 points of 1s":  func(q *counters.Query) { q.To = q.From.Add(1_000_000 * time.Second) },
		"some 253402300800 poi": func(q *counters.Query) { q.From, q.To = time.Unix(0, 0), time.Unix(253402300799, 0) },
	} {
		bad := q
		change(&bad)
		if _, err := s.Values(ctx, bad); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("Values: %v, want Invalid: %s", err, text)
		}
	}
}

// With a hundred thousand rows of a hundred metrics every statement finds its way by
// the key.
func TestPlansUseTheKey(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, pool := newStore(t, counters.Config{Mode: mode})
			row := map[counters.Mode]string{
				counters.Full:      `'m' || i % 100 || '::1h::' || h`,
				counters.Partial:   `'m' || i % 100 || '::1h', to_timestamp(h)`,
				counters.Separated: `'m' || i % 100, '1h', to_timestamp(h)`,
			}[mode]
			if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats SELECT `+row+`, '{"n": 1}' FROM generate_series(0, 99999) AS i, LATERAL (SELECT 1746522000 + i / 100 * 3600 AS h) AS hours`); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(ctx, `VACUUM ANALYZE trifle_stats`); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(ctx, nil); err != nil { // the look at the table is not to be explained
				t.Fatal(err)
			}
			explained := pgtest.Explain(t, pool)
			in := s.WithTx(explained)
			q := counters.Query{Key: "m17", From: time.Unix(1746522000, 0), To: time.Unix(1746522000+99*3600, 0), Granularity: "1h"}
			for name, do := range map[string]func() error{
				"Get": func() error {
					return second(in.Get(ctx, []counters.Key{{"m17::1h::1746522000"}, {"m3::1h::1746525600"}}))
				},
				"Values": func() error { return second(in.Values(ctx, q)) },
				"Rows":   func() error { countRows(in, t, q); return nil },
				"Inc": func() error {
					return second(in.Inc(ctx, []counters.Key{{"m17::1h::1746522000"}, {"m3::1h::1746525600"}}, counters.Values{"n": 1}))
				},
			} {
				if err := do(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				plan := explained.Plan()
				if name == "Inc" { // runs in a savepoint, which is not explained; ON CONFLICT has no other way
					continue
				}
				if !strings.Contains(plan, "trifle_stats_pkey") || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Rows Removed") {
					t.Errorf("%s:\n%s", name, plan)
				}
			}
		})
	}
}
