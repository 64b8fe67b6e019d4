// Package checklists keeps lists of items to get through, and how often each was
// attempted.
//
// It works on the table of iidy (iidy.lists), beside a running iidy, and creates
// that table where it is missing; [Store.Adopt] adds to one that was there what
// leases and progress need. Insert the items, Page through them, Delete
// what is done and Increment what failed:
//
//	s := checklists.New(pool, checklists.Config{})
//	added, err := s.Insert(ctx, "downloads", "a.txt", "b.txt", "c.txt")
//	items, err := s.Page(ctx, "downloads", nil, 100)
//	n, err := s.Delete(ctx, "downloads", "a.txt")
//	n, err = s.Increment(ctx, "downloads", "b.txt")
//
// Workers who share a list lease its items instead: [Store.Claim], then [Store.Done],
// [Store.Fail] or [Store.Release] with the lease, which ends by itself where nobody comes
// back. A [Worker] does all of that for a function; a [Waiter] waits until there is something
// to claim. [Store.Progress] knows how far a list is without counting. A [Writer] shares
// commits among many who call with single items.
//
// A list is there while it has items, or settings of its own. The names of lists and items
// are any text without NUL, the empty text included. Items are in the order of the table's
// collation: bytewise in a table howdah made; do not compare with Go's < in an adopted one.
//
// Errors have a kind of package fault: what cannot be is Invalid and names the field, and
// has written nothing.
package checklists

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrNoItem reports that a list has no such item.
var ErrNoItem = fmt.Errorf("no such item: %w", fault.NotFound)

// Config names where the lists live. The zero Config is iidy's own table.
type Config struct {
	Table pgx.Identifier // default iidy.lists
}

// Store is the checklists of one table. It is safe for use by many goroutines.
type Store struct {
	db       pg.DB
	names    pg.Names
	table    pgx.Identifier
	relation *strings.Replacer
	layout   *layout
	marks    *marks
	news     *news

	lockPatience time.Duration // of Adopt; 0 but in tests
}

// New returns a Store on db. It never fails: a Config that cannot be is told, as
// Invalid, by every method.
func New(db pg.DB, cfg Config) *Store {
	table := cfg.Table
	if table == nil {
		table = pgx.Identifier{"iidy", "lists"}
	}
	names := indexNames(table)
	names["lists"] = table
	if len(table) > 1 {
		names["schema"] = table[:1]
	}
	return &Store{
		db: db, names: pg.NewNames(names), table: table, layout: new(layout), marks: &marks{lists: map[string]*mark{}}, news: &news{known: map[string]int{}},
		relation: strings.NewReplacer("{relation}", pg.Literal(table.Sanitize())+"::regclass"),
	}
}

// sql puts names into a statement: {lists} is the table, {relation} the same as
// the key by which howdah's own tables keep several such tables apart.
func (s *Store) sql(text string) string { return s.relation.Replace(s.names.SQL(text)) }

// WithTx returns a Store that works inside tx. The caller commits.
func (s *Store) WithTx(tx pgx.Tx) *Store { c := *s; c.db = tx; return &c }

// Table returns the table that the lists are in, for statements of the program's
// own.
func (s *Store) Table() pgx.Identifier { return slices.Clone(s.table) }

// Migrations are the files that make the Store's table; one that is there stays as it
// is.
func (s *Store) Migrations() pg.Migrations {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the path is a constant
	}
	service := "checklists"
	if table := s.table.Sanitize(); table != `"iidy"."lists"` {
		sum := sha256.Sum256([]byte(table)) // a version of its own for each table, under a name that fits
		service += "_" + hex.EncodeToString(sum[:6])
	}
	return pg.Migrations{Service: service, About: "checklists in " + s.table.Sanitize(), Files: namedFiles{files}, Names: s.names}
}

