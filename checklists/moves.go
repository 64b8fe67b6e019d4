package checklists

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrExists reports that a list to be named so would join one that has items.
var ErrExists = fmt.Errorf("a list of this name has items: %w", fault.Conflict)

// Rename gives list from the name to, with all that is known of it, and returns how
// many items it has. It returns ErrNoList where nothing is known of from, and
// ErrExists where to has items. Of a list to without items, what was done is added
// up, and settings and kept done items stay where from has none of the same.
//
// Who holds a lease has lost it, and the items are ready again when it ends. Every
// item is rewritten, which takes its time; what others put on from meanwhile stays
// there.
func (s *Store) Rename(ctx context.Context, from, to string) (n int64, err error) {
	const op = "checklists: rename"
	err = s.check(from, nil)
	if err == nil {
		err = checkName("to", "", to)
	}
	if err == nil && from == to {
		err = pg.Refuse("to", "the list has this name")
	}
	if err != nil {
		return 0, pg.Wrap(op, err)
	}
	err = s.exclusively(ctx, []string{from, to}, func(in *Store, full bool) (err error) {
		n, err = in.rename(ctx, from, to, full)
		return err
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "23505" { // an item came onto to, and is on from
		err = ErrExists
	}
	return n, pg.Wrap(op, err)
}

func (s *Store) rename(ctx context.Context, from, to string, full bool) (n int64, err error) {
	known := isKnown
	if !full {
		known = `EXISTS (SELECT FROM {lists} WHERE list = $1)`
	}
	var there, taken bool
	var longest int
	err = s.row(ctx, `
		SELECT `+known+`, EXISTS (SELECT FROM {lists} WHERE list = $2),
			CASE WHEN octet_length($2::text) > octet_length($1::text) THEN (SELECT coalesce(max(octet_length(item)), 0) FROM {lists} WHERE list = $1) ELSE 0 END`,
		[]any{from, to}, &there, &taken, &longest)
	switch {
	case err != nil:
		return 0, err
	case !there:
		return 0, ErrNoList
	case taken:
		return 0, ErrExists
	case longest > 0 && longest+len(to) > MaxName:
		return 0, pg.Refuse("to", "%s bytes, and an item has %s; list and item together may have %s", thousands(len(to)), thousands(longest), thousands(MaxName))
	}
	const move = `
		WITH k AS MATERIALIZED (
			SELECT list, item
			FROM {lists}
			WHERE list = $1
			ORDER BY item COLLATE "C"
			FOR UPDATE),
		moved AS (
			UPDATE {lists} l
			SET list = $2
			FROM k
			WHERE l.list = k.list AND l.item = k.item
			RETURNING %s)`
	if !full {
		err = s.row(ctx, fmt.Sprintf(move, "1")+`
			SELECT count(*) FROM moved`, []any{from, to}, &n)
		return n, err
	}
	// The trigger functions know nothing of a new name: what is counted goes over
	// here, as differences, so that what others are counting meanwhile is not lost.
	// What is kept as done goes over with what was counted as done, in one snapshot.
	err = s.row(ctx, fmt.Sprintf(move, "l.due = 'infinity' AS dead")+`,
		side AS (
			SELECT *
			FROM (VALUES ($1, -1), ($2, 1)) AS side(list, sign)),
		counted AS (
			INSERT INTO howdah.checklist_count (relation, list, bucket, items, dead, done, failed)
			SELECT {relation}, side.list, '-infinity'::timestamptz, sign * count(*), sign * count(*) FILTER (WHERE dead), 0, 0
			FROM moved, side
			GROUP BY side.list, sign
			UNION ALL
			SELECT {relation}, side.list, bucket, 0, 0, sign * sum(done), sign * sum(failed)
			FROM howdah.checklist_count c, side
			WHERE c.relation = {relation} AND c.list = $1
			GROUP BY side.list, sign, bucket
			HAVING sum(done) <> 0 OR sum(failed) <> 0),
		kept AS (
			DELETE FROM howdah.checklist_done
			WHERE relation = {relation} AND list = $1
			RETURNING *),
		keep AS (
			INSERT INTO howdah.checklist_done (relation, list, item, attempts, worker, payload, done_at)
			SELECT relation, $2, item, attempts, worker, payload, done_at
			FROM kept
			ORDER BY item
			ON CONFLICT (relation, list, item) DO UPDATE
			SET attempts = EXCLUDED.attempts, worker = EXCLUDED.worker, payload = EXCLUDED.payload, done_at = EXCLUDED.done_at)
		SELECT count(*) FROM moved`, []any{from, to}, &n)
	if err != nil {
		return 0, err
	}
	for _, t := range besides {
		if err == nil {
			_, err = s.run(ctx, `
				DELETE FROM `+t.table+` o
				WHERE relation = {relation} AND list = $2
					AND EXISTS (SELECT FROM `+t.table+` n WHERE n.relation = {relation} AND n.list = $1`+t.same+`)`, from, to)
		}
		if err == nil {
			_, err = s.run(ctx, `
				UPDATE `+t.table+`
				SET list = $2
				WHERE relation = {relation} AND list = $1`, from, to)
		}
	}
	if err == nil {
		_, err = s.run(ctx, gather, from)
	}
	return n, err
}

// Drop takes list away with all that is known of it: items, whoever has them,
// settings, counts, and what it kept as done. It returns how many items there were,
// or ErrNoList where nothing was known of it. What others put on meanwhile stays.
func (s *Store) Drop(ctx context.Context, list string) (n int64, err error) {
	const op = "checklists: drop"
	if err := s.check(list, nil); err != nil {
		return 0, pg.Wrap(op, err)
	}
	err = s.exclusively(ctx, []string{list}, func(in *Store, full bool) (err error) {
		n, err = in.drop(ctx, list, full)
		return err
	})
	return n, pg.Wrap(op, err)
}

func (s *Store) drop(ctx context.Context, list string, full bool) (n int64, err error) {
	const remove = `
		WITH k AS MATERIALIZED (
			SELECT list, item
			FROM {lists}
			WHERE list = $1
			ORDER BY item COLLATE "C"
			FOR UPDATE),
		gone AS (
			DELETE FROM {lists} l
			USING k
			WHERE l.list = k.list AND l.item = k.item
			RETURNING %s)`
	if !full {
		err = s.row(ctx, fmt.Sprintf(remove, "1")+`
			SELECT count(*) FROM gone`, []any{list}, &n)
		if err == nil && n == 0 {
			err = ErrNoList
		}
		return n, err
	}
	var known bool
	err = s.row(ctx, `SELECT `+isKnown, []any{list}, &known)
	if err == nil && !known {
		err = ErrNoList
	}
	if err != nil {
		return 0, err
	}
	// Without its settings the list keeps nothing of what the trigger now sees leave.
	// The trigger counts those items away, and as done what was not dead. The latter
	// is taken back, and all that was done before, as differences: what others are
	// counting or folding meanwhile is not touched.
	err = s.row(ctx, fmt.Sprintf(remove, "l.due = 'infinity' AS dead")+`,
		settings AS (
			DELETE FROM howdah.checklist
			WHERE relation = {relation} AND list = $1),
		kept AS (
			DELETE FROM howdah.checklist_done
			WHERE relation = {relation} AND list = $1),
		undone AS (
			INSERT INTO howdah.checklist_count (relation, list, bucket, done, failed)
			SELECT {relation}, $1, bucket, -sum(done), -sum(failed)
			FROM howdah.checklist_count
			WHERE relation = {relation} AND list = $1
			GROUP BY bucket
			HAVING sum(done) <> 0 OR sum(failed) <> 0
			UNION ALL
			SELECT {relation}, $1, howdah.checklist_bucket(), -count(*), 0
			FROM gone
			WHERE NOT dead
			HAVING count(*) > 0)
		SELECT count(*) FROM gone`, []any{list}, &n)
	if err != nil {
		return 0, err
	}
	for _, t := range besides {
		if err == nil {
			_, err = s.run(ctx, `DELETE FROM `+t.table+` WHERE relation = {relation} AND list = $1`, list)
		}
	}
	if err == nil {
		_, err = s.run(ctx, gather, list)
	}
	return n, err
}

// besides are howdah's own tables with other rows of lists, and what two rows of the
// same thing, n and o, have in common.
var besides = []struct{ table, same string }{
	{"howdah.checklist", ""},
	{"howdah.checklist_import", " AND n.id = o.id"},
}

// exclusively runs do in one transaction, in which no other Drop or Rename works on any
// of lists: all take away what they have read of the counts.
func (s *Store) exclusively(ctx context.Context, lists []string, do func(in *Store, full bool) error) error {
	full, err := s.full(ctx)
	if err != nil {
		return err
	}
	slices.Sort(lists)
	err = pg.Retry(ctx, s.db, func() error {
		return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
			in := s.WithTx(tx)
			for _, list := range lists {
				if _, err := in.run(ctx, `SELECT pg_advisory_xact_lock(`+lockOfList+`)`, list); err != nil {
					return err
				}
			}
			return do(in, full)
		})
	})
	for _, list := range lists {
		s.forgetMarks(list)
	}
	return s.told(err)
}

// lockOfList is the key of an advisory lock, taken to the end of the transaction by
// who takes back what list $1 has counted as done.
const lockOfList = `hashtextextended($1, {relation}::oid::bigint)`

// gather puts the parts of the counts of list $1 together, so that nothing is left
// of a list that is gone; as with howdah.checklist_fold, not where that could fail.
const gather = `
	WITH parts AS (
		DELETE FROM howdah.checklist_count
		WHERE ctid = ANY(ARRAY(
			SELECT ctid
			FROM howdah.checklist_count
			WHERE relation = {relation} AND list = $1 AND current_setting('transaction_isolation') = 'read committed'
			FOR UPDATE SKIP LOCKED))
		RETURNING *)
	INSERT INTO howdah.checklist_count (relation, list, bucket, items, done, dead, failed)
	SELECT {relation}, $1, '-infinity', sum(items), sum(done), sum(dead), sum(failed)
	FROM parts
	HAVING sum(items) <> 0 OR sum(done) <> 0 OR sum(dead) <> 0 OR sum(failed) <> 0`
