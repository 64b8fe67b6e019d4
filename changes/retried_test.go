package changes_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
)

// What a person has tried again is not parked before it has failed again: a run that
// ends with all handled, as by cron, hands it over, and what waited behind it. Where
// nothing succeeds it is told, too.
func TestWaitForWhatIsRetried(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series(1, 4) g`)
	exec(t, pool, `UPDATE a SET v = 1`)
	var well atomic.Bool
	run := func() error {
		t.Helper()
		in := start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
			c.Hurry()
			c.Handle("*", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
				if !well.Load() {
					return errors.New("the mail server is away")
				}
				return effect("c")(ctx, tx, []changes.Change{c})
			}))
		})
		defer in.stop()
		err := wait(t, l, "c")
		if !well.Load() {
			eventually(t, "it stalls", func() bool { return status(t, l, "c").State == "stalled" })
		}
		return err
	}
	retry := func() {
		t.Helper()
		if n, err := l.Retry(t.Context(), "c"); n == 0 || err != nil {
			t.Fatalf("Retry = %d, %v", n, err)
		}
	}
	if err := run(); !errors.Is(err, changes.ErrParked) {
		t.Errorf("Wait: %v, want ErrParked", err)
	}
	for range 2 {
		retry()
		if err := run(); !errors.Is(err, changes.ErrParked) {
			t.Errorf("Wait for what failed again: %v, want ErrParked", err)
		}
	}
	retry()
	end, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := l.Wait(short, "c", end); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait while nobody tries: %v, want %v", err, context.DeadlineExceeded)
	}
	well.Store(true)
	if err := run(); err != nil {
		t.Errorf("Wait after the cure: %v", err)
	}
	feed, _ := readAll(t, l, changes.Position{}, 100, changes.Filter{})
	if diff := cmp.Diff(byKey(feed), effectsByKey(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}
