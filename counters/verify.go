package counters

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Difference is a field of which a bucket holds something else than the finer ones
// make. What is missing, or is no number, is null.
type Difference struct {
	At     time.Time `json:"at"` // when the coarse bucket begins
	Path   string    `json:"path"`
	Coarse Number    `json:"coarse"`
	Fine   Number    `json:"fine"`
}

// Verify compares the buckets of coarse that the instants from from to to lie in with
// what [Store.Rebuild] would make of those of fine, by default its source, and returns
// where they differ. Those of which fine is no longer kept are passed over. All is read
// as of one moment, in a transaction that lasts as long as the loop; inside one of the
// caller's it is as of one moment where that is REPEATABLE READ. An error ends it.
func (s *Store) Verify(ctx context.Context, key string, coarse, fine Granularity, from, to time.Time) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		tell := func(d Difference) bool { return yield(d, nil) }
		verify := func(s *Store) error { return s.verify(ctx, key, coarse, fine, from, to, tell) }
		var err error
		if pg.InTx(s.db) {
			err = verify(s)
		} else {
			err = s.snapshot(ctx, verify)
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(Difference{}, pg.Wrap("counters: verify", err))
		}
	}
}

// errEnough ends what is left by a loop.
var errEnough = errors.New("enough")

// snapshot runs fn on a Store that sees one moment.
func (s *Store) snapshot(ctx context.Context, fn func(*Store) error) error {
	if _, err := s.table(ctx); err != nil {
		return err
	}
	return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY`); err != nil {
			return err
		}
		return fn(s.WithTx(tx))
	})
}

func (s *Store) verify(ctx context.Context, key string, coarse, fine Granularity, from, to time.Time, tell func(Difference) bool) error {
	t, err := s.asked(ctx, Query{Key: key, Granularity: coarse, From: from, To: to})
	if err != nil || from.After(to) {
		return err
	}
	if sources := t.sources(coarse); fine == "" && len(sources) > 0 {
		fine = sources[0]
	} else if err := fine.check("fine"); err != nil {
		return err
	}
	if !nests(fine, coarse) {
		return pg.Refuse("fine", "a bucket of %s need not lie in one of %s", fine, coarse)
	}
	if n := t.estimate(Query{Granularity: coarse, From: from, To: to}); n > 2*MaxPoints {
		return pg.Refuse("granularity", "some %d buckets of %s; at most %d: ask for a shorter time", n, coarse, MaxPoints)
	}
	now := time.Now()
	var part []compared
	rows := 0
	for b := range t.spans(coarse, from, to) {
		if !t.kept(fine, b.start, now) {
			continue
		}
		c := compared{at: b.start, finer: t.finer(coarse, b, fine)}
		part = append(part, c)
		if rows += 1 + len(c.finer); rows < maxPart {
			continue
		}
		if err := s.compare(ctx, t, key, coarse, fine, part, tell); err != nil {
			return err
		}
		part, rows = part[:0], 0
	}
	return s.compare(ctx, t, key, coarse, fine, part, tell)
}

// compared is a bucket, and the starts of those that it should be made of.
type compared struct {
	at    int64
	finer []int64
}

// compare tells of the differences in some buckets, whose rows it reads at once.
func (s *Store) compare(ctx context.Context, t *table, key string, coarse, fine Granularity, part []compared, tell func(Difference) bool) error {
	var rows []rowID
	for _, c := range part {
		row, _ := t.bucket(key, coarse, c.at) // asked saw that it can be
		finer, err := t.rowsOf(key, fine, c.finer)
		if err != nil {
			return err
		}
		rows = append(append(rows, row), finer...)
	}
	found, err := s.readAll(ctx, t, rows)
	if err != nil {
		return err
	}
	for _, c := range part {
		made := t.newRollup()
		for _, data := range found[1 : 1+len(c.finer)] {
			if data != nil {
				if err := made.add(data); err != nil {
					return err
				}
			}
		}
		have := Values{}
		if found[0] != nil {
			stored, err := parseJSON(found[0], false)
			if err != nil {
				return err
			}
			have, _ = stored.(Values)
		}
		for _, d := range differences(have, flat(made.result())) {
			if d.At = t.time(c.at); !tell(d) {
				return errEnough
			}
		}
		found = found[1+len(c.finer):]
	}
	return nil
}

// differences returns the paths at which two rows hold something else, in order.
func differences(have, want Values) (all []Difference) {
	both := maps.Clone(want)
	maps.Copy(both, have)
	for _, path := range slices.Sorted(maps.Keys(both)) {
		a, inA := have[path]
		b, inB := want[path]
		n, isNumber := storedNumber(a)
		m, areNumbers := storedNumber(b)
		equal := inA == inB
		switch {
		case !equal:
		case isNumber || areNumbers:
			equal = isNumber == areNumbers && n.Equal(m)
		default:
			equal = sameJSON(a, b)
		}
		if !equal {
			all = append(all, Difference{Path: path, Coarse: n, Fine: m})
		}
	}
	return all
}

func sameJSON(a, b any) bool {
	left, _ := appendJSON(nil, a, 0) // both were read from JSON
	right, _ := appendJSON(nil, b, 0)
	return string(left) == string(right)
}