// Insert puts items on list with no attempts and returns how many were added;
// those already there stay as they are, and where the list keeps what is done,
// that is skipped too. They may be claimed at once, in the order given. For more
// than some ten thousand items use [Store.Import]. It returns an Invalid error, and
// adds nothing, where an item cannot be stored.
func (s *Store) Insert(ctx context.Context, list string, items ...string) (added int64, err error) {
	const op = "checklists: insert"
	if err := s.checkNew(list, items); err != nil {
		return 0, pg.Wrap(op, err)
	}
	if len(items) == 0 {
		return 0, nil
	}
	full, err := s.full(ctx)
	if err != nil {
		return 0, pg.Wrap(op, err)
	}
	// In the order of their bytes, so that overlapping inserts wait for each
	// other in one direction only.
	if !full {
		return s.exec(ctx, op, items, insertPlain, list, sortedSet(items))
	}
	if len(items) >= bulk {
		added, err = s.insertMany(ctx, list, items)
	} else {
		added, err = s.runRinging(ctx, insertEach+unlessThere, list, items)
	}
	return added, pg.Wrap(op, err)
}

const insertPlain = `
	INSERT INTO {lists} (list, item)
	SELECT $1, item
	FROM unnest($2::text[]) AS item
	ON CONFLICT DO NOTHING`

// notDone is the condition that list $1 has not kept item as done.
func notDone(item string) string {
	return `NOT (EXISTS (SELECT FROM howdah.checklist WHERE relation = {relation} AND list = $1 AND keep_done)
			AND EXISTS (SELECT FROM howdah.checklist_done d WHERE d.relation = {relation} AND d.list = $1 AND d.item = ` + item + ` COLLATE "C"))`
}

// Increment adds one attempt to each of items and returns how many are on list;
// others are ignored. A count that has reached 2147483647 stays there. With an error
// none is counted; but a connection that is lost on the way is [pg.ErrOutcomeUnknown]:
// to repeat the call may count twice.
func (s *Store) Increment(ctx context.Context, list string, items ...string) (n int64, err error) {
	const op = "checklists: increment"
	if err := s.check(list, items); err != nil {
		return 0, pg.Wrap(op, err)
	}
	defer func() { err = pg.Written(s.db, err) }()
	if len(items) == 1 {
		return s.exec(ctx, op, items, `
			UPDATE {lists}
			SET attempts = least(attempts, 2147483646) + 1
			WHERE list = $1 AND item = $2`, list, items[0])
	}
	n, err = s.change(ctx, list, items, `
			UPDATE {lists} l
			SET attempts = least(l.attempts, 2147483646) + 1`, `FROM`, `FOR NO KEY UPDATE`)
	return n, pg.Wrap(op, err)
}

// Delete takes items off list and returns how many were on it; others are
// ignored.
func (s *Store) Delete(ctx context.Context, list string, items ...string) (int64, error) {
	const op = "checklists: delete"
	if err := s.check(list, items); err != nil {
		return 0, pg.Wrap(op, err)
	}
	if len(items) == 1 {
		return s.exec(ctx, op, items, `
			DELETE FROM {lists}
			WHERE list = $1 AND item = $2`, list, items[0])
	}
	n, err := s.change(ctx, list, items, `
			DELETE FROM {lists} l`, `USING`, `FOR UPDATE`)
	return n, pg.Wrap(op, err)
}

