package checklists

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// tell records what became of tasks, of any leases, in one statement that locks
// their items in the common order, and returns those whose lease no longer held
// them: they are not touched.
func (s *Store) tell(ctx context.Context, list string, tasks []*task) (lost []*task, err error) {
	tasks = slices.Clone(tasks)
	slices.SortFunc(tasks, func(a, b *task) int { return strings.Compare(a.item.Name, b.item.Name) })
	var tokens, items, outcomes, errors []string
	var waits []int64
	ready := false
	for _, t := range tasks {
		tokens, items, outcomes = append(tokens, t.lease.token), append(items, t.item.Name), append(outcomes, string(t.outcome))
		errors, waits = append(errors, cleaned(t.error)), append(waits, int64(t.wait))
		ready = ready || t.outcome == released
	}
	read := func(rows pgx.Rows, err error) error {
		if err != nil {
			return err
		}
		lost = nil
		var n int
		_, err = pgx.ForEachRow(rows, []any{&n}, func() error {
			lost = append(lost, tasks[n-1])
			return nil
		})
		return err
	}
	args := []any{list, tokens, items, outcomes, errors, waits}
	if ready && !pg.InTx(s.db) {
		return lost, s.ringing(ctx, tellSQL, args, func(r pgx.BatchResults) error { return read(r.Query()) })
	}
	return lost, s.told(pg.Retry(ctx, s.db, func() error { return read(s.db.Query(ctx, s.sql(tellSQL), args...)) }))
}

// tellSQL is Done, Fail and Release in one.
var tellSQL = `
	WITH s AS (` + backoffSettings + `),
	f AS MATERIALIZED (
		SELECT *
		FROM unnest($2::text[]::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[]) WITH ORDINALITY AS f(lease, item, outcome, error, wait, n)),
	` + locked(`f`, `l.*, f.outcome, f.error, f.wait, f.n`, heldBy, `FOR UPDATE`) + `,
	done AS (
		DELETE FROM {lists} l
		USING k
		WHERE l.list = k.list AND l.item = k.item AND k.outcome = 'done'),
	released AS (
		UPDATE {lists} l
		SET lease = NULL, worker = NULL, attempts = greatest(l.attempts - 1, 0), error = coalesce(nullif(k.error, ''), l.error),
			due = date_trunc('milliseconds', statement_timestamp() + CASE WHEN k.outcome = 'put off' THEN make_interval(secs => s.backoff) ELSE '0' END)
		FROM k, s
		WHERE l.list = k.list AND l.item = k.item AND k.outcome IN ('released', 'put off')),
	failed AS (
		UPDATE {lists} l
		SET lease = NULL, error = k.error, due = ` + dueAfterFailure + `
		FROM k, s
		WHERE l.list = k.list AND l.item = k.item AND k.outcome = 'failed'
		RETURNING l.due),
	counted AS (
		INSERT INTO howdah.checklist_count (relation, list, bucket, failed, dead)
		SELECT {relation}, $1, howdah.checklist_bucket(), count(*), count(*) FILTER (WHERE due = 'infinity')
		FROM failed
		HAVING count(*) > 0)
	SELECT f.n
	FROM f
	WHERE NOT EXISTS (SELECT FROM k WHERE k.n = f.n)`

// extendAll lets leases end d from now and returns what they hold still, items by
// token.
func (s *Store) extendAll(ctx context.Context, list string, tokens []string, d time.Duration) (holds map[string][]string, err error) {
	err = pg.Retry(ctx, s.db, func() error {
		holds = map[string][]string{}
		rows, _ := s.db.Query(ctx, s.sql(extendAllSQL), list, tokens, d) // ForEachRow reports its error too
		var token, item string
		_, err := pgx.ForEachRow(rows, []any{&token, &item}, func() error {
			holds[token] = append(holds[token], item)
			return nil
		})
		return err
	})
	return holds, s.told(err)
}

// extendAllSQL looks for one lease after the other: for = ANY of them PostgreSQL 17 reads
// all of a list that nobody has analyzed. The rows are locked in order all the same.
var extendAllSQL = `
	WITH held AS MATERIALIZED (
		SELECT l.item, l.lease
		FROM unnest($2::text[]::uuid[]) AS t(lease)
		CROSS JOIN LATERAL (
			SELECT item, lease
			FROM {lists}
			WHERE list = $1 AND lease = t.lease
			OFFSET 0) l),
	` + locked(`(SELECT item, lease FROM held ORDER BY item COLLATE "C") AS f`, `l.list, l.item`, ` AND l.lease IS NOT DISTINCT FROM f.lease`, `FOR NO KEY UPDATE`) + `
	UPDATE {lists} l
	SET due = statement_timestamp() + $3::interval
	FROM k
	WHERE l.list = k.list AND l.item = k.item
	RETURNING l.lease::text, l.item`

// anyLeft reports whether anything on list is ready, waiting or leased.
func (s *Store) anyLeft(ctx context.Context, list string) (left bool, err error) {
	err = s.row(ctx, anyLeftSQL, []any{list}, &left)
	return left, err
}

// anyLeftSQL walks the priorities because the index has them before due; without an
// order, a priority that nothing has is looked for in the whole table.
const anyLeftSQL = `
	SELECT EXISTS (
		SELECT
		FROM generate_series(-5, 5) AS p(priority)
		CROSS JOIN LATERAL (
			SELECT
			FROM {lists} l
			WHERE l.list = $1 AND l.priority = p.priority::smallint AND l.due < 'infinity'
			ORDER BY l.due
			LIMIT 1) x)`
