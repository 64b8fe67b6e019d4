package counters

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// head is what the rows of a metric in one granularity have in common.
type head struct {
	name string
	g    Granularity
}

// prefix is the key of a head, up to the time where that is a part of it.
func (t *table) prefix(h head) string {
	switch t.mode {
	case Separated:
		return h.name
	case Partial:
		return h.name + t.separator + string(h.g)
	}
	return h.name + t.separator + string(h.g) + t.separator
}

// span is the rows of a head that begin from first to last, unix seconds.
type span struct {
	head
	first, last int64
}

const (
	everBefore = math.MinInt64
	everAfter  = math.MaxInt64
)

// seconds is what the time of a key look like: those that splitFull reads.
const seconds = `0|-?[1-9][0-9]{0,11}`

// spans is the SQL of the rows r of spans s in a mode, in the order in which rows are
// locked, and their place in it. In Full only the seconds themselves say whether a key is of the span: those
// of other lengths lie between those of ten digits.
var spans = map[Mode]struct{ arrays, columns, where, order, place string }{
	Full: {`$1::text[], $2::text[], $3::int[], $4::bigint[], $5::bigint[]`, `lo, hi, n, first, last`, `
				key COLLATE "C" >= s.lo AND key COLLATE "C" <= s.hi AND CASE
					WHEN right(key, -s.n) ~ '^(` + seconds + `)$' THEN right(key, -s.n)::bigint BETWEEN s.first AND s.last
					ELSE false END`, `key COLLATE "C"`, `key::text`},
	Partial: {`$1::text[], $2::timestamptz[], $3::timestamptz[]`, `key, first, last`, `
				key = s.key AND at >= s.first AND at <= s.last`, `at`, `at`},
	Separated: {`$1::text[], $2::timestamptz[], $3::timestamptz[], $4::text[]`, `key, first, last, granularity`, `
				key = s.key AND granularity = s.granularity AND at >= s.first AND at <= s.last`, `at`, `at`},
}

// spanArgs are the parameters that name spans.
func (t *table) spanArgs(all []span) []any {
	keys, granularities := make([]string, len(all)), make([]string, len(all))
	for i, s := range all {
		keys[i], granularities[i] = t.prefix(s.head), string(s.g)
	}
	if t.mode == Full {
		return t.keySpans(all, keys)
	}
	firsts, lasts := make([]time.Time, len(all)), make([]time.Time, len(all))
	for i, s := range all {
		firsts[i], lasts[i] = time.Unix(max(s.first, firstSecond), 0).UTC(), time.Unix(min(s.last, lastSecond), 0).UTC()
	}
	if t.mode == Partial {
		return []any{keys, firsts, lasts}
	}
	return []any{keys, firsts, lasts, granularities}
}

// keySpans are the parameters that name spans of keys with these prefixes.
func (t *table) keySpans(all []span, prefixes []string) []any {
	lows, highs := make([]string, len(all)), make([]string, len(all))
	lengths := make([]int32, len(all))
	firsts, lasts := make([]int64, len(all)), make([]int64, len(all))
	for i, s := range all {
		lengths[i], firsts[i], lasts[i] = int32(utf8.RuneCountInString(prefixes[i])), s.first, s.last
		lows[i], highs[i] = prefixes[i], prefixes[i]+":" // which comes after the digits
		if s.first >= firstRanged && s.last <= lastRanged {
			lows[i] += strconv.FormatInt(s.first, 10)
			highs[i] = prefixes[i] + strconv.FormatInt(s.last, 10)
		}
	}
	return []any{lows, highs, lengths, firsts, lasts}
}

// maxSwept is how many rows are deleted in one statement.
const maxSwept = 10_000

// sweep deletes the rows of spans, 10,000 at a time: on a pool each time is a
// transaction. It locks them in the order in which others do. Each time begins where the
// one before ended: what was deleted there is still in the index.
func (s *Store) sweep(ctx context.Context, t *table, all []span) (swept int64, err error) {
	if t.mode == Full && !t.bytewise {
		return s.sweepUnordered(ctx, t, all)
	}
	l := spans[t.mode]
	var from string // in Full, in the first span
	for len(all) > 0 {
		args := t.spanArgs(all)
		if lows, ok := args[0].([]string); ok && from != "" {
			lows[0] = from
		}
		limit := "$" + strconv.Itoa(len(args)+1)
		sql := s.names.SQL(`
			WITH doomed AS MATERIALIZED (
				SELECT s.i, r.*
				FROM unnest(` + l.arrays + `) WITH ORDINALITY AS s(` + l.columns + `, i), LATERAL (
					SELECT ` + t.columns + `
					FROM {table}
					WHERE` + l.where + `
					ORDER BY ` + l.order + `
					LIMIT ` + limit + `
					FOR UPDATE) AS r
				LIMIT ` + limit + `),
			gone AS (
				DELETE FROM {table} t
				USING doomed k
				WHERE ` + t.join + `
				RETURNING 1)
			SELECT (SELECT count(*) FROM gone), i, ` + l.place + `
			FROM doomed
			ORDER BY i DESC, ` + l.order + ` DESC
			LIMIT 1`)
		var n int64
		i, key, at := 1, "", time.Time{}
		place := any(&at)
		if t.mode == Full {
			place = &key
		}
		err := pg.Retry(ctx, s.db, func() error {
			err := s.db.QueryRow(ctx, sql, append(args, maxSwept)...).Scan(&n, &i, place)
			if errors.Is(err, pgx.ErrNoRows) {
				n, err = 0, nil
			}
			return err
		})
		if swept += n; err != nil || n < maxSwept {
			return swept, pg.Written(s.db, s.told(err))
		}
		if all = all[i-1:]; t.mode == Full {
			from = key
		} else {
			all[0].first = at.Unix()
		}
	}
	return swept, nil
}