// change does to items what an UPDATE or DELETE says, which names others by from, and
// returns how many are on list. They are locked in the order of their bytes before
// the first is changed: alone, it takes them as it finds them, and two overlapping
// ones deadlock.
//
// It goes by the place of the row, which spares a second search for its key. A row
// that another has changed while this one waited for it is at a place that the
// snapshot cannot see. Then the call fails as one statement, and all are searched for
// by their keys; in a transaction, which must not fail, only those that were missed:
// others, that came onto the list meanwhile, would be locked out of order.
func (s *Store) change(ctx context.Context, list string, items []string, change, from, lock string) (n int64, err error) {
	if len(items) == 0 {
		return 0, nil
	}
	if _, err := s.full(ctx); err != nil {
		return 0, err
	}
	k := func(columns string) string { return locked(`unnest($2::text[]) AS f(item)`, columns, ``, lock) }
	byKey := `
		WITH ` + k(`l.*`) + change + `
		` + from + ` k
		WHERE l.list = k.list AND l.item = k.item`
	if !s.layout.placed() {
		return s.run(ctx, byKey, list, sortedSet(items))
	}
	sorted := sortedSet(items)
	byPlace := `
		WITH ` + k(`l.item, l.place`) + `,
		changed AS (` + change + `
			WHERE ctid = ANY(ARRAY(SELECT place FROM k))
			RETURNING item)
		SELECT n, CASE WHEN n < (SELECT count(*) FROM k) THEN %s END
		FROM (SELECT count(*) AS n FROM changed) AS n`
	if pg.Begun(s.db) {
		var missed []string
		err = s.row(ctx, fmt.Sprintf(byPlace, `ARRAY(SELECT item FROM k WHERE item NOT IN (SELECT item FROM changed))`), []any{list, sorted}, &n, &missed)
		if err != nil || len(missed) == 0 {
			return n, err
		}
		more, err := s.run(ctx, byKey, list, missed)
		return n + more, err
	}
	err = s.row(ctx, fmt.Sprintf(byPlace, `1 / (n - n)`), []any{list, sorted}, &n, nil)
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "22012" { // division_by_zero: none is changed
		return s.run(ctx, byKey, list, sorted)
	}
	return n, err
}

// locked is the CTE k: of the items f that are on list $1 and meet a condition
// those that it has locked, in the order of f, with the place of their row.
//
// Of a list that nobody has analyzed the planner believes that it has one item, and
// would as soon read all of it as look for one. Hence there is only one way here:
// each item of f by its key, and, because k says the list, l.list = k.list AND
// l.item = k.item in what follows. No condition may be one of those on due that the
// index lists_due serves, which has the list too: IS DISTINCT FROM is none.
func locked(f, columns, condition, lock string) string {
	return `k AS MATERIALIZED (
			` + eachLocked(f, columns, condition, lock) + `)`
}

// eachLocked is what is in locked.
func eachLocked(f, columns, condition, lock string) string {
	return `SELECT ` + columns + `
			FROM ` + f + `
			CROSS JOIN LATERAL (
				SELECT l.list, l.item, l.ctid AS place
				FROM {lists} l
				WHERE l.list = $1 AND l.item = f.item` + condition + `
				` + lock + `) l`
}

// exec runs a statement about items and returns the rows it touched; without
// items there is nothing to do.
func (s *Store) exec(ctx context.Context, op string, items []string, sql string, args ...any) (n int64, err error) {
	if len(items) == 0 {
		return 0, nil
	}
	n, err = s.run(ctx, sql, args...)
	return n, pg.Wrap(op, err)
}

// run executes a statement and returns the rows it touched.
func (s *Store) run(ctx context.Context, sql string, args ...any) (n int64, err error) {
	err = pg.Retry(ctx, s.db, func() error {
		tag, err := s.db.Exec(ctx, s.sql(sql), args...)
		n = tag.RowsAffected()
		return err
	})
	return n, s.told(err)
}

// row runs a query of one row.
func (s *Store) row(ctx context.Context, sql string, args []any, into ...any) error {
	return s.told(pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, s.sql(sql), args...).Scan(into...)
	}))
}

