package checklists

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// run is calls on one item that came one after the other and do the same.
type run struct {
	item string
	call
	answers []answer
}

// change is what one statement does: runs of one kind, on items of one list, each
// item once.
type change struct {
	nth  int // run of its items
	verb verb
	list string
	runs []run
}

// changesOf brings the calls of a batch into statements: the second run of an item
// comes after its first. Almost always there is but one.
func changesOf(batch pg.Batch[target, call, answer]) []*change {
	type place struct {
		nth  int
		verb verb
		list string
	}
	at := map[place]*change{}
	var all []*change
	for _, e := range batch.Entries {
		for from, to, nth := 0, 1, 0; from < len(e.Values); to++ {
			first := e.Values[from]
			if to < len(e.Values) && e.Values[to].verb == first.verb && e.Values[to].token == first.token {
				continue
			}
			p := place{nth, first.verb, e.Key.list}
			if at[p] == nil {
				at[p] = &change{nth: nth, verb: first.verb, list: e.Key.list}
				all = append(all, at[p])
			}
			at[p].runs = append(at[p].runs, run{e.Key.item, first, e.Results[from:to]})
			from, nth = to, nth+1
		}
	}
	slices.SortStableFunc(all, func(a, b *change) int { // lists are in order already
		if a.nth != b.nth {
			return a.nth - b.nth
		}
		return int(a.verb - b.verb)
	})
	return all
}

// flush writes a batch in one round trip.
//
// It waits for no lock that another transaction has on an item: the callers of
// such an item go to the Store alone, and wait there. Hence it needs no order to
// lock in. What it could wait for is somebody's INSERT or DELETE of an item that it
// inserts, or the whole table: after a moment all of its callers go alone, and so
// they do where the server refuses something for one of them.
func (w *Writer) flush(ctx context.Context, tx pgx.Tx, batch pg.Batch[target, call, answer]) error {
	full, err := w.s.WithTx(tx).full(ctx)
	if err != nil {
		return err
	}
	var b pgx.Batch
	b.Queue(`SELECT set_config('lock_timeout', '100ms', true)`)
	b.Queue(`SAVEPOINT howdah_writer`)
	rings := false
	for _, c := range changesOf(batch) {
		sql, args := c.statement(full)
		b.Queue(w.s.sql(sql), args...).Query(c.take)
		rings = rings || full && c.verb == inserting
	}
	if rings {
		b.Queue(ring)
	}
	err = tx.SendBatch(ctx, &b).Close()
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || passes(refused) {
		return err
	}
	_ = w.s.told(err) // the Store may have to look at the table again
	for _, e := range batch.Entries {
		for i := range e.Results {
			e.Results[i] = answer{alone: true}
		}
	}
	_, err = tx.Exec(ctx, `ROLLBACK TO SAVEPOINT howdah_writer`)
	return err
}

// passes reports whether the whole batch is to be repeated: the server is going
// away, out of resources or a standby, or gave this transaction up for another.
func passes(err *pgconn.PgError) bool {
	switch err.Code[:2] {
	case "08", "25", "40", "53", "57", "58":
		return true
	}
	return false
}

// take reads the items that were changed, and those that could not be.
func (c *change) take(rows pgx.Rows) error {
	at := make(map[string]run, len(c.runs))
	for _, r := range c.runs {
		at[r.item] = r
	}
	var item string
	var locked bool
	_, err := pgx.ForEachRow(rows, []any{&item, &locked}, func() error {
		for i := range at[item].answers {
			if locked {
				at[item].answers[i].alone = true
			} else if i == 0 || c.verb == incrementing { // the others found it done
				at[item].answers[i].n = 1
			}
		}
		return nil
	})
	return err
}

// statement returns the SQL of a change, and what it is about.
func (c *change) statement(full bool) (sql string, args []any) {
	items := column(c.runs, func(r run) string { return r.item })
	tokens := func() []string { return column(c.runs, func(r run) string { return r.token }) }
	switch c.verb {
	case inserting:
		if full {
			return insertEach + unlessThere + ` RETURNING item, false`, []any{c.list, items}
		}
		return insertPlain + ` RETURNING item, false`, []any{c.list, items}
	case incrementing:
		return incrementFree, []any{c.list, items, column(c.runs, func(r run) int { return len(r.answers) })}
	case deleting:
		return deleteFree, []any{c.list, items}
	case finishing:
		return doneFree, []any{c.list, items, tokens()}
	default:
		return failFree, []any{c.list, items, tokens(),
			column(c.runs, func(r run) string { return r.text }), column(c.runs, func(r run) int64 { return int64(r.wait) })}
	}
}

func column[T any](runs []run, of func(run) T) []T {
	values := make([]T, len(runs))
	for i, r := range runs {
		values[i] = of(r)
	}
	return values
}

// Changes of those of the items $2 on list $1 that nobody has locked.
var (
	incrementFree = free(`item, n`, `unnest($2::text[], $3::int[])`, ``, `u AS (
			UPDATE {lists} l
			SET attempts = least(l.attempts, 2147483647 - k.n) + k.n
			FROM k
			WHERE l.list = k.list AND l.item = k.item
			RETURNING l.item)`)
	deleteFree = free(`item`, `unnest($2::text[])`, ``, takenOff)
	doneFree   = free(`item, lease`, `unnest($2::text[], $3::uuid[])`, heldBy, takenOff)
	failFree   = free(`item, lease, error, wait`, `unnest($2::text[], $3::uuid[], $4::text[], $5::bigint[])`, heldBy, `s AS (`+backoffSettings+`),
		u AS (
			UPDATE {lists} l
			SET lease = NULL, error = k.error, due = `+dueAfterFailure+`
			FROM k, s
			WHERE l.list = k.list AND l.item = k.item
			RETURNING l.item, l.due),
		d AS (
			INSERT INTO howdah.checklist_count (relation, list, bucket, failed, dead)
			SELECT {relation}, $1, howdah.checklist_bucket(), count(*), count(*) FILTER (WHERE due = 'infinity')
			FROM u
			HAVING count(*) > 0)`)
)

const (
	takenOff = `u AS (
			DELETE FROM {lists} l
			USING k
			WHERE l.list = k.list AND l.item = k.item
			RETURNING l.item)`
	// Not =, for which the index by lease would serve: of a lease with thousands of
	// items it finds all for each of them.
	heldBy = ` AND l.lease IS NOT DISTINCT FROM f.lease`
)

// free returns a statement about items f, with more columns, whose rows meet a
// condition. Its CTEs make u, the items changed, of k, those of f that nobody else
// has locked. It answers the items changed, and as true the others.
func free(columns, items, condition, ctes string) string {
	return `
		WITH f AS MATERIALIZED (
			SELECT *
			FROM ` + items + ` AS f(` + columns + `)),
		` + locked(`f`, `l.list, f.*`, condition, `FOR UPDATE SKIP LOCKED`) + `,
		` + ctes + `
		SELECT item, false
		FROM u
		UNION ALL
		SELECT l.item, true
		FROM f
		CROSS JOIN LATERAL (
			SELECT l.item
			FROM {lists} l
			WHERE l.list = $1 AND l.item = f.item` + condition + `
			LIMIT 1) l
		WHERE (SELECT count(*) FROM u) < cardinality($2::text[]) AND NOT EXISTS (SELECT FROM k WHERE k.item = l.item)`
}
