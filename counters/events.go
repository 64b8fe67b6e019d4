package counters

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Event is something to count: in one row for each granularity.
type Event struct {
	// ID, if any, is applied once in 7 days in a table, however often it is sent.
	// Events of one Apply that share an ID stand or fall together.
	ID string
	// Hash is kept with the ID, and sent with another it is [ErrReused]. The default is
	// that of another event with the ID in the same call, or one of all else but At, so
	// that a retry may say a later time. To name the Granularities of the table is to name
	// none: so one that names some is another after those of the table were changed to
	// these, or from them.
	Hash []byte
	// Op is OpAdd, the default (the original's track), or OpPut (its assert).
	Op Op
	// Key is the name of the metric.
	Key string
	// At is when it happened.
	At time.Time
	// Values are added to the buckets of At, or put there.
	Values Values
	// Untracked counts the event in the system row without the name of its metric.
	Untracked bool
	// Granularities are those to count in; default those of the table.
	Granularities []Granularity

	line int64 // of the source that it was read from
}

const (
	systemKey = "__system__key__"
	untracked = "__untracked__"
	maxID     = 1000 // bytes; an index takes no more than some 2,700
)

// Apply counts events, all of them or none, in their order, in one transaction. It
// returns how many were applied: the others have an ID that was seen before.
//
// It returns [ErrNotNumber] where a field that is to be added to holds something
// else, [ErrReused] where an ID is that of another event, and an Invalid error that
// names the field of an event that cannot be. A
// connection that is lost on the way is [pg.ErrOutcomeUnknown]; events with IDs may
// simply be applied again.
func (s *Store) Apply(ctx context.Context, events ...Event) (applied int, err error) {
	applied, err = s.apply(ctx, events)
	return applied, pg.Wrap("counters: apply", err)
}

// Track adds the numbers of v, and what its [Leaf]s stand for, to the buckets of at.
// It is Apply of one event.
func (s *Store) Track(ctx context.Context, key string, at time.Time, v Values) error {
	_, err := s.apply(ctx, []Event{{Key: key, At: at, Values: v}})
	return pg.Wrap("counters: track", err)
}

// Assert puts the leaves of v, any JSON, into the buckets of at; other fields stay. It
// is Apply of one event with OpPut.
func (s *Store) Assert(ctx context.Context, key string, at time.Time, v Values) error {
	_, err := s.apply(ctx, []Event{{Op: OpPut, Key: key, At: at, Values: v}})
	return pg.Wrap("counters: assert", err)
}

func (s *Store) apply(ctx context.Context, events []Event) (int, error) {
	t, all, err := s.prepare(ctx, events)
	if err != nil {
		return 0, err
	}
	var f fold
	if !hasIDs(all) {
		for i, e := range all {
			if err := e.into(&f); err != nil {
				return 0, inEvent(i, len(events), err)
			}
		}
		if err := s.write(ctx, t, &f); err != nil {
			return 0, err
		}
		return len(events), nil
	}
	applied := 0
	err = pg.Retry(ctx, s.db, func() error {
		return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) (err error) {
			applied, err = s.applyIn(ctx, tx, t, all, &f, func(known ids, i int) (bool, error) {
				seen, err := known.seen(all[i].Event)
				return seen, inEvent(i, len(all), err)
			})
			return err
		})
	})
	if err = s.explain(ctx, t, &f, pg.Written(s.db, s.told(err))); err != nil {
		return 0, err
	}
	return applied, nil
}

// applyIn applies in tx those of events that were not seen before, by what is known of
// their IDs, and returns how many they were. f is what they fold to. An error of seen
// ends it.
func (s *Store) applyIn(ctx context.Context, tx pgx.Tx, t *table, events []prepared, f *fold, seen func(known ids, i int) (bool, error)) (applied int, err error) {
	*f = fold{}
	var known ids
	if hasIDs(events) {
		if known, err = s.claim(ctx, tx, t, events); err != nil {
			return 0, err
		}
	}
	for i, e := range events {
		switch before, err := seen(known, i); {
		case err != nil:
			return 0, err
		case before:
			continue
		}
		if err := e.into(f); err != nil {
			return 0, inEvent(i, len(events), err)
		}
		applied++
	}
	return applied, s.send(ctx, tx, t, f)
}