// Get returns an item of list, also one that is done where the list keeps those,
// or [ErrNoItem].
func (s *Store) Get(ctx context.Context, list, item string) (Item, error) {
	const op = "checklists: get"
	if err := s.check(list, []string{item}); err != nil {
		return Item{}, pg.Wrap(op, err)
	}
	columns, err := s.columns(ctx)
	if err != nil {
		return Item{}, pg.Wrap(op, err)
	}
	sql := `
		SELECT ` + columns + `
		FROM {lists}
		WHERE list = $1 AND item = $2`
	if columns == fullColumns {
		sql += `
		UNION ALL
		SELECT ` + doneColumns + `
		FROM howdah.checklist_done
		WHERE relation = {relation} AND list = $1 AND item = $2
		LIMIT 1`
	}
	found, err := s.items(ctx, 1, sql, list, item)
	if err == nil && len(found) == 0 {
		err = ErrNoItem
	}
	if err != nil {
		return Item{}, pg.Wrap(op, err)
	}
	return found[0], nil
}

// MaxPage is the most items, or lists, of one page.
const MaxPage = 10_000

// Page returns at most n items of list in order: from the first when after is
// nil, else those that follow *after, which need not be on the list. The page is
// empty, not nil, where there are none. n is from 1 to [MaxPage].
func (s *Store) Page(ctx context.Context, list string, after *string, n int) ([]Item, error) {
	items, err := s.page(ctx, list, after, n)
	return items, pg.Wrap("checklists: page", err)
}

func (s *Store) page(ctx context.Context, list string, after *string, n int) ([]Item, error) {
	if err := errors.Join(s.check(list, nil), checkPage(after, n)); err != nil {
		return nil, err
	}
	columns, err := s.columns(ctx)
	if err != nil {
		return nil, err
	}
	// Two statements, because one with "$2 IS NULL OR" reads the list from its
	// start once the plan is generic. The empty item is an item too.
	if after == nil {
		return s.items(ctx, n, `
			SELECT `+columns+`
			FROM {lists}
			WHERE list = $1
			ORDER BY item
			LIMIT $2`, list, n)
	}
	return s.items(ctx, n, `
		SELECT `+columns+`
		FROM {lists}
		WHERE list = $1 AND item > $2
		ORDER BY item
		LIMIT $3`, list, *after, n)
}

// All returns the items of list in order. It reads a page at a time, so that the
// loop may use the same connection; what is put on or taken off meanwhile may or
// may not be seen. An error ends it.
func (s *Store) All(ctx context.Context, list string) iter.Seq2[Item, error] {
	return s.all(ctx, "checklists: all", list)
}

func (s *Store) all(ctx context.Context, op, list string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		var after *string
		for n := firstPage; ; {
			items, err := s.page(ctx, list, after, n)
			if err != nil {
				yield(Item{}, pg.Wrap(op, err))
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if len(items) < n {
				return
			}
			after, n = &items[len(items)-1].Name, nextPage(items)
		}
	}
}

// Pages of All: their first is for payloads of any size, those that follow hold about
// as many bytes.
const (
	firstPage = 16
	pageItems = 1000
	pageBytes = 4 << 20
)

// nextPage is how many items the page after one should have.
func nextPage(items []Item) int {
	bytes := 1
	for _, item := range items {
		bytes += len(item.Name) + len(item.Error) + len(item.Payload)
	}
	return min(max(len(items)*pageBytes/bytes, 1), pageItems)
}

// columns are what is to be selected of items in this table.
func (s *Store) columns(ctx context.Context) (string, error) {
	if full, err := s.full(ctx); err != nil || !full {
		return plainColumns, err
	}
	return fullColumns, nil
}

// items returns the items of a query, empty but never nil. It expects as many as
// the last argument says.
func (s *Store) items(ctx context.Context, n int, sql string, args ...any) (items []Item, err error) {
	err = pg.Retry(ctx, s.db, func() error {
		rows, err := s.db.Query(ctx, s.sql(sql), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		items = make([]Item, 0, min(n, 1000))
		scanner := newItemScanner(rows)
		for rows.Next() {
			item, err := scanner.scan()
			if err != nil {
				return err
			}
			items = append(items, item)
		}
		return rows.Err()
	})
	return items, s.told(err)
}
