package counters

import (
	"hash/maphash"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// recent remembers the rows that events were counted in, for those that come next: most
// are of the same metrics, and of the same minute.
type recent [256]atomic.Pointer[remembered]

// remembered are the rows of a metric's buckets, in the table's granularities, for all
// instants from from to before to.
type remembered struct {
	key      string
	from, to int64
	rows     []rowID
}

var recentSeed = maphash.MakeSeed()

// buckets returns the rows of a metric at an instant, of each granularity once. They are
// only to be read.
func (t *table) buckets(key string, granularities []Granularity, at time.Time) ([]rowID, error) {
	if len(granularities) > 0 {
		rows, _, _, err := t.bucketsOf(key, granularities, at)
		return rows, err
	}
	place, unix := &t.recent[maphash.String(recentSeed, key)%uint64(len(t.recent))], at.Unix()
	if r := place.Load(); r != nil && r.key == key && r.from <= unix && unix < r.to {
		return r.rows, nil
	}
	rows, from, to, err := t.bucketsOf(key, t.granularities, at)
	if err == nil {
		place.Store(&remembered{key, from, to, rows})
	}
	return rows, err
}

// bucketsOf returns rows, and for which instants they are the same.
func (t *table) bucketsOf(key string, granularities []Granularity, at time.Time) (rows []rowID, from, to int64, err error) {
	from, to = -beyond, beyond
	unix := at.Unix()
	rows = make([]rowID, 0, len(granularities))
	for i, g := range granularities {
		rule, ok := t.calendar.rule(g)
		if !ok {
			return nil, 0, 0, g.check("granularities[" + strconv.Itoa(i) + "]")
		}
		if slices.Contains(granularities[:i], g) {
			continue
		}
		id, problem := t.bucket(key, g, rule.floor(unix))
		if problem != "" {
			return nil, 0, 0, pg.Refuse("key", "%s", problem)
		}
		rows = append(rows, id)
		first, last := rule.span(unix)
		from, to = max(from, first), min(to, last)
	}
	return rows, from, to, nil
}
