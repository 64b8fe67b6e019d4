package counters

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Replace takes away what is counted of a metric from from up to, not including, to,
// applies events in its place, and makes all coarser buckets anew, as [Store.Rebuild]
// does. It returns how many events it applied. What is counted in that time while it
// works is replaced too, or added, but never half; another Replace of the metric waits.
//
// The events are those of one metric, from from up to to, a day after the other; within
// a day of the table's calendar they come in any order. from and to are starts of
// buckets of the finest granularity that is still kept. IDs are not looked at, since
// events that are replaced do not count twice, and system rows keep their counts.
//
// Each day is a transaction, once the first event of another is read. What is wrong with
// an event, or an error of events, ends it: the days before stay replaced, the others are
// as they were. In a transaction of the caller's all days are replaced at once, or none;
// there it goes first, before anything else of the metric is written, or it can deadlock
// with another Replace.
func (s *Store) Replace(ctx context.Context, key string, from, to time.Time, events iter.Seq2[Event, error]) (applied int64, err error) {
	err = s.whole(ctx, func(s *Store) (err error) {
		applied, err = s.replaceDays(ctx, key, from, to, events)
		return err
	})
	return applied, pg.Wrap("counters: replace", err)
}

func (s *Store) replaceDays(ctx context.Context, key string, from, to time.Time, events iter.Seq2[Event, error]) (int64, error) {
	t, err := s.table(ctx)
	if err != nil {
		return 0, err
	}
	finest := t.finest(from, time.Now())
	if finest == "" {
		return 0, pg.Refuse("from", "no granularity of the table is kept for so long")
	}
	if _, err := s.asked(ctx, Query{Key: key, Granularity: finest, From: from, To: to}); err != nil {
		return 0, err
	}
	for i, end := range []time.Time{from, to} {
		if start := t.calendar.Floor(finest, end); !start.Equal(end) {
			return 0, pg.Refuse([]string{"from", "to"}[i], "%s is not the start of a bucket of %s; that is %s", end.Format(time.RFC3339Nano), finest, start.Format(time.RFC3339Nano))
		}
	}
	if from.After(to) {
		return 0, pg.Refuse("from", "after to")
	}
	for _, g := range t.granularities {
		switch {
		case g == finest:
		case g.length() < finest.length():
			if t.kept(g, t.calendar.Floor(g, to.Add(-time.Nanosecond)).Unix(), time.Now()) {
				return 0, pg.Refuse("from", "buckets of %s are kept of only a part of that time; replace the older part by itself", g)
			}
		case len(t.sources(g)) == 0:
			return 0, pg.Refuse("granularity", "nothing is counted of which %s could be made: the table has %s", g, joined(t.granularities))
		}
	}
	next, stop := iter.Pull2(events)
	defer stop()
	r := replacement{table: t, key: key, finest: finest, to: to.Unix(), next: next}
	for day := range t.spans("1d", from, to.Add(-time.Nanosecond)) {
		r.days = append(r.days, bucketSpan{max(day.start, from.Unix()), min(day.end, to.Unix())})
	}
	if from.Equal(to) {
		r.days = nil
	}
	gathered := int64(0)
	for i, day := range r.days {
		last := i == len(r.days)-1
		n, err := r.gather(day, last)
		if err != nil {
			return r.applied, err
		}
		gathered += n
		if pg.InTx(s.db) { // which is to lock the rows of all days in order
			if !last {
				continue
			}
			day.start = r.days[0].start
		}
		if r.table, err = s.still(ctx, r.table); err != nil {
			return r.applied, err
		}
		if err := s.together(ctx, func(s *Store) error { return s.replaceDay(ctx, &r, day) }); err != nil {
			return r.applied, s.explain(ctx, r.table, &r.writes, s.told(pg.Written(s.db, err)))
		}
		r.applied, r.writes, gathered = r.applied+gathered, fold{}, 0
	}
	if len(r.days) == 0 {
		_, err = r.gather(bucketSpan{from.Unix(), from.Unix()}, true)
	}
	return r.applied, err
}

// finest is the shortest granularity that is kept of a time.
func (t *table) finest(from, now time.Time) (finest Granularity) {
	for _, g := range t.granularities {
		if t.kept(g, t.calendar.Floor(g, from).Unix(), now) && (finest == "" || g.length() < finest.length()) {
			finest = g
		}
	}
	return finest
}

// replacement is a Replace under way.
type replacement struct {
	table   *table
	key     string
	finest  Granularity
	days    []bucketSpan
	to      int64
	next    func() (Event, error, bool)
	pending *Event // of a later day
	read    int    // events
	applied int64
	writes  fold // what is to be applied
}

// gather folds the events of a day, and looks at the one that follows.
func (r *replacement) gather(day bucketSpan, last bool) (n int64, err error) {
	t := *r.table
	t.system = Off
	for {
		e := r.pending
		if r.pending = nil; e == nil {
			one, err, ok := r.next()
			if !ok {
				return n, nil
			}
			if err != nil {
				return n, err
			}
			e, r.read = &one, r.read+1
		}
		if err := r.check(e, day.start); err != nil {
			return n, r.inEvent(err)
		}
		if at := e.At.Unix(); at >= day.end && !last {
			r.pending = e
			return n, nil
		}
		one := *e
		one.Key, one.ID, one.Granularities = r.key, "", []Granularity{r.finest}
		w, err := t.writes(one)
		w.spread = false // the rows are held
		if err == nil {
			err = w.into(&r.writes)
		}
		if err != nil {
			return n, r.inEvent(err)
		}
		n++
	}
}

// check refuses an event that is of another metric or another time.
func (r *replacement) check(e *Event, from int64) error {
	if e.Key != "" && e.Key != r.key {
		return pg.Refuse("key", "%q; only those of %q are replaced", shorten(e.Key), shorten(r.key))
	}
	if err := checkTime("at", e.At); err != nil {
		return err
	}
	switch at := e.At.Unix(); {
	case at >= r.to:
		return pg.Refuse("at", "%s is not before to", e.At.Format(time.RFC3339Nano))
	case len(r.days) == 0 || at < r.days[0].start:
		return pg.Refuse("at", "%s is before from", e.At.Format(time.RFC3339Nano))
	case at < from:
		return pg.Refuse("at", "%s is of a day before that of the event before it; put them in order", e.At.Format(time.RFC3339Nano))
	}
	return nil
}

func (r *replacement) inEvent(err error) error {
	var input *pg.InputError
	if errors.As(err, &input) {
		input.Field = "events[" + strconv.Itoa(r.read-1) + "]." + input.Field
	}
	return err
}
