package counters

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Delete takes away the buckets of a metric that [Store.Values] would show of from to
// to, in the granularities g, none for all that there are, and returns how many rows it
// deleted. A zero time is an open end. It deletes 10,000 rows at a time, on a pool each
// time in a transaction of its own: where it fails, it is simply called again. System
// rows keep their counts.
func (s *Store) Delete(ctx context.Context, key string, g []Granularity, from, to time.Time) (deleted int64, err error) {
	err = s.whole(ctx, func(s *Store) (err error) {
		deleted, err = s.delete(ctx, key, g, from, to)
		return err
	})
	return deleted, pg.Wrap("counters: delete", err)
}

func (s *Store) delete(ctx context.Context, key string, g []Granularity, from, to time.Time) (int64, error) {
	t, err := s.table(ctx)
	if err != nil {
		return 0, err
	}
	if err := checkKey(key); err != nil {
		return 0, err
	}
	for _, g := range g {
		if err := g.check("granularity"); err != nil {
			return 0, err
		}
	}
	for i, end := range []time.Time{from, to} {
		if !end.IsZero() {
			if err := checkTime([]string{"from", "to"}[i], end); err != nil {
				return 0, err
			}
		}
	}
	if !from.IsZero() && !to.IsZero() && from.After(to) {
		return 0, nil
	}
	if err := s.foldMetric(ctx, t, key); err != nil {
		return 0, err
	}
	var heads []head
	if len(g) == 0 {
		if heads, err = s.headsOf(ctx, t, key); err != nil {
			return 0, err
		}
	}
	for _, g := range g {
		heads = append(heads, head{key, g})
	}
	t.inOrder(heads)
	all := make([]span, len(heads))
	for i, h := range heads {
		all[i] = span{h, everBefore, everAfter}
		if !from.IsZero() {
			all[i].first = t.calendar.Floor(h.g, from).Unix()
		}
		if !to.IsZero() {
			all[i].last = to.Unix()
		}
	}
	return s.sweep(ctx, t, all)
}

// whole runs fn on a Store that leaves a transaction of the caller's, if it is in one,
// as it was where fn fails.
func (s *Store) whole(ctx context.Context, fn func(*Store) error) error {
	if !pg.InTx(s.db) {
		return fn(s)
	}
	return s.together(ctx, fn)
}

// together runs fn on a Store in a transaction, or in a savepoint of the caller's, and
// repeats it as [pg.Retry] does.
func (s *Store) together(ctx context.Context, fn func(*Store) error) error {
	return pg.Retry(ctx, s.db, func() error {
		return pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error { return fn(s.WithTx(tx)) })
	})
}
