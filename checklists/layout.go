package checklists

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrPlain reports that the table was there before howdah and lacks the columns
// that the call needs: it has lists, items and attempts only. [Store.Adopt] adds them.
var ErrPlain = fmt.Errorf("the table was there before howdah and has no columns for this; howdah adopt iidy --yes adds them: %w", fault.Conflict)

// lookAgain is for how long a table that was plain is taken for plain: somebody
// may have adopted it.
const lookAgain = 5 * time.Second

// layout is what a look at the table found. It is shared by a store's copies.
type layout struct {
	mu    sync.Mutex
	known bool
	full  bool // with the columns of migration 002
	at    time.Time
	parts bool // which have rows at the same places

	collation string // of names, quoted
}

func (l *layout) get() (full, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.full, l.known && (l.full || time.Since(l.at) < lookAgain)
}

// found keeps what a look found; a table that is missing is looked for again.
func (l *layout) found(exists, full, parts bool, collation string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known, l.full, l.parts, l.collation, l.at = exists, full, parts, collation, time.Now()
}

// forget makes the next call look again. The collation stays: one that has looked
// may be about to ask for it.
func (l *layout) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = false
}

// order is the collation of the table's names, once full has looked.
func (l *layout) order() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.collation
}

// placed reports whether the place of a row, once full has looked, tells it from all
// others: not where a table of others is partitioned, or has children.
func (l *layout) placed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.parts
}

// full reports whether the table has howdah's columns. It asks the catalogs
// once; a table that is missing is for the statement that follows to tell. One that
// is being adopted has its columns before it has indexes and counts.
func (s *Store) full(ctx context.Context) (bool, error) {
	if full, known := s.layout.get(); known {
		return full, nil
	}
	var exists, full, parts bool
	var collation string
	err := pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `
			SELECT to_regclass($1) IS NOT NULL,
				count(*) FILTER (WHERE attname IN ('priority', 'due', 'lease', 'worker', 'tried', 'error', 'payload')) = 7
					AND coalesce(obj_description(to_regclass($1), 'pg_class'), '') NOT LIKE 'Being adopted by howdah%',
				EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass($1)),
				coalesce((
					SELECT format('%I.%I', nspname, collname)
					FROM pg_collation c
					JOIN pg_namespace n ON n.oid = collnamespace
					WHERE c.oid = max(attcollation) FILTER (WHERE attname = 'list')), 'pg_catalog."C"')
			FROM pg_attribute
			WHERE attrelid = to_regclass($1) AND NOT attisdropped`, s.table.Sanitize()).Scan(&exists, &full, &parts, &collation)
	})
	if err != nil {
		return false, err
	}
	s.layout.found(exists, full, parts, collation)
	return full, nil
}

// needColumns returns ErrPlain where the table has none of howdah's columns. It
// looks again before it says so: the table may have been adopted meanwhile.
func (s *Store) needColumns(ctx context.Context) error {
	if full, known := s.layout.get(); known && !full {
		s.layout.forget()
	}
	full, err := s.full(ctx)
	if err != nil || full {
		return err
	}
	if _, known := s.layout.get(); !known {
		return nil // no table: the statement says it better
	}
	return ErrPlain
}

// told passes err on, and looks at the table again next time where a column is
// gone that was there.
func (s *Store) told(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42703" {
		s.layout.forget()
	}
	return err
}
