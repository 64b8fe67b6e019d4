package counters

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// rowID is the identity of a row. What is a part of key in a table's mode, has no
// field of its own.
type rowID struct {
	key         string
	granularity string
	at          int64 // unix seconds
}

func (a rowID) compare(b rowID) int {
	return cmp.Or(strings.Compare(a.key, b.key), strings.Compare(a.granularity, b.granularity), cmp.Compare(a.at, b.at))
}

// layout is the SQL of a mode: how rows are named by arrays.
type layout struct {
	columns string // of a row's identity
	arrays  string // the parameters that hold identities
	join    string // of such arrays, as k, with the table, as t
	next    int    // the parameter after those
}

var layouts = map[Mode]*layout{
	Full:      {"key", "$1::text[]", "t.key = k.key", 2},
	Partial:   {"key, at", "$1::text[], $2::timestamptz[]", "t.key = k.key AND t.at = k.at", 3},
	Separated: {"key, granularity, at", "$1::text[], $2::text[], $3::timestamptz[]", "t.key = k.key AND t.granularity = k.granularity AND t.at = k.at", 4},
}

// merges is what becomes of the data of a row that is there.
var merges = map[Op]string{
	OpAdd: "howdah.counters_add(t.data, EXCLUDED.data)",
	OpPut: "t.data || EXCLUDED.data",
	OpMax: "howdah.counters_max(t.data, EXCLUDED.data)",
	OpMin: "howdah.counters_min(t.data, EXCLUDED.data)",
}

// upsert is the statement of an operation, whatever the fields and however many rows.
// A row without data of this operation is made where it is missing, and locked.
func (l *layout) upsert(op Op) string {
	return `
		INSERT INTO {table} AS t (` + l.columns + `, data)
		SELECT *
		FROM unnest(` + l.arrays + `, $` + strconv.Itoa(l.next) + `::jsonb[])
		ON CONFLICT (` + l.columns + `) DO UPDATE
		SET data = ` + merges[op] + `
		WHERE EXCLUDED.data <> '{}'`
}

// args are the parameters that name rows.
func (t *table) args(rows []rowID) []any {
	keys := make([]string, len(rows))
	granularities := make([]string, len(rows))
	ats := make([]time.Time, len(rows))
	for i, id := range rows {
		keys[i], granularities[i], ats[i] = id.key, id.granularity, time.Unix(id.at, 0).UTC()
	}
	switch t.mode {
	case Separated:
		return []any{keys, granularities, ats}
	case Partial:
		return []any{keys, ats}
	}
	return []any{keys}
}

// maxKey is how many characters a column of the original takes.
const maxKey = 255

// bucket returns the row of a bucket, or what is wrong with its name.
func (t *table) bucket(name string, g Granularity, at int64) (id rowID, problem string) {
	switch t.mode {
	case Separated:
		id = rowID{name, string(g), at}
	case Partial:
		id = rowID{key: name + t.separator + string(g), at: at}
	default:
		id = rowID{key: fullKey(t.separator, name, g, at)}
	}
	if n := utf8.RuneCountInString(id.key); n > maxKey {
		return id, fmt.Sprintf("of %s it is a key of %d characters; at most %d", g, n, maxKey)
	}
	return id, ""
}

// identify returns the rows of keys as a caller writes them: their parts, or all of a
// key in one.
func (t *table) identify(keys []Key) ([]rowID, error) {
	rows := make([]rowID, len(keys))
	for i, key := range keys {
		field := "keys[" + strconv.Itoa(i) + "]"
		joined := key.join(t.separator)
		if strings.Join(key, "") == "" {
			return nil, pg.Refuse(field, "empty")
		}
		if err := pg.CheckText(field, joined); err != nil {
			return nil, err
		}
		id := rowID{key: joined}
		if t.mode != Full {
			name, last, ok := cutLast(joined, t.separator)
			at, err := strconv.ParseInt(last, 10, 64)
			if !ok || err != nil || at < firstSecond || at > lastSecond {
				return nil, pg.Refuse(field, "%q; the table is %s: want a unix second in the end", shorten(joined), t.mode)
			}
			id = rowID{key: name, at: at}
			if t.mode == Separated {
				if id.key, id.granularity, ok = cutLast(name, t.separator); !ok {
					return nil, pg.Refuse(field, "%q; the table is separated: want a granularity and a unix second in the end", shorten(joined))
				}
			}
		}
		if n := max(utf8.RuneCountInString(id.key), utf8.RuneCountInString(id.granularity)); n > maxKey {
			return nil, pg.Refuse(field, "a key of %d characters; at most %d", n, maxKey)
		}
		rows[i] = id
	}
	return rows, nil
}

