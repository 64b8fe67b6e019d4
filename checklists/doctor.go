package checklists

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// Finding is something about the table that somebody should know.
type Finding struct {
	Code     string `json:"code" db:"code" example:"counts-drifted"`
	Severity string `json:"severity" db:"severity" example:"error"` // error: numbers are wrong, or get wrong; warning: something is in the way
	Object   string `json:"object" db:"object" example:"iidy.lists"`
	Problem  string `json:"problem" db:"problem" example:"trigger howdah_deleted is disabled: what leaves a list is not counted"`
	Cure     string `json:"cure" db:"cure" example:"ALTER TABLE iidy.lists ENABLE TRIGGER howdah_deleted, then howdah checklists recount"`
}

// What Doctor reads at most: names of lists, twice, and items.
const (
	doctorLists = 1000
	doctorItems = 100_000
)

// Doctor looks at the table and at what is kept of its lists and returns what is wrong
// with them, the worst first. It changes nothing. It compares counts and items of the
// first thousand lists, those with the fewest items first, until it has read 100,000
// items; what is larger is only looked at for any item at all: [Store.Recount] reads all.
// Of a plain table, which has no counts, there is nothing to find.
func (s *Store) Doctor(ctx context.Context) ([]Finding, error) {
	const op = "checklists: doctor"
	findings := []Finding{}
	full, err := s.full(ctx)
	if unseen := s.unseen(s.table.Sanitize(), err); unseen != nil {
		return append(findings, *unseen), nil
	}
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	if _, there := s.layout.get(); !there {
		return append(findings, Finding{"table-missing", "warning", s.table.Sanitize(), "it is not there: nothing can be put on a list", "howdah migrate"}), nil
	}
	if !full {
		return findings, nil
	}
	for _, look := range []struct {
		at, sql string
		args    []any
	}{{"triggers", doctorTriggers, nil}, {"counts", doctorCounts, []any{doctorLists, doctorItems}}} {
		var found []Finding
		err := pg.Retry(ctx, s.db, func() (err error) {
			rows, _ := s.db.Query(ctx, s.sql(strings.ReplaceAll(look.sql, "{collation}", s.layout.order())), look.args...) // CollectRows reports its error too
			found, err = pgx.CollectRows(rows, pgx.RowToStructByName[Finding])
			return err
		})
		if unseen := s.unseen(look.at, err); unseen != nil { // the others are heard
			found, err = []Finding{*unseen}, nil
		}
		if err != nil {
			return nil, pg.Wrap(op, s.told(err))
		}
		findings = append(findings, found...)
	}
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), -cmp.Compare(a.Code, b.Code), cmp.Compare(a.Problem, b.Problem)) // the reason before the drift
	})
	return findings, nil
}

// unseen is the finding that the role may not look at what is there, where err says so
// and has ended no transaction.
func (s *Store) unseen(at string, err error) *Finding {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "42501" || pg.Begun(s.db) {
		return nil
	}
	return &Finding{"not-looked-at", "warning", at, pgErr.Message + ": what is wrong there is not known", "GRANT USAGE ON its schema, and SELECT ON what is there and in schema howdah, or run this as a role that may"}
}

// doctorObject names the table for people.
const doctorObject = `(SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {relation})`

const doctorTriggers = `
	SELECT CASE WHEN t.oid IS NULL THEN 'trigger-missing' ELSE 'trigger-disabled' END AS code, 'error' AS severity, o.name AS object,
		'trigger ' || w.name || CASE WHEN t.oid IS NULL THEN ' is gone' ELSE ' is disabled' END || ': what ' || w.does || ' is not counted' AS problem,
		CASE WHEN t.oid IS NULL
			THEN 'CREATE TRIGGER ' || w.name || ' AFTER ' || w.event || ' ON ' || o.name || w.seeing || ' FOR EACH STATEMENT EXECUTE FUNCTION ' || w.runs || '()'
			ELSE 'ALTER TABLE ' || o.name || ' ENABLE TRIGGER ' || w.name
		END || ', then howdah checklists recount' AS cure
	FROM (VALUES
		('howdah_inserted', 'INSERT', ' REFERENCING NEW TABLE AS howdah_new', 'howdah.checklist_inserted', 'is put on a list'),
		('howdah_deleted', 'DELETE', ' REFERENCING OLD TABLE AS howdah_old', 'howdah.checklist_deleted', 'leaves a list'),
		('howdah_truncated', 'TRUNCATE', '', 'howdah.checklist_truncated', 'goes with TRUNCATE')) AS w(name, event, seeing, runs, does)
	CROSS JOIN (SELECT ` + doctorObject + `) AS o(name)
	LEFT JOIN pg_trigger t ON t.tgrelid = {relation} AND t.tgname = w.name
	WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')`

// doctorCounts is one statement because that has one snapshot, as recount's. It jumps from
// list to list, among the items and among the counts, and reads of a list that is small
// one item more than were counted: there are as many only where it finds no more.
const doctorCounts = `
	WITH RECURSIVE there(list) AS (
		(SELECT list FROM {lists} ORDER BY list LIMIT 1)
		UNION ALL
		SELECT (SELECT list FROM {lists} WHERE list > there.list ORDER BY list LIMIT 1)
		FROM there
		WHERE there.list IS NOT NULL),
	counted(list) AS (
		(SELECT list FROM howdah.checklist_count WHERE relation = {relation} ORDER BY list LIMIT 1)
		UNION ALL
		SELECT (SELECT list FROM howdah.checklist_count WHERE relation = {relation} AND list > counted.list ORDER BY list LIMIT 1)
		FROM counted
		WHERE counted.list IS NOT NULL),
	w AS MATERIALIZED (
		(SELECT list COLLATE "C" AS list FROM there WHERE list IS NOT NULL LIMIT $1)
		UNION
		(SELECT list COLLATE "C" FROM counted WHERE list IS NOT NULL LIMIT $1)),
	kept AS MATERIALIZED (
		SELECT w.list, n.items, n.dead, sum(greatest(n.items, 0) + 1) OVER (ORDER BY n.items, w.list) <= $2 AS whole
		FROM w
		CROSS JOIN LATERAL (
			SELECT coalesce(sum(items), 0)::bigint AS items, coalesce(sum(dead), 0)::bigint AS dead
			FROM howdah.checklist_count
			WHERE relation = {relation} AND list = w.list) n),
	drifted AS (
		SELECT kept.list, format('%s (items: %s counted, %s there; dead: %s counted, %s there)', kept.list,
			kept.items, CASE WHEN fact.items > kept.items THEN 'more' ELSE fact.items::text END, kept.dead, fact.dead) AS words
		FROM kept
		CROSS JOIN LATERAL (
			SELECT count(*) AS items, count(*) FILTER (WHERE due = 'infinity') AS dead
			FROM (
				SELECT due
				FROM {lists} l
				WHERE l.list = kept.list COLLATE {collation}
				ORDER BY item
				LIMIT CASE WHEN kept.whole THEN greatest(kept.items, 0) + 1 ELSE 1 END) l) fact
		WHERE CASE WHEN kept.whole THEN (fact.items, fact.dead) <> (kept.items, kept.dead) ELSE fact.items = 0 END)
	SELECT 'counts-drifted' AS code, 'error' AS severity, ` + doctorObject + ` AS object,
		'lists whose counts are not those of their items: ' || count(*) || ', such as ' || (array_agg(words ORDER BY list))[1] AS problem,
		'howdah checklists recount' AS cure
	FROM drifted
	HAVING count(*) > 0`
