package counters

import (
	"context"
	"slices"
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
	within := func(h head) span {
		sp := span{h, everBefore, everAfter}
		if !from.IsZero() {
			sp.first = t.calendar.Floor(h.g, from).Unix()
		}
		if !to.IsZero() {
			sp.last = to.Unix()
		}
		return sp
	}
	slotted, err := s.slotKeys(ctx, t, key)
	if err != nil {
		return 0, err
	}
	slotted = slices.DeleteFunc(slotted, func(id rowID) bool {
		_, of, at, _ := splitFull(t.separator, t.full(id))
		sp := within(head{key, of})
		return len(g) > 0 && !slices.Contains(g, of) || at < sp.first || at > sp.last
	})
	if len(slotted) > 0 && !pg.InTx(s.db) {
		if err := s.together(ctx, func(s *Store) error { _, err := s.discard(ctx, s.db, t, slotted...); return err }); err != nil {
			return 0, s.told(err)
		}
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
	t.inLockOrder(heads)
	all := make([]span, len(heads))
	for i, h := range heads {
		all[i] = within(h)
	}
	if len(slotted) > 0 && pg.InTx(s.db) {
		return s.deleteHeld(ctx, t, all, slotted)
	}
	return s.sweep(ctx, t, all)
}

// deleteHeld deletes the rows of spans, and rows with all that is in their slots, of which
// it locks all before any slot.
func (s *Store) deleteHeld(ctx context.Context, t *table, all []span, slotted []rowID) (deleted int64, err error) {
	there, err := s.there(ctx, t, all)
	if err != nil {
		return 0, err
	}
	rows := inOrder(slices.Values(slices.Concat(append(there, slotted)...)))
	made, err := s.lock(ctx, t, rows)
	if err != nil {
		return 0, s.told(err)
	}
	keys, err := s.discard(ctx, s.db, t, slotted...)
	if err != nil {
		return 0, s.told(err)
	}
	if err := s.remove(ctx, t, rows); err != nil {
		return 0, s.told(err)
	}
	rest, err := s.sweep(ctx, t, all) // rows of no bucket, which nobody counts in
	return int64(len(rows)-len(made)+t.had(made, keys)) + rest, err
}

// whole runs fn on a Store that leaves a transaction of the caller's, if it is in one,
// as it was where fn fails. One that an SQL statement began is [pg.ErrBegun].
func (s *Store) whole(ctx context.Context, fn func(*Store) error) error {
	if !pg.Begun(s.db) {
		return fn(s)
	}
	return s.together(ctx, fn)
}

// together runs fn on a Store in a transaction, or in a savepoint of the caller's, and
// repeats it as [pg.Retry] does.
func (s *Store) together(ctx context.Context, fn func(*Store) error) error {
	return pg.Retry(ctx, s.db, func() error {
		return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) error { return fn(s.WithTx(tx)) })
	})
}
