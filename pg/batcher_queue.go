package pg

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/howdah-db/howdah/fault"
)

// put is one value on its way. All but key, value, size and the channels is
// guarded by Batcher.mu until done is closed.
type put[K comparable, V, R any] struct {
	key    K
	value  V
	size   int
	posted bool // by Post: nobody waits

	room    *list.Element // its place among those that wait for room
	taken   chan struct{} // closed when a Post that had to wait was taken, or refused
	refused error
	era     *era

	flying  bool          // in a transaction whose outcome is open
	gone    bool          // its caller has left
	decided bool          // result and err are final
	done    chan struct{} // closed after decided; nil of a Post
	result  R
	err     error
}

// lane is the queue of one key. It is in Batcher.ready, or in a flush, never both.
type lane[K comparable, V, R any] struct {
	key     K
	taken   []*put[K, V, R] // by the flush that the lane is in
	waiting []*put[K, V, R]
	bytes   int // of waiting
	busy    bool
}

// era groups the values taken between two Syncs.
type era struct {
	undecided int
	done      chan struct{}
}

func newEra() *era { return &era{done: make(chan struct{})} }

// admit takes p into memory or gives it a place among those that wait for room.
func (b *Batcher[K, V, R]) admit(ctx context.Context, p *put[K, V, R]) error {
	if err := ctx.Err(); err != nil {
		return Wrap(b.cfg.Name, err)
	}
	if most := min(b.cfg.MaxBatchBytes, b.cfg.MaxPendingBytes); p.size > most {
		return Wrap(b.cfg.Name, fmt.Errorf("a value of %d bytes; at most %d are possible: %w", p.size, most, fault.Exhausted))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.state >= batcherClosing:
		return b.ended()
	case b.rooms.Len() == 0 && b.fits(p): // those that came first go first
		b.enqueue(p)
	default:
		if p.posted {
			p.taken = make(chan struct{})
		}
		p.room = b.rooms.PushBack(p)
	}
	return nil
}

func (b *Batcher[K, V, R]) ended() error {
	return Wrap(b.cfg.Name, fmt.Errorf("ended: %w", fault.Unavailable))
}

func (b *Batcher[K, V, R]) fits(p *put[K, V, R]) bool {
	return b.stats.Pending < b.cfg.MaxPending && b.stats.PendingBytes+p.size <= b.cfg.MaxPendingBytes
}

// enqueue puts p at the end of its lane.
func (b *Batcher[K, V, R]) enqueue(p *put[K, V, R]) {
	b.stats.Pending++
	b.stats.PendingBytes += p.size
	p.era = b.era
	p.era.undecided++
	l := b.lanes[p.key]
	if l == nil {
		l = &lane[K, V, R]{key: p.key}
		b.lanes[p.key] = l
	}
	l.waiting = append(l.waiting, p)
	l.bytes += p.size
	if l.busy {
		return // its flush will make it ready
	}
	if len(l.waiting) == 1 {
		b.makeReady(l)
	}
	b.queued++
	b.qbytes += p.size
	b.signal()
}

func (b *Batcher[K, V, R]) makeReady(l *lane[K, V, R]) {
	if len(b.ready) == 0 && b.cfg.Every > 0 {
		b.since = time.Now()
	}
	b.ready = append(b.ready, l)
}

func (b *Batcher[K, V, R]) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// leave withdraws p, whose caller's ctx has ended, unless it has been decided.
func (b *Batcher[K, V, R]) leave(ctx context.Context, p *put[K, V, R]) (R, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.decided {
		return p.result, p.err
	}
	// It keeps its place in its lane, and its share of the room, until a flush
	// comes by: taking it out of the middle of a long lane would cost too much.
	p.gone = true
	b.forgetRoom(p)
	err := ctx.Err()
	if p.flying {
		err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	var none R
	return none, Wrap(b.cfg.Name, err)
}

// abandon is leave for a Post: once it has been taken it stays.
func (b *Batcher[K, V, R]) abandon(ctx context.Context, p *put[K, V, R]) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.room == nil {
		return p.refused
	}
	b.forgetRoom(p)
	return Wrap(b.cfg.Name, ctx.Err())
}

