package counters_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// D5: 16 who count a hundred times each make 1,600, in every granularity and way to count,
// while slots are folded, coarse buckets made anew, and the original counts the same rows.
func TestD5EveryWayAtOnce(t *testing.T) {
	t.Parallel()
	many, times, theirs := 16, pgtest.Size(100, 40), pgtest.Size(25, 10)
	_, pool := newStriped(t, counters.Config{Striped: []string{"striped", "striped by a writer"}})
	pool, deadlocks := countingDeadlocks(t, pool)
	s := counters.New(pool, counters.Config{})
	w := counters.NewWriter(s, counters.WriterConfig{Log: slog.New(slog.DiscardHandler)})
	running(t, w)
	keys := map[string]counting{"direct": s, "striped": s, "by a writer": w, "striped by a writer": w}

	var callers errgroup.Group
	for key, by := range keys {
		for range many {
			callers.Go(func() error {
				for range times {
					if err := by.Track(t.Context(), key, at, counters.Values{"n": 1}); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	original := original{pool: pool, mode: counters.Full, calendar: counters.Calendar{Location: time.UTC}, granularities: counters.DefaultGranularities}
	for key := range keys {
		callers.Go(func() error {
			for range theirs {
				if err := original.inc(t.Context(), key, at, map[string]int{"n": 1}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	var beside sync.WaitGroup
	repeat := func(do func() error) {
		beside.Go(func() {
			for ctx.Err() == nil {
				if err := do(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	repeat(func() error { _, err := s.Fold(t.Context()); return err })
	for key := range keys {
		repeat(func() error { _, err := s.Rebuild(t.Context(), key, "1d", at, at); return err })
	}
	if err := callers.Wait(); err != nil {
		t.Error(err)
	}
	stop()
	beside.Wait()
	if n := deadlocks.Load(); n > 0 {
		t.Errorf("%d deadlocks", n)
	}
	for key := range keys {
		for _, g := range counters.DefaultGranularities {
			got, err := s.Values(t.Context(), counters.Query{Key: key, From: at, To: at, Granularity: g})
			if want := []counters.Values{{"n": number(many*times + theirs)}}; err != nil || cmp.Diff(want, got.Values) != "" {
				t.Errorf("%s of %s: %v, %v, want %v", key, g, got, err, want)
			}
		}
	}
}

// D1: sums that no float64 holds.
func TestD1SumsByEveryWay(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{})
	w := counters.NewWriter(s, counters.WriterConfig{})
	running(t, w)
	for key, by := range map[string]counting{"store": s, "writer": w} {
		for i := range 3 {
			v := counters.Values{"tenth": 0.1, "minus": -1.5}
			if i < 2 {
				v["2^70"], v["tiny"] = new(big.Int).Lsh(big.NewInt(1), 70), 1e-9
			}
			if err := by.Track(t.Context(), key, at, v); err != nil {
				t.Fatal(err)
			}
		}
		want := counters.Values{"tenth": number(json.Number("0.3")), "minus": number(json.Number("-4.5")), "2^70": number(json.Number("2361183241434822606848")), "tiny": number(json.Number("0.000000002"))}
		if diff := cmp.Diff(want, hour(t, s, key)); diff != "" {
			t.Errorf("%s: %s", key, diff)
		}
	}
}

// D8: of events of every day around a New Year none is missing from a series of weeks.
func TestD8AllDaysAreInWeeks(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{Granularities: []counters.Granularity{"1w"}})
	const days = 37
	first := time.Date(2024, 12, 13, 12, 0, 0, 0, time.UTC)
	for i := range days {
		if err := s.Track(t.Context(), "k", first.AddDate(0, 0, i), counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
	}
	series, err := s.Values(t.Context(), counters.Query{Key: "k", From: first, To: first.AddDate(0, 0, days-1), Granularity: "1w"})
	if err != nil {
		t.Fatal(err)
	}
	if sum, err := series.Aggregate(counters.FnSum, "n", 1); err != nil || !sum[0].Equal(number(days)) {
		t.Errorf("%v events, %v, want %d", sum, err, days)
	}
}

// D6: March in New York, whose clocks change, is one row of a month and 31 of a day.
func TestD6MarchIsOneRow(t *testing.T) {
	t.Parallel()
	newYork := zone(t, "America/New_York")
	s, pool := newStore(t, counters.Config{Location: newYork, Granularities: []counters.Granularity{"1d", "1mo"}, System: counters.Off})
	for at := time.Date(2025, 3, 1, 0, 0, 0, 0, newYork); at.Month() == time.March; at = at.Add(6 * time.Hour) {
		if err := s.Track(t.Context(), "k", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
	}
	var months, days int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE key LIKE 'k::1mo::%'), count(*) FILTER (WHERE key LIKE 'k::1d::%') FROM trifle_stats`).Scan(&months, &days); err != nil {
		t.Fatal(err)
	}
	if months != 1 || days != 31 {
		t.Errorf("%d rows of a month and %d of a day, want 1 and 31", months, days)
	}
}
