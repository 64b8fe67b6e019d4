package counters

import (
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Weekday is the day that weeks begin with. The zero Weekday is Monday.
type Weekday string

// The days of the week.
const (
	Monday    Weekday = "monday"
	Tuesday   Weekday = "tuesday"
	Wednesday Weekday = "wednesday"
	Thursday  Weekday = "thursday"
	Friday    Weekday = "friday"
	Saturday  Weekday = "saturday"
	Sunday    Weekday = "sunday"
)

var weekdays = []Weekday{Sunday, Monday, Tuesday, Wednesday, Thursday, Friday, Saturday}

// ParseWeekday returns the day with an English name, in letters of any case.
// Another text is Invalid.
func ParseWeekday(text string) (Weekday, error) {
	if day := Weekday(strings.ToLower(text)); slices.Contains(weekdays, day) {
		return day, nil
	}
	return "", pg.Refuse("week start", "%q; want monday, tuesday, wednesday, thursday, friday, saturday or sunday", text)
}

// day returns the day as package time counts it; what is no day is Monday.
func (d Weekday) day() int64 {
	if i := slices.Index(weekdays, d); i >= 0 {
		return int64(i)
	}
	return int64(time.Monday)
}

// LoadLocation returns the time zone of a name of the IANA database. GMT is UTC.
// A name that is not there is Invalid.
func LoadLocation(name string) (*time.Location, error) {
	if name == "GMT" {
		return time.UTC, nil
	}
	if name == "" || name == "Local" { // the one is UTC to package time, the other differs from machine to machine
		return nil, pg.Refuse("time zone", "%q; want a name such as Europe/Bratislava or UTC", name)
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, pg.Refuse("time zone", "%v; want a name such as Europe/Bratislava or UTC", err)
	}
	return loc, nil
}

// Calendar says in which bucket an instant lies. The zero Calendar is UTC's with
// weeks from Monday.
//
// Buckets are cut from wall time, and each unit begins anew in its parent: seconds
// in the minute, minutes in the hour, hours in the day, days, months and quarters
// in the year, weeks with the first WeekStart of the year, where the days before it
// are a short week. A size that does not divide its parent leaves a shorter bucket
// at the parent's end, and one beyond its parent is the parent. Years are counted
// from year 0.
type Calendar struct {
	Location  *time.Location // default UTC
	WeekStart Weekday        // default Monday
}

// Floor returns the start of the bucket of at: the wall time that the bucket begins
// with, at the time's own UTC offset where there are two of that wall time and one
// has it, else at the earlier of the two; where there is none the first instant
// after the gap. It is never later than at. It returns the zero time where g is no
// granularity.
func (c Calendar) Floor(g Granularity, at time.Time) time.Time {
	r, ok := c.rule(g)
	if !ok {
		return time.Time{}
	}
	return time.Unix(r.floor(at.Unix()), 0).In(r.loc)
}

// Timeline returns the starts of the buckets of all instants from from to to, each
// once and in order: none where from is later than to, or g is no granularity.
func (c Calendar) Timeline(g Granularity, from, to time.Time) iter.Seq[time.Time] {
	return func(yield func(time.Time) bool) {
		r, ok := c.rule(g)
		if !ok || from.After(to) {
			return
		}
		for start := range r.timeline(from.Unix(), to.Unix()) {
			if !yield(time.Unix(start, 0).In(r.loc)) {
				return
			}
		}
	}
}

// rule is a granularity in a calendar. Instants are unix seconds; walls, the
// readings of a wall clock, are the unix seconds of the same reading in UTC.
type rule struct {
	loc       *time.Location
	weekStart int64
	n         int64
	unit      string
}

func (c Calendar) rule(g Granularity) (r rule, ok bool) {
	r = rule{loc: c.Location, weekStart: c.WeekStart.day()}
	if r.loc == nil {
		r.loc = time.UTC
	}
	r.n, r.unit, ok = g.parse()
	return r, ok
}

// period is a stretch of time with one UTC offset; that of the next may be the same.
// The first begins, and the last ends, out of reach.
type period struct{ begin, end, offset int64 }

const beyond = 1 << 40 // seconds: 35,000 years

func (r rule) period(at int64) period {
	p := period{begin: -beyond, end: beyond}
	if r.loc == time.UTC {
		return p
	}
	t := time.Unix(at, 0).In(r.loc)
	_, offset := t.Zone()
	p.offset = int64(offset)
	begin, end := t.ZoneBounds()
	if !begin.IsZero() {
		p.begin = begin.Unix()
	}
	if !end.IsZero() {
		p.end = end.Unix()
	}
	if p.end <= at { // beyond the zone's table package time ends a leap year on 31 December
		p.end = floorTo(at, day) + day
	}
	return p
}

// apart is more seconds than lie between a wall and the instants that clocks show
// it, wherever they are and however they are put back.
const apart = 48 * hour

// floor returns the start of the bucket of an instant.
func (r rule) floor(at int64) int64 {
	p := r.period(at)
	wall := r.wallFloor(at + p.offset)
	if start := wall - p.offset; start >= p.begin {
		return start
	}
	return r.instant(wall, at, p.offset)
}

// span returns the instants around at, from the first to before the last, that all
// have the start of its bucket.
func (r rule) span(at int64) (from, to int64) {
	p := r.period(at)
	wall := r.wallFloor(at + p.offset)
	return max(p.begin, wall-p.offset), min(p.end, r.wallNext(wall)-p.offset)
}

// instant returns when, not after at, clocks showed wall: if more than once, when
// they did at offset, else first. If never it returns the first instant after the
// gap that wall lies in.
func (r rule) instant(wall, at, offset int64) int64 {
	found, gap := int64(beyond), int64(beyond)
	for p := r.period(min(at, wall+apart)); ; {
		if start := wall - p.offset; start >= p.begin && start < p.end && start <= at {
			if p.offset == offset {
				return start
			}
			found = start
		}
		if p.begin <= wall-apart {
			return min(found, gap)
		}
		before := r.period(p.begin - 1)
		if found == beyond && wall-before.offset >= p.begin && wall-p.offset < p.begin {
			gap = p.begin
		}
		p = before
	}
}

// timeline returns the starts of all instants from..to. Within a period walls run on
// without a break, so that the starts in it are those of the walls; only the start
// that its first instant has may lie before it.
func (r rule) timeline(from, to int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		early := r.early(from, to)
		for _, start := range early {
			if !yield(start) {
				return
			}
		}
		last := early[len(early)-1]
		for at := from; at <= to; {
			p := r.period(at)
			if start := r.floor(at); start > last {
				last = start
				if !yield(start) {
					return
				}
			}
			end := min(p.end-1, to)
			for wall := r.wallNext(r.wallFloor(at + p.offset)); wall-p.offset <= end; wall = r.wallNext(wall) {
				last = wall - p.offset
				if !yield(last) {
					return
				}
			}
			at = p.end
		}
	}
}