func (b *Batcher[K, V, R]) forgetRoom(p *put[K, V, R]) {
	if p.room != nil {
		b.rooms.Remove(p.room)
		p.room = nil
		b.stats.Withdrawn++
		b.letIn()
	}
}

// next waits for something to flush and takes it; nil when there will be nothing
// more, or ctx ended.
func (b *Batcher[K, V, R]) next(ctx context.Context) []*lane[K, V, R] {
	closing := b.closing
	for {
		b.mu.Lock()
		wait, due := b.due()
		if due {
			b.gather()
			lanes := b.take()
			if len(b.ready) > 0 {
				b.signal() // for another worker
			}
			b.mu.Unlock()
			if lanes == nil {
				continue // another worker was faster
			}
			return lanes
		}
		last := b.state >= batcherClosing // what is in flight is seen to by who flies it
		b.mu.Unlock()
		if last || !b.sleep(ctx, wait, closing) {
			return nil
		}
	}
}

// sleep waits for a signal, at most d if d is not 0; false when ctx has ended.
func (b *Batcher[K, V, R]) sleep(ctx context.Context, d time.Duration, closing <-chan struct{}) bool {
	var late <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-b.wake:
	case <-late:
	case <-closing:
	case <-ctx.Done():
		return false
	}
	return true
}

// due reports whether to flush now; if not, how long to wait for company, or 0
// when there is nothing to flush.
func (b *Batcher[K, V, R]) due() (wait time.Duration, due bool) {
	if len(b.ready) == 0 {
		return 0, false
	}
	hurry := b.state >= batcherClosing || len(b.eras) > 0 || b.rooms.Len() > 0 ||
		b.queued >= b.cfg.MaxBatch || b.qbytes >= b.cfg.MaxBatchBytes
	if b.cfg.Every > 0 && !hurry {
		if wait = b.cfg.Every - time.Since(b.since); wait > 0 {
			return wait, false
		}
	}
	return 0, true
}

// gather yields the processor for as long as that brings more values. The
// callers whose commit has just been answered are runnable at this moment and
// most of them come again: without this the first of them would fly alone and
// every second transaction would be a small one.
func (b *Batcher[K, V, R]) gather() {
	for idle := 0; b.cfg.Every == 0 && b.queued < b.cfg.MaxBatch && idle < 2; idle++ {
		before := b.queued
		b.mu.Unlock()
		runtime.Gosched()
		b.mu.Lock()
		if b.queued > before {
			idle = -1
		}
	}
}

// take makes a batch of the lanes that have waited longest.
func (b *Batcher[K, V, R]) take() []*lane[K, V, R] {
	var lanes []*lane[K, V, R]
	count, bytes := 0, 0
	for len(b.ready) > 0 {
		l := b.ready[0]
		n, before := 0, bytes
		for _, p := range l.waiting {
			if count == b.cfg.MaxBatch || count > 0 && bytes+p.size > b.cfg.MaxBatchBytes {
				break
			}
			n, count, bytes = n+1, count+1, bytes+p.size
		}
		if n == 0 {
			break
		}
		b.queued -= len(l.waiting)
		b.qbytes -= l.bytes
		l.taken, l.waiting, l.busy = l.waiting[:n:n], l.waiting[n:], true
		l.bytes -= bytes - before
		b.ready[0] = nil
		b.ready = b.ready[1:]
		lanes = append(lanes, l)
	}
	return lanes
}

// giveBack ends the flush of lanes.
func (b *Batcher[K, V, R]) giveBack(lanes []*lane[K, V, R]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range lanes {
		clear(l.taken) // shares its memory with what still waits
		l.taken, l.busy = nil, false
		if len(l.waiting) == 0 {
			delete(b.lanes, l.key)
			continue
		}
		b.makeReady(l)
		b.queued += len(l.waiting)
		b.qbytes += l.bytes
	}
	if len(b.ready) > 0 {
		b.signal()
	}
}

