package changes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// maxChunk is how many rows of a table a backfill reads at a time.
const maxChunk = 1000

// backfill is what a shard still has to be handed of the present state of tables.
type backfill struct {
	Tables []string `json:"tables"`         // the first is being read
	Last   []string `json:"last,omitempty"` // the last row of it that was handled: the values of the columns it is read by
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
	whole bool // no rows of the table follow these
}

// left is what is left once n more rows have been handled; nil for nothing.
func (c *chunk) left(n int) *backfill {
	tables := c.after.Tables
	switch {
	case n < len(c.reads) || !c.whole:
		return &backfill{tables, c.lasts[n-1]}
	case len(tables) == 1:
		return nil
	}
	return &backfill{Tables: tables[1:]}
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
		err := s.read(b.parent, *st.backfill)
		if refused := new(pg.InputError); errors.As(err, &refused) { // a table that is not what it was
			return pause{}, s.stop(b.parent, nil, "paused", err)
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
func (c *Consumer) wanted(table string) bool {
	schema, name, _ := strings.Cut(table, ".")
	return mostSpecific(c.patterns, &Change{Op: Read, Schema: schema, Table: name}) >= 0
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

// read reads the next chunk of a backfill.
func (s *shard) read(ctx context.Context, after backfill) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout+s.pace.grace)
	defer cancel()
	most := cmp.Or(s.cfg.Chunk, maxChunk)
	return s.log.Snapshot(ctx, func(tx pgx.Tx, at Position) error {
		src, err := findSource(ctx, tx, after.Tables[0])
		if err != nil {
			return err
		}
		c := &chunk{after: after, at: at}
		if c.reads, c.lasts, err = src.rows(ctx, tx, after.Last, most, share{shard: s.n, shards: s.of}); err != nil {
			return err
		}
		for i := range c.reads {
			c.reads[i].Position = at
		}
		c.whole = len(c.reads) < most
		s.chunk = c
		return nil
	})
}

// source is a captured table as a backfill reads it: in the order of a unique key.
type source struct {
	schema, table string
	capture       Capture
	columns       []string // of the unique key
	types         []string
}

// findSource looks up a table. What cannot be read is Invalid.
func findSource(ctx context.Context, db pg.DB, name string) (*source, error) {
	src := new(source)
	src.schema, src.table, _ = strings.Cut(name, ".")
	var spec []byte
	err := db.QueryRow(ctx, `
		SELECT s.spec, coalesce(k.columns, '{}'), coalesce(k.types, '{}')
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN howdah.change_spec s ON s.relation = c.oid
		LEFT JOIN LATERAL (
			SELECT array_agg(a.attname::text ORDER BY k.position) AS columns,
				array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY k.position) AS types
			FROM pg_index i
			CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
			LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
			WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND k.position <= i.indnkeyatts
			GROUP BY i.indexrelid, i.indisprimary
			HAVING bool_and(coalesce(a.attnotnull, false))
			ORDER BY i.indisprimary DESC, i.indexrelid
			LIMIT 1) k ON true
		WHERE n.nspname = $1 AND c.relname = $2`, src.schema, src.table).Scan(&spec, &src.columns, &src.types)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, pg.Refuse("backfill", "%q is not captured: howdah changes capture %s", name, name)
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(spec, &src.capture); err != nil {
		return nil, err
	}
	if len(src.columns) == 0 || len(src.capture.Key) == 0 {
		return nil, pg.Refuse("backfill", "%q has no unique key without NULL, by which to read it", name)
	}
	return src, nil
}

// rows returns up to n rows of a share of the table, those that follow after, as
// changes without a position, and each one's values in the columns it is read by.
func (src *source) rows(ctx context.Context, tx pgx.Tx, after []string, n int, of share) (reads []Change, lasts [][]string, err error) {
	args := []any{src.schema, src.table, src.capture.Key, append([]string{}, src.capture.Except...), string(src.capture.Payload), src.capture.MaxBytes, of.shards, of.shard, n}
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
	// In the order of the index and not sorted anew for each chunk; and what a policy
	// would hide has to be an error.
	for _, sql := range []string{`SET LOCAL enable_seqscan = off`, `SET LOCAL enable_sort = off`, `SET LOCAL jit = off`, `SET LOCAL row_security = off`} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return nil, nil, err
		}
	}
	rows, _ := tx.Query(ctx, `
		SELECT k.key, CASE WHEN $5 <> 'keys' AND NOT o.large THEN o.image END, $5 <> 'keys' AND o.large, clock_timestamp(), ARRAY[`+strings.Join(texts, ", ")+`]
		FROM `+pgx.Identifier{src.schema, src.table}.Sanitize()+` AS r
		CROSS JOIN LATERAL (SELECT howdah.change_json(r.*) AS image OFFSET 0) AS i
		CROSS JOIN LATERAL (SELECT howdah.change_pick(i.image, $3::text[]) AS key OFFSET 0) AS k
		CROSS JOIN LATERAL (SELECT i.image - $4::text[] AS image, pg_column_size(i.image - $4::text[]) > $6::int AS large OFFSET 0) AS o
		WHERE `+where+`
			AND ($7::int <= 1 OR abs(howdah.change_lane($1, $2, k.key) % $7) = $8::int)
		ORDER BY `+order+`
		LIMIT $9::int`, args...)
	c := Change{Op: Read, Schema: src.schema, Table: src.table}
	var key, image []byte
	var last []string
	_, err = pgx.ForEachRow(rows, []any{&key, &image, &c.Trimmed, &c.At, &last}, func() error {
		c.Key, c.New, c.At = compact(key), nil, c.At.UTC()
		if image != nil {
			c.New = compact(image)
		}
		reads, lasts = append(reads, c), append(lasts, slices.Clone(last))
		key, image, last = nil, nil, nil
		return nil
	})
	return reads, lasts, err
}

