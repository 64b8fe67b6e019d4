package changes

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Tail follows the feed for a whole process: one reader, however many watch.
type Tail struct {
	log *Log
	hub *pg.Hub

	ring     *ring
	mu       sync.Mutex
	watchers int
	wanted   chan struct{} // one signal: there is a watcher
}

// NewTail returns a Tail of l, woken by hub. It starts nothing.
func NewTail(l *Log, hub *pg.Hub) *Tail {
	return &Tail{log: l, hub: hub, ring: newRing(), wanted: make(chan struct{}, 1)}
}

// The channels that ring when there may be something to read: the first by
// writers, the second by ticks.
const (
	bellOfWriters = "howdah_changes"
	bellOfTicks   = "howdah_feed"
)

// Run reads the feed while somebody watches, until ctx is done. A database that is
// away, or a log that needs a rebase, is waited for; who watches such a log is told.
func (t *Tail) Run(ctx context.Context) error {
	if pg.InTx(t.log.db) {
		return pg.Wrap("changes: tail", ErrInTx)
	}
	bell, err := newBell(t.hub, t.log.cfg.Idle)
	if err != nil {
		return pg.Wrap("changes: tail", err)
	}
	defer bell.close()
	away := trouble{of: "the feed of changes cannot be read"}
	for t.wait(ctx) {
		err := t.follow(ctx, bell, &away)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, ErrRestored) {
			t.ring.reset(Position{}) // whoever waits looks for himself, and ends with it
		}
		if err != nil {
			away.note(ctx, err)
			bell.wait(ctx)
		}
	}
	return nil
}

// wait returns when somebody watches; false when ctx ended first.
func (t *Tail) wait(ctx context.Context) bool {
	for {
		t.mu.Lock()
		watched := t.watchers > 0
		t.mu.Unlock()
		if watched || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
		case <-t.wanted:
		}
	}
}

// follow reads from the present end on, while somebody watches.
func (t *Tail) follow(ctx context.Context, bell *bell, away *trouble) error {
	var at Position
	if err := away.ask(ctx, t.log, func(ctx context.Context) (err error) {
		if at, err = t.log.Sync(ctx); readOnly(err) {
			at, err = t.log.Head(ctx)
		}
		return err
	}); err != nil {
		return err
	}
	t.ring.reset(at)
	for end := true; t.watched(); { // of what is numbered
		if end {
			var head *int64
			err := away.ask(ctx, t.log, func(ctx context.Context) (err error) { head, err = t.log.tick(ctx, false); return err })
			if err != nil && !readOnly(err) {
				return err
			}
			if err == nil && head != nil && *head == at.Commit {
				away.over()
				if !bell.wait(ctx) {
					return nil
				}
				continue
			}
		}
		page, next, more, err := t.page(ctx, away, at, Filter{})
		switch {
		case errors.Is(err, ErrExpired), errors.Is(err, ErrAhead):
			return nil // begin anew; each watcher is told where it stands
		case err != nil:
			return err
		}
		away.over()
		if next == at { // a standby, or another is numbering and will ring
			if end && !bell.wait(ctx) {
				return nil
			}
			end = true
			continue
		}
		t.ring.add(page, next)
		at, end = next, !more
		bell.busy()
	}
	return nil
}

// page reads what follows at.
func (t *Tail) page(ctx context.Context, away *trouble, at Position, f Filter) (page []Change, next Position, more bool, err error) {
	err = away.ask(ctx, t.log, func(ctx context.Context) (err error) {
		page, next, more, err = t.log.page(ctx, at, MaxPage, f)
		return err
	})
	return page, next, more, err
}

func (t *Tail) watched() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.watchers > 0
}

func (t *Tail) watch(n int) {
	t.mu.Lock()
	t.watchers += n
	t.mu.Unlock()
	select {
	case t.wanted <- struct{}{}:
	default:
	}
}

// Watch returns the changes that follow after, as they come, until ctx is done;
// Run has to be running. A watcher that is behind reads the log by itself and
// holds up nobody. The JSON of a change is shared by all who watch: it is not to be
// written to. It ends with ErrExpired or ErrAhead where the position is not in the feed
// any more or not yet, and with ErrRestored where the log came from another database; one
// that is away is waited for.
func (t *Tail) Watch(ctx context.Context, after Position, f Filter) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		t.watch(1)
		defer t.watch(-1)
		w := &watcher{tail: t, filter: f, at: after, history: -1}
		for ctx.Err() == nil {
			found, err := w.next(ctx)
			if err != nil {
				if ctx.Err() == nil {
					yield(Change{}, pg.Wrap("changes: watch", err))
				}
				return
			}
			for _, c := range found {
				if !yield(c, nil) {
					return
				}
			}
		}
	}
}

// watcher is one reader's way through the feed.
type watcher struct {
	tail    *Tail
	filter  Filter
	at      Position
	history int     // of the ring that at is known to belong to
	held    *Change // let through, and perhaps the last of its commit
	away    trouble // with what it reads by itself
}

// next returns what follows, waiting for it; none where it is to be asked again.
func (w *watcher) next(ctx context.Context) ([]Change, error) {
	some, next, history, grown, ok := w.tail.ring.after(w.at, MaxPage)
	if !ok || history != w.history {
		return w.catchUp(ctx, history, grown)
	}
	if next == w.at {
		select {
		case <-ctx.Done():
		case <-grown:
		}
		return nil, nil
	}
	return w.pass(some, next, &w.filter), nil
}

// pass goes on to next, over changes of which f lets through what it returns: one only
// when it is known whether it is the last of its commit.
func (w *watcher) pass(some []Change, next Position, f *Filter) (found []Change) {
	w.at = next
	for _, c := range some {
		if w.held != nil && w.held.Position.Commit != c.Position.Commit {
			found = w.release(found, true)
		}
		if f.names(&c) && f.matches(&c) {
			found = w.release(found, false)
			w.held = &c
		}
	}
	if w.held != nil && next.Compare(Position{Commit: w.held.Position.Commit}) >= 0 {
		found = w.release(found, true)
	}
	return found
}

func (w *watcher) release(found []Change, last bool) []Change {
	if w.held == nil {
		return found
	}
	w.held.Last = last
	found = append(found, *w.held)
	w.held = nil
	return found
}

// catchUp reads a page of the log, which also tells whether at is in it.
func (w *watcher) catchUp(ctx context.Context, history int, grown <-chan struct{}) ([]Change, error) {
	page, next, _, err := w.tail.page(ctx, &w.away, w.at, w.filter)
	if err != nil && !errors.Is(pg.Wrap("", err), fault.Unavailable) {
		return nil, err
	}
	if err == nil {
		w.history = history // at was in it
		w.away.over()
	}
	if err != nil || next == w.at { // away, or at the end: the ring will go on
		select {
		case <-ctx.Done():
		case <-grown:
		case <-time.After(w.tail.log.cfg.Idle):
		}
		return nil, nil
	}
	return w.pass(page, next, &Filter{}), nil // the server has applied it
}
