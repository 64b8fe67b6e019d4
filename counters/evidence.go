package counters

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Evidence is what the rows of a table say of how it counts. Where Sample is there, it
// is what some of them say.
type Evidence struct {
	Sample       *Sampled        `json:"sample,omitempty"` // nil where all rows were read
	Found        []Span          `json:"found"`            // granularities, from the finest, and their first and last buckets
	SystemRows   bool            `json:"system_rows"`      // all events are counted, too
	Offsets      map[string]int  `json:"offsets"`          // from UTC, of starts of days and longer: "+02:00"
	Zones        []string        `json:"zones"`            // those tried that have a midnight at each of these starts
	WeekStarts   map[Weekday]int `json:"week_starts"`      // of weeks, but those that 1 January begins
	Encoded      int64           `json:"encoded"`          // rows with names that look percent-encoded (V1)
	EncodedSuch  string          `json:"encoded_such,omitempty"`
	Unparsed     int64           `json:"unparsed"` // rows whose keys are of no bucket
	UnparsedSuch []string        `json:"unparsed_such,omitempty"`
	Twins        int64           `json:"twins"` // pairs of rows of one day, month or longer, for one metric
	TwinSuch     string          `json:"twin_such,omitempty"`
	Strays       int64           `json:"strays"` // rows that lie where no bucket of the settings begins: they are not shown

	others    map[string]int64 // of the keys that are none: those that are some with another separator
	read      int64
	dayStarts int
	misfits   map[string]int // of dayStarts, by zone
}

// Sampled says what was looked at, of how much.
type Sampled struct {
	Rows     int64 `json:"rows"`
	Blocks   int64 `json:"blocks"`    // that they are in
	OfBlocks int64 `json:"of_blocks"` // that the table has
	Metrics  int   `json:"metrics"`   // whose first and last buckets, and days and longer, were looked up
}

// look is how much of a large table is read: blocks, and metrics by their index.
type look struct {
	blocks  int64
	metrics int
}

var (
	longLook  = look{2048, 20} // 16 MiB
	shortLook = look{128, 3}
)

const sampleStarts = 5000 // of one metric and granularity

// bucketKey is a metric and a granularity.
type bucketKey struct {
	metric      string
	granularity Granularity
}

// gathering is what is known of the rows while they are read.
type gathering struct {
	t       *table
	e       *Evidence
	metrics map[string]int64
	spans   map[Granularity]*[2]int64
	long    map[bucketKey][]int64 // starts of days and longer
}

// evidence reads the rows, or some of them.
func (s *Store) evidence(ctx context.Context, t *table, c *catalog, much look) (Evidence, error) {
	e := Evidence{Found: []Span{}, Offsets: map[string]int{}, Zones: []string{}, WeekStarts: map[Weekday]int{}, misfits: map[string]int{}, others: map[string]int64{}}
	g := &gathering{t: t, e: &e, metrics: map[string]int64{}, spans: map[Granularity]*[2]int64{}, long: map[bucketKey][]int64{}}
	sampled := ""
	if c.Blocks > much.blocks {
		sampled = fmt.Sprintf(`
			TABLESAMPLE SYSTEM (%g) REPEATABLE (0)`, 100*float64(much.blocks)/float64(c.Blocks))
		e.Sample = &Sampled{Blocks: much.blocks, OfBlocks: c.Blocks}
	}
	if err := s.readSample(ctx, t, sampled, g); err != nil {
		return e, s.told(err)
	}
	if e.Sample != nil {
		e.Sample.Rows = e.read
		if err := s.lookUp(ctx, t, g, much.metrics); err != nil {
			return e, s.told(err)
		}
	}
	g.conclude()
	return e, nil
}

// readSample reads rows. Names are those of rows that are no wider than a part of a
// block, so that nothing is fetched from elsewhere.
func (s *Store) readSample(ctx context.Context, t *table, sampled string, g *gathering) error {
	columns := map[Mode]string{Full: `'', 0`, Partial: `'', coalesce(extract(epoch FROM at)::float8, 'NaN')`, Separated: `coalesce(granularity, ''), coalesce(extract(epoch FROM at)::float8, 'NaN')`}[t.mode]
	rows, err := s.db.Query(ctx, s.names.SQL(`
		SELECT coalesce(key, ''), `+columns+`, coalesce(CASE WHEN pg_column_size(data) < 1900 AND jsonb_typeof(data) = 'object' THEN
			(SELECT min(name) FROM jsonb_object_keys(data) AS name WHERE name ~ '%(00|22|24|25|2A|2E|5C)') END, '')
		FROM {table}`+sampled))
	if err != nil {
		return err
	}
	var key, granularity, encoded string
	var at float64
	_, err = pgx.ForEachRow(rows, []any{&key, &granularity, &at, &encoded}, func() error {
		g.e.read++
		if encoded != "" {
			g.e.Encoded++
			g.e.EncodedSuch = cmp.Or(g.e.EncodedSuch, shorten(encoded))
		}
		g.row(key, granularity, at)
		return nil
	})
	return err
}

