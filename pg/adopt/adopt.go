// Package adopt changes a table that was there before howdah, beside whoever works on
// it: nobody is locked out for longer than two seconds, and what an interruption left
// can be done again.
package adopt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Progress is where an adoption is.
type Progress struct {
	Step        string // what is being done
	Waiting     string // for whom, where it waits
	Done, Total int64  // blocks, while it builds an index and knows
}

// Table is one that is adopted.
type Table struct {
	Name     pgx.Identifier
	Patience time.Duration // to wait for a lock at a time; default 2 s
}

// Session is one run of an adoption or its undo, on a connection of its own.
type Session struct {
	Conn *pgx.Conn

	db       pg.DB
	table    Table
	told     func(Progress)
	at       string
	patience time.Duration
}

const (
	patience = 2 * time.Second
	tries    = 5
)

// Alone runs do where no other adoption of the table is running. db must be a pool that
// leads through no pooler in transaction mode. told may be nil.
func Alone(ctx context.Context, db pg.DB, table Table, told func(Progress), do func(*Session) error) error {
	pool, ok := db.(interface {
		Acquire(context.Context) (*pgxpool.Conn, error)
	})
	if !ok {
		return pg.Refuse("adopt", "works on a pool: an index cannot be built beside writers in a transaction")
	}
	acquired, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	s := &Session{Conn: acquired.Hijack(), db: db, table: table, told: told, patience: cmp.Or(table.Patience, patience)}
	if told == nil {
		s.told = func(Progress) {}
	}
	defer func() { // which also gives back the lock
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		s.Conn.Close(ctx)
	}()
	if _, err := s.Conn.Exec(ctx, `SET statement_timeout = 0; SET idle_session_timeout = 0`); err != nil {
		return err
	}
	if err := s.lock(ctx); err != nil {
		return err
	}
	return do(s)
}

// Begin tells that a step begins.
func (s *Session) Begin(step string) {
	s.at = step
	s.told(Progress{Step: step})
}

