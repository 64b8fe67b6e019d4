package checklists_test

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
)

// Results of several leases are told at once, each kind of them, and touch only
// what the leases hold.
func TestTellTouchesOnlyWhatTheLeaseHolds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b", "c", "d", "e", "f")
	first, second := claim(t, s, "l", 4), claim(t, s, "l", 2)
	shift(t, pool, "-1 hour")
	third := claim(t, s, "l", 1) // one of the first's
	lost, err := s.Tell(ctx, first.Lease, claimed(first)...)
	if err != nil || lost != 1 {
		t.Errorf("tell: %d lost, %v", lost, err)
	}
	if lost, err := s.Tell(ctx, first.Lease, claimed(second)...); err != nil || lost != 2 {
		t.Errorf("tell of another's: %d lost, %v", lost, err)
	}
	holds, err := s.ExtendAll(ctx, "l", time.Hour, first.Token, second.Token, third.Token)
	if err != nil || len(holds[first.Token]) != 0 || len(holds[second.Token]) != 2 || len(holds[third.Token]) != 1 {
		t.Errorf("extended: %v, %v", holds, err)
	}
	if _, err := s.Tell(ctx, third.Lease, claimed(third)...); err != nil {
		t.Error(err)
	}
	if left, err := s.AnyLeft(ctx, "l"); err != nil || !left {
		t.Errorf("left: %v, %v", left, err)
	}
	if left, err := s.AnyLeft(ctx, "none"); err != nil || left {
		t.Errorf("left of none: %v, %v", left, err)
	}
	mustNotDrift(t, pool)
}

// Tellings of mixed items beside others' increments and kills, which lock in the
// common order: no deadlock reaches anybody, and none is found by the server.
func TestTellLocksInTheCommonOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	items := numbered(200)
	insert(t, s, "l", items...)
	s = checklists.New(wide(t, pool), checklists.Config{Table: tableOf(t, pool)})
	var group errgroup.Group
	for w := range 4 {
		group.Go(func() error {
			for range 50 {
				c, err := s.Claim(ctx, "l", fmt.Sprint(w), 40, time.Minute)
				if err != nil || len(c.Items) == 0 {
					return err
				}
				names := claimed(c)
				for i := 0; i < len(names); i += 4 {
					names[i] = "item-99999" // nothing is done
				}
				if _, err := s.Tell(ctx, c.Lease, names...); err != nil {
					return err
				}
				if _, err := s.Release(ctx, c.Lease); ignoreLost(err) != nil {
					return err
				}
			}
			return nil
		})
		group.Go(func() error {
			for range 50 {
				if _, err := s.Increment(ctx, "l", items...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	mustNotDrift(t, pool)
}
