package changes

import (
	"context"
	"log/slog"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// trouble is something that fails, or hangs, and is tried again after pauses that grow. It
// is logged once, and once when it is over.
type trouble struct {
	of, name string
	pause    time.Duration // the last one; 0 = all is well
	patience pg.Patience
	told     *seldom // whoever has the same trouble; nil = nobody
	said     bool    // it was logged
}

// ask has fn ask the database of l, by one statement or transaction, and gives it up where
// no answer comes: see [pg.Patience]. The trouble of nobody, nil, waits as long as ctx does.
func (t *trouble) ask(ctx context.Context, l *Log, fn func(ctx context.Context) error) error {
	if t == nil {
		return fn(ctx)
	}
	return t.patience.Ask(ctx, l.db, l.stopped, fn)
}

// wait waits for the next try; false when ctx ended first.
func (t *trouble) wait(ctx context.Context, err error) bool {
	t.note(ctx, err)
	return sleep(ctx, t.pause, nil)
}

// note is wait for whoever waits by himself.
func (t *trouble) note(ctx context.Context, err error) {
	if t.pause == 0 {
		t.said = t.told.now()
	}
	if t.pause == 0 && t.said {
		t.log().WarnContext(ctx, t.of+"; trying again", "error", err)
	}
	t.pause = min(max(2*t.pause, 50*time.Millisecond), 5*time.Second)
}

func (t *trouble) log() *slog.Logger {
	if t.name == "" {
		return slog.Default()
	}
	return slog.With("consumer", t.name)
}

func (t *trouble) over() {
	t.answered()
	t.patience.Over()
}

// answered is over for what only another has been asked, and may need its time as before.
func (t *trouble) answered() {
	if t.pause > 0 && t.said {
		t.log().Info("changes go on")
	}
	t.pause = 0
}

// sleep returns after d, or when woken; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-woken:
	case <-timer.C:
	}
	return true
}
