package pg

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// outcome is what became of one transaction.
type outcome int

const (
	committed outcome = iota
	passing           // surely not committed; a repeat may succeed
	rejected          // surely not committed; something in the batch is to blame
	hopeless          // surely not committed, whatever the batch: no pool, no right to connect
	unknown           // the connection was lost in COMMIT and nobody can tell
)

// attempt runs one transaction that writes batch.
func (b *Batcher[K, V, R]) attempt(run context.Context, batch Batch[K, V, R]) (outcome, error) {
	ctx, cancel := context.WithTimeout(run, b.cfg.Timeout)
	defer cancel()
	conn, err := b.cfg.Pool.Acquire(ctx)
	if err != nil {
		return beforeFlush(err), err
	}
	defer conn.Release()
	origin, err := originOf(ctx, conn.Conn())
	if err != nil {
		return beforeFlush(err), err
	}
	tx, xid, err := begin(ctx, conn.Conn())
	if err != nil {
		rollback(ctx, tx)
		return beforeFlush(err), err
	}

	if err := b.flush(ctx, tx, batch); err != nil {
		lost := conn.Conn().IsClosed()
		var panicked *panicError
		switch isPanic := errors.As(err, &panicked); {
		case isPanic:
			b.log.Error("flush panicked", "panic", panicked.value, "stack", string(panicked.stack))
		case lost:
			conn.Release()
			b.reap(run, origin, xid, anyBackend)
			return passing, err
		}
		rollback(ctx, tx)
		var pgErr *pgconn.PgError // an EOF of the Flush's own is no lost connection: that one lives
		if panicked == nil && (ctx.Err() != nil || errors.As(err, &pgErr) && passes(err)) {
			return passing, err
		}
		return rejected, err
	}

	err = tx.Commit(ctx)
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return committed, nil
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return rejected, fmt.Errorf("flush hid an error: %w", err)
	case errors.Is(err, pgx.ErrTxClosed):
		return hopeless, fmt.Errorf("flush ended the transaction, which is not its own: %w", err)
	case errors.As(err, &pgErr) && !conn.Conn().IsClosed(): // a deferred constraint, a serialization failure
		if passes(err) {
			return passing, err
		}
		return rejected, err
	}
	// Nobody is believed now but a server. pgconn.SafeToRetry calls some connections
	// safe that were lost after COMMIT was sent. FATAL is no answer either: a
	// backend that is terminated while it waits for its standbys has committed.
	conn.Release()
	if b.cfg.Idempotent {
		b.reap(run, origin, xid, idleBackend)
		return unknown, err
	}
	return b.settle(run, origin, xid, err)
}

// begin starts a transaction and returns its number, in one round trip.
func begin(ctx context.Context, conn *pgx.Conn) (tx pgx.Tx, xid string, err error) {
	var both pgx.Batch
	both.BeginTx(pgx.TxOptions{})
	both.Queue("SELECT pg_current_xact_id()::text").QueryRow(func(row pgx.Row) error { return row.Scan(&xid) })
	res := conn.SendBatch(ctx, &both)
	err = res.Close() // this is what reads xid
	return res.Tx(), xid, err
}

// rollback ends tx, if need be by closing its connection.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // on failure pgx has closed the connection, which serves as well
}

// flush calls Flush and makes an error of a panic.
func (b *Batcher[K, V, R]) flush(ctx context.Context, tx pgx.Tx, batch Batch[K, V, R]) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{value: v, stack: debug.Stack()}
		}
	}()
	return b.cfg.Flush(ctx, tx, batch)
}

type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// ofTheStatement reports whether err is that of any batch: a table, column or
// function that is not there, or a right. No value is to blame.
func ofTheStatement(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (strings.HasPrefix(pgErr.Code, "42") || pgErr.Code == "3F000")
}

// beforeFlush sorts an error that has nothing to do with the batch.
func beforeFlush(err error) outcome {
	var pgErr *pgconn.PgError
	if errors.Is(err, puddle.ErrClosedPool) || errors.As(err, &pgErr) && !passes(err) {
		return hopeless
	}
	return passing
}

// passes reports whether err, which left nothing behind, is likely to be gone soon.
func passes(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return LostConnection(err)
	}
	switch pgErr.Code {
	case "40001", "40P01", // serialization_failure, deadlock_detected
		"55P03",                   // lock_not_available
		"53300",                   // too_many_connections
		"57P01", "57P02", "57P03", // admin_shutdown, crash_shutdown, cannot_connect_now
		"25006": // read_only_sql_transaction: a standby that is about to be promoted
		return true
	}
	return strings.HasPrefix(pgErr.Code, "08")
}