// early returns the starts of instants from..to that lie before from, in order, and
// that of from. They can be several: after clocks were put back an instant may
// belong to a bucket that began before the one of from.
func (r rule) early(from, to int64) []int64 {
	starts := []int64{r.floor(from)}
	p := r.period(from)
	reach := min(to, r.wallNext(r.wallFloor(from+p.offset))+apart)
	for p.end <= reach {
		if start := r.floor(p.end); start < from {
			starts = append(starts, start)
		}
		p = r.period(p.end)
	}
	slices.Sort(starts)
	return slices.Compact(starts)
}

const (
	minute = 60
	hour   = 60 * minute
	day    = 24 * hour
)

// floorTo returns the greatest multiple of n that is not above v.
func floorTo(v, n int64) int64 { return v - ((v%n)+n)%n }

// within returns the start of the bucket of v of n units in its parent.
func within(v, parent, n int64) int64 {
	begin := floorTo(v, parent)
	return begin + (v-begin)/n*n
}

// wallFloor returns the wall that the bucket of a wall begins with.
func (r rule) wallFloor(wall int64) int64 {
	switch r.unit {
	case "s":
		return within(wall, minute, r.n)
	case "m":
		return within(wall, hour, r.n*minute)
	case "h":
		return within(wall, day, r.n*hour)
	}
	t := time.Unix(wall, 0).UTC()
	year := int64(t.Year())
	january := firstOf(year, 1)
	months := int64(t.Month()) - 1
	switch r.unit {
	case "d":
		return january + (wall-january)/(r.n*day)*(r.n*day)
	case "w":
		first := r.firstWeek(january)
		if wall < first {
			return january
		}
		return first + (wall-first)/(r.n*7*day)*(r.n*7*day)
	case "mo":
		return firstOf(year, 1+months/r.n*r.n)
	case "q":
		return firstOf(year, 1+months/(3*r.n)*(3*r.n))
	}
	return firstOf(floorTo(year, r.n), 1)
}

// wallNext returns the wall that the bucket after that of start begins with.
func (r rule) wallNext(start int64) int64 {
	switch r.unit {
	case "s":
		return min(start+r.n, floorTo(start, minute)+minute)
	case "m":
		return min(start+r.n*minute, floorTo(start, hour)+hour)
	case "h":
		return min(start+r.n*hour, floorTo(start, day)+day)
	}
	t := time.Unix(start, 0).UTC()
	year, month := int64(t.Year()), int64(t.Month())
	switch r.unit {
	case "d":
		return min(start+r.n*day, firstOf(year+1, 1))
	case "w":
		if first := r.firstWeek(firstOf(year, 1)); start < first {
			return first
		}
		return min(start+r.n*7*day, firstOf(year+1, 1))
	case "mo":
		return firstOf(year, min(month+r.n, 13))
	case "q":
		return firstOf(year, min(month+3*r.n, 13))
	}
	return firstOf(year+r.n, 1)
}

// firstWeek returns the first day of the year that begins with january on which a
// week begins.
func (r rule) firstWeek(january int64) int64 {
	weekday := (floorTo(january, day)/day + int64(time.Thursday)) % 7 // 1 January 1970 was one
	return january + (r.weekStart-weekday+14)%7*day
}

// firstOf returns the wall that a month begins with; month 13 is the next January.
func firstOf(year, month int64) int64 {
	return time.Date(int(year), time.Month(month), 1, 0, 0, 0, 0, time.UTC).Unix()
}
