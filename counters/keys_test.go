package counters_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// eachTable runs a test with tables of every mode: as Setup makes them, and as they
// come from elsewhere, in another order than that of bytes, with and without an index
// by bytes.
func eachTable(t *testing.T, cfg counters.Config, test func(*testing.T, *counters.Store, *pgxpool.Pool)) {
	t.Helper()
	for _, mode := range modes {
		for _, order := range []string{"bytes", "indexed", "other"} {
			t.Run(string(mode)+" "+order, func(t *testing.T) {
				t.Parallel()
				cfg := cfg
				cfg.Mode = mode
				s, pool := newStore(t, cfg)
				if order != "bytes" {
					reorder(t, pool, order == "indexed")
					cfg.Mode = ""
					s = counters.New(pool, cfg)
				}
				test(t, s, pool)
			})
		}
	}
}

// reorder makes trifle_stats a table that is not in the order of bytes.
func reorder(t testing.TB, pool *pgxpool.Pool, indexed bool) {
	t.Helper()
	sql := `ALTER TABLE trifle_stats ALTER key TYPE varchar(255) COLLATE "und-x-icu"`
	if indexed {
		sql += `; CREATE INDEX ON trifle_stats (key COLLATE "C")`
	}
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// allPages reads all metrics, n at a time.
func allPages(t testing.TB, s *counters.Store, n int) (all []counters.KeyInfo) {
	t.Helper()
	after := ""
	for {
		page, err := s.Page(t.Context(), after, n)
		if err != nil || len(page) > n {
			t.Fatalf("%d metrics, %v", len(page), err)
		}
		if all = append(all, page...); len(page) < n {
			return all
		}
		if after = page[n-1].Key; len(all) > 10_000 {
			t.Fatal("pages have no end")
		}
	}
}

// Every metric is on one page, once, with all of its granularities, whatever their
// names have in common.
func TestPage(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h", "1d"}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		if page, err := s.Page(ctx, "", 10); err != nil || page == nil || len(page) > 0 {
			t.Errorf("of an empty table: %v, %v", page, err)
		}
		names := []string{"orders", "orders-eu", "orders::eu", "Orders", "http", "http::200", "http::404", "only", "only::200", "only::7", "z z", "é", "a.b", "x%_\\", "1h", "1d::1d"}
		want := map[string]counters.KeyInfo{}
		for i, name := range names {
			info := counters.KeyInfo{Key: name}
			granularities := []counters.Granularity{"1h", "1d"}
			switch name {
			case "only":
				granularities = []counters.Granularity{"5m"}
			case "http":
				granularities = []counters.Granularity{"5m", "1h", "1d", "1y"}
			}
			first, last := at.Add(time.Duration(i)*time.Hour), at.Add(48*time.Hour)
			for _, when := range []time.Time{first, last, at.Add(20 * time.Hour)} {
				if _, err := s.Apply(ctx, counters.Event{Key: name, At: when, Values: counters.Values{"n": 1}, Granularities: granularities}); err != nil {
					t.Fatal(err)
				}
			}
			for _, g := range granularities {
				c := counters.Calendar{}
				info.Granularities = append(info.Granularities, counters.Extent{Name: g, First: c.Floor(g, first), Last: c.Floor(g, last)})
			}
			want[name] = info
		}
		if _, err := s.Inc(ctx, []counters.Key{{"test", "1h", "1746522000", "1746522000"}, {"no::bucket::1746522000"}}, counters.Values{"n": 1}); err != nil { // rows, but not of metrics
			t.Fatal(err)
		}
		for _, n := range []int{1, 2, 5, 100} {
			got := map[string]counters.KeyInfo{}
			for _, info := range allPages(t, s, n) {
				if _, ok := got[info.Key]; ok {
					t.Errorf("%q twice", info.Key)
				}
				got[info.Key] = info
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%d at a time: %s", n, diff)
			}
		}
		for after, limit := range map[string]int{"a\x00": 1, "x": 0} {
			if _, err := s.Page(ctx, after, limit); !errors.Is(err, fault.Invalid) {
				t.Errorf("Page(%q, %d): %v, want Invalid", after, limit, err)
			}
		}
	})
}

