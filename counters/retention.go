package counters

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Retention is for how long buckets are kept after they ended, by their granularity.
// Others are kept for ever. In JSON a length of time is a text as ParseAge reads it.
type Retention map[Granularity]time.Duration

// ages are the units of lengths of time that package time has not.
var ages = []struct {
	unit   string
	length time.Duration
}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}}

// ParseAge reads a length of time: a number of days or weeks, as 7d or 2w, or any that
// [time.ParseDuration] reads. One under a second is Invalid.
func ParseAge(text string) (time.Duration, error) {
	age, err := time.ParseDuration(text)
	for _, a := range ages {
		if number, ok := strings.CutSuffix(text, a.unit); ok {
			var n int64
			if n, err = strconv.ParseInt(number, 10, 32); err == nil && n <= int64(maxAge/a.length) {
				age = time.Duration(n) * a.length
			}
		}
	}
	if err != nil || age < time.Second || age > maxAge {
		return 0, pg.Refuse("retention", "%q; want a time such as 7d, 52w or 36h", shorten(text))
	}
	return age, nil
}

// maxAge is 200 years; package time has not 300.
const maxAge = 200 * 365 * 24 * time.Hour

// FormatAge writes a length of time as [ParseAge] reads it.
func FormatAge(age time.Duration) string {
	if d := ages[1]; age%d.length == 0 {
		return strconv.FormatInt(int64(age/d.length), 10) + d.unit
	}
	return age.String()
}

// MarshalJSON implements json.Marshaler.
func (r Retention) MarshalJSON() ([]byte, error) {
	texts := make(map[Granularity]string, len(r))
	for g, age := range r {
		texts[g] = FormatAge(age)
	}
	return json.Marshal(texts)
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *Retention) UnmarshalJSON(text []byte) error {
	var texts map[Granularity]string
	if err := json.Unmarshal(text, &texts); err != nil {
		return err
	}
	*r = make(Retention, len(texts))
	for g, text := range texts {
		age, err := ParseAge(text)
		if err != nil {
			return err
		}
		(*r)[g] = age
	}
	return nil
}

func (r Retention) check() error {
	for g, age := range r {
		if err := g.check("retention"); err != nil {
			return err
		}
		if age < time.Second || age > maxAge {
			return pg.Refuse("retention."+string(g), "%s; want a second to 200 years", age)
		}
	}
	return nil
}

// cutoff is the first start of a bucket of g that is kept at now.
func (t *table) cutoff(g Granularity, now time.Time) (second int64, ages bool) {
	age, ok := t.retention[g]
	if !ok {
		return 0, false
	}
	return t.calendar.Floor(g, now.Add(-age)).Unix(), true
}

// kept reports whether the bucket of g that begins at second, or the one that second
// lies in, is kept at now.
func (t *table) kept(g Granularity, second int64, now time.Time) bool {
	cutoff, ages := t.cutoff(g, now)
	return !ages || second >= cutoff
}

// Prune deletes the buckets that at now are no longer to be kept, of all metrics and of
// the system rows, and returns how many: those that ended so long ago as [Config] says
// of their granularity. Only those with ten digits in their seconds age, from 2001 on.
// It deletes 10,000 rows at a time, on a pool each time in a transaction of its own.
func (s *Store) Prune(ctx context.Context, now time.Time) (pruned int64, err error) {
	err = s.whole(ctx, func(s *Store) (err error) {
		pruned, err = s.prune(ctx, now)
		return err
	})
	return pruned, pg.Wrap("counters: prune", err)
}

func (s *Store) prune(ctx context.Context, now time.Time) (pruned int64, err error) {
	t, err := s.table(ctx)
	if err != nil || len(t.retention) == 0 {
		return 0, err
	}
	if err := checkTime("now", now); err != nil {
		return 0, err
	}
	w := walk{limit: maxPart}
	if !t.bytewise {
		w.limit = 0
	}
	var found []head
	for {
		some, next, err := s.walk(ctx, t, w)
		if err != nil {
			return pruned, err
		}
		w.from, found = next, append(found, some...)
		if next != "" && pg.InTx(s.db) { // which is to lock the rows of all in order
			continue
		}
		t.inLockOrder(found)
		var old []span
		for _, h := range found {
			if cutoff, ages := t.cutoff(h.g, now); ages && cutoff > firstRanged {
				old = append(old, span{h, firstRanged, min(cutoff, lastRanged+1) - 1})
			}
		}
		n, err := s.sweep(ctx, t, old)
		if pruned += n; err != nil || next == "" {
			return pruned, err
		}
		found = nil
	}
}
