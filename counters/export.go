package counters

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Row is a row of a table, whatever its mode: a bucket of a metric or, without a
// Granularity, a row at the driver's level, whose Key is all of its key.
type Row struct {
	Key         string      `json:"key"`
	Granularity Granularity `json:"granularity,omitempty"`
	At          time.Time   `json:"at,omitzero"`
	Values      Values      `json:"values"`
}

// Export returns all rows of the metrics whose names begin with prefix, and those at the
// driver's level whose keys do, in the order of the table's index: to be passed on, with
// [WriteRows], and read again, with [ReadRows]. It reads them in parts, so that the loop
// may use the same connection and nobody waits for whom they are passed on to; what is
// written meanwhile may or may not be seen. What is in slots is folded first, where that
// can be; else it is added up as it is read. An error ends it.
func (s *Store) Export(ctx context.Context, prefix string) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		if err := s.export(ctx, prefix, func(r Row) bool { return yield(r, nil) }); err != nil {
			yield(Row{}, pg.Wrap("counters: export", err))
		}
	}
}

func (s *Store) export(ctx context.Context, prefix string, yield func(Row) bool) error {
	t, err := s.table(ctx)
	if err != nil {
		return err
	}
	if err := pg.CheckText("prefix", prefix); err != nil {
		return err
	}
	if err := s.foldIfWritable(ctx, t); err != nil {
		return err
	}
	waiting := false // what cannot be folded just now: there may be no rows of it
	if t.migrated {
		keys, _, err := s.waitingKeys(ctx, t, "")
		if err != nil {
			return err
		}
		waiting = len(keys) > 0
	}
	u := newUnpacker(t.paths)
	var after *storedRow
	for {
		if t, err = s.still(ctx, t); err != nil {
			return err
		}
		part, err := s.exportPart(ctx, t, prefix, after, waiting)
		if err != nil {
			return err
		}
		if err := s.withSlots(ctx, t, part); err != nil {
			return err
		}
		for _, stored := range part {
			if !strings.HasPrefix(stored.key, prefix) {
				return nil
			}
			if goOn, err := t.exported(u, stored, prefix, yield); err != nil || !goOn {
				return err
			}
		}
		if len(part) < maxPart {
			return nil
		}
		after = &part[maxPart-1]
	}
}

// exported yields a row, and reports whether to go on.
func (t *table) exported(u *unpacker, stored storedRow, prefix string, yield func(Row) bool) (goOn bool, err error) {
	r := t.named(stored.rowID)
	if stored.data == nil || !strings.HasPrefix(r.Key, prefix) {
		return true, nil // it went away meanwhile, or the prefix goes beyond the name
	}
	if r.Values, err = u.unpack(stored.data); err != nil {
		return false, fmt.Errorf("%s: %w", shorten(stored.key), err)
	}
	return yield(r), nil
}

// storedRow is a row as it is.
type storedRow struct {
	rowID
	exact time.Time // at, of a table of others perhaps with a fraction
	data  []byte
}

// exportPart returns the rows that follow after, if any. Where the index knows the
// order of bytes they begin with the prefix, and may go on behind it. Where something
// waits in slots, buckets that are only there have their place among the rows, without
// data: one statement sees each of them here or there, whoever folds meanwhile.
func (s *Store) exportPart(ctx context.Context, t *table, prefix string, after *storedRow, waiting bool) ([]storedRow, error) {
	order := t.columns
	where := []string{`starts_with(key, $1)`}
	if t.bytewise {
		order = strings.Replace(order, `key`, `key COLLATE "C"`, 1)
		where = []string{`key COLLATE "C" >= $1`}
	}
	args := []any{prefix}
	if after != nil {
		marks := `$2::text`
		if args = append(args, after.key); t.mode == Separated {
			marks += `, $3::text`
			args = append(args, after.granularity)
		}
		if t.mode != Full {
			args = append(args, after.exact)
			marks += `, $` + strconv.Itoa(len(args)) + `::timestamptz`
		}
		where = append(where, `(`+order+`) > (`+marks+`)`)
		if t.bytewise { // the prefix is before it
			where = append(where[1:], `$1::text IS NOT NULL`)
		}
	}
	one := func(data, from string) string {
		return `
		(SELECT ` + t.columns + `, ` + data + `
		FROM ` + from + `
		WHERE ` + strings.Join(where, ` AND `) + `
		ORDER BY ` + order + `
		LIMIT ` + strconv.Itoa(maxPart) + `)`
	}
	sql := one(`data`, `{table}`)
	if waiting {
		slots, more := t.slotRows(len(args)+1, after != nil)
		args = append(args, more...)
		sql = one(`data`, `(`+sql+`
		UNION ALL`+one(`NULL`, `(`+slots+`) AS k`)+`) AS part`)
	}
	sql = s.names.SQL(sql)
	var part []storedRow
	err := pg.Retry(ctx, s.db, func() error {
		rows, err := s.db.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		part, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r storedRow, err error) {
			into := []any{&r.key, &r.data}
			switch t.mode {
			case Partial:
				into = []any{&r.key, &r.exact, &r.data}
			case Separated:
				into = []any{&r.key, &r.granularity, &r.exact, &r.data}
			}
			err = row.Scan(into...)
			r.at = r.exact.Unix()
			return r, err
		})
		return err
	})
	return part, s.told(err)
}

