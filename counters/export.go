package counters

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
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
// can be; else it is added up as it is read, and in a table that is not in mode Full, or not
// in the order of bytes, buckets that are there only come last. An error ends it.
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
	merged := t.mode == Full && t.bytewise // rows and slots are in one order
	only := map[string]bool{}
	if !merged {
		if only, err = s.keysInSlots(ctx, t, prefix); err != nil {
			return err
		}
	}
	u := newUnpacker(t.paths)
	var after *storedRow
	for {
		if t, err = s.still(ctx, t); err != nil {
			return err
		}
		part, err := s.exportPart(ctx, t, prefix, after, merged && t.migrated)
		if err != nil {
			return err
		}
		if err := s.withSlots(ctx, t, part); err != nil {
			return err
		}
		beyond := len(part) < maxPart
		for _, stored := range part {
			if !strings.HasPrefix(stored.key, prefix) {
				beyond = true
				break
			}
			if !merged {
				delete(only, t.full(stored.rowID))
			}
			if goOn, err := t.exported(u, stored, prefix, yield); err != nil || !goOn {
				return err
			}
		}
		if beyond {
			return s.exportSlots(ctx, t, u, slices.Sorted(maps.Keys(only)), prefix, yield)
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

// keysInSlots returns the keys that begin with prefix and have slots: what cannot be folded
// just now, of which there may be no rows.
func (s *Store) keysInSlots(ctx context.Context, t *table, prefix string) (map[string]bool, error) {
	waiting := map[string]bool{}
	if !t.migrated {
		return waiting, nil
	}
	for after, more := "", true; more; {
		keys, some, err := s.waitingKeys(ctx, t, max(prefix, after))
		if err != nil {
			return nil, err
		}
		for _, after = range keys {
			if !strings.HasPrefix(after, prefix) {
				return waiting, nil
			}
			waiting[after] = true
		}
		more = some
	}
	return waiting, nil
}

// exportSlots yields the buckets of keys that had only slots when the export began, with
// the rows that others have made of them since.
func (s *Store) exportSlots(ctx context.Context, t *table, u *unpacker, keys []string, prefix string, yield func(Row) bool) error {
	for part := range slices.Chunk(keys, maxPart) {
		var rows []rowID
		for _, key := range part {
			if id, ok := t.rowOf(key); ok {
				rows = append(rows, id)
			}
		}
		found, err := s.readAll(ctx, t, rows)
		if err != nil {
			return err
		}
		for i, data := range found {
			if data == nil {
				continue // it went away meanwhile
			}
			if goOn, err := t.exported(u, storedRow{rowID: rows[i], data: data}, prefix, yield); err != nil || !goOn {
				return err
			}
		}
	}
	return nil
}

// storedRow is a row as it is.
type storedRow struct {
	rowID
	exact time.Time // at, of a table of others perhaps with a fraction
	data  []byte
}

// exportPart returns the rows that follow after, if any. Where the index knows the
// order of bytes they begin with the prefix, and may go on behind it. Where slots are
// in the order of rows, and asked for, buckets that are only there have their place among the rows, without
// data: one statement sees each of them here or there, whoever folds meanwhile.
func (s *Store) exportPart(ctx context.Context, t *table, prefix string, after *storedRow, slots bool) ([]storedRow, error) {
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
	if slots {
		args = append(args, t.name)
		sql = one(`data`, `(`+sql+`
		UNION ALL`+one(`NULL`, `(`+t.keysOfSlots(len(args), after != nil)+`) AS k`)+`) AS part`)
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

// keysOfSlots is the SQL of the keys that follow, of which there are slots but no rows, in a
// table that is in the order of slots. $1 is a prefix, $2, where there is one, the key
// that they follow, and $n the table. Of so many keys none is behind the part. What
// passes through JSON has no collation of its own, but that of the table's key.
func (t *table) keysOfSlots(n int, follow bool) string {
	from := `
				FROM ` + t.readable + `
				WHERE tbl = $` + strconv.Itoa(n) + ` AND starts_with(key, $1) AND key >= $1`
	if follow {
		from += ` AND key > $2`
	}
	return `
			SELECT key
			FROM (
				SELECT to_jsonb(key) #>> '{}' AS key
				FROM (
					SELECT DISTINCT key` + from + `
					ORDER BY key
					LIMIT ` + strconv.Itoa(maxPart) + `) AS s) AS k
			WHERE NOT EXISTS (
				SELECT
				FROM {table} t
				WHERE ` + t.join + `)`
}

// foldIfWritable folds what is only in slots, so that there are rows of all that was
// counted: not on a standby, not where the role may only read, and not in a transaction of the caller's, in which all who
// count would have to wait for its end.
func (s *Store) foldIfWritable(ctx context.Context, t *table) error {
	if !t.migrated || pg.Begun(s.db) {
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
