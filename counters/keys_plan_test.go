package counters_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// With a hundred thousand rows of a hundred metrics, what goes through the table goes
// by the key, and touches few rows.
func TestAdminPlansUseTheKey(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		for _, order := range []string{"bytes", "indexed"} {
			t.Run(fmt.Sprint(mode, order), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				_, pool := newStore(t, counters.Config{Mode: mode})
				row := map[counters.Mode]string{
					counters.Full:      `'m' || i % 100 || '::' || g || '::' || h`,
					counters.Partial:   `'m' || i % 100 || '::' || g, to_timestamp(h)`,
					counters.Separated: `'m' || i % 100, g, to_timestamp(h)`,
				}[mode]
				if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats SELECT `+row+`, '{"n": 1}' FROM generate_series(0, 49999) AS i, LATERAL (VALUES ('1h', 1746522000 + i / 100 * 3600), ('1d', 1746489600 + i / 100 * 86400)) AS hours(g, h)`); err != nil {
					t.Fatal(err)
				}
				if order == "indexed" {
					reorder(t, pool, true)
				}
				if _, err := pool.Exec(ctx, `VACUUM ANALYZE trifle_stats`); err != nil {
					t.Fatal(err)
				}
				s := counters.New(pool, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}})
				aging := counters.New(pool, counters.Config{Retention: counters.Retention{"1h": 90 * 24 * time.Hour}})
				for _, s := range []*counters.Store{s, aging} {
					if _, err := s.Get(ctx, nil); err != nil { // the look at the table is not to be explained
						t.Fatal(err)
					}
				}
				explained := pgtest.Explain(t, pool)
				in := s.WithTx(explained)
				now := time.Unix(1746522000, 0).Add(90*24*time.Hour + 10*time.Hour)
				for _, c := range []struct {
					name string
					do   func() error
				}{
					{"Page", func() error { return second(in.Page(ctx, "m17", 10)) }},
					{"Export", func() error { return firstError(in.Export(ctx, "m17::1d")) }},
					{"Rebuild", func() error {
						return second(in.Rebuild(ctx, "m17", "1d", time.Unix(1746522000, 0), time.Unix(1746522000+86400, 0)))
					}},
					{"Verify", func() error {
						return firstError(in.Verify(ctx, "m17", "1d", "1h", time.Unix(1746522000, 0), time.Unix(1746522000+86400, 0)))
					}},
					{"Prune", func() error { return second(aging.WithTx(explained).Prune(ctx, now)) }},
					{"Delete", func() error { return second(in.Delete(ctx, "m17", nil, now, time.Time{})) }},
					{"Rename", func() error { return second(in.Rename(ctx, "m42", "other")) }},
				} {
					if err := c.do(); err != nil {
						t.Errorf("%s: %v", c.name, err)
					}
					plan := explained.Plan()
					if strings.Contains(plan, "Seq Scan on trifle_stats") || !strings.Contains(plan, "Index") {
						t.Errorf("%s:\n%s", c.name, plan)
					}
					if c.name == "Page" && strings.Contains(plan, "Filter: ((SubPlan") {
						t.Errorf("the first bucket is looked for twice:\n%s", plan)
					}
				}
			})
		}
	}
}

// A page reads what is on it, however many metrics follow.
func TestPageReadsNoFurther(t *testing.T) {
	t.Parallel()
	const metrics, n = 400, 20
	for _, mode := range modes {
		for granularities, most := range map[string]int{`('1m')`: n, `('1m'), ('1h'), ('1d'), ('1w'), ('1mo'), ('1q'), ('1y')`: 7 * n} {
			t.Run(fmt.Sprint(mode, most/n), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				_, pool := newStore(t, counters.Config{Mode: mode})
				row := map[counters.Mode]string{
					counters.Full:      `m || '::' || g || '::1746522000'`,
					counters.Partial:   `m || '::' || g, to_timestamp(1746522000)`,
					counters.Separated: `m, g, to_timestamp(1746522000)`,
				}[mode]
				if _, err := pool.Exec(ctx, fmt.Sprintf(`INSERT INTO trifle_stats SELECT %s, '{"n": 1}' FROM (SELECT lpad(i::text, 4, '0') AS m FROM generate_series(0, %d) AS i) AS metrics, (VALUES %s) AS v(g)`, row, metrics-1, granularities)); err != nil {
					t.Fatal(err)
				}
				if _, err := pool.Exec(ctx, `VACUUM ANALYZE trifle_stats`); err != nil {
					t.Fatal(err)
				}
				s := counters.New(pool, counters.Config{})
				if _, err := s.Settings(ctx); err != nil { // the look at the table is not to be explained
					t.Fatal(err)
				}
				explained := pgtest.Explain(t, pool)
				if page, err := s.WithTx(explained).Page(ctx, "0009", n); err != nil || len(page) != n || page[0].Key != "0010" || len(page[n-1].Granularities) != most/n {
					t.Fatalf("%v, %v", page, err)
				}
				plan := explained.Plan()
				walked := 0
				for _, m := range regexp.MustCompile(`CTE Scan on walk.* \(actual rows=(\d+)(?:\.\d+)? loops=1\)`).FindAllStringSubmatch(plan, -1) {
					rows, _ := strconv.Atoi(m[1])
					walked += rows
				}
				if most += most / 2; walked < n || walked > most {
					t.Errorf("%d keys walked to, want at most %d:\n%s", walked, most, plan)
				}
			})
		}
	}
}

// Rows that are of no metric are gone through in parts that grow.
func TestPageStridesOverOtherRows(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{System: counters.Off})
	if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats SELECT 'a' || i, '{"n": 1}' FROM generate_series(1, 3000) AS i`); err != nil {
		t.Fatal(err)
	}
	if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	explained := pgtest.Explain(t, pool)
	if page, err := s.WithTx(explained).Page(ctx, "", 1); err != nil || len(page) != 1 || page[0].Key != "k" {
		t.Fatalf("%v, %v", page, err)
	}
	if plan := explained.Plan(); strings.Count(plan, "CTE Scan on walk ") > 12 {
		t.Errorf("%d parts of 3,000 rows", strings.Count(plan, "CTE Scan on walk "))
	}
}
