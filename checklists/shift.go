package checklists

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

const (
	atOnce    = 2                     // claims, and tellings, under way
	tellAt    = 100                   // results are told when there are so many,
	tellAfter = 20 * time.Millisecond // or the oldest has waited so long, or nothing runs
	lastWords = 3 * time.Second       // for handlers to end that were told to
)

// shift is one Run of a Worker. What it knows belongs to the goroutine of work;
// handlers and calls of the database run beside it and report to it.
type shift struct {
	*Worker
	bell *bell
	life context.Context // of handlers; it outlives that of Run
	end  context.CancelCauseFunc
	db   context.Context // of calls of the database
	hang context.CancelFunc

	queue   []*task
	running map[*task]bool
	untold  []*task
	leases  map[string]*held

	ended    chan *task
	answers  chan func() // what a call of the database found, to be run by work
	calls    sync.WaitGroup
	claiming int  // claims under way
	asked    int  // items that they ask for
	plenty   bool // the last claim got all that it asked for
	telling  int  // tellings under way
	extended bool // an extension is under way

	tellFrom   time.Time // not before: the last attempt failed
	extendFrom time.Time
	away       bool // the database is, and that was logged

	stopping bool
	graceEnd time.Time
	hurried  bool      // Grace is over as soon as it begins
	over     time.Time // no attempt to tell after it; set when nothing runs any more
	err      error     // why it stops
}

// held is a lease.
type held struct {
	token string
	until time.Time // at least; by our clock
	ended bool      // until has passed, and what ran was told
	tasks int       // that are not on record yet
}

