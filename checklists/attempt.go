package checklists

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// RetryIn is err, returned by Do, with another wait than the list's backoff. It adds
// no attempts: an item that has used up its own is dead all the same.
func RetryIn(d time.Duration, err error) error {
	return &verdict{error: orUnsaid(err), outcome: failed, wait: max(d, 1)}
}

// Dead is err, returned by Do, for an item that is not to be tried again.
func Dead(err error) error { return &verdict{error: orUnsaid(err), outcome: failed, wait: -1} }

// Release is err, returned by Do, for an attempt that is not to count: the item is
// tried again after the first wait of the list's backoff.
func Release(err error) error { return &verdict{error: orUnsaid(err), outcome: putOff} }

func orUnsaid(err error) error {
	if err == nil {
		return errors.New("no reason given")
	}
	return err
}

// verdict is an error that says what becomes of the item.
type verdict struct {
	error
	outcome outcome
	wait    time.Duration
}

func (v *verdict) Unwrap() error { return v.error }

// outcome is what became of a task.
type outcome string

const (
	done     outcome = "done"
	failed   outcome = "failed"
	putOff   outcome = "put off"  // to be tried again as if it had not been, but not at once
	released outcome = "released" // as if it had never been claimed
	told     outcome = "told"     // it is on record already, or nobody is to know
)

// task is an item that a worker has.
type task struct {
	item   Item
	lease  *held
	lost   bool                    // its lease no longer holds it
	cancel context.CancelCauseFunc // nil where it does not run

	outcome outcome
	error   string
	wait    time.Duration // for failed: as in [Failure]
	ended   time.Time
	again   bool // it was told before, and nobody knows whether that was heard
}

// errStopped ends the handlers of a worker that stops.
var errStopped = errors.New("the worker is stopping")

// attempt runs the handler and sets the task's outcome, whatever the handler does.
func (w *shift) attempt(ctx context.Context, t *task) {
	returned := false
	defer func() {
		switch p := recover(); {
		case p != nil:
			t.failed(fmt.Errorf("panic: %v", p))
			w.cfg.Log.ErrorContext(ctx, "an attempt panicked", "list", w.cfg.List, "item", t.item.Name, "panic", p, "stack", string(debug.Stack()))
		case !returned:
			t.failed(errors.New("the handler ended its goroutine"))
		}
		w.ended <- t
	}()
	var err error
	limited, cancel := ctx, func() {}
	if w.cfg.Timeout > 0 {
		limited, cancel = context.WithTimeout(ctx, w.cfg.Timeout)
	}
	defer cancel()
	if w.cfg.DoTx != nil {
		err = w.attemptTx(limited, t)
	} else {
		t.outcome = done
		err = w.cfg.Do(limited, t.item)
	}
	if err != nil {
		if limited.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("took longer than %v: %w", w.cfg.Timeout, err)
		}
		t.failed(err)
		if ctx.Err() != nil {
			// It was not the item's fault. Of a lease that was lost there is nothing to
			// tell; what did not finish in time is as if it had never begun.
			t.outcome, t.error = told, ""
			if context.Cause(ctx) == errStopped {
				t.outcome = released
			}
		}
	}
	returned = true
}

// attemptTx runs the handler and ticks its item off in one transaction. Where the
// commit's answer was lost it may be done and an error is returned: to tell of a
// failure then touches nothing, because the lease holds the item no longer.
func (w *shift) attemptTx(ctx context.Context, t *task) error {
	begun := false
	t.outcome = told
	err := pg.BeginFunc(ctx, w.store.db, func(tx pgx.Tx) error {
		begun = true
		if err := w.cfg.DoTx(ctx, tx, t.item); err != nil {
			return err
		}
		_, err := w.store.WithTx(tx).Done(ctx, Lease{List: w.cfg.List, Token: t.lease.token}, t.item.Name)
		return err
	})
	if err != nil && !begun {
		return &verdict{error: err, outcome: released} // it was never tried
	}
	return err
}

func (t *task) failed(err error) {
	t.outcome, t.error, t.wait = failed, err.Error(), 0
	if v := (*verdict)(nil); errors.As(err, &v) {
		t.outcome, t.wait = v.outcome, v.wait
	}
}
