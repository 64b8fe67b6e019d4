package counters

import (
	"context"
	"slices"
	"time"
)

// coarser are the buckets of a granularity that a day has a part in.
type coarser struct {
	g     Granularity
	at    map[int64]bucketSpan // by their starts
	first int64
	last  int64
	held  []bucketSpan // those of them that are made anew, in order
}

// replaceDay replaces a day, in a transaction. It holds the rows that are there or get
// something, and those that they are a part of, and writes no others: a day of seconds
// has many that are neither.
//
// Whoever counts in the granularities of the table writes one row of the longest. Those
// are held whether they are there or not, so that no such event commits until the end. Who
// did so after it was looked what there is, and before they were held, has added to rows
// that are held, or has made others: these stay, and what is made of them has them.
//
// Who counts in other granularities, or writes rows by their keys, may do so all the time
// in rows that are not held. What is made of them has what it finds there, as after a
// Rebuild at that moment; what is added to rows that are held is added to what is made.
func (s *Store) replaceDay(ctx context.Context, r *replacement, day bucketSpan) error {
	t := r.table
	// Or of two at once the one would leave what the other wrote.
	if _, err := s.db.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, "howdah.counters_replace "+t.name+" "+r.key); err != nil {
		return err
	}
	slotted, err := s.slotKeys(ctx, t, r.key) // before rows: what is folded meanwhile is in these
	if err != nil {
		return err
	}
	slotted = slices.DeleteFunc(slotted, func(id rowID) bool {
		_, g, at, _ := splitFull(t.separator, t.full(id))
		return g != r.finest || at < day.start || at >= day.end
	})
	levels, spans := t.levels(r, day)
	there, err := s.there(ctx, t, spans)
	if err != nil {
		return err
	}
	finest := slices.Concat(there[0], slotted)
	rows, err := t.toHold(r, levels, there, slices.Concat(finest, r.writes.sorted()))
	if err != nil {
		return err
	}
	// Those who count lock the rows of an event in order, and so what is going to be
	// deleted and written is locked now, too.
	if _, err := s.lock(ctx, t, slices.Concat(finest, r.writes.sorted(), rows)); err != nil {
		return err
	}
	if t.slotted(r.key) {
		_, _, put := t.spread(&r.writes) // their slots are folded before
		if err := s.lockSlots(ctx, t, slices.Concat(rows, slotted, put)); err != nil {
			return err
		}
	}
	for _, c := range levels { // before anything of which they are made is gone
		if err := s.rollAll(ctx, t, r.key, c.g, c.held, false, func(b bucketSpan, _ rowID, made *rollup) error {
			if made.lost {
				return t.wouldBeLost(c.g, b)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if len(slotted) > 0 {
		if _, err := s.readTaking(ctx, t, nil, slotted); err != nil {
			return err
		}
	}
	if err := s.remove(ctx, t, finest); err != nil {
		return err
	}
	if err := s.send(ctx, s.db, t, &r.writes); err != nil {
		return err
	}
	for _, c := range levels {
		var gone, rows []rowID
		var data []string
		if err := s.rollAll(ctx, t, r.key, c.g, c.held, true, func(_ bucketSpan, row rowID, made *rollup) error {
			if made.rows == 0 {
				gone = append(gone, row)
			} else {
				rows, data = append(rows, row), append(data, made.data())
			}
			return nil
		}); err != nil {
			return err
		}
		if err := s.remove(ctx, t, gone); err != nil {
			return err
		}
		if err := s.replace(ctx, t, rows, data); err != nil {
			return err
		}
	}
	return nil
}

// levels are the granularities that are made anew of a day, from the shortest, and the
// spans of all of its rows, the first of them that of the finest.
func (t *table) levels(r *replacement, day bucketSpan) (levels []*coarser, all []span) {
	all = []span{{head{r.key, r.finest}, day.start, day.end - 1}}
	for _, g := range t.granularities {
		if g == r.finest {
			continue
		}
		c := &coarser{g: g, at: map[int64]bucketSpan{}}
		for b := range t.spans(g, t.time(day.start), t.time(day.end-1)) {
			if !t.kept(g, b.start, time.Now()) {
				continue
			}
			if len(c.at) == 0 {
				c.first = b.start
			}
			c.at[b.start], c.last = b, b.start
		}
		if len(c.at) > 0 {
			levels = append(levels, c)
		}
	}
	slices.SortStableFunc(levels, func(a, b *coarser) int { return int(a.g.length() - b.g.length()) })
	for _, c := range levels {
		all = append(all, span{head{r.key, c.g}, c.first, c.last})
	}
	return levels, all
}

// toHold says of levels which buckets are made anew, and returns their rows: those of
// the longest granularity, those that are there, and those in which finest lie.
func (t *table) toHold(r *replacement, levels []*coarser, there [][]rowID, finest []rowID) (rows []rowID, err error) {
	starts := make(map[int64]bool, len(finest))
	for _, id := range finest {
		starts[t.second(id)] = true
	}
	for i, c := range levels {
		held := map[int64]bool{}
		for start := range c.at {
			held[start] = c.g.length() == levels[len(levels)-1].g.length()
		}
		for _, id := range there[i+1] {
			held[t.second(id)] = true
		}
		rule, _ := t.calendar.rule(c.g)
		for start := range starts {
			held[rule.floor(start)] = true
		}
		for start, b := range c.at { // and none that begins elsewhere
			if held[start] {
				c.held = append(c.held, b)
			}
		}
		slices.SortFunc(c.held, func(a, b bucketSpan) int { return int(a.start - b.start) })
		of := make([]int64, len(c.held))
		for i, b := range c.held {
			of[i] = b.start
		}
		more, err := t.rowsOf(r.key, c.g, of)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// second is when the bucket of a row begins.
func (t *table) second(id rowID) int64 {
	_, _, at, _ := splitFull(t.separator, t.full(id))
	return at
}
