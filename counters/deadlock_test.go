package counters_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Batches of the same rows in opposite orders, of callers of a Store and of Writers, and
// beside folds, do not wait for each other in a circle: not once in 10,000 of them.
func TestOppositeBatchesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	rounds := int64(pgtest.Size(10_002, 1_002) / len(modes))
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
			defer cancel()
			_, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"s*"}, Slots: 2, System: counters.Off, Granularities: []counters.Granularity{"1h"}})
			pool, deadlocks := countingDeadlocks(t, pool)
			s := counters.New(pool, counters.Config{})
			applies := []func(context.Context, ...counters.Event) (int, error){s.Apply, s.Apply, s.Apply, s.Apply}
			for range 2 { // of two processes
				w := counters.NewWriter(s, counters.WriterConfig{})
				defer running(t, w)()
				applies = append(applies, w.Apply, w.Apply)
			}
			batch := []counters.Event{
				{Key: "a", At: at, Values: counters.Values{"n": 1}},
				{Key: "s1", At: at, Values: counters.Values{"n": 1}},
				{Key: "s2", At: at, Values: counters.Values{"n": 1}},
				{Key: "z", At: at, Values: counters.Values{"n": 1, "most": counters.Max(1)}},
			}
			var begun atomic.Int64
			var group sync.WaitGroup
			for i, apply := range applies {
				batch := slices.Clone(batch)
				if i%2 == 1 {
					slices.Reverse(batch)
				}
				group.Go(func() {
					for round := begun.Add(1); round <= rounds; round = begun.Add(1) {
						if _, err := apply(ctx, batch...); err != nil {
							t.Error(err)
							return
						}
						if round%64 == 0 {
							if _, err := s.Fold(ctx); err != nil {
								t.Error(err)
								return
							}
						}
					}
				})
			}
			group.Wait()
			if n := deadlocks.Load(); n > 0 {
				t.Errorf("%d deadlocks", n)
			}
			for _, e := range batch {
				if got := fmt.Sprint(hour(t, s, e.Key)["n"]); got != fmt.Sprint(rounds) {
					t.Errorf("%s was counted %s times, want %d", e.Key, got, rounds)
				}
			}
		})
	}
}
