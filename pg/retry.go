package pg

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// retries is how often [Retry] repeats: with its pauses about three seconds.
const retries = 8

// Retry runs fn, which runs one statement or one transaction of its own on db,
// and repeats it with growing pauses while it fails in a way that surely left
// nothing behind: serialization failure, deadlock, and a connection that could not
// be made. It returns fn's last error.
//
// In a transaction of the caller's fn runs once: only the caller can repeat that.
func Retry(ctx context.Context, db DB, fn func() error) error {
	err := fn()
	for try := range retries {
		if err == nil || InTx(db) || !repeatable(err) || !pause(ctx, try) {
			break
		}
		err = fn()
	}
	return err
}

func repeatable(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "40001", "40P01": // serialization_failure, deadlock_detected: rolled back
			return true
		case "57P03", "53300": // cannot_connect_now, too_many_connections
			return true
		}
		return false
	}
	// Neither pgconn.SafeToRetry nor ErrConnClosed is asked: both may be said of
	// a connection that was lost while the answer to a statement was awaited.
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

// pause waits 10 ms × 2^try, ± half of it at random so that rivals part, and at
// most a second; false when ctx ended first.
func pause(ctx context.Context, try int) bool {
	d := min(10*time.Millisecond<<try, time.Second)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
