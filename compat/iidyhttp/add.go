package iidyhttp

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

// Adding is strict here, as in the original: what is there already is an error and
// nothing is added. The services skip it instead, so this has statements of its
// own, the original's. Like the original's they put an item that a list has kept
// as done on it again.

func (a *api) addOne(ctx context.Context, t target, r *request) (*answer, error) {
	if err := errors.Join(a.names.Err(), check(t.list, "item", t.item)); err != nil {
		return nil, err
	}
	var n int64
	err := pg.Retry(ctx, a.db, func() error {
		tag, err := a.db.Exec(ctx, a.names.SQL(`
			INSERT INTO {lists} (list, item)
			VALUES ($1, $2)
			ON CONFLICT DO NOTHING`), t.list, t.item)
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return nil, pg.Written(a.db, err)
	}
	if n == 0 {
		return nil, there(t, &t.item)
	}
	return r.count(http.StatusCreated, "added", n), nil
}

func (a *api) addMany(ctx context.Context, t target, r *request) (*answer, error) {
	if err := errors.Join(a.names.Err(), check(t.list, "list", "")); err != nil {
		return nil, err
	}
	if !r.json {
		r.limit = a.cfg.MaxStream
		if r.ContentLength > r.limit {
			return nil, r.unread(&http.MaxBytesError{Limit: r.limit})
		}
	}
	next, stop := iter.Pull2(r.items())
	defer stop()
	src := &source{list: t.list, next: next}
	src.gather(a.cfg.MaxBody)
	if src.err != nil {
		return nil, src.err
	}
	n, err := a.copyIn(ctx, src)
	if err != nil && !src.ended {
		r.giveUp() // most of the body may be unread
	}
	var pgErr *pgconn.PgError
	switch {
	case src.err != nil: // of the body, in whatever way pgx says it
		return nil, src.err
	case errors.As(err, &pgErr) && pgErr.Code == "23505":
		return nil, there(t, offender(pgErr, t.list))
	case err != nil:
		return nil, pg.Written(a.db, err)
	}
	return r.count(http.StatusCreated, "added", n), nil
}

// copyIn adds the items of src in one COPY: all or none. Those that have all been
// gathered go in the order of their bytes, so that adds which overlap wait for
// each other in one direction only, and may go again. A longer stream goes as it
// comes: where two of those deadlock, one is told to try again.
func (a *api) copyIn(ctx context.Context, src *source) (n int64, err error) {
	if !src.ended {
		return a.copyFrom(ctx, src)
	}
	if len(src.head) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	slices.Sort(src.head)
	err = pg.Retry(ctx, a.db, func() error {
		src.i = 0
		n, err = a.copyFrom(ctx, src)
		return err
	})
	return n, err
}

func (a *api) copyFrom(ctx context.Context, src *source) (int64, error) {
	return pg.Copy(ctx, a.db, a.lists.Table(), []string{"list", "item"}, src)
}

// source is the items of a body as rows. It implements [pgx.CopyFromSource].
type source struct {
	list  string
	next  func() (string, error, bool)
	head  []string // gathered before a connection is taken
	ended bool     // there is nothing after head
	i     int      // rows so far
	n     int      // items so far
	item  string
	err   error
}

// gather reads ahead, up to limit bytes: an add of usual length does not keep a
// connection waiting for its client.
func (s *source) gather(limit int64) {
	for size := int64(0); size < limit; size += int64(len(s.item)) + 16 {
		if !s.read() {
			s.ended = s.err == nil
			return
		}
		s.head = append(s.head, s.item)
	}
}

func (s *source) read() bool {
	item, err, ok := s.next()
	if ok && err == nil {
		err = check(s.list, fmt.Sprintf("items[%d]", s.n), item)
	}
	s.item, s.err = item, err
	s.n++
	return ok && err == nil
}

func (s *source) Next() bool {
	s.i++
	if s.i <= len(s.head) {
		s.item = s.head[s.i-1]
		return true
	}
	return !s.ended && s.err == nil && s.read()
}

func (s *source) Values() ([]any, error) { return []any{s.list, s.item}, nil }
func (s *source) Err() error             { return s.err }

// check refuses what no row can hold, before anything is written.
func check(list, field, item string) error {
	if err := errors.Join(pg.CheckText("list", list), pg.CheckText(field, item)); err != nil {
		return err
	}
	if n := len(list) + len(item); n > checklists.MaxName {
		return pg.Refuse(field, "%d bytes; list and item together may have %d", n, checklists.MaxName)
	}
	return nil
}

// there refuses an add of an item that is there; nil where nobody knows which.
func there(t target, item *string) error {
	text := "an item"
	if item != nil {
		text = fmt.Sprintf("%q", *item)
	}
	text += " is on the list already"
	if t.batch {
		text += ", or comes twice; nothing was added"
	}
	return &refusal{http.StatusConflict, trouble("add", t) + text}
}

// offender is the item that the server met first: Key (list, item)=(downloads,
// a.txt) already exists. Its words are those of the server's language; the key
// is not.
func offender(err *pgconn.PgError, list string) *string {
	_, key, found := strings.Cut(err.Detail, "=("+list+", ")
	end := strings.LastIndexByte(key, ')')
	if !found || end < 0 { // who may not read the table is told no key
		return nil
	}
	return new(key[:end])
}

var _ pgx.CopyFromSource = (*source)(nil)
