package counters_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// golden reads a file of testdata/compat.
func golden[T any](t *testing.T, name string) (v T) {
	t.Helper()
	text, err := os.ReadFile("testdata/compat/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func calendar(t testing.TB, zone, weekStart string) counters.Calendar {
	t.Helper()
	loc, err := counters.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	day, err := counters.ParseWeekday(weekStart)
	if err != nil {
		t.Fatal(err)
	}
	return counters.Calendar{Location: loc, WeekStart: day}
}

// unix are the unix seconds of the buckets of a timeline.
func unix(c counters.Calendar, g counters.Granularity, from, to int64) []int64 {
	starts := []int64{}
	for at := range c.Timeline(g, time.Unix(from, 0), time.Unix(to, 0)) {
		starts = append(starts, at.Unix())
	}
	return starts
}

func TestFloorAsCompatible(t *testing.T) {
	t.Parallel()
	file := golden[struct {
		Cases []struct {
			Zone        string
			WeekStart   string `json:"week_start"`
			Granularity counters.Granularity
			Time, Start int64
		}
	}](t, "calendar_floor.json")
	if len(file.Cases) != 523 {
		t.Fatalf("%d cases", len(file.Cases))
	}
	for _, c := range file.Cases {
		if got := calendar(t, c.Zone, c.WeekStart).Floor(c.Granularity, time.Unix(c.Time, 999_999_999)); got.Unix() != c.Start || got.Nanosecond() != 0 {
			t.Errorf("Floor(%+v) = %d", c, got.Unix())
		}
	}
}

func TestTimelineAsCompatible(t *testing.T) {
	t.Parallel()
	file := golden[struct {
		Cases []struct {
			Zone        string
			WeekStart   string `json:"week_start"`
			Granularity counters.Granularity
			From, To    int64
			At          []int64
		}
	}](t, "calendar_timeline.json")
	if len(file.Cases) != 91 {
		t.Fatalf("%d cases", len(file.Cases))
	}
	for _, c := range file.Cases {
		if i := slices.Index(c.At, 1257046200); c.Zone == "America/St_Johns" && c.Granularity == "2mo" && i >= 0 {
			// The clocks of this zone showed the first minute of November 2009 twice.
			// What happened in the first has its own start, by the rule of Floor and so
			// by that of Timeline; the program of the vectors did not look at each minute.
			c.At = slices.Insert(c.At, i, 1257042600)
			if got := calendar(t, c.Zone, c.WeekStart).Floor("2mo", time.Unix(1257042630, 0)); got.Unix() != 1257042600 {
				t.Errorf("Floor(2mo) = %v", got)
			}
		}
		if diff := cmp.Diff(c.At, unix(calendar(t, c.Zone, c.WeekStart), c.Granularity, c.From, c.To)); diff != "" {
			t.Errorf("Timeline(%s, %s, %s, %d, %d): %s", c.Zone, c.WeekStart, c.Granularity, c.From, c.To, diff)
		}
	}
}

// The zones of the brute force: changes by 30 minutes and by two hours, at midnight
// and on 1 January, a day left out, and none at all.
var zones = []string{
	"America/New_York", "America/Havana", "America/St_Johns", "Europe/Dublin", "Europe/Bratislava", "Asia/Kathmandu",
	"Pacific/Chatham", "Australia/Lord_Howe", "Antarctica/Troll", "Pacific/Apia", "Africa/Casablanca", "Asia/Tehran",
}

var units = []string{"s", "m", "h", "d", "w", "mo", "q", "y"}

// D7, D8, D9: the buckets of a timeline are the starts of all its instants, each once
// and in order, whatever the clocks do.
func TestTimelineIsTheStartsOfAllInstants(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, zone := range zones {
		changes := transitions(t, zone, 2007, 2033) // timelines around those of 2010 to 2030 reach as far
		if len(changes) == 0 {                      // Kathmandu
			changes = []int64{1293840000 - 20700, 1577836800}
		}
		for _, unit := range units {
			for n := 1; n <= 12; n += pgtest.Size(1, 4) {
				g := counters.Granularity(fmt.Sprint(n, unit))
				c := counters.Calendar{Location: calendar(t, zone, "monday").Location, WeekStart: counters.Sunday}
				for range 2 {
					bruteForce(t, c, g, changes, random)
				}
			}
		}
	}
}

// bruteForce compares a timeline around a change of the clocks with the starts of
// its instants: each of them where buckets are short, else some in each bucket and
// every minute of the hours in which clocks change.
func bruteForce(t *testing.T, c counters.Calendar, g counters.Granularity, changes []int64, random *rand.Rand) {
	t.Helper()
	change := changes[random.IntN(len(changes))]
	for year := time.Unix(change, 0).Year(); year < 2010 || year > 2030; year = time.Unix(change, 0).Year() {
		change = changes[random.IntN(len(changes))]
	}
	var span, step int64
	switch unit := g[len(g)-1]; {
	case unit == 's':
		span, step = 100, 1
	case unit == 'm':
		span, step = 2*3600, 20
	case unit == 'h':
		span, step = 30*3600, 900
	case unit == 'd' || unit == 'w':
		span, step = 20*86400, 3600/2
	default:
		span, step = 400*86400, 6*3600
	}
	from, to := change-random.Int64N(span), change+random.Int64N(span)
	var want []int64
	add := func(at int64) {
		if at < from || at > to {
			return
		}
		start := c.Floor(g, time.Unix(at, 0)).Unix()
		if start > at {
			t.Errorf("Floor(%s, %s, %d) = %d, which is later", c.Location, g, at, start)
		}
		if again := c.Floor(g, time.Unix(start, 0)).Unix(); again != start {
			t.Errorf("Floor(%s, %s, %d) = %d, and of that %d", c.Location, g, at, start, again)
		}
		want = append(want, start)
	}
	add(from)
	for at := from - from%step; at <= to; at += step {
		add(at - 1)
		add(at)
	}
	for _, change := range changes {
		for at := change - 130*60; from <= change && change <= to && at <= change+130*60; at += 60 {
			add(at - at%60)
		}
	}
	add(to)
	slices.Sort(want)
	want = slices.Compact(want)
	if got := unix(c, g, from, to); !slices.Equal(got, want) {
		t.Errorf("Timeline(%s, %s, %d, %d) (change at %d): %s", c.Location, g, from, to, change, cmp.Diff(want, got))
	}
}

// transitions returns the first instants of new UTC offsets.
func transitions(t *testing.T, zone string, first, last int) (at []int64) {
	t.Helper()
	loc := calendar(t, zone, "monday").Location
	for day := time.Date(first, 1, 1, 0, 0, 0, 0, loc); ; {
		_, day = day.ZoneBounds()
		if day.IsZero() || day.Year() > last {
			return at
		}
		at = append(at, day.Unix())
	}
}

// D6: March in New York is one month, its days are one each, at the offset that holds
// at their start.
func TestD6BucketsHaveOneStart(t *testing.T) {
	t.Parallel()
	c := calendar(t, "America/New_York", "monday")
	starts := map[counters.Granularity]map[int64]bool{"1d": {}, "1mo": {}}
	for at := time.Date(2025, 3, 1, 0, 0, 0, 0, c.Location); at.Month() == time.March; at = at.Add(17 * time.Minute) {
		for g := range starts {
			starts[g][c.Floor(g, at).Unix()] = true
		}
	}
	if len(starts["1d"]) != 31 || len(starts["1mo"]) != 1 {
		t.Errorf("%d days and %d months, want 31 and 1", len(starts["1d"]), len(starts["1mo"]))
	}
	if got, want := c.Floor("1mo", time.Date(2025, 3, 20, 0, 0, 0, 0, time.UTC)), time.Date(2025, 3, 1, 5, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("Floor(1mo) = %v, want %v", got, want)
	}
}

// D7: in a zone with summer time each point of a timeline of months is a bucket.
func TestD7MonthsAreCalendarSteps(t *testing.T) {
	t.Parallel()
	c := calendar(t, "Europe/Bratislava", "monday")
	month := time.January
	for at := range c.Timeline("1mo", time.Date(2025, 1, 15, 0, 0, 0, 0, time.UTC), time.Date(2025, 12, 15, 0, 0, 0, 0, time.UTC)) {
		if want := time.Date(2025, month, 1, 0, 0, 0, 0, c.Location); !at.Equal(want) {
			t.Errorf("month %d begins %v, want %v", month, at, want)
		}
		month++
	}
	if month != 13 {
		t.Errorf("ended before month %d", month)
	}
}

// D8: a timeline of weeks from December shows the short week that 1 January begins.
func TestD8WeeksAcrossNewYear(t *testing.T) {
	t.Parallel()
	c := calendar(t, "UTC", "monday")
	want := []int64{1734912000, 1735516800, 1735689600, 1736121600} // 23 and 30 December, 1 and 6 January
	if got := unix(c, "1w", 1735000000, 1736200000); !slices.Equal(got, want) {
		t.Errorf("weeks begin %v, want %v", got, want)
	}
}

// D9: sizes that do not divide their parent begin anew with it.
func TestD9SizesThatDoNotDivide(t *testing.T) {
	t.Parallel()
	c := calendar(t, "UTC", "monday")
	for g, want := range map[counters.Granularity][]int64{
		"90m": {0, 3600, 7200}, "45m": {0, 2700, 3600, 6300, 7200}, "7s": {0, 7, 14, 21, 28, 35, 42, 49, 56, 60},
		"7h": {0, 25200, 50400, 75600, 86400}, "360d": {0, 360 * 86400, 365 * 86400},
	} {
		if got := unix(c, g, 0, want[len(want)-1]); !slices.Equal(got, want) {
			t.Errorf("Timeline(%s) = %v, want %v", g, got, want)
		}
	}
}

func TestCalendarAtTheEdges(t *testing.T) {
	t.Parallel()
	c := counters.Calendar{}
	for _, test := range []struct {
		at   time.Time
		g    counters.Granularity
		want int64
	}{
		{time.Unix(-1, 500), "1s", -1},
		{time.Unix(-1, 999_999_999), "1m", -60},
		{time.Unix(-1, 0), "1d", -86400},
		{time.Unix(-1, 0), "1y", -365 * 86400},
		{time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), "1w", time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).Unix()},
		{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "1q", time.Date(9999, 10, 1, 0, 0, 0, 0, time.UTC).Unix()},
		{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "999999mo", time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC).Unix()},
	} {
		if got := c.Floor(test.g, test.at); got.Unix() != test.want {
			t.Errorf("Floor(%s, %v) = %d, want %d", test.g, test.at, got.Unix(), test.want)
		}
	}
	if got := unix(c, "1h", 10, 9); len(got) != 0 {
		t.Errorf("from after to: %v", got)
	}
	for range c.Timeline("1s", time.Unix(0, 0), time.Unix(1<<40, 0)) { // ends when its reader does
		break
	}
	if !c.Floor("1x", time.Now()).IsZero() || len(unix(c, "1x", 0, 1000)) != 0 {
		t.Errorf("a granularity that is none has buckets")
	}
}
