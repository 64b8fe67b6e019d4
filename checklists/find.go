package checklists

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Query is which items of a list are meant; the zero Query is all that are on it.
type Query struct {
	Items []string // of these only; nil: of all
	State State    // of this state only
	Error string   // with this in their error
	After *string  // that follow it in order; nil: from the first
	Limit int      // at most so many; 0: any number
}

// where is the condition of q with its arguments, after that on list $1.
func (q Query) where() (sql string, args []any) {
	add := func(cond string, arg any) {
		args = append(args, arg)
		sql += fmt.Sprintf(" AND "+cond, len(args)+1)
	}
	sql = map[State]string{
		StateReady:   " AND due <= statement_timestamp()",
		StateWaiting: " AND due > statement_timestamp() AND due < 'infinity' AND lease IS NULL",
		StateLeased:  " AND due > statement_timestamp() AND due < 'infinity' AND lease IS NOT NULL",
		StateDead:    " AND due = 'infinity'",
		StateLeft:    " AND due < 'infinity'",
	}[q.State]
	if q.Items != nil {
		add("item = ANY($%d)", q.Items)
	}
	if q.Error != "" && q.State == StateDone {
		sql += " AND false" // what is done keeps no error
	} else if q.Error != "" {
		add("strpos(error, $%d) > 0", q.Error)
	}
	if q.After != nil {
		add("item > $%d", *q.After)
	}
	return sql, args
}

func (q Query) check() error {
	err := errors.Join(checkItems(q.Items, pg.CheckText), checkState(q.State), pg.CheckText("error", q.Error))
	if q.After != nil {
		err = errors.Join(err, pg.CheckText("after", *q.After))
	}
	if q.Limit < 0 {
		err = errors.Join(err, pg.Refuse("limit", "%d; want 0 (any number) or more", q.Limit))
	}
	return err
}

// tail is the order and limit of q; what follows the item is a table's lock.
func (q Query) tail(args *[]any, order string) string {
	if q.Limit == 0 {
		return " ORDER BY " + order
	}
	*args = append(*args, q.Limit)
	return fmt.Sprintf(" ORDER BY %s LIMIT $%d", order, len(*args))
}

// Find returns the items of list that q means, in order. It is one statement
// whose rows are read as the loop goes on: a connection is taken until then, and
// in a transaction the loop cannot use it. An error ends it; it is ErrPlain where
// the table has no states.
func (s *Store) Find(ctx context.Context, list string, q Query) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := s.find(ctx, list, q, yield); err != nil {
			yield(Item{}, pg.Wrap("checklists: find", s.told(err)))
		}
	}
}