// The years 1 to 9999.
const (
	firstSecond = -62135596800
	lastSecond  = 253402300799
)

// fold is what a call writes: each row once. The fields of a row are in rounds. A field
// has one operation in each; what does not become one with what is to be done before
// it, goes into the next.
type fold struct {
	rows   map[rowID][]map[string]field
	spread map[rowID]bool // those that have slots for what is added to them
}

// take adds fields to what a row is to get. An addition to something that the same
// call puts there, and that is no number, is refused.
func (f *fold) take(id rowID, fields []field) error {
	if f.rows == nil {
		f.rows = map[rowID][]map[string]field{}
	}
	rounds := f.rows[id]
	if rounds == nil {
		rounds = []map[string]field{make(map[string]field, len(fields))}
	}
	for _, later := range fields {
		last := len(rounds) - 1
		for ; last > 0; last-- {
			if _, ok := rounds[last][later.path]; ok {
				break
			}
		}
		earlier, ok := rounds[last][later.path]
		if !ok {
			rounds[last][later.path] = later
			continue
		}
		one, ok, problem := merge(earlier, later)
		switch {
		case problem != "":
			return notNumber(later.path, "%s, which the same call puts there, is no number", problem)
		case ok:
			rounds[last][later.path] = one
		default:
			if last++; last == len(rounds) {
				rounds = append(rounds, map[string]field{})
			}
			rounds[last][later.path] = later
		}
	}
	f.rows[id] = rounds
	return nil
}

// merge returns what does the same as two fields one after the other, if one can, or
// what of the earlier is no number.
func merge(earlier, later field) (one field, ok bool, problem string) {
	if later.op == OpPut {
		return later, true, ""
	}
	n, m := earlier.number, later.number
	if earlier.op == OpPut {
		if !n.known {
			stored, isNumber := storedNumber(earlier.other)
			if !isNumber && earlier.other != nil {
				return one, false, describe(earlier.other)
			}
			n = stored
		}
	} else if earlier.op != later.op {
		return one, false, ""
	}
	one = field{path: earlier.path, op: earlier.op}
	switch {
	case later.op == OpAdd:
		one.number = n.Add(m)
	case !n.known, (later.op == OpMax) == (m.Cmp(n) > 0):
		one.number = m
	default:
		one.number = n
	}
	return one, true, ""
}

// sorted are the rows in the order in which they are locked.
func (f *fold) sorted() []rowID {
	ids := make([]rowID, 0, len(f.rows))
	for id := range f.rows {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, rowID.compare)
	return ids
}

// batch returns the statements. The first names all rows, so that every call locks
// its rows in one order, and the others find them held.
func (s *Store) batch(t *table, f *fold) *pgx.Batch {
	b := new(pgx.Batch)
	all := f.sorted()
	for round := 0; ; round++ {
		more := false
		for _, op := range []Op{OpAdd, OpPut, OpMax, OpMin} {
			first := round == 0 && op == OpAdd
			var rows []rowID
			var data []string
			for _, id := range all {
				var fields []field
				if rounds := f.rows[id]; round < len(rounds) {
					more = more || round+1 < len(rounds)
					for _, field := range rounds[round] {
						if field.op == op {
							fields = append(fields, field)
						}
					}
				}
				if len(fields) == 0 && !first {
					continue
				}
				slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.path, b.path) })
				rows = append(rows, id)
				data = append(data, string(appendFields(nil, fields, op)))
			}
			if len(rows) > 0 {
				b.Queue(s.names.SQL(t.upsert(op)), append(t.args(rows), data)...)
			}
		}
		if !more {
			return b
		}
	}
}

