package changes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// begin runs fn in a transaction each statement of which sees what was committed while
// the one before it waited. It ends where the process is stopped in the middle of it, or
// its machine: others would wait for its locks for ever. In a transaction of the caller's
// all that is as it is there.
func (l *Log) begin(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return pg.BeginFunc(ctx, l.db, func(tx pgx.Tx) error {
		if !pg.InTx(l.db) {
			if _, err := tx.Exec(ctx, `SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = `+
				strconv.FormatInt(l.stopped.Milliseconds(), 10), pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
		}
		return fn(tx)
	})
}

// errTaken reports that somebody else has, or had, the row of a consumer.
var errTaken = errors.New("another changes the consumer")

// alone runs fn in a transaction that moves the shards of a consumer, of which it
// gets the number, while nobody else does: it waits for what is being handled. The row
// of the consumer is locked after that, or who pauses it would wait, too. Where somebody
// has it, he is waited for without the shards: he may be about to move them himself.
func (l *Log) alone(ctx context.Context, name string, fn func(tx pgx.Tx, shards int) error) error {
	if err := pg.CheckText("name", name); err != nil {
		return err
	}
	return pg.Retry(ctx, l.db, func() error {
		for {
			err := l.begin(ctx, func(tx pgx.Tx) error {
				if err := hold(ctx, tx, name); err != nil {
					return err
				}
				var shards int
				err := tx.QueryRow(ctx, `SELECT shards FROM howdah.change_consumer WHERE name = $1 FOR UPDATE SKIP LOCKED`, name).Scan(&shards)
				if errors.Is(err, pgx.ErrNoRows) {
					return errTaken
				}
				if err != nil {
					return err
				}
				return fn(tx, shards)
			})
			if err == errTaken {
				err = l.begin(ctx, func(tx pgx.Tx) error { // ends with an error, so that it is rolled back: no lock stays
					row, err := tx.Exec(ctx, `SELECT FROM howdah.change_consumer WHERE name = $1 FOR UPDATE`, name)
					if err == nil && row.RowsAffected() == 0 {
						err = noConsumer(name)
					}
					return cmp.Or(err, errTaken)
				})
			}
			if err != errTaken {
				return err
			}
		}
	})
}

// hold waits for what is being handled of a consumer, and lets nothing more be handled
// until tx ends: on as many shards as there can be, because how many there are is only
// certain once none of them can be moved.
func hold(ctx context.Context, tx pgx.Tx, name string) error {
	late := time.AfterFunc(time.Second, func() {
		slog.InfoContext(ctx, "waits for what is being handled", "consumer", name)
	})
	defer late.Stop()
	_, err := tx.Exec(ctx, `
		SELECT pg_advisory_xact_lock(`+lockOf("shard")+`)
		FROM generate_series(0, $2::int - 1) AS shard`, name, maxShards)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("waited for what %s is handling, in vain: pause it, which waits for nothing, and try again once that has ended, at the latest after its timeout: %w", name, err)
	}
	return err
}

// newest are the checkpoints of consumer $1, of $2 shards, in whose place others are put
// by one who holds them.
const (
	newest = `
		newest AS (
			SELECT k.*
			FROM generate_series(0, $2::int - 1) AS g(shard)
			CROSS JOIN LATERAL howdah.change_place($1, g.shard) k)`
	replaced = `
		DELETE FROM howdah.change_checkpoint k
		USING newest
		WHERE k.consumer = newest.consumer AND k.shard = newest.shard AND k.seq <= newest.seq`
)
