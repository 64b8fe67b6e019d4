package counters_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// Floor is what its rules say, followed step by step: the wall time is floored, and
// of all instants that show it the one is taken that they name.
func TestFloorByItsRules(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for _, zone := range append(zones, "UTC") {
		c := counters.Calendar{Location: calendar(t, zone, "monday").Location, WeekStart: counters.Thursday}
		changes := append(transitions(t, zone, 2010, 2030), 1300000000, 2240524800) // the last is beyond the tables of most zones, and 31 December
		for _, unit := range units {
			for n := 1; n <= 12; n++ {
				for range 30 {
					near := []int64{100, 3 * 3600, 3 * 86400, 300 * 86400}[random.IntN(4)]
					at := time.Unix(changes[random.IntN(len(changes))]+random.Int64N(2*near)-near, random.Int64N(1e9))
					g := counters.Granularity(fmt.Sprint(n, unit))
					if got, want := c.Floor(g, at), ruled(c.Location, n, unit, at); !got.Equal(want) {
						t.Errorf("Floor(%s, %s, %v) = %v, want %v", zone, g, at.In(c.Location), got, want)
					}
					// All instants of a span have one start.
					from, to := c.Span(g, at.Unix())
					for _, other := range []int64{from, from + random.Int64N(max(1, to-from)), to - 1} {
						if start := c.Floor(g, time.Unix(other, 0)); at.Unix() < from || to <= at.Unix() || !start.Equal(c.Floor(g, at)) {
							t.Errorf("%s, %s: the span of %v is %d..%d; Floor(%d) = %v", zone, g, at.In(c.Location), from, to, other, start)
						}
					}
				}
			}
		}
	}
}

// ruled is Floor by the letter, for weeks from Thursday.
func ruled(loc *time.Location, n int, unit string, at time.Time) time.Time {
	local := at.In(loc)
	year, month, d := local.Date()
	h, m, s := local.Clock()
	day := func(yearday int) time.Time { return time.Date(year, 1, 1+yearday, 0, 0, 0, 0, time.UTC) }
	var wall time.Time
	switch yearday := local.YearDay() - 1; unit {
	case "s":
		wall = time.Date(year, month, d, h, m, s/n*n, 0, time.UTC)
	case "m":
		wall = time.Date(year, month, d, h, m/n*n, 0, 0, time.UTC)
	case "h":
		wall = time.Date(year, month, d, h/n*n, 0, 0, 0, time.UTC)
	case "d":
		wall = day(yearday / n * n)
	case "w":
		first := 0
		for day(first).Weekday() != time.Thursday {
			first++
		}
		if wall = day(0); yearday >= first {
			wall = day(first + (yearday-first)/(7*n)*(7*n))
		}
	case "mo":
		wall = time.Date(year, time.Month(1+(int(month)-1)/n*n), 1, 0, 0, 0, 0, time.UTC)
	case "q":
		wall = time.Date(year, time.Month(1+(int(month)-1)/(3*n)*(3*n)), 1, 0, 0, 0, 0, time.UTC)
	case "y":
		wall = time.Date(year/n*n, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	_, own := local.Zone()
	shown := func(instant time.Time) (wall time.Time, offset int) {
		_, offset = instant.In(loc).Zone()
		return instant.Add(time.Duration(offset) * time.Second), offset
	}
	var earliest time.Time
	for off := -16 * time.Hour; off <= 16*time.Hour; off += 15 * time.Minute { // of which all offsets since 2010 are multiples
		instant := wall.Add(off)
		if now, offset := shown(instant); now.Equal(wall) && !instant.After(at) {
			if offset == own {
				return instant
			}
			if earliest.IsZero() {
				earliest = instant
			}
		}
	}
	if !earliest.IsZero() {
		return earliest
	}
	for instant := wall.Add(-16 * time.Hour); ; instant = instant.Add(time.Minute) {
		if now, _ := shown(instant); now.After(wall) {
			return instant
		}
	}
}