// prepared is an event, without its Values, and what it writes.
type prepared struct {
	Event
	write
}

// prepare returns what events write, or what is wrong with one of them.
func (s *Store) prepare(ctx context.Context, events []Event) (*table, []prepared, error) {
	t, err := s.table(ctx)
	if err != nil {
		return nil, nil, err
	}
	all := make([]prepared, len(events))
	for i, e := range events {
		if all[i].write, err = t.writes(e); err != nil {
			return nil, nil, inEvent(i, len(events), err)
		}
		e.Values = nil // they are the caller's to change
		all[i].Event = e
	}
	hash(all)
	return t, all, nil
}

// write is what an event writes: fields to its rows, and to those of the system.
type write struct {
	eventID        string
	named          []Granularity // with an ID: those of the event, nil of the table's
	rows, system   []rowID
	fields, counts []field
	spread         bool // rows to their slots
	deferred       bool // system to theirs
}

func (w write) into(f *fold) error {
	for _, id := range w.rows {
		if err := f.take(id, w.fields); err != nil {
			return err
		}
	}
	for _, id := range w.system {
		if err := f.take(id, w.counts); err != nil {
			return err
		}
	}
	if w.spread {
		f.toSlots(w.rows)
	}
	if w.deferred {
		f.toSlots(w.system)
	}
	return nil
}

// writes returns what an event writes, or what is wrong with it.
func (t *table) writes(e Event) (w write, err error) {
	op := either(e.Op, OpAdd)
	if op != OpAdd && op != OpPut {
		return w, pg.Refuse("op", "%q; want add or put", e.Op)
	}
	if err := checkKey(e.Key); err != nil {
		return w, err
	}
	if err := pg.CheckText("id", e.ID); err != nil {
		return w, err
	}
	if len(e.ID) > maxID {
		return w, pg.Refuse("id", "%d bytes; at most %d", len(e.ID), maxID)
	}
	if err := checkTime("at", e.At); err != nil {
		return w, err
	}
	if w.eventID = e.ID; e.ID != "" {
		w.named = t.canonical(e.Granularities)
	}
	if w.fields, err = t.paths.pack(e.Values, op); err != nil {
		return w, err
	}
	if w.rows, err = t.buckets(e.Key, e.Granularities, e.At); err != nil {
		return w, err
	}
	w.spread, w.deferred = t.spreads(e.Key), t.system == Deferred
	if t.system == Off {
		return w, nil
	}
	if w.system, err = t.buckets(systemKey, e.Granularities, e.At); err != nil {
		return w, err
	}
	name := e.Key
	if e.Untracked {
		name = untracked
	}
	w.counts = []field{
		{path: "count", op: OpAdd, number: whole(1)},
		{path: "keys." + t.paths.encode(name), op: OpAdd, number: whole(1)},
	}
	return w, nil
}

func checkKey(key string) error {
	if key == "" {
		return pg.Refuse("key", "empty")
	}
	return pg.CheckText("key", key)
}

// checkTime refuses times that were left out, or that are out of reach.
func checkTime(field string, at time.Time) error {
	switch {
	case at.IsZero():
		return pg.Refuse(field, "missing")
	case at.Unix() < firstSecond || at.Unix() > lastSecond:
		return pg.Refuse(field, "year %d; want 1 to 9999", at.Year())
	}
	return nil
}

// inEvent says of which of several events err is.
func inEvent(i, n int, err error) error {
	var input *pg.InputError
	if n > 1 && errors.As(err, &input) {
		input.Field = "events[" + strconv.Itoa(i) + "]." + input.Field
	}
	return err
}