// find returns nil where the loop ended early.
func (s *Store) find(ctx context.Context, list string, q Query, yield func(Item, error) bool) error {
	if err := errors.Join(s.check(list, nil), q.check()); err != nil {
		return err
	}
	if err := s.needColumns(ctx); err != nil {
		return err
	}
	cond, args := q.where()
	args = append([]any{list}, args...)
	from := fullColumns + ` FROM {lists} WHERE list = $1`
	if q.State == StateDone {
		from = doneColumns + ` FROM howdah.checklist_done WHERE relation = {relation} AND list = $1`
	}
	rows, err := s.db.Query(ctx, s.sql(`SELECT `+from+cond+q.tail(&args, "item")), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	scanner := newItemScanner(rows)
	for rows.Next() {
		item, err := scanner.scan()
		if err != nil {
			return err
		}
		if !yield(item, nil) {
			return nil
		}
	}
	return rows.Err()
}

// Kill gives items of list up with a reason, whoever has them, and returns how
// many; those that are dead already stay as they are. Dead items stay on the list
// until [Store.Redrive] or [Store.Delete]. It returns ErrPlain on a plain table.
func (s *Store) Kill(ctx context.Context, list, reason string, items ...string) (n int64, err error) {
	const op = "checklists: kill"
	if err := s.check(list, items); err != nil || len(items) == 0 {
		return 0, pg.Wrap(op, err)
	}
	if err := s.needColumns(ctx); err != nil {
		return 0, pg.Wrap(op, err)
	}
	err = s.row(ctx, `
		WITH `+locked(`unnest($2::text[]) AS f(item)`, `l.*`, ` AND l.due IS DISTINCT FROM 'infinity'`, `FOR NO KEY UPDATE`)+`,
		u AS (
			UPDATE {lists} l
			SET due = 'infinity', lease = NULL, error = $3
			FROM k
			WHERE l.list = k.list AND l.item = k.item
			RETURNING 1),
		d AS (
			INSERT INTO howdah.checklist_count (relation, list, bucket, dead)
			SELECT {relation}, $1, '-infinity', count(*)
			FROM u
			HAVING count(*) > 0)
		SELECT count(*) FROM u`, []any{list, sortedSet(items), cleaned(reason)}, &n)
	return n, pg.Wrap(op, err)
}

// Redrive makes dead items of list ready again, with no attempts and their last
// error, and returns how many. A Query of StateDone puts back what the list kept
// as done instead; of another state it is Invalid. It returns ErrPlain on a plain
// table.
func (s *Store) Redrive(ctx context.Context, list string, q Query) (n int64, err error) {
	const op = "checklists: redrive"
	if err := errors.Join(s.check(list, nil), q.check()); err != nil {
		return 0, pg.Wrap(op, err)
	}
	if q.State != "" && q.State != StateDead && q.State != StateDone {
		return 0, pg.Wrap(op, pg.Refuse("state", "%q; want dead or done", q.State))
	}
	if err := s.needColumns(ctx); err != nil {
		return 0, pg.Wrap(op, err)
	}
	if q.State != StateDone {
		sql, args := redriveDead(list, q)
		err = s.rowRinging(ctx, sql, args, &n)
		return n, pg.Wrap(op, err)
	}
	cond, args := q.where()
	args = append([]any{list}, args...)
	sql := fmt.Sprintf(redriveDone, cond+q.tail(&args, `item COLLATE "C"`))
	err = pg.Retry(ctx, s.db, func() error {
		return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
			in := s.WithTx(tx)
			if _, err := in.run(ctx, `SELECT pg_advisory_xact_lock_shared(`+lockOfList+`)`, list); err != nil {
				return err
			}
			return in.row(ctx, sql, args, &n)
		})
	})
	return n, pg.Wrap(op, s.told(err))
}

// redriveDead is the statement about dead items: it looks for each that is named, or
// for the dead of each priority, which is where the index has them.
func redriveDead(list string, q Query) (sql string, args []any) {
	items := q.Items
	q.Items, q.State = nil, ""
	cond, args := q.where()
	args = append([]any{list}, args...)
	cond += ` AND due IS NOT DISTINCT FROM 'infinity'` // not =, which lists_due could serve
	each, by := `generate_series(-5, 5) AS f(priority)`, `priority = f.priority::smallint AND due = 'infinity'`
	if items != nil {
		args = append(args, sortedSet(items))
		each, by = fmt.Sprintf(`unnest($%d::text[]) AS f(item)`, len(args)), `item = f.item`
	}
	return `
		WITH f AS MATERIALIZED (
			SELECT named AS item
			FROM ` + each + `
			CROSS JOIN LATERAL (
				SELECT item AS named
				FROM {lists}
				WHERE list = $1 AND ` + by + cond + `
				OFFSET 0) x` + q.tail(&args, `named COLLATE "C"`) + `),
		` + locked(`f`, `l.*`, cond, `FOR NO KEY UPDATE`) + `,
		u AS (
			UPDATE {lists} l
			SET due = date_trunc('milliseconds', statement_timestamp()), attempts = 0
			FROM k
			WHERE l.list = k.list AND l.item = k.item
			RETURNING 1),
		d AS (
			INSERT INTO howdah.checklist_count (relation, list, bucket, dead)
			SELECT {relation}, $1, '-infinity', -count(*)
			FROM u
			HAVING count(*) > 0)
		SELECT count(*) FROM u`, args
}

// One that has been put on again meanwhile is not done: it is only forgotten.
const redriveDone = `
		WITH k AS MATERIALIZED (
			SELECT list, item
			FROM howdah.checklist_done
			WHERE relation = {relation} AND list = $1%s
			FOR UPDATE),
		gone AS (
			DELETE FROM howdah.checklist_done d
			USING k
			WHERE d.relation = {relation} AND d.list = k.list AND d.item = k.item
			RETURNING d.item, d.payload),
		u AS (
			INSERT INTO {lists} (list, item, payload)
			SELECT $1, item, payload
			FROM gone
			ORDER BY item COLLATE "C"
			ON CONFLICT DO NOTHING
			RETURNING 1),
		d AS (
			INSERT INTO howdah.checklist_count (relation, list, bucket, done)
			SELECT {relation}, $1, '-infinity', -count(*)
			FROM u
			HAVING count(*) > 0)
		SELECT count(*) FROM u`
