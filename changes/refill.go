package changes

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// toFill checks the tables of a backfill; nil where there are none.
func toFill(ctx context.Context, db pg.DB, patterns []Pattern, tables []string) (*backfill, error) {
	var fill *backfill
	for _, name := range tables {
		if err := pg.CheckText("backfill", name); err != nil {
			return nil, err
		}
		src, err := findSource(ctx, db, name)
		if err != nil {
			return nil, err
		}
		if !reads(patterns, name) {
			return nil, pg.Refuse("backfill", "no handler is for the reads of %q", name)
		}
		if fill == nil {
			fill = new(backfill)
		}
		if !slices.Contains(fill.Tables, name) {
			fill.Tables, fill.By = append(fill.Tables, name), append(fill.By, src.by())
		}
	}
	return fill, nil
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
	rows, err := toFill(ctx, c.pool, c.patterns, c.cfg.Backfill)
	if err != nil || rows == nil {
		return err
	}
	return c.log.begin(ctx, func(tx pgx.Tx) error {
		if err := held(ctx, tx, from); err != nil { // before all else: retention locks in the same order
			return err
		}
		return c.log.WithTx(tx).alone(ctx, c.cfg.Name, func(tx pgx.Tx, shards int) error {
			tag, err := tx.Exec(ctx, `
				UPDATE howdah.change_consumer
				SET state = 'running', reason = '', next_shards = NULL, stop_at = NULL
				WHERE name = $1 AND state = 'expired'`, c.cfg.Name)
			if err != nil || tag.RowsAffected() == 0 { // another instance was first
				return err
			}
			if _, err := tx.Exec(ctx, `DELETE FROM howdah.change_parked WHERE consumer = $1`, c.cfg.Name); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `
				WITH `+newest+`, moved AS (
					INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, backfill, handled, failed)
					SELECT consumer, shard, seq + 1, $3, $4::jsonb, handled, failed
					FROM newest
				)
				`+replaced, c.cfg.Name, shards, from.Commit, rows)
			return err
		})
	})
}

// Backfill has a consumer read tables as they stand, each from its first row, beside
// what happens to them and after what else it still has to read: rows that it was handed
// before it is handed again. One that is paused reads them when it is resumed. It returns
// Invalid for a table that cannot be read or that none of its patterns is for,
// ErrNoConsumer, and Conflict where it has expired, or changes its number of shards.
func (l *Log) Backfill(ctx context.Context, name string, tables ...string) error {
	const op = "changes: backfill"
	if len(tables) == 0 {
		return pg.Wrap(op, pg.Refuse("tables", "are missing: which are to be read?"))
	}
	return pg.Wrap(op, l.fill(ctx, name, func(tx pgx.Tx, texts []string, fills []*backfill) ([]*backfill, error) {
		patterns, err := ParsePatterns(texts...)
		if err != nil {
			return nil, err
		}
		fresh, err := toFill(ctx, tx, patterns, tables)
		if err != nil {
			return nil, pg.Renamed("tables", err)
		}
		for i, f := range fills {
			if f = f.without(fresh.Tables...); f == nil {
				fills[i] = fresh
				continue
			}
			by := f.By
			if by == nil { // as it was kept once
				by = make([]string, len(f.Tables))
			}
			fills[i] = &backfill{slices.Concat(f.Tables, fresh.Tables), slices.Concat(by, fresh.By), f.Last}
		}
		return fills, nil
	}))
}

// EndBackfill has a consumer read no more rows of the tables, or, where none is named,
// of any: it goes on with what happens to them. One that was paused by a table that
// cannot be read is to be resumed then. To end it again is nothing to do. It returns
// Invalid for a table that is neither captured nor being read, ErrNoConsumer, and
// Conflict as Backfill does.
func (l *Log) EndBackfill(ctx context.Context, name string, tables ...string) error {
	const op = "changes: end backfill"
	for _, table := range tables {
		if err := pg.CheckText("tables", table); err != nil {
			return pg.Wrap(op, err)
		}
	}
	return pg.Wrap(op, l.fill(ctx, name, func(tx pgx.Tx, _ []string, fills []*backfill) ([]*backfill, error) {
		var reading []string
		for _, f := range fills {
			if f != nil {
				reading = append(reading, f.Tables...)
			}
		}
		for _, table := range tables {
			if slices.Contains(reading, table) {
				continue
			}
			var captured bool // else it was never read, or it is misspelled
			if err := tx.QueryRow(ctx, `
				SELECT EXISTS (
					SELECT FROM howdah.change_spec s
					JOIN pg_class c ON c.oid = s.relation
					JOIN pg_namespace n ON n.oid = c.relnamespace
					WHERE n.nspname || '.' || c.relname = $1)`, table).Scan(&captured); err != nil {
				return nil, err
			}
			if !captured {
				return nil, pg.Refuse("tables", "%q is not captured, nor one of those that are being read: %s", table, cmp.Or(strings.Join(slices.Compact(slices.Sorted(slices.Values(reading))), ", "), "none"))
			}
		}
		if len(tables) == 0 {
			return make([]*backfill, len(fills)), nil
		}
		for i, f := range fills {
			fills[i] = f.without(tables...)
		}
		return fills, nil
	}))
}

// fill changes what each shard of a consumer has to read, nil is nothing, to what change
// makes of that.
func (l *Log) fill(ctx context.Context, name string, change func(tx pgx.Tx, patterns []string, fills []*backfill) ([]*backfill, error)) error {
	err := l.alone(ctx, name, func(tx pgx.Tx, shards int) error {
		var state string
		var patterns []string
		var resharding bool
		if err := tx.QueryRow(ctx, `
			SELECT state, patterns, next_shards IS NOT NULL
			FROM howdah.change_consumer
			WHERE name = $1`, name).Scan(&state, &patterns, &resharding); err != nil {
			return err
		}
		switch {
		case state == "expired":
			return hasExpired(name)
		case resharding:
			return fmt.Errorf("%q is about to have another number of shards: wait until it has: %w", name, fault.Conflict)
		}
		rows, _ := tx.Query(ctx, `WITH `+newest+` SELECT shard, backfill FROM newest`, name, shards)
		var numbers []int
		var fills []*backfill
		var n int
		var was *backfill
		if _, err := pgx.ForEachRow(rows, []any{&n, &was}, func() error {
			numbers, fills, was = append(numbers, n), append(fills, was), nil
			return nil
		}); err != nil {
			return err
		}
		fills, err := change(tx, patterns, fills)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			WITH `+newest+`, moved AS (
				INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id, failures, backfill, handled, failed)
				SELECT k.consumer, k.shard, k.seq + 1, k.n, k.id, k.failures, f.backfill, k.handled, k.failed
				FROM newest k
				JOIN unnest($3::int[], $4::jsonb[]) AS f(shard, backfill) ON f.shard = k.shard
			)
			`+replaced, name, shards, numbers, fills)
		return err
	})
	if err == nil {
		l.ring(ctx)
	}
	return pg.Written(l.db, err)
}
