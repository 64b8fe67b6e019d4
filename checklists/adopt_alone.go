package checklists

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// adoption is one run of Adopt or UndoAdopt, on a connection of its own.
type adoption struct {
	s    *Store
	conn *pgx.Conn
	told func(Adopting)
	at   string
}

// alone runs do where no other adoption of the table is running.
func (s *Store) alone(ctx context.Context, told func(Adopting), do func(*adoption) error) error {
	if err := s.names.Err(); err != nil {
		return err
	}
	pool, ok := s.db.(interface {
		Acquire(context.Context) (*pgxpool.Conn, error)
	})
	if !ok {
		return pg.Refuse("adopt", "works on a pool: an index cannot be built beside writers in a transaction")
	}
	acquired, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	a := &adoption{s: s, conn: acquired.Hijack(), told: told}
	if told == nil {
		a.told = func(Adopting) {}
	}
	defer func() { // which also gives back the lock
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockPatience)
		defer cancel()
		a.conn.Close(ctx)
	}()
	if _, err := a.conn.Exec(ctx, `SET statement_timeout = 0; SET idle_session_timeout = 0`); err != nil {
		return err
	}
	if err := a.lock(ctx); err != nil {
		return err
	}
	return do(a)
}

// lock takes the lock of the table's adoptions. It asks again and again: who waits
// for a lock in a statement holds a snapshot, and building an index waits for that.
func (a *adoption) lock(ctx context.Context) error {
	table := a.s.table.Sanitize() // where there is none, that is told after this
	for {
		var locked bool
		err := a.conn.QueryRow(ctx, `SELECT coalesce(pg_try_advisory_lock(hashtext('howdah adopt'), to_regclass($1)::oid::integer), true)`, table).Scan(&locked)
		if err != nil || locked {
			return err
		}
		who, err := sessions(ctx, a.conn, `
			SELECT pid
			FROM pg_locks
			WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
				AND classid::bigint = hashtext('howdah adopt')::bigint & 4294967295 AND objid = to_regclass($1)::oid`, table)
		if err != nil {
			return err
		}
		a.told(Adopting{Waiting: "another adoption by " + who})
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

const (
	lockPatience = 2 * time.Second
	lockTries    = 5
)

// patience is lockPatience but in tests.
func (s *Store) patience() time.Duration { return cmp.Or(s.lockPatience, lockPatience) }

// locked runs do in a transaction that waits for locks two seconds at a time:
// whoever wants the table after it has to wait as long.
func (a *adoption) locked(ctx context.Context, sh *shape, do func(pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, a.s.patience().Milliseconds())); err != nil {
				return err
			}
			return do(tx)
		})
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "55P03" && pgErr.Code != "40P01" {
			return depended(err)
		}
		who, asked := sessions(ctx, a.conn, `
			SELECT DISTINCT pid
			FROM pg_locks
			WHERE relation = $1::oid AND granted AND pid IS DISTINCT FROM pg_backend_pid()
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, sh.OID)
		if asked != nil {
			return asked
		}
		if try == lockTries {
			return fmt.Errorf("%s is in use by %s, and was each of %d times; run it again when that has ended: %w: %w", sh.name(), who, try, fault.Unavailable, err)
		}
		a.told(Adopting{Step: a.at, Waiting: who})
		if err := pause(ctx, time.Duration(try)*a.s.patience()/8); err != nil {
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
