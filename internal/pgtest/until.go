package pgtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Patience bounds a single step of a test. It is there to fail a test that hangs, and
// long enough for a machine that is busy.
const Patience = 3 * time.Minute

// Until waits until ok, which it asks every few milliseconds; what says what that is.
// The test ends where that is not so within [Patience].
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	until(t, Patience, what, ok)
}

func until(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline, again := time.NewTimer(patience), time.NewTicker(5*time.Millisecond)
	defer deadline.Stop()
	defer again.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited %s in vain: %s", patience, what)
		case <-again.C:
		}
	}
}

// Receive returns what comes from c, nothing once c is closed; what says what is waited
// for. The test ends where neither is so within [Patience].
func Receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	return receive(t, Patience, c, what)
}

func receive[T any](t testing.TB, patience time.Duration, c <-chan T, what string) (v T) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case v = <-c:
	case <-deadline.C:
		t.Fatalf("waited %s in vain: %s", patience, what)
	}
	return v
}

// UntilSQL waits as [Until] does until sql, asked of db, answers true: not false, NULL
// or no row.
func UntilSQL(t testing.TB, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, what, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), Patience)
	defer cancel()
	Until(t, what, func() bool {
		var yes *bool
		if err := db.QueryRow(ctx, sql, args...).Scan(&yes); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			t.Fatalf("%s: %v", what, err)
		}
		return yes != nil && *yes
	})
}