// lock takes the lock of the table's adoptions. It asks again and again: who waits
// for a lock in a statement holds a snapshot, and building an index waits for that.
func (s *Session) lock(ctx context.Context) error {
	table := s.table.Name.Sanitize() // where there is none, that is told after this
	for {
		var locked bool
		err := s.Conn.QueryRow(ctx, `SELECT coalesce(pg_try_advisory_lock(hashtext('howdah adopt'), to_regclass($1)::oid::integer), true)`, table).Scan(&locked)
		if err != nil || locked {
			return err
		}
		who, err := sessions(ctx, s.Conn, `
			SELECT pid
			FROM pg_locks
			WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
				AND classid::bigint = hashtext('howdah adopt')::bigint & 4294967295 AND objid = to_regclass($1)::oid`, table)
		if err != nil {
			return err
		}
		s.told(Progress{Waiting: "another adoption by " + who})
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// sessions describes those that a query names by their pid; NULL is a prepared
// transaction.
func sessions(ctx context.Context, db pg.DB, query string, args ...any) (string, error) {
	rows, _ := db.Query(ctx, `
		SELECT CASE WHEN p.pid IS NULL THEN 'a prepared transaction (SELECT * FROM pg_prepared_xacts)'
			ELSE format('process %s', p.pid) || coalesce(format(' (%s)', concat_ws(', ', nullif(s.usename, ''), nullif(s.application_name, ''), s.state,
				'for ' || date_trunc('second', clock_timestamp() - s.state_change)::text)), '') END
		FROM (`+query+`) AS p(pid)
		LEFT JOIN pg_stat_activity s ON s.pid = p.pid
		ORDER BY s.state_change
		LIMIT 5`, args...)
	who, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if len(who) == 0 {
		who = []string{"somebody who has gone meanwhile"}
	}
	return strings.Join(who, " and "), err
}

// Locked runs do in a transaction that waits for locks two seconds at a time, five
// times over: whoever wants the table after it has to wait as long. It returns
// Unavailable, and names who has the table, where it is not to be had.
func (s *Session) Locked(ctx context.Context, do func(pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, s.Conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, s.patience.Milliseconds())); err != nil {
				return err
			}
			return do(tx)
		})
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "55P03" && pgErr.Code != "40P01" {
			return depended(err)
		}
		who, asked := sessions(ctx, s.Conn, `
			SELECT DISTINCT pid
			FROM pg_locks
			WHERE relation = to_regclass($1) AND granted AND pid IS DISTINCT FROM pg_backend_pid()
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, s.table.Name.Sanitize())
		if asked != nil {
			return asked
		}
		if try == tries {
			return fmt.Errorf("%s is in use by %s, and was each of %d times; run it again when that has ended: %w: %w", strings.Join(s.table.Name, "."), who, try, fault.Unavailable, err)
		}
		s.told(Progress{Step: s.at, Waiting: who})
		if err := pause(ctx, time.Duration(try)*s.patience/8); err != nil {
			return err
		}
	}
}

// depended says what depends on a column that is to be dropped.
func depended(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "2BP01" {
		return fmt.Errorf("%s; drop that first: %w: %w", strings.ReplaceAll(pgErr.Detail, "\n", "; "), fault.Conflict, err)
	}
	return err
}

// Index makes an index, named in the schema of the table, by the statement create,
// which is CREATE INDEX CONCURRENTLY, and so without locking anybody out. It waits for
// transactions that are older than itself, as long as they take. What an interruption
// left of it, an index that is not valid, it drops first.
func (s *Session) Index(ctx context.Context, name pgx.Identifier, broken bool, create string) error {
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer stop()
	watch.Go(func() { s.watch(watching) })
	if broken {
		if err := s.DropIndex(ctx, name); err != nil {
			return err
		}
	}
	_, err := s.Conn.Exec(ctx, create)
	return err
}

// DropIndex drops an index, if it is there, without locking anybody out.
func (s *Session) DropIndex(ctx context.Context, name pgx.Identifier) error {
	_, err := s.Conn.Exec(ctx, `DROP INDEX CONCURRENTLY IF EXISTS `+name.Sanitize())
	return err
}

// watch tells how far an index is, and for whom it waits; what it cannot find out it
// does not tell.
func (s *Session) watch(ctx context.Context) {
	pid := s.Conn.PgConn().PID()
	for pause(ctx, time.Second) == nil {
		at := Progress{Step: s.at}
		var waits bool
		err := s.db.QueryRow(ctx, `
			SELECT coalesce(max(blocks_done), 0), coalesce(max(blocks_total), 0), pg_blocking_pids($2) <> '{}'
			FROM pg_stat_progress_create_index
			WHERE relid = to_regclass($1)`, s.table.Name.Sanitize(), pid).Scan(&at.Done, &at.Total, &waits)
		if err == nil && waits {
			at.Waiting, err = sessions(ctx, s.db, `SELECT nullif(unnest(pg_blocking_pids($1)), 0)`, pid)
		}
		if err == nil && (at.Total > 0 || waits) {
			s.told(at)
		}
	}
}

// Exec runs statements one after the other.
func Exec(ctx context.Context, tx pgx.Tx, statements ...string) error {
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// Step is a part of adopting, which can be repeated. T is what a look at the table
// found.
type Step[T any] struct {
	Words   string
	Missing func(T) bool
	Do      func(context.Context, *Session, T) error
}

// Todo are the words of the steps that are missing.
func Todo[T any](steps []Step[T], found T) []string {
	todo := []string{}
	for _, step := range steps {
		if step.Missing(found) {
			todo = append(todo, step.Words)
		}
	}
	return todo
}

// Run does what is missing, and looks again after each step. may refuses before any.
func Run[T any](ctx context.Context, s *Session, steps []Step[T], look func(context.Context) (T, error), may func(T) error) error {
	for last := -1; ; {
		found, err := look(ctx)
		if err != nil {
			return err
		}
		next := slices.IndexFunc(steps, func(step Step[T]) bool { return step.Missing(found) })
		if next < 0 {
			return nil
		}
		if err := may(found); err != nil {
			return err
		}
		step := steps[next]
		if next <= last {
			return fmt.Errorf("%q was undone by somebody else: %w", step.Words, fault.Conflict)
		}
		last = next
		s.Begin(step.Words)
		if err := step.Do(ctx, s, found); err != nil {
			return fmt.Errorf("%s: %w", step.Words, err)
		}
	}
}