// row takes the identity of a row.
func (g *gathering) row(key, granularity string, at float64) {
	id := bucketKey{key, Granularity(granularity)}
	ok, unix := true, int64(at)
	switch g.t.mode {
	case Full:
		id.metric, id.granularity, unix, ok = splitFull(g.t.separator, key)
	case Partial:
		id.metric, id.granularity, ok = splitPartial(g.t.separator, key)
	case Separated:
		_, _, ok = id.granularity.parse()
	}
	if !ok || g.t.mode != Full && (math.IsInf(at, 0) || float64(unix) != at) || unix < firstSecond || unix > lastSecond {
		g.e.Unparsed++
		if len(g.e.UnparsedSuch) < 3 {
			g.e.UnparsedSuch = append(g.e.UnparsedSuch, strconv.Quote(shorten(key)))
		}
		g.otherwise(key)
		return
	}
	g.metrics[id.metric]++
	if !g.t.calendar.Floor(id.granularity, time.Unix(unix, 0)).Equal(time.Unix(unix, 0)) {
		g.e.Strays++
	}
	g.start(id, unix)
}

// otherwise counts a key that is none by the separators with which it would be one.
func (g *gathering) otherwise(key string) {
	for _, separator := range []string{"::", ":", "/", "|", "-", "_", ".", "#", "~", " "} {
		ok := false
		switch g.t.mode {
		case Full:
			_, _, _, ok = splitFull(separator, key)
		case Partial:
			_, _, ok = splitPartial(separator, key)
		}
		if ok {
			g.e.others[separator]++
		}
	}
}

// start takes the start of a bucket, which may be known already.
func (g *gathering) start(id bucketKey, unix int64) {
	g.e.SystemRows = g.e.SystemRows || id.metric == systemKey
	if span := g.spans[id.granularity]; span == nil {
		g.spans[id.granularity] = &[2]int64{unix, unix}
	} else {
		span[0], span[1] = min(span[0], unix), max(span[1], unix)
	}
	if _, unit, _ := id.granularity.parse(); lengths[unit][0] >= day {
		g.long[id] = append(g.long[id], unix)
	}
}

// lookUp asks the index for the first and last buckets of the metrics that are met
// most, and for their days and longer, each after the other.
func (s *Store) lookUp(ctx context.Context, t *table, g *gathering, most int) error {
	metrics := slices.SortedFunc(maps.Keys(g.metrics), func(a, b string) int {
		return cmp.Or(cmp.Compare(g.metrics[b], g.metrics[a]), cmp.Compare(a, b))
	})
	metrics = slices.DeleteFunc(metrics, func(metric string) bool { return metric == systemKey })
	metrics = append(metrics[:min(len(metrics), most)], systemKey)
	granularities := slices.Sorted(maps.Keys(g.spans))
	for _, metric := range metrics {
		for _, granularity := range granularities {
			id := bucketKey{metric, granularity}
			wanted := []struct {
				order string
				limit int
			}{{"ASC", 1}, {"DESC", 1}}
			if _, unit, _ := granularity.parse(); lengths[unit][0] >= day {
				wanted = wanted[1:]
				wanted[0].limit = sampleStarts
				delete(g.long, id)
			}
			for _, w := range wanted {
				if err := s.starts(ctx, t, id, w.order, w.limit, func(unix int64) { g.start(id, unix) }); err != nil {
					return err
				}
			}
		}
		g.e.Sample.Metrics++
	}
	return nil
}

// starts calls have with starts of a metric, in the order of the primary key. Of a
// full table these are keys of one length that differ in digits, which any collation
// keeps in order; some others may lie between them.
func (s *Store) starts(ctx context.Context, t *table, id bucketKey, order string, limit int, have func(unix int64)) error {
	const others = 10
	sql := `
		SELECT extract(epoch FROM at)::float8
		FROM {table}
		WHERE key = $1
		ORDER BY at ` + order + `
		LIMIT ` + strconv.Itoa(limit)
	prefix := id.metric + t.separator + string(id.granularity)
	args := []any{prefix}
	switch t.mode {
	case Separated:
		sql = strings.Replace(sql, "key = $1", "key = $1 AND granularity = $2", 1)
		args = []any{id.metric, string(id.granularity)}
	case Full:
		sql = `
			SELECT right(key, 10)::float8
			FROM (
				SELECT key
				FROM {table}
				WHERE key >= $1 AND key <= $2
				ORDER BY key ` + order + `
				LIMIT ` + strconv.Itoa(limit+others) + `) AS near
			WHERE left(key, -10) = $3 AND right(key, 10) ~ '^[0-9]{10}$'`
		prefix += t.separator
		args = []any{prefix + "0000000000", prefix + "9999999999", prefix}
	}
	rows, err := s.db.Query(ctx, s.names.SQL(sql), args...)
	if err != nil {
		return err
	}
	var unix float64
	_, err = pgx.ForEachRow(rows, []any{&unix}, func() error {
		if !math.IsInf(unix, 0) {
			have(int64(unix))
		}
		return nil
	})
	return err
}

