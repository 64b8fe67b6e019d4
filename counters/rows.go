package counters

import (
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
	for i := range rows {
		keys[i] = rows[i].key
	}
	if t.mode == Full {
		return []any{keys}
	}
	granularities, ats := make([]string, len(rows)), make([]time.Time, len(rows))
	for i, id := range rows {
		granularities[i], ats[i] = id.granularity, time.Unix(id.at, 0).UTC()
	}
	if t.mode == Partial {
		return []any{keys, ats}
	}
	return []any{keys, granularities, ats}
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

// batch returns the statements. The first names all rows, so that every call locks
// its rows in one order, and the others find them held.
func (s *Store) batch(t *table, f *fold) *pgx.Batch {
	b := new(pgx.Batch)
	shared := map[*field][len(ops)]string{} // by the first field of an event: its rows are far from each other
	for round, all := 0, f.sorted(); len(all) > 0; round++ {
		var rows [len(ops)][]rowID
		var data [len(ops)][]string
		more := all[:0:0]
		for _, id := range all {
			rounds := f.rows[id].rounds
			texts := rounds[round].textsOnce(shared)
			for i, op := range ops {
				text := texts[i]
				if round == 0 && op == OpAdd {
					text = either(text, "{}")
				}
				if text != "" {
					rows[i] = append(rows[i], id)
					data[i] = append(data[i], text)
				}
			}
			if round+1 < len(rounds) {
				more = append(more, id)
			}
		}
		for i, op := range ops {
			if len(rows[i]) > 0 {
				b.Queue(s.names.SQL(t.upsert(op)), append(t.args(rows[i]), data[i])...)
			}
		}
		all = more
	}
	return b
}

// textsOnce are texts, which rounds that share the fields of an event have in common.
func (r *round) textsOnce(shared map[*field][len(ops)]string) [len(ops)]string {
	if !r.shared || len(r.fields) == 0 {
		return r.texts()
	}
	texts, ok := shared[&r.fields[0]]
	if !ok {
		texts = r.texts()
		shared[&r.fields[0]] = texts
	}
	return texts
}

// texts are the objects that the operations of a round write, "" of those that it has not.
func (r *round) texts() (texts [len(ops)]string) {
	fields := slices.Clip(r.fields) // others may share what lies behind
	for _, f := range r.fields {
		if f.over { // fails where no number is
			fields = append(fields, fieldOver(f))
		}
	}
	for i, op := range ops {
		if slices.ContainsFunc(fields, func(f field) bool { return f.op == op }) {
			texts[i] = string(appendFields(nil, fields, op))
		}
	}
	return texts
}

// ops are the operations in the order of their statements.
var ops = [...]Op{OpAdd, OpPut, OpMax, OpMin}

// fieldOver is what a field that is put over a number wants of what is there.
func fieldOver(f field) field { return field{path: f.path, op: OpAdd, number: whole(0)} }

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
		return pg.BeginFunc(ctx, db, func(tx pgx.Tx) error { return s.send(ctx, tx, t, f) })
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
	return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) error { return fn(tx) })
}

// notNumberState is the SQLSTATE of howdah.counters_number.
const notNumberState = "22H01"

// explain says of a field that is no number in which row it is.
func (s *Store) explain(ctx context.Context, t *table, f *fold, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != notNumberState {
		return err
	}
	rows := f.sorted()
	where := rows[0].key
	if len(rows) > 1 {
		// It may be gone by now; then its field is all there is to tell.
		where = ""
		_ = s.words(ctx, t, rows, func(id rowID, path string, _ any) {
			if path == pgErr.Detail {
				where = either(where, id.key)
			}
		})
	}
	return notNumber(pgErr.Detail, "%s holds %s, which is no number", either(where, "a row"), pgErr.ColumnName)
}

// words calls found with what in rows is no number.
func (s *Store) words(ctx context.Context, t *table, rows []rowID, found func(id rowID, path string, leaf any)) error {
	sql := s.names.SQL(`
		SELECT k.n, f.path, f.leaf
		FROM unnest(` + t.arrays + `) WITH ORDINALITY AS k(` + t.columns + `, n)
		JOIN {table} t ON ` + t.join + `
		CROSS JOIN jsonb_each(t.data) AS f(path, leaf)
		WHERE jsonb_typeof(f.leaf) NOT IN ('number', 'null')`)
	for chunk := range slices.Chunk(rows, maxNamed) {
		stored, err := s.db.Query(ctx, sql, t.args(chunk)...)
		if err != nil {
			return err
		}
		var n int64
		var path string
		var text []byte
		_, err = pgx.ForEachRow(stored, []any{&n, &path, &text}, func() error {
			leaf, err := parseJSON(text, false)
			if _, ok := storedNumber(leaf); !ok && err == nil {
				found(chunk[n-1], path, leaf)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
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
			join := `JOIN howdah.counter_slots s ON s.key = k.key AND s.tbl = $%d`
			if t.readable != ownSlots { // which would be gone through, were it joined
				join = `CROSS JOIN LATERAL (
				SELECT data
				FROM ` + t.readable + `
				WHERE key = k.key AND tbl = $%d
				OFFSET 0) AS s`
			}
			sql += fmt.Sprintf(`
			UNION ALL
			SELECT k.n, s.data
			FROM unnest($%d::bigint[], $%d::text[]) AS k(n, key)
			`+join+`
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
