package counters

import (
	"iter"
	"slices"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// parents is how many units are in the parent in which s, m and h begin anew.
var parents = map[string]int64{"s": 60, "m": 60, "h": 24}

// nests reports whether each bucket of fine lies in one of coarse, at any time and in
// any calendar.
func nests(fine, coarse Granularity) bool {
	n, unit, _ := fine.parse()
	m, above, _ := coarse.parse()
	if unit == above {
		return n < m && m%n == 0
	}
	divides := parents[unit] > 0 && parents[unit]%n == 0
	switch unit {
	case "s":
		return divides
	case "m":
		return divides && above != "s"
	case "h":
		return divides && above != "s" && above != "m"
	case "d":
		return n == 1 && (above == "w" || above == "mo" || above == "q") || above == "y"
	case "w", "q":
		return above == "y"
	case "mo":
		return above == "y" || above == "q" && (3*m)%n == 0
	}
	return false
}

// sources are the granularities of the table that g can be made of, the coarsest first.
func (t *table) sources(g Granularity) []Granularity {
	var all []Granularity
	for _, fine := range t.granularities {
		if nests(fine, g) {
			all = append(all, fine)
		}
	}
	slices.SortStableFunc(all, func(a, b Granularity) int { return int(b.length() - a.length()) })
	return all
}

// source is the coarsest of those that is still kept for all of a bucket.
func (t *table) source(g Granularity, b bucketSpan) (Granularity, error) {
	for _, fine := range t.sources(g) {
		if t.kept(fine, b.start, time.Now()) {
			return fine, nil
		}
	}
	return "", pg.Refuse("from", "nothing is kept any more of which the bucket of %s at %s could be made", g, t.time(b.start).Format(time.RFC3339))
}

// bucketSpan is a bucket from its start up to that of the next.
type bucketSpan struct{ start, end int64 }

// spans returns the buckets of the instants from from to to.
func (t *table) spans(g Granularity, from, to time.Time) iter.Seq[bucketSpan] {
	return func(yield func(bucketSpan) bool) {
		r, _ := t.calendar.rule(g)
		n, _, _ := g.parse()
		horizon := min(to.Unix()+(min(n, maxUnits)+1)*lengths[r.unit][0]*2+apart, lastSecond+day) // another begins before
		var start int64
		begun := false
		for next := range r.timeline(from.Unix(), horizon) {
			if begun && !yield(bucketSpan{start, next}) {
				return
			}
			if next > to.Unix() {
				return
			}
			begun, start = true, next
		}
		yield(bucketSpan{start, horizon})
	}
}

// finer returns the starts of the buckets of fine that lie in b, in order. After clocks
// were put back across its end, some may lie behind that.
func (t *table) finer(g Granularity, b bucketSpan, fine Granularity) []int64 {
	coarse, _ := t.calendar.rule(g)
	r, _ := t.calendar.rule(fine)
	last := b.end - 1
	if coarse.period(b.start).end <= b.end+apart {
		last += apart
	}
	var starts []int64
	for start := range r.timeline(b.start, last) {
		if start >= b.start && coarse.floor(start) == b.start {
			starts = append(starts, start)
		}
	}
	return starts
}

func (t *table) time(second int64) time.Time { return time.Unix(second, 0).In(t.calendar.Location) }
