package counters

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Series is what the buckets of a metric hold, one after the other: Values[i] is the
// bucket that begins at At[i].
//
// Paths into it are written as names are: "account.count". A segment that is * stands
// for every name there. Slices are equal numbers of points; what does not divide is
// left out at the front. Fewer than one slice, and more than there are points, are
// Invalid; no points have no slices.
type Series struct {
	At     []time.Time `json:"at"`
	Values []Values    `json:"values"`

	paths Encoding
}

// Point is one bucket of a Series.
type Point struct {
	At     time.Time `json:"at"`
	Values Values    `json:"values"`
}

// Sample is one number of a Series.
type Sample struct {
	At    time.Time `json:"at"`
	Value Number    `json:"value"`
}

// Fn is how Aggregate makes one number of those of a slice.
type Fn string

// The functions of Aggregate.
const (
	FnSum    Fn = "sum"    // 0 of none
	FnMean   Fn = "mean"   // 0 of none
	FnMin    Fn = "min"    // null of none
	FnMax    Fn = "max"    // null of none
	FnStddev Fn = "stddev" // of a Stat, as of a sample: null of fewer than two
)

// Fns are the names of all functions of [Series.Aggregate].
var Fns = []string{string(FnSum), string(FnMean), string(FnMin), string(FnMax), string(FnStddev)}

// Aggregate returns what fn makes of the numbers at path, one for each slice. Points
// that have none there do not count. FnStddev reads the fields count, sum and square
// below path. An unknown fn is Invalid.
func (s *Series) Aggregate(fn Fn, path string, slices int) ([]Number, error) {
	var of func(p place, values []Values) Number
	switch fn {
	case FnSum:
		of = place.sum
	case FnMean:
		of = place.mean
	case FnMin:
		of = func(p place, values []Values) Number { return p.extreme(values, -1) }
	case FnMax:
		of = func(p place, values []Values) Number { return p.extreme(values, 1) }
	case FnStddev:
		of = place.stddev
	default:
		return nil, pg.Refuse("fn", "%q; want one of %s", fn, strings.Join(Fns, ", "))
	}
	return perSlice(s, path, slices, of)
}

// perSlice returns what of makes of each slice.
func perSlice[T any](s *Series, path string, slices int, of func(p place, values []Values) T) ([]T, error) {
	parts, err := s.slice(slices)
	if err != nil {
		return nil, err
	}
	if path == "" {
		return nil, pg.Refuse("path", "empty; want the name of a field")
	}
	p := s.paths.parsePath(path)
	results := make([]T, len(parts))
	for i, part := range parts {
		results[i] = of(p, part.Values)
	}
	return results, nil
}

// slice cuts a Series into n of the same length.
func (s *Series) slice(n int) ([]Series, error) {
	points := len(s.At)
	switch {
	case len(s.Values) != points:
		return nil, pg.Refuse("series", "%d times and %d values", points, len(s.Values))
	case n < 1:
		return nil, pg.Refuse("slices", "%d; want 1 or more", n)
	case points == 0:
		return nil, nil
	case n > points:
		return nil, pg.Refuse("slices", "%d of %d points; want 1 to %[2]d", n, points)
	}
	parts := make([]Series, n)
	length := points / n
	for i := range parts {
		begin := points - (n-i)*length
		parts[i] = Series{At: s.At[begin : begin+length], Values: s.Values[begin : begin+length], paths: s.paths}
	}
	return parts, nil
}

func (p place) sum(values []Values) Number {
	total := whole(0)
	p.numbers(values, func(n Number) { total = total.Add(n) })
	return total
}

func (p place) mean(values []Values) Number {
	total, count := whole(0), int64(0)
	p.numbers(values, func(n Number) { total, count = total.Add(n), count+1 })
	return total.quo(whole(max(count, 1)))
}

// extreme returns the number that compares to all others as sign says, or equals them.
func (p place) extreme(values []Values, sign int) (found Number) {
	p.numbers(values, func(n Number) {
		if !found.known || n.Cmp(found) == sign {
			found = n
		}
	})
	return found
}

// stddev is the standard deviation of a sample, as PostgreSQL's stddev.
func (p place) stddev(values []Values) Number {
	of := map[string]Number{"count": whole(0), "sum": whole(0), "square": whole(0)}
	p.maps(values, func(below Values) {
		for name, total := range of {
			if n, ok := numberAt(below[name]); ok {
				of[name] = total.Add(n)
			}
		}
	})
	count, total := of["count"], of["sum"]
	if count.Cmp(whole(1)) <= 0 {
		return Number{}
	}
	squares := count.mul(of["square"]).sub(total.mul(total))
	return squares.quo(count.mul(count.sub(whole(1)))).sqrt()
}

// Timeline returns the numbers at path as they follow each other in each slice, by
// the names that they were found by: those that a wildcard stands for in any point,
// and where path leads to a map those in it. What is missing or no number is 0.
func (s *Series) Timeline(path string, slices int) (map[string][][]Sample, error) {
	parts, err := s.slice(slices)
	if err != nil {
		return nil, err
	}
	lines := map[string][][]Sample{}
	for name, p := range s.paths.parsePath(path).expand(s.Values, s.paths) {
		for _, part := range parts {
			line := make([]Sample, len(part.At))
			for i, at := range part.At {
				line[i] = Sample{at, p.sum(part.Values[i : i+1])}
			}
			lines[name] = append(lines[name], line)
		}
	}
	return lines, nil
}

// Category returns the sums of the numbers at path in each slice, by the names that
// Timeline has. What is missing or no number is 0.
func (s *Series) Category(path string, slices int) ([]map[string]Number, error) {
	parts, err := s.slice(slices)
	if err != nil {
		return nil, err
	}
	sums := make([]map[string]Number, len(parts))
	places := s.paths.parsePath(path).expand(s.Values, s.paths)
	for i, part := range parts {
		sums[i] = make(map[string]Number, len(places))
		for name, p := range places {
			sums[i][name] = p.sum(part.Values)
		}
	}
	return sums, nil
}

// Match returns the names that Timeline finds at path, in order; none where nothing
// is there in any point.
func (s *Series) Match(path string) []string {
	found := s.paths.parsePath(path).expand(s.Values, s.paths)
	maps.DeleteFunc(found, func(_ string, p place) bool {
		there := false
		for _, v := range s.Values {
			p.each(v, func([]string, any) { there = true })
		}
		return !there
	})
	return slices.Sorted(maps.Keys(found))
}

// Paths returns the paths of all leaves that are in any point, in order.
func (s *Series) Paths() []string {
	found := map[string]bool{}
	var walk func(names []string, v Values)
	walk = func(names []string, v Values) {
		for name, there := range v {
			names := append(names, name)
			if below := mapOf(there); below != nil {
				walk(names, below)
			} else {
				found[s.paths.render(place{names, make([]bool, len(names))})] = true
			}
		}
	}
	for _, v := range s.Values {
		walk(nil, v)
	}
	return slices.Sorted(maps.Keys(found))
}
