package changes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// maxChunk is how many rows of a table a backfill reads at a time.
const maxChunk = 1000

// backfill is what a shard still has to be handed of the present state of tables.
type backfill struct {
	Tables []string `json:"tables"`         // the first is being read
	By     []string `json:"by,omitempty"`   // what each was read by as it began, see source.by; "" where that was not kept
	Last   []string `json:"last,omitempty"` // the last row of the first that was handled: the values of the columns it is read by
}

func (f *backfill) equal(g *backfill) bool {
	return slices.Equal(f.Tables, g.Tables) && slices.Equal(f.Last, g.Last)
}

// chunk is rows of a table as they stand at a commit. All that the feed has up to
// there is handled first, and then these: so none of them is older than what was
// handed over before, and none is newer than what is handed over after.
type chunk struct {
	after backfill // what was left before the first of reads
	at    Position // all of this commit
	reads []Change // not yet handled
	lasts [][]string
	by    []string // as after has it, but what the first is read by now
	whole bool     // no rows of the table follow these
}

// left is what is left once n more rows have been handled; nil for nothing.
func (c *chunk) left(n int) *backfill {
	tables := c.after.Tables
	switch {
	case n < len(c.reads) || !c.whole:
		return &backfill{tables, c.by, c.lasts[n-1]}
	case len(tables) == 1:
		return nil
	}
	return c.after.without(tables[0])
}

// without is what is left where some tables are not to be read; nil for nothing.
func (f *backfill) without(tables ...string) *backfill {
	if f == nil {
		return nil
	}
	left := &backfill{Last: f.Last}
	for i, name := range f.Tables {
		if !slices.Contains(tables, name) {
			left.Tables = append(left.Tables, name)
			if f.By != nil {
				left.By = append(left.By, f.By[i])
			}
		} else if i == 0 {
			left.Last = nil
		}
	}
	if len(left.Tables) == 0 {
		return nil
	}
	return left
}

// fill hands over what the feed has up to the next chunk of rows, and then that. The
// rows are read while nobody waits for the shard; whoever moves it meanwhile makes
// them void.
func (s *shard) fill(b *batch, st standing) (pause, error) {
	switch {
	case s.chunk == nil && !s.wanted(st.backfill.Tables[0]): // the patterns were others
		s.chunk = &chunk{after: *st.backfill, at: st.at, whole: true}
	case s.chunk == nil || !s.chunk.after.equal(st.backfill):
		b.rollback()
		refused, err := s.read(b.parent, *st.backfill)
		if refused {
			table := st.backfill.Tables[0]
			return pause{}, s.stop(b.parent, nil, "paused", fmt.Errorf("the rows of %s cannot be read: %w. Mend that; or begin anew with it: howdah changes backfill %[3]s %[1]s --yes; "+
				"or go on without its rows: howdah changes backfill %[3]s %[1]s --end. Then: howdah changes resume %[3]s", table, err, s.cfg.Name))
		}
		return pause{}, err
	case s.chunk.at != st.at:
		return s.follow(b, st)
	}
	cs := s.chunk.reads[:min(s.most(), len(s.chunk.reads))]
	handler := 0
	if len(cs) > 0 {
		handler = mostSpecific(s.patterns, &cs[0])
	}
	return s.handle(b, st, cs, handler, st.at)
}

// wanted reports whether a handler is for the rows of a table.
func (c *Consumer) wanted(table string) bool { return reads(c.patterns, table) }

// reads reports whether one of the patterns is for the rows of a table.
func reads(patterns []Pattern, table string) bool {
	schema, name, _ := strings.Cut(table, ".")
	return mostSpecific(patterns, &Change{Op: Read, Schema: schema, Table: name}) >= 0
}

// unreadable reports whether a table cannot be read until somebody has done something:
// it is not what it was, or not ours to read.
func unreadable(err error) bool {
	var refused *pg.InputError
	var pgErr *pgconn.PgError
	return errors.As(err, &refused) || errors.As(err, &pgErr) && (strings.HasPrefix(pgErr.Code, "42") || strings.HasPrefix(pgErr.Code, "22"))
}

// left is what is left to be read once cs have been handled and the shard stands at to.
func (s *shard) left(st standing, cs []Change, to Position) *backfill {
	if to == st.at { // rows have no places of their own
		return s.chunk.left(len(cs))
	}
	return st.backfill
}

// filled notes that so many rows of the chunk have been handled.
func (s *shard) filled(n int) {
	left := s.chunk.left(n)
	if left == nil || n == len(s.chunk.reads) {
		s.chunk = nil
		return
	}
	s.chunk.after, s.chunk.reads, s.chunk.lasts = *left, s.chunk.reads[n:], s.chunk.lasts[n:]
}