// First and last are those in time, also where bytes have another order.
func TestPageOfOddTimes(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h"}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		times := map[string][]int64{
			"before": {-7200, -3600, 0},
			"across": {915148800, 946684800, 1746522000},
			"late":   {1746522000, 253402297200 - 253402297200%3600},
			"old":    {3600, 7200, 86400},
		}
		for name, all := range times {
			for _, second := range all {
				if err := s.Track(t.Context(), name, time.Unix(second, 0), counters.Values{"n": 1}); err != nil {
					t.Fatal(err)
				}
			}
		}
		page := allPages(t, s, 3)
		if len(page) != len(times) {
			t.Fatalf("%d metrics, want %d: %v", len(page), len(times), page)
		}
		for _, info := range page {
			all := times[info.Key]
			got := info.Granularities[0]
			if got.First.Unix() != slices.Min(all) || got.Last.Unix() != slices.Max(all) {
				t.Errorf("%s from %d to %d, want %v", info.Key, got.First.Unix(), got.Last.Unix(), all)
			}
		}
	})
}

// A separator may be any text, also one with a meaning in regular expressions.
func TestPageWithOtherSeparators(t *testing.T) {
	t.Parallel()
	for _, separator := range []string{"/", ".*", "|", "~", `\`, "x", "é", "[^", "$1"} {
		for _, mode := range modes {
			t.Run(fmt.Sprint(mode, separator), func(t *testing.T) {
				t.Parallel()
				s, _ := newStore(t, counters.Config{Mode: mode, Separator: separator, System: counters.Off, Granularities: []counters.Granularity{"1m", "1mo", "1d"}})
				names := []string{"a", "a" + separator + "b", "b", "c"}
				for _, name := range names {
					if err := s.Track(t.Context(), name, at, counters.Values{"n": 1}); err != nil {
						t.Fatal(err)
					}
				}
				var got []string
				for _, info := range allPages(t, s, 1) {
					if got = append(got, info.Key); len(info.Granularities) != 3 {
						t.Errorf("%v", info)
					}
				}
				if slices.Sort(got); strings.Join(got, " ") != strings.Join(names, " ") {
					t.Errorf("metrics %q, want %q", got, names)
				}
			})
		}
	}
}

// A metric is told once, whole, also where events named granularities that neither the
// table has nor others: wherever the parts and the pages in which it is read end.
func TestPageOfOddGranularities(t *testing.T) {
	t.Parallel()
	type granularities = []counters.Granularity
	cases := map[string]map[string]granularities{
		"in a part": {"a": {"1d"}, "b": {"10s", "1d"}, "c": {"10s", "1d"}, "d": {"10s", "1d"}, "e": {"10s", "1d"}, "f": {"10s", "1d"}, "g": {"10s", "1d"}, "h": {"10s", "1d"}, "i": {"10s", "1d"}},
		"odd only":  {"m": {"10s", "20s"}, "n": {"1h"}},
		"between":   {"m": {"10s", "20s"}, "m::15": {"1h"}, "m::2": {"1h", "90s"}, "n": {"1h"}},
		"odd first": {"m": {"10s", "1h"}, "m::15": {"1h"}, "n": {"1h"}},
		"odd last":  {"m": {"1d", "99h"}, "m::1": {"1d"}, "m::7": {"1d", "1h"}, "m::8": {"2h", "9d"}, "n": {"1h"}},
	}
	eachTable(t, counters.Config{System: counters.Off}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		for name, metrics := range cases {
			if _, err := pool.Exec(t.Context(), `TRUNCATE trifle_stats`); err != nil {
				t.Fatal(err)
			}
			var events []counters.Event
			for key, granularities := range metrics {
				events = append(events, counters.Event{Key: key, At: at, Values: counters.Values{"n": 1}, Granularities: granularities})
			}
			if _, err := s.Apply(t.Context(), events...); err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{1, 2, 3, 16} {
				got := map[string]granularities{}
				for _, info := range allPages(t, s, n) {
					if got[info.Key] != nil {
						t.Errorf("%s, %d at a time: %q twice", name, n, info.Key)
					}
					for _, extent := range info.Granularities {
						got[info.Key] = append(got[info.Key], extent.Name)
					}
					slices.Sort(got[info.Key])
				}
				if diff := cmp.Diff(metrics, got); diff != "" {
					t.Errorf("%s, %d at a time: %s", name, n, diff)
				}
			}
		}
	})
}
