// Package pg is what every service needs of PostgreSQL: a handle that is a pool
// or a transaction, connections with sane defaults, quoted names, errors sorted
// into kinds, retries, notifications heard by many ([Hub]) and writes committed
// together ([Batcher]).
//
// It knows nothing of the services above it.
package pg

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DB is what a service runs its statements on: the six methods that
// *pgxpool.Pool, *pgx.Conn and pgx.Tx have in common. A transaction on a connection is
// the Tx of its Begin: of one that was begun by an SQL statement a service knows nothing,
// and a COMMIT of its own would end it.
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error) // on a Tx: a savepoint
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error)
}

// Copy is db.CopyFrom whose error is, where ctx ended it, the end of ctx. pgx closes the
// connection then, and may say of that only.
func Copy(ctx context.Context, db DB, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	n, err := db.CopyFrom(ctx, table, columns, src)
	if ended := ctx.Err(); ended != nil && LostConnection(err) && !errors.Is(err, ended) {
		err = fmt.Errorf("%w: %w", ended, err)
	}
	return n, err
}

// InTx reports whether db is a transaction of the caller's: what is written is
// then his to commit, and a failed statement must not be repeated.
func InTx(db DB) bool {
	_, ok := db.(pgx.Tx)
	return ok
}
