package checklists

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

const (
	bulk           = 100  // from so many items on, what one item takes is what a call takes
	perMillisecond = 1000 // so many items of a call are due in the same millisecond
	wary           = 16   // calls, before a list that has refused a plain INSERT gets another
)

// insertMany is Insert of many items. ON CONFLICT looks for each item before it is
// written, and confirms it afterwards, which is a third of the time: of a list that
// is likely to know none of them a plain INSERT is tried first. In a transaction of
// the caller's, one begun by hand too, it is not, which it might fail.
func (s *Store) insertMany(ctx context.Context, list string, items []string) (added int64, err error) {
	set := sortedSet(items)
	sql, names := insertEach, items
	switch {
	case len(items) <= perMillisecond:
		sql, names = insertAtOnce, set
	case len(set) < len(items):
		return s.runRinging(ctx, insertEach+unlessThere, list, items)
	}
	if !pg.Begun(s.db) && s.news.expected(list) {
		added, err = s.runRinging(ctx, sql, list, names)
		if pgErr := (*pgconn.PgError)(nil); !errors.As(err, &pgErr) || pgErr.Code != "23505" {
			return added, err
		}
		s.news.found(list, false)
	}
	added, err = s.runRinging(ctx, sql+unlessThere, list, names)
	if err == nil && !pg.Begun(s.db) {
		s.news.found(list, added == int64(len(set)))
	}
	return added, err
}

// insertEach puts items on list $1, due in the order given.
var insertEach = `
	INSERT INTO {lists} (list, item, due)
	SELECT $1, u.item, (SELECT date_trunc('milliseconds', statement_timestamp())) - (cardinality($2::text[]) - u.n) / 1000 * interval '1 millisecond'
	FROM unnest($2::text[]) WITH ORDINALITY AS u(item, n)
	WHERE ` + notDone("u.item") + `
	ORDER BY u.item COLLATE "C", u.n`

// insertAtOnce is insertEach of items that are sorted, and due together.
var insertAtOnce = `
	INSERT INTO {lists} (list, item, due)
	SELECT $1, u.item, (SELECT date_trunc('milliseconds', statement_timestamp()))
	FROM unnest($2::text[]) AS u(item)
	WHERE ` + notDone("u.item")

const unlessThere = `
	ON CONFLICT DO NOTHING`

// news remembers the lists that were given, not long ago, items that they had. It is
// shared by a store's copies.
type news struct {
	mu    sync.Mutex
	known map[string]int // calls with nothing but new items to come, until a list is out of it
}

// expected reports whether list is likely to know none of the items of a call.
func (n *news) expected(list string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[list] == 0
}

// found says whether all items of a call were new to list.
func (n *news) found(list string, all bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch left := n.known[list]; {
	case !all:
		for other := range n.known {
			if len(n.known) < maxMarks {
				break
			}
			delete(n.known, other)
		}
		n.known[list] = wary
	case left > 1:
		n.known[list] = left - 1
	default:
		delete(n.known, list)
	}
}
