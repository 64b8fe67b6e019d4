package counters

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Query asks for the buckets of all instants from From to To, both included.
type Query struct {
	Key         string
	From, To    time.Time
	Granularity Granularity // any, also one that is not counted in
	SkipBlanks  bool        // leave out buckets without values
	Limit       int         // of Values: at most so many points, blank ones too; default MaxPoints
}

// SystemKey is the metric of which the system rows are.
const SystemKey = systemKey

// MaxPoints is the most points of one Series.
const MaxPoints = 1_000_000

// Values returns the buckets of a metric, blank ones too where q does not skip them:
// none where From is later than To. More points than its Limit are Invalid.
func (s *Store) Values(ctx context.Context, q Query) (*Series, error) {
	const op = "counters: values"
	t, err := s.asked(ctx, q)
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	limit := min(either(max(q.Limit, 0), MaxPoints), MaxPoints)
	if n := t.estimate(q); n > 2*int64(limit) {
		return nil, pg.Wrap(op, t.tooMany(q, "some ", n, limit))
	}
	series := &Series{At: []time.Time{}, Values: []Values{}, paths: t.paths}
	if first, last := t.calendar.Floor(q.Granularity, q.From).Unix(), q.To.Unix(); q.SkipBlanks && t.ranged(q.Key, first, last) {
		return series, pg.Wrap(op, s.storedSeries(ctx, t, q, first, last, limit, series))
	}
	place := map[int64]int{}
	for start := range t.calendar.Timeline(q.Granularity, q.From, q.To) {
		place[start.Unix()] = len(series.At)
		series.At = append(series.At, start)
	}
	if n := len(series.At); n > limit {
		return nil, pg.Wrap(op, t.tooMany(q, "", int64(n), limit))
	}
	if len(series.At) == 0 {
		return series, nil
	}
	series.Values = make([]Values, len(series.At))
	u := newUnpacker(t.paths)
	have := func(i int, data []byte) (err error) {
		series.Values[i], err = u.unpack(data)
		return err
	}
	first, last := series.At[0].Unix(), series.At[len(series.At)-1].Unix()
	if t.ranged(q.Key, first, last) {
		_, err = s.stored(ctx, t, q, first, last, 0, func(_ int, at time.Time, data []byte) error {
			if i, ok := place[at.Unix()]; ok && at.Nanosecond() == 0 {
				return have(i, data)
			}
			return nil // of no bucket of this calendar
		})
	} else {
		rows := make([]rowID, len(series.At))
		for i, at := range series.At {
			rows[i], _ = t.bucket(q.Key, q.Granularity, at.Unix()) // asked saw that it can be
		}
		err = s.read(ctx, t, rows, have)
	}
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	kept := 0
	for i, v := range series.Values {
		if len(v) == 0 && q.SkipBlanks {
			continue
		}
		if v == nil {
			v = Values{}
		}
		series.At[kept], series.Values[kept] = series.At[i], v
		kept++
	}
	series.At, series.Values = series.At[:kept], series.Values[:kept]
	return series, nil
}

// storedSeries fills in the buckets that are stored and not blank, without looking at
// the others.
func (s *Store) storedSeries(ctx context.Context, t *table, q Query, first, last int64, limit int, series *Series) error {
	if q.From.After(q.To) {
		return nil
	}
	rule, _ := t.calendar.rule(q.Granularity) // asked saw that there is one
	u := newUnpacker(t.paths)
	_, err := s.stored(ctx, t, q, first, last, 0, func(i int, at time.Time, data []byte) error {
		if i == 0 { // perhaps again
			series.At, series.Values = series.At[:0], series.Values[:0]
		}
		unix := at.Unix()
		if at.Nanosecond() != 0 || rule.floor(unix) != unix {
			return nil // of no bucket of this calendar
		}
		v, err := u.unpack(data)
		if len(v) > 0 {
			series.At, series.Values = append(series.At, at.In(t.calendar.Location)), append(series.Values, v)
		}
		return err
	})
	if n := len(series.At); err == nil && n > limit {
		return t.tooMany(q, "", int64(n), limit)
	}
	return err
}

