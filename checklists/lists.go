package checklists

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// List is one of the lists of a table.
type List struct {
	Name     string    `json:"list"`
	Settings *Settings `json:"settings,omitempty"` // nil on a plain table
	Progress *Progress `json:"progress,omitempty"` // nil on a plain table
}

// Lists returns at most n lists in order: from the first when after is nil, else
// those that follow *after. A list is there while it has items or settings. Items
// are not counted: a page takes as long for lists of a million items as for short
// ones. n is from 1 to [MaxPage].
func (s *Store) Lists(ctx context.Context, after *string, n int) (lists []List, err error) {
	const op = "checklists: lists"
	if err := errors.Join(s.names.Err(), checkPage(after, n)); err != nil {
		return nil, pg.Wrap(op, err)
	}
	full, err := s.full(ctx)
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	args, following := []any{n}, ""
	if after != nil {
		args, following = append(args, *after), " > $2"
	}
	// It jumps from list to list in the indexes: DISTINCT would read every item.
	// What is set for lists without items lies in between, in the order that the
	// table has.
	next := func(following string) string {
		items := `(SELECT list FROM {lists}` + prefixed(" WHERE list", following) + ` ORDER BY list LIMIT 1)`
		if !full {
			return items
		}
		return `least(` + items + `, (
			SELECT list COLLATE {collation} AS list
			FROM howdah.checklist
			WHERE relation = {relation}` + prefixed(" AND list COLLATE {collation}", following) + `
			ORDER BY 1
			LIMIT 1))`
	}
	sql := `
		WITH RECURSIVE walk(list) AS (
			SELECT ` + next(following) + `
			UNION ALL
			SELECT ` + next(" > walk.list") + `
			FROM walk
			WHERE walk.list IS NOT NULL),
		w AS MATERIALIZED (
			SELECT list
			FROM walk
			WHERE list IS NOT NULL
			LIMIT $1)
		SELECT w.list`
	if full {
		sql += `, ` + settingsColumns + `, ` + progressColumns
	}
	sql += `
		FROM w`
	if full {
		sql += standing
	}
	sql = strings.ReplaceAll(sql+`
		ORDER BY w.list`, "{collation}", s.layout.order())
	err = pg.Retry(ctx, s.db, func() error {
		rows, _ := s.db.Query(ctx, s.sql(sql), args...) // CollectRows reports its error too
		lists, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l List, err error) {
			into := []any{&l.Name}
			var k kept
			if full {
				into = append(append(into, k.settings.into()...), k.into()...)
			}
			if err := row.Scan(into...); err != nil || !full {
				return l, err
			}
			progress := k.progress()
			l.Settings, l.Progress = &k.settings, &progress
			return l, nil
		})
		return err
	})
	return lists, pg.Wrap(op, s.told(err))
}

// prefixed is text after what stands before it, or nothing.
func prefixed(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}
