package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/checklists"
)

// leaseRows are of workers that share a list.
var leaseRows = []Row{
	Ratio{
		Work: "done 1,000 a call, as claimed", Control: "one DELETE of the same, item IN (SELECT unnest)", Bar: 0.8,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			n := lab.N(300_000, 20_000)
			own, theirs, err := openLists(ctx, lab)
			var claims []checklists.Claim
			var names []string
			return Side{theirs.refill(n), func(ctx context.Context) (int, error) {
					if names == nil { // nothing was claimed yet
						names = slices.Sorted(slices.Values(shuffled(n)))
					}
					return inBatches(names, theirs.delete)(ctx)
				}}, Side{func(ctx context.Context) (err error) {
					if err = own.refill(n)(ctx); err == nil {
						claims, err = own.claimAll(ctx, 1000)
						names = names[:0]
						for _, c := range claims {
							names = append(names, namesOf(c)...)
						}
					}
					return err
				}, func(ctx context.Context) (int, error) {
					for _, c := range claims {
						if n, err := own.Done(ctx, c.Lease, namesOf(c)...); err != nil {
							return 0, fmt.Errorf("%d: %w", n, err)
						}
					}
					return n, nil
				}}, err
		},
	},
	Ratio{
		Work: "claim and done, 100 a call, 8 workers", Control: "River: no-op jobs worked, 2,000 at a time", Bar: 1.5,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			s, err := openStore(ctx, lab, pgx.Identifier{"iidy", "lists"})
			if err != nil {
				return control, ours, err
			}
			n := lab.N(100_000, 10_000)
			r, err := openRiver(ctx, lab, n)
			return Side{r.refill, r.work}, Side{s.refill(n), s.workAll(n)}, err
		},
	},
	Ratio{
		Work: "a Worker, 64 at a time, that does nothing", Control: "River: no-op jobs worked, 2,000 at a time", Bar: 1.2,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			s, err := openStore(ctx, lab, pgx.Identifier{"iidy", "lists"})
			if err != nil {
				return control, ours, err
			}
			n := lab.N(100_000, 10_000)
			r, err := openRiver(ctx, lab, n)
			return Side{r.refill, r.work}, Side{s.refill(n), s.workerAll(n)}, err
		},
	},
	Ratio{
		Work: "claim and done, 100 a call, 8 workers, an old snapshot held", Control: "the same without", Bar: 0.8,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			n := lab.N(200_000, 20_000)
			s, err := openStore(ctx, lab, pgx.Identifier{"iidy", "lists"})
			var holder *pgx.Conn
			return Side{s.refill(n), s.workAll(n)}, Side{func(ctx context.Context) (err error) {
				if err = s.refill(n)(ctx); err != nil {
					return err
				}
				if holder, err = pgx.Connect(ctx, lab.URL); err == nil {
					_, err = holder.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
				}
				return err
			}, func(ctx context.Context) (int, error) {
				done, err := s.workAll(n)(ctx)
				return done, errors.Join(err, holder.Close(context.WithoutCancel(ctx)))
			}}, err
		},
	},
	Growth{
		Work: "progress by size of the list", Bar: 2, Times: 50,
		Sizes: func(lab *Lab) []int {
			if lab.Quick {
				return []int{10_000, 100_000}
			}
			return []int{10_000, 100_000, 1_000_000}
		},
		Open: func(ctx context.Context, lab *Lab, size int) ([]Op, error) {
			progress, err := openProgress(ctx, lab, size)
			return []Op{{"Progress, 1,000 leased", progress}}, err
		},
	},
	Ratio{
		Work: "progress of a million items, while 16 write", Control: "the same of 10,000", Bar: 0.5,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			if control, err = progressUnderLoad(ctx, lab, 10_000); err == nil {
				ours, err = progressUnderLoad(ctx, lab, lab.N(1_000_000, 100_000))
			}
			return control, ours, err
		},
	},
	Latency{
		Work: "Progress of a million items, 1,000 leased, p99", Times: 1000, Bar: 5,
		Open: func(ctx context.Context, lab *Lab) (func(context.Context) error, error) {
			return openProgress(ctx, lab, lab.N(1_000_000, 100_000))
		},
	},
}