// read reads the next chunk of a backfill, or says that its table cannot be read, and why.
// That a snapshot cannot be had is no fault of the table.
func (s *shard) read(ctx context.Context, after backfill) (refused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout+s.pace.grace)
	defer cancel()
	err = s.log.Snapshot(ctx, func(tx pgx.Tx, at Position) error {
		// The table could not be altered as long as we are stopped in the middle of it.
		if _, err := tx.Exec(ctx, `SELECT set_config('idle_in_transaction_session_timeout', $1, true)`, strconv.FormatInt((s.cfg.Timeout+s.pace.grace).Milliseconds(), 10)); err != nil {
			return err
		}
		if err := inHistory(ctx, tx, s.at.timeline); err != nil {
			return err
		}
		err := s.readAt(ctx, tx, at, after)
		refused = unreadable(err)
		return err
	})
	return refused, err
}

// readAt reads it in a transaction that sees what stands up to at.
func (s *shard) readAt(ctx context.Context, tx pgx.Tx, at Position, after backfill) error {
	most := cmp.Or(s.cfg.Chunk, maxChunk)
	src, err := findSource(ctx, tx, after.Tables[0])
	if err != nil {
		return err
	}
	c := &chunk{after: after, at: at, by: slices.Clone(after.By)}
	if by := src.by(); c.by != nil && c.by[0] != "" && c.by[0] != by {
		// Which rows were handed over is known by the old order only, and by the old
		// key in which shard; but nothing was if there is one, which has not begun.
		if after.Last != nil || s.of > 1 {
			return pg.Refuse("backfill", "it was read by %s, and would be by %s now: nobody can tell which of its rows were handed over", c.by[0], by)
		}
		c.by[0] = by
	}
	if c.reads, c.lasts, c.whole, err = src.rows(ctx, tx, after.Last, most, share{shard: s.n, shards: s.of}); err != nil {
		return err
	}
	if another, err := src.rewritten(ctx, tx); err != nil || another {
		return err // there is no chunk yet: it is read anew
	}
	for i := range c.reads {
		c.reads[i].Position = at
	}
	s.chunk = c
	return nil
}

// source is a captured table as a backfill reads it: in the order of a unique key.
type source struct {
	schema, table string
	relation      uint32
	capture       Capture
	key           []string // columns of the capture's key
	all           []string // columns of the table
	columns       []string // of the unique index
	types         []string
	orders        []string // and their collations, where they matter
	schemas       []string // where the operators are that compare them
}

// by tells what the order of the rows, and their shards, depend on: as long as it is the
// same, a row that was read stands where it stood.
func (src *source) by() string {
	columns := make([]string, len(src.columns))
	for i, name := range src.columns {
		columns[i] = name + " " + src.types[i] + src.orders[i]
	}
	return fmt.Sprintf("(%s) with the key (%s) in table %d", strings.Join(columns, ", "), strings.Join(src.key, ", "), src.relation)
}

// findSource looks up a table. What cannot be read is Invalid.
func findSource(ctx context.Context, db pg.DB, name string) (*source, error) {
	src := new(source)
	src.schema, src.table, _ = strings.Cut(name, ".")
	var spec []byte
	err := db.QueryRow(ctx, `
		SELECT c.oid, s.spec, coalesce(o.columns, '{}'), coalesce(o.types, '{}'), coalesce(o.orders, '{}'), coalesce(o.schemas, '{}'),
			CASE WHEN (
				SELECT coalesce(bool_and(EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = j AND NOT a.attisdropped)), false)
				FROM jsonb_array_elements_text(s.spec -> 'key') AS j)
			THEN ARRAY(SELECT jsonb_array_elements_text(s.spec -> 'key'))
			ELSE howdah.change_key(c.oid) END, -- renamed since, as its triggers see, too
			ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN howdah.change_spec s ON s.relation = c.oid
		CROSS JOIN LATERAL howdah.change_order(c.oid) o
		WHERE n.nspname = $1::text AND c.relname = $2::text`, src.schema, src.table).Scan(&src.relation, &spec, &src.columns, &src.types, &src.orders, &src.schemas, &src.key, &src.all)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, pg.Refuse("backfill", "%q is not captured: howdah changes capture %s", name, name)
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(spec, &src.capture); err != nil {
		return nil, err
	}
	switch {
	case src.capture.Table != name:
		return nil, pg.Refuse("backfill", "%q was renamed, and its changes bear the name %s until it is captured again: howdah changes apply, with this capture", name, src.capture.Table)
	case len(src.columns) == 0:
		return nil, pg.Refuse("backfill", "%q has no primary key, nor another unique index of columns without NULL, by which to read it", name)
	case len(src.key) == 0:
		return nil, pg.Refuse("backfill", "%q is captured without a key, by which its rows are told apart: howdah changes capture %s --key COLUMN", name, name)
	}
	return src, nil
}

// told are the columns of row r of which a change, or its key, is made. Those that are
// left out may be no JSON.
func (src *source) told() string {
	if len(src.capture.Except) == 0 {
		return "r.*"
	}
	var columns []string
	for _, name := range src.all {
		if slices.Contains(src.key, name) || !slices.Contains(src.capture.Except, name) {
			columns = append(columns, "r."+pgx.Identifier{name}.Sanitize())
		}
	}
	return strings.Join(columns, ", ")
}