// slotRows is the SQL of the rows, by their columns, of which there are slots but which
// are not there, and its parameters, of which n is the number of the first. $1 is a
// prefix, and $2, where there is one, the key that they follow. Their texts have the
// collation of the table's, as what passes through JSON has none of its own.
func (t *table) slotRows(n int, follow bool) (sql string, args []any) {
	from := `
			FROM ` + t.readable + `
			WHERE tbl = $` + strconv.Itoa(n) + ` AND starts_with(key, $1)`
	args = []any{t.name}
	switch {
	case t.mode == Full && t.bytewise: // in the order of slots: of so many keys none is behind the part
		if from += ` AND key >= $1`; follow {
			from += ` AND key > $2`
		}
		from = `
			SELECT to_jsonb(key) #>> '{}' AS key
			FROM (
				SELECT DISTINCT key` + from + `
				ORDER BY key
				LIMIT ` + strconv.Itoa(maxPart) + `) AS s`
	case t.mode == Full:
		from = `
			SELECT DISTINCT to_jsonb(key) #>> '{}' AS key` + from
	default:
		args = append(args, t.slotPattern(), t.separator)
		columns := map[Mode]string{Partial: `m[1] || $%[2]d || m[2] AS key`, Separated: `m[1] AS key, m[2] AS granularity`}[t.mode]
		from = fmt.Sprintf(`
			SELECT DISTINCT `+columns+`, to_timestamp(CASE WHEN m[3]::bigint BETWEEN %[3]d AND %[4]d THEN m[3]::bigint END) AS at
			FROM (
				SELECT regexp_match(to_jsonb(key) #>> '{}', $%[1]d) AS m`+from+`
				OFFSET 0) AS s
			WHERE m IS NOT NULL AND $%[2]d::text IS NOT NULL`, n+1, n+2, firstSecond, lastSecond)
	}
	return `
			SELECT ` + t.columns + `
			FROM (
				SELECT ` + t.columns + `
				FROM {table}
				WHERE false
				UNION ALL` + from + `) AS k
			WHERE NOT EXISTS (
				SELECT
				FROM {table} t
				WHERE ` + t.join + `)`, args
}

// foldIfWritable folds what is only in slots, so that there are rows of all that was
// counted: not on a standby, not where the role may only read, and not in a transaction of the caller's, in which all who
// count would have to wait for its end.
func (s *Store) foldIfWritable(ctx context.Context, t *table) error {
	if !t.migrated || pg.InTx(s.db) {
		return nil
	}
	var writable bool
	if err := pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `SELECT current_setting('transaction_read_only') = 'off'`).Scan(&writable)
	}); err != nil || !writable {
		return err
	}
	_, err := s.foldAll(ctx)
	if errors.Is(err, ErrNotNumber) || pg.KindOf(err) == fault.Denied { // it stays in its slots
		return nil
	}
	return err
}

// withSlots adds to rows what their slots hold.
func (s *Store) withSlots(ctx context.Context, t *table, part []storedRow) error {
	var rows []rowID
	var places []int
	for i, r := range part {
		if t.slottedRow(r.rowID) {
			rows, places = append(rows, r.rowID), append(places, i)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	found, err := s.readAll(ctx, t, rows)
	for i, data := range found {
		if data != nil { // else it went away meanwhile
			part[places[i]].data = data
		}
	}
	return err
}

// named names a row as a bucket, where it is one, else by all of its key.
func (t *table) named(id rowID) Row {
	r := Row{Key: id.key, Granularity: Granularity(id.granularity)}
	ok := true
	switch t.mode {
	case Full:
		r.Key, r.Granularity, id.at, ok = splitFull(t.separator, id.key)
	case Partial:
		r.Key, r.Granularity, ok = splitPartial(t.separator, id.key)
	default:
		_, _, ok = r.Granularity.parse()
	}
	if ok && id.at >= firstSecond && id.at <= lastSecond {
		r.At = t.time(id.at)
		return r
	}
	switch at := strconv.FormatInt(id.at, 10); t.mode {
	case Full:
		return Row{Key: id.key}
	case Partial:
		return Row{Key: id.key + t.separator + at}
	default:
		return Row{Key: id.key + t.separator + id.granularity + t.separator + at}
	}
}

// WriteRows writes rows, an object a line, up to their end or an error.
func WriteRows(w io.Writer, rows iter.Seq2[Row, error]) error {
	out := bufio.NewWriter(w)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	for r, err := range rows {
		if err == nil {
			err = lines.Encode(r)
		}
		if err != nil {
			return errors.Join(err, out.Flush()) // what came before it was read well
		}
	}
	return out.Flush()
}