// toFill checks the tables of a backfill; nil where there are none.
func (c *Consumer) toFill(ctx context.Context) (*backfill, error) {
	for _, name := range c.cfg.Backfill {
		if _, err := findSource(ctx, c.pool, name); err != nil {
			return nil, err
		}
		if !c.wanted(name) {
			return nil, pg.Refuse("backfill", "no handler is for the reads of %q", name)
		}
	}
	if len(c.cfg.Backfill) == 0 {
		return nil, nil
	}
	return &backfill{Tables: c.cfg.Backfill}, nil
}

// refill has a consumer that has expired begin anew, at the present end of the feed and
// with the rows of its tables: what was parked comes again with them.
func (c *Consumer) refill(ctx context.Context) error {
	var expired bool
	err := c.pool.QueryRow(ctx, `SELECT state = 'expired' FROM howdah.change_consumer WHERE name = $1`, c.cfg.Name).Scan(&expired)
	if err != nil || !expired {
		return err
	}
	from, err := c.log.Sync(ctx)
	if err != nil {
		return err
	}
	rows, err := c.toFill(ctx)
	if err != nil || rows == nil {
		return err
	}
	return pgx.BeginTxFunc(ctx, c.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if err := held(ctx, tx, from); err != nil { // before all else: retention locks in the same order
			return err
		}
		return c.log.WithTx(tx).alone(ctx, c.cfg.Name, func(tx pgx.Tx, _ int) error {
			_, err := tx.Exec(ctx, `
				WITH expired AS (
					UPDATE howdah.change_consumer
					SET state = 'running', reason = '', next_shards = NULL, stop_at = NULL
					WHERE name = $1 AND state = 'expired' -- no other instance was first
					RETURNING name, shards
				), gone AS (
					DELETE FROM howdah.change_parked p
					USING expired e
					WHERE p.consumer = e.name
				), newest AS (
					SELECT k.consumer, g.shard, max(k.seq) AS seq
					FROM expired e
					CROSS JOIN generate_series(0, e.shards - 1) AS g(shard)
					JOIN howdah.change_checkpoint k ON k.consumer = e.name AND k.shard = g.shard
					GROUP BY k.consumer, g.shard
				), moved AS (
					INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, backfill)
					SELECT consumer, shard, seq + 1, $2, $3::jsonb
					FROM newest
				)
				DELETE FROM howdah.change_checkpoint k
				USING newest n
				WHERE k.consumer = n.consumer AND k.shard = n.shard AND k.seq <= n.seq`, c.cfg.Name, from.Commit, rows)
			return err
		})
	})
}