// rewritten reports whether tx, which has read the table, sees it or a part of it in another
// file than it read, or another table under its name. TRUNCATE and much of ALTER
// TABLE write a new file, which is empty to a snapshot that is older.
func (src *source) rewritten(ctx context.Context, tx pgx.Tx) (another bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT to_regclass($2)::oid IS DISTINCT FROM $1::oid OR EXISTS (
			SELECT FROM pg_class
			WHERE (oid = $1::oid OR oid IN (SELECT relid FROM pg_partition_tree($1::oid) WHERE isleaf))
				AND relfilenode <> pg_relation_filenode(oid))`, src.relation, pgx.Identifier{src.schema, src.table}.Sanitize()).Scan(&another)
	return another, err
}

// rows returns up to n rows of a share of the table, those that follow after, as
// changes without a position, and each one's values in the columns it is read by; fewer
// where these are about as much as a page holds. whole is whether none follow.
func (src *source) rows(ctx context.Context, tx pgx.Tx, after []string, n int, of share) (reads []Change, lasts [][]string, whole bool, err error) {
	args := []any{src.schema, src.table, src.key, append([]string{}, src.capture.Except...), string(src.capture.Payload), src.capture.MaxBytes, of.shards, of.shard}
	var texts, columns, values []string
	for i, name := range src.columns {
		column := "r." + pgx.Identifier{name}.Sanitize()
		columns, texts = append(columns, column), append(texts, column+"::text")
		if len(after) > i {
			args = append(args, after[i])
			values = append(values, "$"+strconv.Itoa(len(args))+"::text::"+src.types[i]) // the catalog's own spelling
		}
	}
	where := "true"
	if after != nil {
		where = "(" + strings.Join(columns, ", ") + ") > (" + strings.Join(values, ", ") + ")"
	}
	order := strings.Join(columns, ", ")
	// In the order of the index and not sorted anew for each chunk; what a policy would
	// hide has to be an error; the last row must be found again by its text, with the operators
	// of the index; and an instant in a key is spelled as triggers do.
	path := "pg_catalog"
	for _, schema := range src.schemas {
		path += ", " + pgx.Identifier{schema}.Sanitize()
	}
	for _, sql := range []string{`SET LOCAL enable_seqscan = off`, `SET LOCAL enable_sort = off`, `SET LOCAL jit = off`, `SET LOCAL row_security = off`,
		`SET LOCAL extra_float_digits = 1`, `SET LOCAL datestyle = 'ISO, MDY'`, `SET LOCAL intervalstyle = postgres`, `SET LOCAL timezone = 'UTC'`, `SET LOCAL search_path = ` + path + `, pg_temp`} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return nil, nil, false, err
		}
	}
	if _, err := tx.Exec(ctx, `
		DECLARE howdah_rows NO SCROLL CURSOR FOR
		SELECT k.key, CASE WHEN $5 <> 'keys' AND NOT o.large THEN o.image END, $5 <> 'keys' AND o.large, clock_timestamp(), ARRAY[`+strings.Join(texts, ", ")+`]
		FROM `+pgx.Identifier{src.schema, src.table}.Sanitize()+` AS r
		CROSS JOIN LATERAL (SELECT howdah.change_json(x.*) AS image FROM (SELECT `+src.told()+`) AS x OFFSET 0) AS i
		CROSS JOIN LATERAL (SELECT howdah.change_pick(i.image, $3::text[]) AS key OFFSET 0) AS k
		CROSS JOIN LATERAL (SELECT i.image - $4::text[] AS image, pg_column_size(i.image - $4::text[]) > $6::int AS large OFFSET 0) AS o
		WHERE `+where+`
			AND ($7::int <= 1 OR abs(howdah.change_lane($1, $2, k.key) % $7) = $8::int)
		ORDER BY `+order, args...); err != nil {
		return nil, nil, false, err
	}
	// The operators are found. What is fetched, keys and those texts, spells names as triggers do.
	if _, err := tx.Exec(ctx, `SET LOCAL search_path = pg_catalog, pg_temp`); err != nil {
		return nil, nil, false, err
	}
	c := Change{Op: Read, Schema: src.schema, Table: src.table}
	var key, image []byte
	var last []string
	size, largest := 0, 1
	// A few at first: how large they are is known once they are there.
	for some := 8; len(reads) < n && size < pageBytes; some = max(1, min(2*some, (pageBytes-size)/largest)) {
		some = min(some, n-len(reads))
		// What it returns is different for each table, so that nothing of it is kept.
		rows, _ := tx.Query(ctx, `FETCH `+strconv.Itoa(some)+` FROM howdah_rows`, pgx.QueryExecModeExec)
		got, err := pgx.ForEachRow(rows, []any{&key, &image, &c.Trimmed, &c.At, &last}, func() error {
			c.hold(key, nil, image)
			c.At = c.At.UTC()
			reads, lasts = append(reads, c), append(lasts, slices.Clone(last))
			size, largest = size+c.size(), max(largest, c.size())
			key, image, last = nil, nil, nil
			return nil
		})
		if err != nil || got.RowsAffected() < int64(some) {
			return reads, lasts, err == nil, err
		}
	}
	return reads, lasts, false, nil
}