func newShift(ctx context.Context, w *Worker, b *bell) *shift {
	s := &shift{
		Worker: w, bell: b, running: map[*task]bool{}, leases: map[string]*held{},
		ended:   make(chan *task, w.cfg.Parallel), // who ends late finds room
		answers: make(chan func(), 2*atOnce+1),    // for all calls of the database under way
	}
	s.life, s.end = context.WithCancelCause(context.WithoutCancel(ctx))
	s.db, s.hang = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// work runs until ctx is done and all is told that can be.
func (w *shift) work(ctx context.Context) error {
	defer w.calls.Wait()
	defer w.hang()
	defer w.end(errStopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	stopped, hurry := ctx.Done(), w.cfg.Hurry
	for {
		now := time.Now()
		w.expire(now)
		w.start()
		w.tell(now)
		w.extend(now)
		w.claim(now)
		if w.finished(now) {
			return w.leave()
		}
		timer.Reset(time.Until(w.next()))
		select {
		case t := <-w.ended:
			w.note(t)
			for range len(w.ended) {
				w.note(<-w.ended)
			}
		case found := <-w.answers:
			found()
		case <-w.bell.c():
			w.bell.rung()
		case <-timer.C:
		case <-stopped:
			stopped = nil
			w.stop(nil)
		case <-hurry:
			hurry = nil
			w.hurried = true
		}
	}
}

// stop starts nothing new, and gives back what was never started.
func (w *shift) stop(err error) {
	if w.err == nil {
		w.err = err
	}
	if w.stopping {
		return
	}
	w.stopping = true
	w.graceEnd = time.Now().Add(w.cfg.Grace)
	w.giveBack()
}

// giveBack releases what was never started.
func (w *shift) giveBack() {
	for _, t := range w.queue {
		t.outcome = released
		w.untold = append(w.untold, t)
	}
	w.queue = nil
}

// start runs handlers.
func (w *shift) start() {
	for len(w.queue) > 0 && len(w.running) < w.cfg.Parallel {
		t := w.queue[0]
		w.queue = w.queue[1:]
		var ctx context.Context
		ctx, t.cancel = context.WithCancelCause(w.life)
		w.running[t] = true
		go w.attempt(ctx, t)
	}
}

// note takes in what became of a task.
func (w *shift) note(t *task) {
	delete(w.running, t)
	t.cancel(nil)
	t.ended = time.Now()
	if t.outcome == told {
		w.forget(t)
		return
	}
	w.untold = append(w.untold, t)
}

// forget is for a task that is on record, or of which nothing can be told.
func (w *shift) forget(t *task) {
	if t.lease.tasks--; t.lease.tasks == 0 {
		delete(w.leases, t.lease.token)
	}
}

// expire ends what runs under leases that were not extended in time; somebody else
// may have the items now.
func (w *shift) expire(now time.Time) {
	for _, l := range w.leases {
		if now.After(l.until) && !l.ended {
			l.ended = true
			w.lose(l, nil)
		}
	}
}

// lose ends what is in hand under a lease, except items that it still holds.
func (w *shift) lose(l *held, still []string) {
	holds := make(map[string]bool, len(still))
	for _, item := range still {
		holds[item] = true
	}
	n := 0
	lost := func(t *task) bool { return t.lease == l && !t.lost && !holds[t.item.Name] }
	w.queue = slices.DeleteFunc(w.queue, func(t *task) bool {
		if !lost(t) {
			return false
		}
		n++
		w.forget(t)
		return true
	})
	for t := range w.running {
		if lost(t) {
			n++
			t.lost = true
			t.cancel(ErrLost)
		}
	}
	if n > 0 {
		w.cfg.Log.Warn("a lease was lost", "list", w.cfg.List, "items", n)
	}
}

// call runs a call of the database beside the shift, and then what do returned, in
// it.
func (w *shift) call(do func(context.Context) func()) {
	w.calls.Go(func() {
		ctx, cancel := context.WithTimeout(w.db, min(max(w.cfg.Lease/2, time.Second), patience))
		defer cancel()
		w.answers <- do(ctx)
	})
}

// inHand is how many items are claimed and not done.
func (w *shift) inHand() int { return len(w.queue) + len(w.running) }

// mayClaim reports whether less than half of a batch is in hand, or on its way, or
// handlers have nothing to do.
func (w *shift) mayClaim() bool {
	hungry := w.inHand()+w.asked < (w.cfg.Batch+1)/2 || len(w.queue) == 0 && len(w.running) < w.cfg.Parallel
	return hungry && !w.stopping && w.claiming < atOnce && len(w.untold) < tellAt+w.cfg.Batch
}

// claimAt is when to claim, if more may be claimed. A second claim only goes out
// where there is plenty.
func (w *shift) claimAt() time.Time {
	switch {
	case w.plenty:
		return time.Time{}
	case w.claiming > 0:
		return time.Now().Add(time.Minute)
	}
	return w.bell.due()
}

// claim takes more items.
func (w *shift) claim(now time.Time) {
	for w.mayClaim() && !now.Before(w.claimAt()) {
		n := max(w.cfg.Batch-w.inHand()-w.asked, 1)
		w.claiming++
		w.asked += n
		w.bell.looking()
		w.call(func(ctx context.Context) func() {
			c, err := w.store.Claim(ctx, w.cfg.List, w.cfg.Name, n, w.cfg.Lease)
			left := true
			if err == nil && len(c.Items) == 0 && w.cfg.UntilEmpty {
				left, err = w.store.anyLeft(ctx, w.cfg.List)
			}
			return func() { w.claimed(c, n, now, left, err) }
		})
	}
}

func (w *shift) claimed(c Claim, n int, began time.Time, left bool, err error) {
	w.claiming--
	w.asked -= n
	w.plenty = len(c.Items) == n
	if !w.answered(err) {
		return
	}
	if len(c.Items) == 0 {
		if !left {
			w.stop(nil)
		}
		return
	}
	w.bell.found()
	l := &held{token: c.Token, until: began.Add(w.cfg.Lease), tasks: len(c.Items)}
	w.leases[l.token] = l
	w.extendBy(began)
	for _, item := range c.Items {
		w.queue = append(w.queue, &task{item: item, lease: l})
	}
	if w.stopping { // it came too late
		w.giveBack()
	}
}

// answered reports whether the database did what was asked of it. Where it may
// later, the shift goes on; otherwise it ends.
func (w *shift) answered(err error) bool {
	if err == nil {
		if w.away {
			w.cfg.Log.Info("the database is back", "list", w.cfg.List)
		}
		w.away = false
		return true
	}
	if w.db.Err() != nil {
		return false
	}
	if pg.KindOf(err) != fault.Unavailable {
		w.stop(err)
		return false
	}
	if !w.away {
		w.cfg.Log.Warn("the database does not answer; trying again", "list", w.cfg.List, "error", err)
	}
	w.away = true
	return false
}

// tell tells what became of tasks: many at a time, but none waits for long.
func (w *shift) tell(now time.Time) {
	if len(w.untold) == 0 || w.telling == atOnce || now.Before(w.tellAt()) {
		return
	}
	w.telling++
	batch := w.untold
	w.untold = nil
	w.call(func(ctx context.Context) func() {
		lost, err := w.store.tell(ctx, w.cfg.List, batch)
		return func() { w.heard(batch, lost, err) }
	})
}

// tellAt is when what is untold is to be told.
func (w *shift) tellAt() time.Time {
	if len(w.untold) >= tellAt || len(w.running) == 0 || w.stopping {
		return w.tellFrom
	}
	return later(w.tellFrom, w.untold[0].ended.Add(tellAfter))
}

// heard takes in that tasks were told. What the database did not hear is told
// again while the leases live.
func (w *shift) heard(batch, lost []*task, err error) {
	w.telling--
	if w.answered(err) {
		for _, t := range lost {
			if !t.again { // else the first time may have been heard
				w.cfg.Log.Warn("what became of an item was not recorded: its lease was lost", "list", w.cfg.List, "item", t.item.Name, "outcome", t.outcome, "error", t.error)
			}
		}
		for _, t := range batch {
			w.forget(t)
		}
		return
	}
	now := time.Now()
	w.tellFrom = now.Add(100 * time.Millisecond)
	var keep []*task
	for _, t := range batch {
		if now.After(t.lease.until) || w.err != nil {
			w.unheard(t)
			continue
		}
		t.again = true
		keep = append(keep, t)
	}
	w.untold = append(keep, w.untold...)
}

// unheard gives up telling what became of a task.
func (w *shift) unheard(t *task) {
	w.cfg.Log.Error("what became of an item could not be recorded; it will come round again", "list", w.cfg.List, "item", t.item.Name, "outcome", t.outcome, "error", t.error)
	w.forget(t)
}

// extendBy makes the next extension due a third of the lease after a time.
func (w *shift) extendBy(began time.Time) {
	if at := began.Add(w.cfg.Lease / 3); len(w.leases) == 1 || at.Before(w.extendFrom) {
		w.extendFrom = at
	}
}

// extend extends all leases.
func (w *shift) extend(now time.Time) {
	if len(w.leases) == 0 || w.extended || now.Before(w.extendFrom) {
		return
	}
	w.extended = true
	leases := slices.Collect(maps.Values(w.leases))
	tokens := make([]string, len(leases))
	for i, l := range leases {
		tokens[i] = l.token
	}
	w.call(func(ctx context.Context) func() {
		holds, err := w.store.extendAll(ctx, w.cfg.List, tokens, w.cfg.Lease)
		return func() {
			w.extended = false
			if !w.answered(err) {
				w.extendFrom = time.Now().Add(min(w.cfg.Lease/20, time.Second))
				return
			}
			w.extendFrom = now.Add(w.cfg.Lease / 3)
			for _, l := range leases {
				// What is queued or runs is not told: where it is missing, it is lost.
				w.lose(l, holds[l.token])
				if len(holds[l.token]) > 0 {
					l.until, l.ended = now.Add(w.cfg.Lease), false
				}
			}
		}
	})
}

// next is when there is something to do, whatever happens.
func (w *shift) next() time.Time {
	next := time.Now().Add(time.Minute)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if w.mayClaim() {
		sooner(w.claimAt())
	}
	if len(w.untold) > 0 && w.telling < atOnce {
		sooner(w.tellAt())
	}
	if len(w.leases) > 0 && !w.extended {
		sooner(w.extendFrom)
	}
	for _, l := range w.leases {
		if !l.ended {
			sooner(l.until)
		}
	}
	switch {
	case !w.stopping:
	case !w.over.IsZero():
		sooner(w.over)
	case w.life.Err() == nil:
		sooner(w.graceEnd)
	default:
		sooner(w.graceEnd.Add(lastWords))
	}
	return next
}

// finished reports whether the shift may end. When Grace has passed it ends what
// runs.
func (w *shift) finished(now time.Time) bool {
	if !w.stopping {
		return false
	}
	if w.hurried && now.Before(w.graceEnd) {
		w.graceEnd = now
	}
	if !now.Before(w.graceEnd) {
		w.end(errStopped)
	}
	if len(w.running) > 0 && now.Before(w.graceEnd.Add(lastWords)) {
		return false
	}
	if w.over.IsZero() {
		w.over = now.Add(patience)
	}
	return len(w.untold) == 0 && w.telling+w.claiming == 0 || !now.Before(w.over)
}

// leave logs what could not be told and returns why the shift ended.
func (w *shift) leave() error {
	for _, t := range w.untold {
		w.unheard(t)
	}
	if n := len(w.running); n > 0 && w.err == nil {
		w.err = fmt.Errorf("%d of the attempts under way did not end when they were told to; their items come round again", n)
	}
	return w.err
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
