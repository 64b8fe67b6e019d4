package counters

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Rebuild makes the buckets of g that the instants from from to to lie in anew, of
// finer ones, and returns how many it wrote. The source is the coarsest granularity of
// the table whose buckets each lie in one of g, and are still kept. Fields are added
// up; those that are called max or min, and registers of a [Distinct], keep the larger
// or smaller, what is no number is that of the latest bucket, and the rules of
// [Config.Rollup] say otherwise.
//
// Each bucket is a short transaction, and what is counted meanwhile is not lost. A
// bucket that holds something while its source holds nothing is Invalid: it would be lost.
func (s *Store) Rebuild(ctx context.Context, key string, g Granularity, from, to time.Time) (rebuilt int64, err error) {
	err = s.whole(ctx, func(s *Store) error {
		rebuilt = 0
		t, err := s.asked(ctx, Query{Key: key, Granularity: g, From: from, To: to})
		if err != nil || from.After(to) {
			return err
		}
		if n := t.estimate(Query{Granularity: g, From: from, To: to}); n > 2*MaxPoints {
			return pg.Refuse("granularity", "some %d buckets of %s; at most %d: ask for a shorter time", n, g, MaxPoints)
		}
		if len(t.sources(g)) == 0 {
			return pg.Refuse("granularity", "nothing is counted of which %s could be made: the table has %s", g, joined(t.granularities))
		}
		each := func(all iter.Seq[bucketSpan]) error {
			for b := range all {
				if t, err = s.still(ctx, t); err != nil {
					return err
				}
				err := s.together(ctx, func(s *Store) error { return s.rebuild(ctx, t, key, g, b) })
				switch {
				case err == nil:
					rebuilt++
				case !errors.Is(err, errEmpty):
					return s.told(pg.Written(s.db, err))
				}
			}
			return nil
		}
		if !pg.InTx(s.db) {
			return each(t.spans(g, from, to))
		}
		// Rows are locked in their order, and then slots in theirs: in that of the bytes of their keys.
		all := slices.SortedFunc(t.spans(g, from, to), func(a, b bucketSpan) int {
			return strings.Compare(strconv.FormatInt(a.start, 10), strconv.FormatInt(b.start, 10))
		})
		starts := make([]int64, len(all))
		for i, b := range all {
			starts[i] = b.start
		}
		rows, err := t.rowsOf(key, g, starts)
		if err != nil {
			return err
		}
		return s.holding(ctx, t, rows, func() error { return each(slices.Values(all)) })
	})
	return rebuilt, pg.Wrap("counters: rebuild", err)
}

// errEmpty says that there is neither a bucket nor one of its source.
var errEmpty = errors.New("nothing to rebuild")

// rebuild makes one bucket anew, in a transaction. It locks the row before it reads:
// who counts writes all rows of an event at once, and either has, or waits and adds to
// what is written here.
func (s *Store) rebuild(ctx context.Context, t *table, key string, g Granularity, b bucketSpan) error {
	row, _ := t.bucket(key, g, b.start) // asked saw that it can be
	if _, err := s.lock(ctx, t, []rowID{row}); err != nil {
		return err
	}
	made, err := s.roll(ctx, t, key, g, b, true)
	switch {
	case err != nil:
		return err
	case made.lost:
		return t.wouldBeLost(g, b)
	case made.rows == 0:
		return errEmpty
	}
	return s.replace(ctx, t, []rowID{row}, []string{made.data()})
}

// wouldBeLost refuses to make a bucket of nothing that holds something.
func (t *table) wouldBeLost(g Granularity, b bucketSpan) error {
	return pg.Refuse("from", "the bucket of %s at %s is not empty, and its source is", g, t.time(b.start).Format(time.RFC3339))
}

// roll is rollAll of one bucket.
func (s *Store) roll(ctx context.Context, t *table, key string, g Granularity, b bucketSpan, taking bool) (one *rollup, err error) {
	err = s.rollAll(ctx, t, key, g, []bucketSpan{b}, taking, func(_ bucketSpan, _ rowID, made *rollup) error { one = made; return nil })
	return one, err
}

// rollAll calls have with each of some buckets, its row, and what it is made of in the
// order of that, and whether it holds something itself. Taking, it takes away what is in
// their own slots: it is in those of their source as well.
func (s *Store) rollAll(ctx context.Context, t *table, key string, g Granularity, all []bucketSpan, taking bool, have func(bucketSpan, rowID, *rollup) error) error {
	var rows, owns []rowID
	var parts []int // of rows, where those of a bucket end with its own
	flush := func() error {
		var found [][]byte
		var err error
		if taking && t.slotted(key) {
			found, err = s.readTaking(ctx, t, rows, owns)
		} else {
			found, err = s.readAll(ctx, t, rows)
		}
		if err != nil {
			return err
		}
		begin := 0
		for i, end := range parts {
			made := t.newRollup()
			for _, data := range found[begin:end] {
				if data == nil {
					continue
				}
				if err := made.add(data); err != nil {
					return err
				}
			}
			held := found[end]
			made.lost = len(made.fields) == 0 && held != nil && string(held) != "{}"
			if err := have(all[i], owns[i], made); err != nil {
				return err
			}
			begin = end + 1
		}
		all, rows, owns, parts = all[len(parts):], nil, nil, nil
		return nil
	}
	for _, b := range all {
		source, err := t.source(g, b)
		if err != nil {
			return err
		}
		finer, err := t.rowsOf(key, source, t.finer(g, b, source))
		if err != nil {
			return err
		}
		own, problem := t.bucket(key, g, b.start)
		if problem != "" {
			return pg.Refuse("key", "%s", problem)
		}
		if len(rows)+len(finer) >= maxNamed && len(rows) > 0 {
			if err := flush(); err != nil {
				return err
			}
		}
		rows = append(append(rows, finer...), own)
		owns, parts = append(owns, own), append(parts, len(rows)-1)
	}
	if len(parts) == 0 {
		return nil
	}
	return flush()
}

// rowsOf names buckets by their starts.
func (t *table) rowsOf(key string, g Granularity, starts []int64) ([]rowID, error) {
	rows := make([]rowID, len(starts))
	for i, start := range starts {
		var problem string
		if rows[i], problem = t.bucket(key, g, start); problem != "" {
			return nil, pg.Refuse("key", "%s", problem)
		}
	}
	return rows, nil
}

// readAll returns the data of rows, nil of those that are not there.
func (s *Store) readAll(ctx context.Context, t *table, rows []rowID) ([][]byte, error) {
	found := make([][]byte, len(rows))
	return found, s.read(ctx, t, rows, func(i int, data []byte) error { found[i] = data; return nil })
}

// data is the row as it is stored.
func (r *rollup) data() string { return string(appendFields(nil, r.result(), OpPut)) }

func joined(all []Granularity) string {
	texts := make([]string, len(all))
	for i, g := range all {
		texts[i] = string(g)
	}
	return strings.Join(texts, ", ")
}