// write writes all of f or nothing.
func (s *Store) write(ctx context.Context, t *table, f *fold) error {
	err := s.atomically(ctx, func(db pg.DB) error { return s.send(ctx, db, t, f) })
	return s.explain(ctx, t, f, pg.Written(s.db, s.told(err)))
}

// send sends the statements of f in one pipeline. Where slots have to be folded before
// it is a transaction of its own, unless db is one.
func (s *Store) send(ctx context.Context, db pg.DB, t *table, f *fold) error {
	if len(f.rows) == 0 {
		return nil
	}
	rest, spread, first := t.spread(f)
	if len(first) > 0 && !pg.InTx(db) {
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return s.send(ctx, tx, t, f) })
	}
	var b *pgx.Batch
	if len(first) == 0 {
		b = s.batch(t, rest)
	} else {
		var err error
		if b, err = s.after(ctx, db, t, rest, first); err != nil {
			return err
		}
	}
	s.fill(b, t, f, spread)
	return db.SendBatch(ctx, b).Close()
}

// atomically runs fn, which sends one batch: on a pool that is a transaction, in one
// of the caller's it gets a savepoint, so that an error leaves that as it was.
func (s *Store) atomically(ctx context.Context, fn func(pg.DB) error) error {
	if !pg.InTx(s.db) {
		return pg.Retry(ctx, s.db, func() error { return fn(s.db) })
	}
	return pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error { return fn(tx) })
}

// explain says of a field that is no number in which row it is.
func (s *Store) explain(ctx context.Context, t *table, f *fold, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "22H01" {
		return err
	}
	path, holds := pgErr.Detail, pgErr.ColumnName
	rows := f.sorted()
	where := rows[0].key
	if len(rows) > 1 {
		// It may be gone by now; then its field is all there is to tell.
		where = "a row"
		s.read(ctx, t, rows, func(i int, data []byte) error {
			stored, err := parseJSON(data, false)
			if err != nil || where != "a row" {
				return err
			}
			object, _ := stored.(Values)
			if leaf, ok := object[path]; ok && leaf != nil {
				if _, ok := storedNumber(leaf); !ok {
					where = rows[i].key
				}
			}
			return nil
		})
	}
	return notNumber(path, "%s holds %s, which is no number", where, holds)
}

// notNumber is ErrNotNumber of the field at path.
func notNumber(path, format string, args ...any) error {
	return &notNumberError{refuse(path, format, args...)}
}

type notNumberError struct{ error }

func (e *notNumberError) Unwrap() []error { return []error{e.error, ErrNotNumber} }

// maxNamed is how many rows are named in one statement.
const maxNamed = 10_000

// read calls have with the data of those of rows that are there, and of their slots.
func (s *Store) read(ctx context.Context, t *table, rows []rowID, have func(i int, data []byte) error) error {
	for done := 0; done < len(rows); done += maxNamed {
		chunk := rows[done:min(done+maxNamed, len(rows))]
		sql, args := `
			SELECT k.n, t.data
			FROM unnest(`+t.arrays+`) WITH ORDINALITY AS k(`+t.columns+`, n)
			JOIN {table} t ON `+t.join, t.args(chunk)
		if n, keys := t.slottedRows(chunk); len(n) > 0 {
			sql += fmt.Sprintf(`
			UNION ALL
			SELECT k.n, s.data
			FROM unnest($%d::bigint[], $%d::text[]) AS k(n, key)
			JOIN howdah.counter_slots s ON s.key = k.key AND s.tbl = $%d
			ORDER BY n`, t.next, t.next+1, t.next+2)
			args = append(args, n, keys, t.name)
		}
		err := pg.Retry(ctx, s.db, func() error {
			found, err := s.db.Query(ctx, s.names.SQL(sql), args...)
			if err != nil {
				return err
			}
			var n int64
			var data []byte
			whole := parts[int64]{have: func(n int64, data []byte) error { return have(done+int(n)-1, data) }}
			if _, err := pgx.ForEachRow(found, []any{&n, &data}, func() error { return whole.add(n, data) }); err != nil {
				return err
			}
			return whole.end()
		})
		if err != nil {
			return s.told(err)
		}
	}
	return nil
}