// board prepares ps for an attempt: values whose caller has left are dropped, the
// others cannot be withdrawn until they are grounded.
func (b *Batcher[K, V, R]) board(ps []*put[K, V, R]) (flying []*put[K, V, R], seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	flying = make([]*put[K, V, R], 0, len(ps))
	for _, p := range ps {
		if p.gone {
			b.stats.Withdrawn++
			b.release(p)
			continue
		}
		p.flying = true
		flying = append(flying, p)
	}
	b.seq++
	return flying, b.seq
}

// ground says that ps are certainly not in a transaction any more.
func (b *Batcher[K, V, R]) ground(ps []*put[K, V, R]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range ps {
		p.flying = false
	}
}

// errUnwritten is the reason of those that are left when Run ends.
var errUnwritten = fmt.Errorf("ended before it was written: %w", fault.Unavailable)

// fail answers ps with err.
func (b *Batcher[K, V, R]) fail(ps []*put[K, V, R], err error) {
	if len(ps) == 0 {
		return
	}
	err = Wrap(b.cfg.Name, err)
	b.tell(ps, func(int) error { return err })
	b.mu.Lock()
	for _, p := range ps {
		p.err = err
		b.release(p)
	}
	switch n := uint64(len(ps)); {
	case errors.Is(err, ErrOutcomeUnknown):
		b.stats.Unknown += n
	default:
		b.stats.Failed += n
	}
	if errors.Is(err, errUnwritten) {
		b.missed += len(ps)
	}
	b.mu.Unlock()
	answer(ps)
}

// succeed answers ps with their results, or with why Flush left them out, after the
// commit that took since.
func (b *Batcher[K, V, R]) succeed(ps []*put[K, V, R], results []R, refused []error, took time.Duration) {
	b.tell(ps, func(i int) error { return refused[i] })
	b.mu.Lock()
	for i, p := range ps {
		if p.result, p.err = results[i], refused[i]; p.err != nil {
			b.stats.Failed++
		} else {
			b.stats.Written++
		}
		b.release(p)
	}
	b.stats.Flushes++
	b.stats.FlushTime += took
	b.stats.Largest = max(b.stats.Largest, len(ps))
	b.mu.Unlock()
	answer(ps)
}

// tell says of those of ps that were posted why they were not written.
func (b *Batcher[K, V, R]) tell(ps []*put[K, V, R], why func(i int) error) {
	posts := 0
	var last error
	for i, p := range ps {
		switch err := why(i); {
		case !p.posted || err == nil:
		case b.cfg.Failed != nil:
			b.cfg.Failed(p.key, p.value, err)
		default:
			posts, last = posts+1, err
		}
	}
	if posts > 0 {
		b.log.Error("posted values were not written", "values", posts, "error", last)
	}
}

func answer[K comparable, V, R any](ps []*put[K, V, R]) {
	for _, p := range ps {
		if p.done != nil {
			close(p.done)
		}
	}
}

// release makes p decided.
func (b *Batcher[K, V, R]) release(p *put[K, V, R]) {
	p.decided, p.flying = true, false
	b.stats.Pending--
	b.stats.PendingBytes -= p.size
	p.era.undecided--
	if p.era.undecided == 0 && p.era != b.era {
		close(p.era.done)
		b.eras = slices.DeleteFunc(b.eras, func(e *era) bool { return e == p.era })
	}
	b.letIn()
}

// letIn takes those that wait for room, while there is some.
func (b *Batcher[K, V, R]) letIn() {
	for b.rooms.Len() > 0 {
		w := b.rooms.Front().Value.(*put[K, V, R])
		if !b.fits(w) {
			return
		}
		b.rooms.Remove(w.room)
		w.room = nil
		b.enqueue(w)
		if w.taken != nil {
			close(w.taken)
		}
	}
}

// closeEra returns the eras that a Sync must wait for.
func (b *Batcher[K, V, R]) closeEra() []*era {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.era.undecided > 0 {
		b.eras = append(b.eras, b.era)
		b.era = newEra()
	}
	b.signal()
	return slices.Clone(b.eras)
}