// origin is the server that a connection leads to.
type origin struct {
	system  string // the cluster, the same on its standbys
	history string // changes with a promotion and with a recovery from a crash
}

// The number of a transaction names that transaction only within one history: a
// crash may forget that a number was given out, if nothing of it had reached the
// disk, and a promoted standby may never have heard of it; both give it to
// somebody else. A crash also throws away the server's statistics, and the time
// when they were begun is the one trace of it that everybody may read.
const selectOrigin = `
	SELECT system_identifier::text,
		CASE WHEN pg_is_in_recovery() THEN '' -- it may be promoted under the connection
			ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) || ' ' || -- the timeline
				extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())::text
		END
	FROM pg_control_system()`

// originOf returns the origin of conn, asked once per connection; the zero origin
// where the role may not ask.
func originOf(ctx context.Context, conn *pgx.Conn) (o origin, err error) {
	const key = "howdah: origin"
	if o, ok := conn.PgConn().CustomData()[key].(origin); ok {
		return o, nil
	}
	err = conn.QueryRow(ctx, selectOrigin).Scan(&o.system, &o.history)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && !conn.IsClosed() {
		o, err = origin{}, nil
	}
	if err == nil {
		conn.PgConn().CustomData()[key] = o
	}
	return o, err
}

// settle finds out what became of transaction xid, whose COMMIT failed with cause.
func (b *Batcher[K, V, R]) settle(ctx context.Context, at origin, xid string, cause error) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.RetryFor)
	defer cancel()
	end := noBackend // at first: COMMIT may be on its way
	for try := 0; ; try++ {
		status, now, err := b.ask(ctx, at, xid, end)
		same := now == at && at.history != ""
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr) && !passes(err), errors.Is(err, puddle.ErrClosedPool):
			return unknown, cause
		case err != nil, status == "standby", status == "in progress" && same:
			// Ask again.
		case now.system == "" || now.system != at.system:
			return unknown, cause
		case status == "committed" && same:
			return committed, nil
		case status == "committed", status == "forgotten":
			return unknown, cause // in another history the number may be another's
		default:
			// Aborted or never given out; or, in another history, running and so
			// somebody else's. Nothing with this number has committed here.
			return passing, cause
		}
		if !b.pause(ctx, try) {
			return unknown, cause
		}
		end = idleBackend
	}
}

// A backend that has lost its client and waits for it holds its locks until TCP
// gives up, in two hours. These are the states, as patterns, in which one is ended.
const (
	noBackend   = ""
	idleBackend = "idle in transaction%" // COMMIT has not come and cannot come any more
	anyBackend  = "%"
)

// ask returns the status of transaction xid of at, and to where the connection
// leads on which it asked. It ends the backend of the transaction in state end.
func (b *Batcher[K, V, R]) ask(ctx context.Context, at origin, xid, end string) (status string, now origin, err error) {
	ctx, cancel := context.WithTimeout(ctx, min(b.cfg.Timeout, 10*time.Second))
	defer cancel()
	conn, err := b.cfg.Pool.Acquire(ctx)
	if err != nil {
		return "", now, err
	}
	defer conn.Release()
	// Together, so that a pooler sends them to one server; and where that is was
	// not asked before, for a pooler may have changed it.
	var questions pgx.Batch
	questions.Queue(selectOrigin).QueryRow(func(row pgx.Row) error { return row.Scan(&now.system, &now.history) })
	questions.Queue(`
		SELECT CASE WHEN pg_is_in_recovery() THEN 'standby'
			ELSE coalesce(pg_xact_status($1::text::xid8), 'forgotten') END`, xid).
		QueryRow(func(row pgx.Row) error { return row.Scan(&status) })
	err = conn.SendBatch(ctx, &questions).Close()
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "22023" { // in the future: never given out
		return "future", now, nil
	}
	if err == nil && status == "in progress" && end != noBackend && now == at && at.history != "" {
		_, err = conn.Exec(ctx, `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE backend_xid = $1::text::xid8::xid AND state LIKE $2`, xid, end)
	}
	return status, now, err
}

// reap ends the backend of transaction xid, whose connection was lost, so that a
// repeat does not wait for its locks.
func (b *Batcher[K, V, R]) reap(ctx context.Context, at origin, xid, end string) {
	if _, _, err := b.ask(ctx, at, xid, end); err != nil {
		b.log.Debug("could not end a lost transaction", "error", err)
	}
}
