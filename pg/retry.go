package pg

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// How often [Retry] repeats, and the longest pause between. A server that cannot be
// reached is given about three seconds. Who lost to a rival is given about four,
// in shorter pauses: the wait that ended in a deadlock has been one, and beside
// writers that keep to no order and never rest a batch may lose every second time.
const (
	reconnects, slow = 8, time.Second
	rematches, quick = 32, 160 * time.Millisecond
)

// Retry runs fn, which runs one statement or one transaction of its own on db,
// and repeats it with growing pauses while it fails in a way that surely left
// nothing behind: serialization failure, deadlock, and a connection that could not
// be made. It returns fn's last error.
//
// In a transaction of the caller's fn runs once: only the caller can repeat that.
func Retry(ctx context.Context, db DB, fn func() error) error {
	once := Begun(db)
	for try := 0; ; try++ {
		err := fn()
		if err == nil || once {
			return err
		}
		most, longest := reconnects, slow
		switch {
		case lostToRival(err):
			most, longest = rematches, quick
		case !notConnected(err):
			return err
		}
		if try >= most || !pause(ctx, min(10*time.Millisecond<<min(try, 10), longest)) {
			return err
		}
	}
}

func lostToRival(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "40001" || pgErr.Code == "40P01") // serialization_failure, deadlock_detected: rolled back
}

func notConnected(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code == "57P03" || pgErr.Code == "53300" // cannot_connect_now, too_many_connections
	}
	// Neither pgconn.SafeToRetry nor ErrConnClosed is asked: both may be said of
	// a connection that was lost while the answer to a statement was awaited.
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

// pause waits d, ± half of it at random so that rivals part; false when ctx ended
// first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
