package checklists_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
)

// Workers that vanish with what they have, leases that end, and workers that
// come back late: in the end each item is done or dead, and none is done twice.
func TestLeasesThatEndUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	leasesEndUnderLoad(t, s, pool)
}

func leasesEndUnderLoad(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) {
	ctx := t.Context()
	const total = 2000
	items := make([]string, total)
	for i := range items {
		items[i] = fmt.Sprintf("item-%04d", i)
	}
	insert(t, s, "l", items...)
	s = checklists.New(wide(t, pool), checklists.Config{Table: tableOf(t, pool)})
	var done atomic.Int64
	ended := make(chan struct{})
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var clock, workers errgroup.Group
	clock.Go(func() error { // time passes in the rows only
		for {
			select {
			case <-ended:
				return nil
			default:
			}
			// In the order that everybody locks items in: a deadlock is an error here.
			_, err := pool.Exec(ctx, `
				WITH k AS MATERIALIZED (
					SELECT item FROM lists WHERE list = 'l' AND due < 'infinity' AND due > now() ORDER BY item COLLATE "C" FOR NO KEY UPDATE)
				UPDATE lists l SET due = due - interval '1 hour' FROM k WHERE l.list = 'l' AND l.item = k.item`)
			if err != nil {
				stop(err) // or the workers would wait for ever
				return err
			}
		}
	})
	for w := range 8 {
		workers.Go(func() error {
			random := rand.New(rand.NewPCG(3, uint64(w)))
			for {
				c, err := s.Claim(ctx, "l", fmt.Sprint(w), 20, time.Minute)
				if err != nil {
					return err
				}
				if len(c.Items) == 0 {
					if p, err := s.Progress(ctx, "l"); err != nil || p.Left == 0 {
						return err
					}
					continue
				}
				switch random.IntN(4) {
				case 0: // vanishes
				case 1:
					fs := []checklists.Failure{{Item: c.Items[0].Name, Error: "no"}}
					if _, err := s.Fail(ctx, c.Lease, fs...); ignoreLost(err) != nil {
						return err
					}
				default:
					n, err := s.Done(ctx, c.Lease, claimed(c)...)
					if ignoreLost(err) != nil {
						return err
					}
					done.Add(n)
				}
			}
		})
	}
	err := workers.Wait()
	close(ended)
	if err != nil {
		t.Fatal(err)
	}
	if err := clock.Wait(); err != nil {
		t.Fatal(err)
	}
	p, err := s.Progress(context.WithoutCancel(ctx), "l")
	if err != nil || p.Done != done.Load() || p.Done+p.Dead != total || p.Left != 0 || p.Leased != 0 {
		t.Errorf("%d done as told; %+v, %v", done.Load(), p, err)
	}
	if p.Failed == 0 {
		t.Error("nothing failed: the test shows nothing")
	}
	mustNotDrift(t, pool)
}
