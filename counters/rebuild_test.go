package counters_test

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
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

// stored returns all rows of a table, by their keys in full.
func stored(t testing.TB, s *counters.Store) map[string]counters.Values {
	t.Helper()
	rows := map[string]counters.Values{}
	for r, err := range s.Export(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		rows[fmt.Sprintf("%s %s %d", r.Key, r.Granularity, r.At.Unix())] = r.Values
	}
	return rows
}

// differ returns the differences that Verify has.
func differ(t testing.TB, s *counters.Store, key string, coarse, fine counters.Granularity, from, to time.Time) (all []counters.Difference) {
	t.Helper()
	for d, err := range s.Verify(t.Context(), key, coarse, fine, from, to) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

// someEvents are n events of a time, in its order, with leaves of every kind.
func someEvents(random *rand.Rand, key string, from time.Time, span time.Duration, n int) []counters.Event {
	events := make([]counters.Event, n)
	for i := range events {
		events[i] = counters.Event{Key: key, At: from.Add(time.Duration(random.Int64N(int64(span)))), Values: counters.Values{
			"count": 1, "status": counters.Values{fmt.Sprint(200 + random.IntN(3)): 1}, "ms": counters.Stat(random.IntN(1000)),
			"size": counters.Hist(random.IntN(100_000)), "who": counters.Distinct(fmt.Sprint(random.IntN(300))), "peak": counters.Values{"max": counters.Max(random.IntN(50)), "min": counters.Min(random.IntN(50))},
			"gauge": counters.Put(random.IntN(9)), "note": counters.Put(fmt.Sprint("n", random.IntN(9))),
		}}
	}
	slices.SortFunc(events, func(a, b counters.Event) int { return a.At.Compare(b.At) })
	return events
}

// What is rebuilt of finer buckets is what was counted, of every kind of leaf, in any
// zone, whatever became of the rows.
func TestRebuildIsWhatWasCounted(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for i, zone := range []string{"UTC", "America/Havana", "Australia/Lord_Howe", "Asia/Beirut"} {
		for j, mode := range modes {
			if i > 0 && i%len(modes) != j { // each zone in one mode
				continue
			}
			t.Run(fmt.Sprint(zone, mode), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				random := rand.New(rand.NewPCG(seed, uint64(i)))
				loc := calendar(t, zone, "monday").Location
				all := []counters.Granularity{"1h", "6h", "1d", "1w", "1mo", "1q", "1y"}
				s, _ := newStore(t, counters.Config{Mode: mode, Location: loc, Granularities: all, System: counters.Off, Rollup: []counters.Rule{{Path: "gauge", Op: counters.OpPut}, {Path: "who", Op: counters.OpMax}}})
				from := time.Date(2024, 10, 20, 0, 0, 0, 0, loc) // clocks are put back in all of these zones, or forward
				to := from.AddDate(0, 3, 0)
				events := append(someEvents(random, "web", from, 20*24*time.Hour, 60), someEvents(random, "web", from.AddDate(0, 2, 0), 20*24*time.Hour, 20)...)
				if _, err := s.Apply(ctx, events...); err != nil {
					t.Fatal(err)
				}
				want := stored(t, s)
				for i, coarse := range all {
					for _, fine := range all[:i] {
						if fine == "1w" && coarse != "1y" {
							continue
						}
						if found := differ(t, s, "web", coarse, fine, from, to); len(found) > 0 {
							t.Errorf("%s of %s: %v", coarse, fine, found)
						}
					}
				}
				for i, g := range all[1:] {
					if i%2 == 0 {
						if _, err := s.Delete(ctx, "web", []counters.Granularity{g}, time.Time{}, time.Time{}); err != nil {
							t.Fatal(err)
						}
					} else if series, err := s.Values(ctx, counters.Query{Key: "web", From: from, To: to, Granularity: g, SkipBlanks: true}); err == nil {
						for _, at := range series.At {
							if err := s.Assert(ctx, "web", at, nil); err != nil {
								t.Fatal(err)
							}
							if _, err := s.Apply(ctx, counters.Event{Key: "web", At: at, Values: counters.Values{"count": 7, "wrong": 1}, Granularities: []counters.Granularity{g}}); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				for _, g := range all[1:] {
					if n, err := s.Rebuild(ctx, "web", g, from, to); err != nil || n == 0 {
						t.Errorf("Rebuild(%s) = %d, %v", g, n, err)
					}
				}
				got := stored(t, s)
				for key, v := range got {
					if len(v) == 0 { // of the empty events
						delete(got, key)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// Fields merge as their names and the rules say.
func TestRebuildMergesFields(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}, Rollup: []counters.Rule{{Path: "shelf.*.left", Op: counters.OpPut}, {Path: "low", Op: counters.OpMin}}}, func(t *testing.T, s *counters.Store, _ *pgxpool.Pool) {
		ctx := t.Context()
		for i, v := range []counters.Values{
			{"n": 1, "load": counters.Values{"max": 3, "min": 3, "sum": 0.5}, "text": "a", "mixed": 1, "null": nil, "shelf": counters.Values{"a": counters.Values{"left": 9}}, "low": counters.Values{"x": 4}, "codes": counters.Values{"200": 1, "301": 2}, "seen": counters.Values{"0ab": 4, "012": 1}, "old": "0.15e1"},
			{"n": 2.5, "load": counters.Values{"max": 2, "min": 1, "sum": 0.25}, "text": "b", "mixed": "c", "null": 2, "shelf": counters.Values{"a": counters.Values{"left": 7}}, "low": counters.Values{"x": 5}, "codes": counters.Values{"200": 1, "301": 5}, "seen": counters.Values{"0ab": 2, "012": 3}, "old": 1},
			{"new": 1, "mixed": 5, "list": []any{1}, "null": nil},
		} {
			if _, err := s.Apply(ctx, counters.Event{Op: counters.OpPut, Key: "k", At: at.Add(time.Duration(i) * time.Hour), Values: v, Granularities: []counters.Granularity{"1h"}}); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := s.Rebuild(ctx, "k", "1d", at, at); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		got, err := s.Values(ctx, counters.Query{Key: "k", From: at, To: at, Granularity: "1d"})
		if err != nil {
			t.Fatal(err)
		}
		want := counters.Values{
			"n": number(3.5), "load": counters.Values{"max": number(3), "min": number(1), "sum": number(0.75)}, "text": "b", "mixed": number(5), "null": number(2), "shelf": counters.Values{"a": counters.Values{"left": number(7)}},
			"low": counters.Values{"x": number(4)}, "codes": counters.Values{"200": number(2), "301": number(7)}, "seen": counters.Values{"0ab": number(4), "012": number(3)}, "old": number(2.5), "new": number(1), "list": []any{number(1)},
		}
		if diff := cmp.Diff(want, got.Values[0]); diff != "" {
			t.Error(diff)
		}
		if found := differ(t, s, "k", "1d", "1h", at, at); len(found) > 0 {
			t.Errorf("%v", found)
		}
		if err := s.Track(ctx, "other", at, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 1, "load.max": 1}, Granularities: []counters.Granularity{"1d"}}, counters.Event{Op: counters.OpPut, Key: "k", At: at, Values: counters.Values{"text": "z"}, Granularities: []counters.Granularity{"1d"}}); err != nil {
			t.Fatal(err)
		}
		midnight := counters.Calendar{}.Floor("1d", at)
		wrong := []counters.Difference{{At: midnight, Path: "load.max", Coarse: number(4), Fine: number(3)}, {At: midnight, Path: "n", Coarse: number(4.5), Fine: number(3.5)}, {At: midnight, Path: "text"}}
		if diff := cmp.Diff(wrong, differ(t, s, "k", "1d", "1h", at, at)); diff != "" {
			t.Error(diff)
		}
		for range s.Verify(ctx, "k", "1d", "1h", at, at) { // a loop may end early
			break
		}
		if _, err := s.Delete(ctx, "k", []counters.Granularity{"1h"}, time.Time{}, time.Time{}); err != nil {
			t.Fatal(err)
		}
		before := stored(t, s)
		for text, do := range map[string]func() error{
			"is not empty, and its source is":           func() error { return second(s.Rebuild(ctx, "k", "1d", at, at)) },
			"nothing is counted of which 1h could":      func() error { return second(s.Rebuild(ctx, "k", "1h", at, at)) },
			"granularity: \"1x\"":                       func() error { return second(s.Rebuild(ctx, "k", "1x", at, at)) },
			"key: empty":                                func() error { return second(s.Rebuild(ctx, "", "1d", at, at)) },
			"from: missing":                             func() error { return second(s.Rebuild(ctx, "k", "1d", time.Time{}, at)) },
			"key: of 1d it is":                          func() error { return second(s.Rebuild(ctx, strings.Repeat("k", 256), "1d", at, at)) },
			"a bucket of 1w need not lie in one of 1mo": func() error { return firstError(s.Verify(ctx, "k", "1mo", "1w", at, at)) },
			"fine: \"\"; want":                          func() error { return firstError(s.Verify(ctx, "k", "1h", "", at, at)) },
		} {
			if err := do(); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
				t.Errorf("%v, want Invalid: %s", err, text)
			}
		}
		if n, err := s.Rebuild(ctx, "none", "1d", at, at.AddDate(0, 0, 3)); err != nil || n != 0 {
			t.Errorf("of nothing: %d, %v", n, err)
		}
		if n, err := s.Rebuild(ctx, "k", "1d", at.AddDate(0, 0, 3), at); err != nil || n != 0 {
			t.Errorf("from after to: %d, %v", n, err)
		}
		if diff := cmp.Diff(before, stored(t, s)); diff != "" {
			t.Errorf("what was refused wrote: %s", diff)
		}
	})
}

func firstError[T any](all iter.Seq2[T, error]) (err error) {
	for _, err = range all {
		break
	}
	return err
}

// eachStriping runs a test with a metric k that is striped, while its slots are folded,
// and one that is not.
func eachStriping(t *testing.T, cfg counters.Config, test func(*testing.T, *counters.Store)) {
	t.Helper()
	for _, spread := range []bool{false, true} {
		t.Run(fmt.Sprintf("%s striped %t", cfg.Mode, spread), func(t *testing.T) {
			t.Parallel()
			if !spread {
				s, _ := newStore(t, cfg)
				test(t, s)
				return
			}
			striped := cfg // the other uses it at the same time
			striped.Striped, striped.Slots = []string{"k"}, 3
			s, _ := newStriped(t, striped)
			done := make(chan struct{})
			var folding sync.WaitGroup
			folding.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if _, err := s.Fold(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
			test(t, s)
			close(done)
			folding.Wait()
		})
	}
}

// Nothing that is counted while buckets are rebuilt is lost, or counted twice.
func TestRebuildWhileOthersCount(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		eachStriping(t, counters.Config{Mode: mode, Granularities: []counters.Granularity{"1m", "1h", "1d"}, System: counters.Off}, func(t *testing.T, s *counters.Store) {
			ctx := t.Context()
			const writers, rounds = 4, 60
			var counting, rebuilding sync.WaitGroup
			counted := make(chan struct{})
			for range writers {
				counting.Go(func() {
					for i := range rounds {
						if err := s.Track(ctx, "k", at.Add(time.Duration(i%7)*time.Minute), counters.Values{"n": 1}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for _, g := range []counters.Granularity{"1h", "1d"} {
				rebuilding.Go(func() {
					for {
						if _, err := s.Rebuild(ctx, "k", g, at, at.Add(7*time.Minute)); err != nil {
							t.Error(err)
							return
						}
						select {
						case <-counted:
							return
						default:
						}
					}
				})
			}
			counting.Wait()
			close(counted)
			rebuilding.Wait()
			for _, g := range []counters.Granularity{"1m", "1h", "1d"} {
				series, err := s.Values(ctx, counters.Query{Key: "k", From: at, To: at.Add(7 * time.Minute), Granularity: g})
				if err != nil {
					t.Fatal(err)
				}
				if sum, err := series.Aggregate(counters.FnSum, "n", 1); err != nil || !sum[0].Equal(number(writers*rounds)) {
					t.Errorf("%s has %v, %v, want %d", g, sum, err, writers*rounds)
				}
			}
		})
	}
}

// In a transaction of the caller's all is as it was after a refusal.
func TestRebuildInATransaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}, System: counters.Off})
	if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 5}, Granularities: []counters.Granularity{"1d"}}, counters.Event{Key: "k", At: at.AddDate(0, 0, 1), Values: counters.Values{"n": 5}, Granularities: []counters.Granularity{"1d"}}); err != nil {
		t.Fatal(err)
	}
	before := stored(t, s)
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		in := s.WithTx(tx)
		if _, err := in.Rebuild(ctx, "k", "1d", at, at.AddDate(0, 0, 1)); !errors.Is(err, fault.Invalid) {
			t.Errorf("%v, want Invalid", err)
		}
		if diff := cmp.Diff(before, stored(t, in)); diff != "" {
			t.Error(diff)
		}
		return second(in.Rebuild(ctx, "k", "1d", at, at))
	})
	got, readErr := s.Values(ctx, counters.Query{Key: "k", From: at, To: at, Granularity: "1d"})
	if err != nil || readErr != nil || !cmp.Equal(got.Values[0], counters.Values{"n": number(1)}) {
		t.Errorf("%v, %v, %v", got, err, readErr)
	}
}