// conclude says what was gathered.
func (g *gathering) conclude() {
	e, t := g.e, g.t
	for granularity, span := range g.spans {
		e.Found = append(e.Found, Span{granularity, time.Unix(span[0], 0).In(t.calendar.Location), time.Unix(span[1], 0).In(t.calendar.Location)})
	}
	slices.SortFunc(e.Found, func(a, b Span) int {
		return cmp.Or(cmp.Compare(a.Granularity.seconds(), b.Granularity.seconds()), cmp.Compare(a.Granularity, b.Granularity))
	})
	starts := map[Granularity]map[int64]bool{}
	for id, unix := range g.long {
		slices.Sort(unix)
		unix = slices.Compact(unix)
		g.long[id] = unix
		if starts[id.granularity] == nil {
			starts[id.granularity] = map[int64]bool{}
		}
		for i, at := range unix {
			starts[id.granularity][at] = true
			if i > 0 && at-unix[i-1] < nearest {
				e.Twins++
				e.TwinSuch = cmp.Or(e.TwinSuch, fmt.Sprintf("%s of %s at %s and %s", id.granularity, shorten(id.metric),
					time.Unix(unix[i-1], 0).UTC().Format(time.RFC3339), time.Unix(at, 0).UTC().Format(time.RFC3339)))
			}
		}
	}
	zones := tried(zoneName(t.calendar.Location))
	for granularity, all := range starts {
		n, unit, _ := granularity.parse()
		reach := min(n*lengths[unit][0], 366*day) + day
		for at := range all {
			e.dayStarts++
			e.Offsets[offset(at)]++
			for _, loc := range zones {
				if !midnight(loc, at, reach) {
					e.misfits[zoneName(loc)]++
				}
			}
			if local := time.Unix(at, 0).In(t.calendar.Location); unit == "w" && local.YearDay() > 1 {
				e.WeekStarts[weekdays[local.Weekday()]]++
			}
		}
	}
	for _, loc := range zones {
		if e.dayStarts > 0 && e.misfits[zoneName(loc)] == 0 {
			e.Zones = append(e.Zones, zoneName(loc))
		}
	}
}

// nearest is less than any two days, months or longer begin apart, and more than what
// UTC offsets differ by when clocks change.
const nearest = 20 * hour

// seconds is about how long a granularity is.
func (g Granularity) seconds() int64 {
	n, unit, _ := g.parse()
	return n * lengths[unit][0]
}

// offset is how far ahead of UTC it is midnight at an instant, from -11:59 to +12:00.
func offset(at int64) string {
	ahead := -at - floorTo(-at, day)
	sign := "+"
	if ahead > 12*hour {
		ahead, sign = day-ahead, "-"
	}
	return fmt.Sprintf("%s%02d:%02d", sign, ahead/hour, ahead%hour/minute)
}

// midnight reports whether it is midnight in loc at an instant, or would be at an
// offset that loc has within reach: the original takes that of the event. Half of a
// year away it is summer.
func midnight(loc *time.Location, at, reach int64) bool {
	for _, near := range []int64{at, at - reach, at + reach/2, at + reach} {
		_, ahead := time.Unix(near, 0).In(loc).Zone()
		if floorTo(at+int64(ahead), day) == at+int64(ahead) {
			return true
		}
	}
	return false
}

// tried are zones of most of the offsets and summer times that there are, first the
// one that is named.
func tried(first string) (zones []*time.Location) {
	for _, name := range append([]string{first}, manyZones...) {
		if loc, err := LoadLocation(name); err == nil && !slices.ContainsFunc(zones, func(l *time.Location) bool { return zoneName(l) == zoneName(loc) }) {
			zones = append(zones, loc)
		}
	}
	return zones
}

var manyZones = []string{
	"UTC", "Europe/London", "Europe/Berlin", "Europe/Athens", "Europe/Istanbul", "Europe/Moscow", "Africa/Lagos", "Africa/Johannesburg", "Africa/Nairobi",
	"Asia/Dubai", "Asia/Karachi", "Asia/Kolkata", "Asia/Kathmandu", "Asia/Dhaka", "Asia/Bangkok", "Asia/Shanghai", "Asia/Tokyo",
	"Australia/Perth", "Australia/Adelaide", "Australia/Brisbane", "Australia/Sydney", "Pacific/Auckland", "Pacific/Honolulu", "America/Anchorage",
	"America/Los_Angeles", "America/Phoenix", "America/Denver", "America/Chicago", "America/Mexico_City", "America/New_York", "America/Bogota",
	"America/Halifax", "America/St_Johns", "America/Sao_Paulo", "Atlantic/Azores",
}
