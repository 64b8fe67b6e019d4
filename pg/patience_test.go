package pg_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// What is not answered is given up, and has twice as long each time until it is; what takes
// no notice of the time, or fails by itself, or with its caller, is not.
func TestPatience(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.URL(t))
	const first = time.Millisecond
	var p pg.Patience
	ask := func(ctx context.Context, fn func(context.Context) error) (left time.Duration, err error) {
		err = p.Ask(ctx, pool, first, func(ctx context.Context) error {
			end, ok := ctx.Deadline()
			if !ok {
				t.Error("a context without an end")
			}
			left = time.Until(end)
			return fn(ctx)
		})
		return left, err
	}
	late := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for n := range 5 {
		before := pool.Stat().NewConnsCount()
		if err := pool.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := pool.Stat().NewConnsCount(); now == before {
			t.Errorf("try %d: a connection that may lead nowhere was taken", n)
		}
		left, err := ask(t.Context(), late)
		if !errors.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("try %d: %v, want it Unavailable, and to tell why", n, err)
		}
		if most := first << n; left > most {
			t.Errorf("try %d: %s are left, want at most %s", n, left, most)
		}
	}
	// A server that takes a second, say.
	if left, err := ask(t.Context(), func(ctx context.Context) error { return nil }); err != nil || left > first<<5 {
		t.Errorf("then: %v, %s left", err, left)
	}
	odd := errors.New("odd")
	if _, err := ask(t.Context(), func(context.Context) error { return odd }); err != odd {
		t.Errorf("what fails by itself: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := ask(ended, late); !errors.Is(err, context.Canceled) || errors.Is(err, fault.Unavailable) {
		t.Errorf("what ends with its caller: %v", err)
	}
	if _, err := ask(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return nil }); err != nil {
		t.Errorf("what is late and succeeds: %v", err)
	}
	p.Over()
	if left, err := ask(t.Context(), func(context.Context) error { return nil }); err != nil || left > first {
		t.Errorf("once it is over: %v, %s left", err, left)
	}
}
