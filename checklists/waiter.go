package checklists

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// MaxWait is the longest that a [Waiter] waits.
const MaxWait = time.Minute

// Waiter lets claims wait until there is something to claim. It is safe for use
// by many goroutines and starts none.
type Waiter struct {
	store *Store
	hub   *pg.Hub

	mu    sync.Mutex
	turns map[string]*turn // by list
}

// turn is held by the one of those who wait for a list that looks: if it finds
// something the next looks as well, and otherwise they had all found nothing.
type turn struct {
	token chan struct{} // with room for one
	users int
}

// NewWaiter returns a Waiter that is woken by hub. Without one, and where
// notifications do not arrive, it looks every second.
func NewWaiter(s *Store, hub *pg.Hub) *Waiter {
	return &Waiter{store: s, hub: hub, turns: map[string]*turn{}}
}

// Claim is [Store.Claim], except that while nothing is ready, or the list is
// paused, it waits: until there is something, or for wait, or until ctx is done.
// The answer may then be without items, which is no error. What it claims while
// ctx ends it gives back. wait is from 0 to [MaxWait].
func (w *Waiter) Claim(ctx context.Context, list, worker string, n int, d, wait time.Duration) (Claim, error) {
	const op = "checklists: claim"
	if wait < 0 || wait > MaxWait {
		return Claim{}, pg.Wrap(op, pg.Refuse("wait", "%v; want 0s to %v", wait, MaxWait))
	}
	if pg.InTx(w.store.db) && wait > 0 {
		return Claim{}, pg.Wrap(op, pg.Refuse("wait", "%v in a transaction, which would see nothing new; want 0s", wait))
	}
	last := Claim{Items: []Item{}}
	look := func() error {
		c, err := w.look(ctx, list, worker, n, d)
		if err == nil {
			last = c
		}
		return err
	}
	err := look()
	switch {
	case errors.Is(err, errOver) && wait > 0:
		return last, nil
	case errors.Is(err, errOver):
		return last, pg.Wrap(op, ctx.Err())
	case err != nil || len(last.Items) > 0 || wait == 0:
		return last, err
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	t := w.join(list)
	defer w.leave(list, t)
	select {
	case t.token <- struct{}{}:
		defer func() { <-t.token }()
	case <-waiting.Done():
		return last, nil
	}
	// The subscription begins with a notice, so that nothing is missed between the
	// first look and it.
	b, err := newBell(w.hub)
	if err != nil {
		return Claim{}, pg.Wrap(op, err)
	}
	defer b.close()
	for err == nil && len(last.Items) == 0 && b.wait(waiting) {
		b.looking()
		err = look()
	}
	if errors.Is(err, errOver) {
		err = nil
	}
	return last, err
}

// errOver is of a look that came to nothing because the context of the claim ended; of the
// database it says nothing.
var errOver = errors.New("over")

// look claims once. A client that goes away in the middle of it would cost the
// items an attempt and the time of the lease: what it did not live to see is
// given back.
func (w *Waiter) look(ctx context.Context, list, worker string, n int, d time.Duration) (Claim, error) {
	if ctx.Err() != nil {
		return Claim{}, errOver
	}
	if pg.InTx(w.store.db) {
		return w.store.Claim(ctx, list, worker, n, d)
	}
	calm, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	c, err := w.store.Claim(calm, list, worker, n, d)
	if ctx.Err() == nil || len(c.Items) == 0 {
		return c, err
	}
	if _, err := w.store.Release(calm, c.Lease); err != nil && !errors.Is(err, ErrLost) {
		return Claim{}, err
	}
	return Claim{}, errOver
}

// patience is how long a statement may take of which the outcome is to be known.
const patience = 10 * time.Second

func (w *Waiter) join(list string) *turn {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.turns[list]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		w.turns[list] = t
	}
	t.users++
	return t
}

func (w *Waiter) leave(list string, t *turn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(w.turns, list)
	}
}