// Rows returns the buckets of a metric that are stored, in order and however many. It
// reads them in parts, so that the loop may use the same connection; what is written
// meanwhile may or may not be seen. An error ends it.
func (s *Store) Rows(ctx context.Context, q Query) iter.Seq2[Point, error] {
	return func(yield func(Point, error) bool) {
		if err := s.rows(ctx, q, func(p Point) bool { return yield(p, nil) }); err != nil {
			yield(Point{}, pg.Wrap("counters: rows", err))
		}
	}
}

// maxPart is how many rows are read at a time. It must be more than one and its slots.
const maxPart = 1000

func (s *Store) rows(ctx context.Context, q Query, yield func(Point) bool) error {
	t, err := s.asked(ctx, q)
	if err != nil || q.From.After(q.To) {
		return err
	}
	u := newUnpacker(t.paths)
	var part []Point
	keep := func(i int, at time.Time, data []byte) error {
		v, err := u.unpack(data)
		part = append(part[:i], Point{At: at.In(t.calendar.Location), Values: v}) // a retry begins anew
		return err
	}
	flush := func() (goOn bool) {
		for _, p := range part {
			if q.SkipBlanks && len(p.Values) == 0 || !t.calendar.Floor(q.Granularity, p.At).Equal(p.At) {
				continue // of no bucket of this calendar
			}
			if !yield(p) {
				return false
			}
		}
		part = part[:0]
		return true
	}
	first, last := t.calendar.Floor(q.Granularity, q.From).Unix(), q.To.Unix()
	if t.ranged(q.Key, first, last) {
		// Where PostgreSQL knows little of a table it may sort all of a range for a part
		// of it, so that a range is kept near to what a part has.
		least := maxPart * q.Granularity.length()
		for span := least; first <= last; {
			if t, err = s.still(ctx, t); err != nil {
				return err
			}
			until := min(last, first+span-1)
			more, err := s.stored(ctx, t, q, first, until, maxPart, keep)
			if err != nil {
				return err
			}
			switch first = until + 1; {
			case more:
				first = part[len(part)-1].At.Unix() + 1
				span = max(span/4, least)
			case len(part) < maxPart/4:
				span *= 4
			}
			if !flush() {
				return nil
			}
		}
		return nil
	}
	var starts []time.Time
	read := func() error {
		if t, err = s.still(ctx, t); err != nil {
			return err
		}
		rows := make([]rowID, len(starts))
		for i, at := range starts {
			rows[i], _ = t.bucket(q.Key, q.Granularity, at.Unix())
		}
		found := make([][]byte, len(starts))
		err := s.read(ctx, t, rows, func(i int, data []byte) error { found[i] = data; return nil })
		for i, data := range found {
			if data != nil && err == nil {
				err = keep(len(part), starts[i], data)
			}
		}
		starts = starts[:0]
		return err
	}
	for start := range t.calendar.Timeline(q.Granularity, q.From, q.To) {
		if starts = append(starts, start); len(starts) == maxPart {
			if err := read(); err != nil {
				return err
			}
			if !flush() {
				return nil
			}
		}
	}
	if err := read(); err != nil {
		return err
	}
	flush()
	return nil
}