// maxListed is how many keys are gathered in a pass over a table.
const maxListed = 10 * maxSwept

// sweepUnordered is sweep of a mode Full table whose index does not know the order of
// bytes: the keys of all spans are gathered in one pass, or on a pool in one for each
// 100,000 of them, and the rows then found by those.
func (s *Store) sweepUnordered(ctx context.Context, t *table, all []span) (swept int64, err error) {
	limit := maxListed
	if pg.InTx(s.db) { // which is to lock them in order
		limit = math.MaxInt32
	}
	for more := true; more; {
		var doomed []string
		if err := s.unordered(ctx, t, all, limit, func(key string, _ int) { doomed = append(doomed, key) }); err != nil {
			return swept, err
		}
		more = false
		slices.SortFunc(doomed, func(a, b string) int { return rowID{key: a}.compare(rowID{key: b}) })
		for part := range slices.Chunk(doomed, maxSwept) {
			var n int64
			err := pg.Retry(ctx, s.db, func() error {
				gone, err := s.db.Exec(ctx, s.names.SQL(`
					WITH doomed AS MATERIALIZED (
						SELECT t.key
						FROM unnest($1::text[]) WITH ORDINALITY AS k(key, n)
						JOIN {table} t ON t.key = k.key
						ORDER BY k.n
						FOR UPDATE OF t)
					DELETE FROM {table} t
					USING doomed k
					WHERE t.key = k.key`), part)
				n = gone.RowsAffected()
				return err
			})
			if swept += n; err != nil {
				return swept, pg.Written(s.db, s.told(err))
			}
			more = more || n > 0 && len(doomed) == limit
		}
	}
	return swept, nil
}

// unordered calls have, in one pass over such a table, with the keys of spans and which
// span they are of, at most limit of them, in no order.
func (s *Store) unordered(ctx context.Context, t *table, all []span, limit int, have func(key string, i int)) error {
	if len(all) == 0 {
		return nil
	}
	prefixes, firsts, lasts := make([]string, len(all)), make([]int64, len(all)), make([]int64, len(all))
	for i, sp := range all {
		prefixes[i], firsts[i], lasts[i] = t.prefix(sp.head), sp.first, sp.last
	}
	type found struct {
		key string
		i   int
	}
	var keys []found
	err := pg.Retry(ctx, s.db, func() error {
		rows, err := s.db.Query(ctx, s.names.SQL(`
			SELECT k.key, s.i
			FROM (SELECT key::text, substring(key, $1) AS prefix FROM {table} OFFSET 0) AS k
			JOIN unnest($2::text[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS s(prefix, first, last, i) ON s.prefix = k.prefix
			WHERE right(k.key, -length(k.prefix))::bigint BETWEEN s.first AND s.last
			LIMIT $5`), t.bucketPattern(), prefixes, firsts, lasts, limit)
		if err != nil {
			return err
		}
		keys, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) { return f, row.Scan(&f.key, &f.i) })
		return err
	})
	for _, f := range keys {
		have(f.key, f.i-1)
	}
	return s.told(err)
}

// there returns the rows of each span that are there.
func (s *Store) there(ctx context.Context, t *table, all []span) ([][]rowID, error) {
	found := make([][]rowID, len(all))
	if t.mode == Full && !t.bytewise {
		return found, s.unordered(ctx, t, all, math.MaxInt32, func(key string, i int) { found[i] = append(found[i], rowID{key: key}) })
	}
	l := spans[t.mode]
	rows, err := s.db.Query(ctx, s.names.SQL(`
		SELECT i, `+l.place+`
		FROM unnest(`+l.arrays+`) WITH ORDINALITY AS s(`+l.columns+`, i), LATERAL (
			SELECT `+t.columns+`
			FROM {table}
			WHERE`+l.where+`) AS r`), t.spanArgs(all)...)
	if err != nil {
		return nil, s.told(err)
	}
	i, key, at := 0, "", time.Time{}
	place := any(&at)
	if t.mode == Full {
		place = &key
	}
	_, err = pgx.ForEachRow(rows, []any{&i, place}, func() error {
		id := rowID{key: key}
		if t.mode != Full {
			if at.Nanosecond() != 0 { // is of no bucket
				return nil
			}
			id, _ = t.bucket(all[i-1].name, all[i-1].g, at.Unix())
		}
		found[i-1] = append(found[i-1], id)
		return nil
	})
	return found, s.told(err)
}

// bucketPattern is the regular expression of the keys of buckets in a mode Full table;
// what it returns is the prefix.
func (t *table) bucketPattern() string {
	sep := quoted(t.separator)
	return `^(.*` + sep + `[0-9]+(?:s|m|h|d|w|mo|q|y)` + sep + `)(?:` + seconds + `)$`
}

// quoted is the regular expression of a text.
func quoted(text string) string {
	var quoted strings.Builder
	for _, r := range text {
		if strings.ContainsRune(`\^$.[]|()?*+{}-`, r) {
			quoted.WriteByte('\\')
		}
		quoted.WriteRune(r)
	}
	return quoted.String()
}