// claimAll claims everything, in calls for n items.
func (s store) claimAll(ctx context.Context, n int) (claims []checklists.Claim, err error) {
	for {
		c, err := s.Claim(ctx, list, "bench", n, time.Hour)
		if err != nil || len(c.Items) == 0 {
			return claims, err
		}
		claims = append(claims, c)
	}
}

func namesOf(c checklists.Claim) []string {
	names := make([]string, len(c.Items))
	for i, item := range c.Items {
		names[i] = item.Name
	}
	return names
}

// workAll returns what lets 8 workers claim and finish the n items that are there.
// One that was handed out twice would be lost to one of them, which is an error.
func (s store) workAll(n int) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		var done atomic.Int64
		var workers sync.WaitGroup
		errs := make([]error, 8)
		for w := range errs {
			workers.Go(func() {
				for {
					c, err := s.Claim(ctx, list, fmt.Sprint(w), 100, time.Minute)
					if err == nil && len(c.Items) == 0 {
						return
					}
					names := namesOf(c)
					if err == nil {
						_, err = s.Done(ctx, c.Lease, names...)
					}
					if errs[w] = err; err != nil {
						return
					}
					done.Add(int64(len(names)))
				}
			})
		}
		workers.Wait()
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		if int(done.Load()) != n {
			return 0, fmt.Errorf("%d of %d items were done", done.Load(), n)
		}
		return n, nil
	}
}

// workerAll returns what lets a Worker do the n items that are there; each must be
// handed out once.
func (s store) workerAll(n int) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		var calls atomic.Int64
		w := checklists.NewWorker(s.Store, checklists.WorkerConfig{
			List: list, Parallel: 64, UntilEmpty: true, Log: slog.New(slog.DiscardHandler),
			Do: func(context.Context, checklists.Item) error { calls.Add(1); return nil },
		})
		if err := w.Run(ctx); err != nil {
			return 0, err
		}
		var left int
		err := s.pool.QueryRow(ctx, "SELECT count(*) FROM "+s.table).Scan(&left)
		if err == nil && (left > 0 || int(calls.Load()) != n) {
			err = fmt.Errorf("%d items are left, after %d calls for %d", left, calls.Load(), n)
		}
		return n, err
	}
}

// openProgress makes a table with size items, 1,000 of them leased, and returns
// what asks for the progress of their list.
func openProgress(ctx context.Context, lab *Lab, size int) (func(context.Context) error, error) {
	s, err := openLeased(ctx, lab, size)
	return func(ctx context.Context) error {
		p, err := s.Progress(ctx, list)
		if err == nil && (p.Left != int64(size) || p.Leased != 1000) {
			err = fmt.Errorf("%+v of %d items", p, size)
		}
		return err
	}, err
}

func openLeased(ctx context.Context, lab *Lab, size int) (store, error) {
	s, err := openStore(ctx, lab, pgx.Identifier{fmt.Sprintf("progress_of_%d", size), "lists"})
	if err != nil {
		return s, err
	}
	if err := s.refill(size)(ctx); err != nil {
		return s, err
	}
	for range 10 {
		if _, err := s.Claim(ctx, list, "bench", 100, 24*time.Hour); err != nil {
			return s, err
		}
	}
	return s, nil
}

// progressUnderLoad asks while 16 put items on the list and take them off, one a call.
func progressUnderLoad(ctx context.Context, lab *Lab, size int) (Side, error) {
	s, err := openLeased(ctx, lab, size)
	if err != nil {
		return Side{}, err
	}
	pool, err := lab.OpenPool(ctx, 16)
	writing := checklists.New(pool, checklists.Config{Table: pgx.Identifier{fmt.Sprintf("progress_of_%d", size), "lists"}})
	return Side{Run: func(ctx context.Context) (n int, err error) {
		running, stop := context.WithCancel(ctx)
		var writers sync.WaitGroup
		errs := make([]error, 16)
		for w := range errs {
			writers.Go(func() {
				name := fmt.Sprint("of writer ", w)
				for errs[w] == nil && running.Err() == nil {
					if errs[w] = one(writing.Insert(ctx, list, name)); errs[w] == nil {
						errs[w] = one(writing.Delete(ctx, list, name))
					}
				}
			})
		}
		for ; n < 200 && err == nil; n++ {
			_, err = s.Progress(ctx, list)
		}
		stop()
		writers.Wait()
		return n, errors.Join(append(errs, err)...)
	}}, err
}