// asked returns the table, and refuses questions that have no answer.
func (s *Store) asked(ctx context.Context, q Query) (*table, error) {
	t, err := s.table(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkKey(q.Key); err != nil {
		return nil, err
	}
	if err := q.Granularity.check("granularity"); err != nil {
		return nil, err
	}
	if err := checkTime("from", q.From); err != nil {
		return nil, err
	}
	if err := checkTime("to", q.To); err != nil {
		return nil, err
	}
	if _, problem := t.bucket(q.Key, q.Granularity, q.To.Unix()); problem != "" {
		return nil, pg.Refuse("key", "%s", problem)
	}
	return t, nil
}

// Seconds with as many digits as their order by bytes asks for.
const (
	firstRanged = 1_000_000_000 // 2001
	lastRanged  = 9_999_999_999 // 2286
)

// ranged reports whether the buckets of a metric between two instants are a range of
// an index, and its slots too.
func (t *table) ranged(name string, first, last int64) bool {
	digits := first >= firstRanged && last <= lastRanged
	return (digits || !t.slotted(name)) && (t.mode != Full || t.bytewise && digits)
}

// stored calls have with the rows of a metric from first to last, and their slots, in
// order: those of at most n rows and slots, and where n is 0 all. It reports whether
// there may be more.
func (s *Store) stored(ctx context.Context, t *table, q Query, first, last int64, n int, have func(i int, at time.Time, data []byte) error) (more bool, err error) {
	limit := ""
	if n > 0 {
		limit = `
			LIMIT ` + strconv.Itoa(n)
	}
	prefix := q.Key + t.separator + string(q.Granularity)
	// Between two keys that end in ten digits there may be others: longer, or with other signs.
	byKey := func(table string, p int) string {
		return fmt.Sprintf(`
			SELECT to_timestamp(right(key, 10)::float8) AS at, data
			FROM %s
			WHERE key COLLATE "C" >= $%d AND key COLLATE "C" <= $%d AND right(key, -$%d::int) ~ '^[0-9]{10}$'`, table, p, p+1, p+2)
	}
	const inOrder = `
			ORDER BY key COLLATE "C"`
	full := prefix + t.separator
	keys := []any{full + strconv.FormatInt(first, 10), full + strconv.FormatInt(last, 10), utf8.RuneCountInString(full)}
	sql, args := byKey("{table}", 1)+inOrder+limit, keys
	if t.mode != Full {
		sql = `
			SELECT at, data
			FROM {table}
			WHERE key = $1 AND at >= $2 AND at <= $3
			ORDER BY at` + limit
		args = []any{prefix, time.Unix(first, 0).UTC(), time.Unix(last, 0).UTC()}
		if t.mode == Separated {
			sql = strings.Replace(sql, "key = $1 ", "key = $1 AND granularity = $4 ", 1)
			args = []any{q.Key, args[1], args[2], string(q.Granularity)}
		}
	}
	if t.slotted(q.Key) {
		p := len(args) + 1
		sql = "(" + sql + `)
			UNION ALL (` + byKey(t.readable, p) + " AND tbl = $" + strconv.Itoa(p+3) + inOrder + limit + `)
			ORDER BY at` + limit
		args = slices.Concat(args, keys, []any{t.name})
	}
	err = pg.Retry(ctx, s.db, func() error {
		rows, err := s.db.Query(ctx, s.names.SQL(sql), args...)
		if err != nil {
			return err
		}
		count, i := 0, 0
		var at time.Time
		var data []byte
		whole := parts[time.Time]{have: func(at time.Time, data []byte) error { i++; return have(i-1, at, data) }}
		if _, err := pgx.ForEachRow(rows, []any{&at, &data}, func() error { count++; return whole.add(at, data) }); err != nil {
			return err
		}
		if more = count == n && n > 0; more {
			return nil // of the last there may be more parts
		}
		return whole.end()
	})
	return more, s.told(err)
}

// lengths are those of units, in seconds, and what they restart in.
var lengths = map[string][2]int64{
	"s": {1, minute}, "m": {minute, hour}, "h": {hour, day}, "d": {day, 366 * day}, "w": {7 * day, 366 * day},
	"mo": {30 * day, 366 * day}, "q": {91 * day, 366 * day}, "y": {365 * day, 10_000 * 366 * day},
}

// length is about how many seconds a bucket has.
func (g Granularity) length() int64 {
	n, unit, _ := g.parse()
	length := lengths[unit]
	return min(n*length[0], length[1])
}

// estimate returns about how many points a query has, without counting them.
func (t *table) estimate(q Query) int64 {
	return (q.To.Unix()-q.From.Unix())/q.Granularity.length() + 1
}

// tooMany refuses a query for n points, and names the finest granularity of the table
// that would do.
func (t *table) tooMany(q Query, some string, n int64, limit int) error {
	const advice = "%s%d points of %s; at most %d: ask for a shorter time, or a coarser granularity"
	finest, points := Granularity(""), int64(0)
	for _, g := range t.granularities {
		coarser := q
		coarser.Granularity = g
		if n := t.estimate(coarser); n <= int64(limit) && n > points {
			finest, points = g, n
		}
	}
	if finest == "" {
		return pg.Refuse("granularity", advice, some, n, q.Granularity, limit)
	}
	return pg.Refuse("granularity", advice+" such as %s", some, n, q.Granularity, limit, finest)
}
