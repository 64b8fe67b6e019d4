package counters_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// All that can be done with metrics is done at once, while connections are lost: what is
// counted with an ID is counted once, in every granularity, and of the system too.
func TestAllAtOnce(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		for _, killing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s killing %t", mode, killing), func(t *testing.T) {
				t.Parallel()
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				ctx := t.Context()
				granularities := []counters.Granularity{"15m", "1h", "1d", "1mo"}
				_, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"hot*"}, Slots: 3, Granularities: granularities})
				pool, deadlocks := countingDeadlocks(t, pool)
				s := counters.New(pool, counters.Config{})
				w := counters.NewWriter(s, counters.WriterConfig{})
				defer running(t, w)()
				day := at.Truncate(24 * time.Hour)
				names := []string{"hot", "cold", "hot::a", "other"}
				counted := map[string]*atomic.Int64{}
				for _, name := range names {
					counted[name] = new(atomic.Int64)
				}
				again := func(do func() error) { // each may be repeated
					for began := time.Now(); ; {
						err := do()
						if err == nil || ctx.Err() != nil {
							return
						}
						if !killing || time.Since(began) > pgtest.Patience {
							t.Error(err)
							return
						}
					}
				}
				var counting, others sync.WaitGroup
				for c := range 6 {
					random := rand.New(rand.NewPCG(seed, uint64(c)))
					counting.Go(func() {
						for i := range 40 {
							var events []counters.Event
							for e := range 1 + random.IntN(4) {
								name := names[random.IntN(len(names))]
								counted[name].Add(1)
								v := counters.Values{"n": 1}
								if random.IntN(4) == 0 {
									v["most"] = counters.Max(i)
									v["last"] = counters.Put(i)
								}
								events = append(events, counters.Event{ID: fmt.Sprint(c, i, e), Key: name, At: day.Add(time.Duration(random.IntN(8)) * time.Hour), Values: v})
							}
							again(func() (err error) {
								if c%2 == 0 {
									_, err = w.Apply(ctx, events...)
								} else {
									_, err = s.Apply(ctx, events...)
								}
								return err
							})
						}
					})
				}
				done := make(chan struct{})
				repeat := func(do func(i int) error) {
					others.Go(func() {
						for i := 0; ; i++ {
							select {
							case <-done:
								return
							default:
							}
							again(func() error { return do(i) })
						}
					})
				}
				in := func(i int, do func(*counters.Store) error) error { // every other time in a transaction
					if i%2 == 0 {
						return do(s)
					}
					return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return do(s.WithTx(tx)) })
				}
				repeat(func(i int) error {
					return in(i, func(s *counters.Store) error { return second(s.Fold(ctx)) })
				})
				repeat(func(i int) error {
					return in(i/3, func(s *counters.Store) error {
						return second(s.Rebuild(ctx, names[i%len(names)], granularities[1+i%3], day, day.Add(8*time.Hour)))
					})
				})
				repeat(func(i int) error { // of metrics that nobody else counts
					for _, name := range []string{"hot::gone", "gone"} {
						again(func() error { return s.Track(ctx, name, day, counters.Values{"n": 1}) })
						for _, do := range []func(*counters.Store) error{
							func(s *counters.Store) error {
								return second(s.Replace(ctx, name, day, day.AddDate(0, 0, 1), sequenceOf([]counters.Event{{At: day, Values: counters.Values{"n": 2}}}, nil)))
							},
							func(s *counters.Store) error {
								return second(s.Delete(ctx, name+"2", nil, time.Time{}, time.Time{}))
							},
							func(s *counters.Store) error { return second(s.Rename(ctx, name, name+"2")) },
						} {
							again(func() error { return in(i, do) })
						}
					}
					return nil
				})
				seen := map[string]counters.Number{}
				repeat(func(i int) error {
					if killing && i%4 == 3 {
						_, err := pool.Exec(ctx, `
							SELECT pg_terminate_backend(pid)
							FROM (
								SELECT pid
								FROM pg_stat_activity
								WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()
								ORDER BY random()
								LIMIT 1) AS one`)
						return err
					}
					name := names[i%len(names)]
					series, err := s.Values(ctx, counters.Query{Key: name, From: day, To: day.Add(8 * time.Hour), Granularity: "1h"})
					if err != nil {
						return err
					}
					sum, err := series.Aggregate(counters.FnSum, "n", 1)
					if err == nil && sum[0].Cmp(seen[name]) < 0 {
						t.Errorf("%s went back from %v to %v", name, seen[name], sum[0])
					}
					seen[name] = sum[0]
					return err
				})
				counting.Wait()
				close(done)
				others.Wait()
				if err := w.Flush(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
				}
				all := int64(0)
				for _, name := range names {
					want := counted[name].Load()
					all += want
					for _, g := range granularities {
						series, err := s.Values(ctx, counters.Query{Key: name, From: day, To: day.Add(8 * time.Hour), Granularity: g})
						if err != nil {
							t.Fatal(err)
						}
						if sum, err := series.Aggregate(counters.FnSum, "n", 1); err != nil || !sum[0].Equal(number(want)) {
							t.Errorf("%s in %s: %v, %v, want %d", name, g, sum, err, want)
						}
					}
					system, err := s.Values(ctx, counters.Query{Key: counters.SystemKey, From: day, To: day, Granularity: "1mo"})
					if err != nil {
						t.Fatal(err)
					}
					keys, _ := system.Values[0]["keys"].(counters.Values)
					if n, ok := keys[name].(counters.Number); !ok || !n.Equal(number(want)) {
						t.Errorf("the system has %v of %s, want %d", keys[name], name, want)
					}
				}
				if n := deadlocks.Load(); n > 0 {
					t.Errorf("%d deadlocks", n)
				}
			})
		}
	}
}
