package pg

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/howdah-db/howdah/fault"
)

// Run writes what is put until ctx is done. Then it takes nothing new, writes
// what it has for at most DrainFor, answers the rest with Unavailable, and
// returns: nil if every value was decided by then, else an error that says how
// many were not written. A Batcher runs once.
func (b *Batcher[K, V, R]) Run(ctx context.Context) error {
	b.mu.Lock()
	if b.state != batcherNew {
		b.mu.Unlock()
		return Wrap(b.cfg.Name, errors.New("run: a batcher runs once"))
	}
	b.state = batcherRunning
	b.mu.Unlock()

	drain, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var workers sync.WaitGroup
	for range b.cfg.Parallel {
		workers.Go(func() { b.work(drain) })
	}

	<-ctx.Done()
	b.mu.Lock()
	b.state = batcherClosing
	unknown := b.stats.Unknown
	b.mu.Unlock()
	close(b.closing)
	late := time.AfterFunc(b.cfg.DrainFor, stop)
	workers.Wait()
	late.Stop()
	return b.end(unknown)
}

func (b *Batcher[K, V, R]) work(ctx context.Context) {
	for {
		lanes := b.next(ctx)
		if lanes == nil {
			return
		}
		if b.cfg.Compare != nil {
			slices.SortStableFunc(lanes, func(x, y *lane[K, V, R]) int { return b.cfg.Compare(x.key, y.key) })
		}
		var ps []*put[K, V, R]
		for _, l := range lanes {
			ps = append(ps, l.taken...)
		}
		b.write(ctx, ps)
		b.giveBack(lanes)
	}
}

// end answers whatever is left, and says how much that was.
func (b *Batcher[K, V, R]) end(unknownBefore uint64) error {
	b.mu.Lock()
	b.state = batcherEnded
	for e := b.rooms.Front(); e != nil; e = b.rooms.Front() {
		p := b.rooms.Remove(e).(*put[K, V, R])
		p.room = nil
		p.err, p.refused, p.decided = b.ended(), b.ended(), true
		if p.posted {
			close(p.taken)
		} else {
			close(p.done)
		}
	}
	var left []*put[K, V, R]
	for _, l := range b.lanes {
		left = append(left, l.waiting...)
	}
	clear(b.lanes)
	b.ready = nil
	b.mu.Unlock()

	left, _ = b.board(left) // without those that were withdrawn
	b.fail(left, errUnwritten)

	b.mu.Lock()
	defer b.mu.Unlock()
	switch unknown := b.stats.Unknown - unknownBefore; {
	case b.missed == 0 && unknown == 0:
		return nil
	case unknown == 0:
		return Wrap(b.cfg.Name, fmt.Errorf("%d values were not written: %w", b.missed, fault.Unavailable))
	default:
		return Wrap(b.cfg.Name, fmt.Errorf("%d values were not written, and of %d it is unknown: %w", b.missed, unknown, fault.Unavailable))
	}
}

// write brings ps, which are sorted by key, to a decision: it commits them, in one
// transaction or several, or fails them.
func (b *Batcher[K, V, R]) write(ctx context.Context, ps []*put[K, V, R]) {
	var seq uint64
	var failing time.Time // since when, zero if not
	open := false         // an attempt may have committed: it must be repeated as it was
	for try := 0; ; try++ {
		if !open {
			ps, seq = b.board(ps)
		}
		if len(ps) == 0 {
			return
		}
		start := time.Now()
		batch, results, refused := batchOf(b.id, seq, ps)
		outcome, err := b.attempt(ctx, batch)
		switch {
		case outcome == committed:
			if try > 0 {
				b.log.Info("written after repeats", "values", len(ps), "repeats", try)
			}
			b.succeed(ps, results, refused, time.Since(start))
			return
		case outcome == rejected && open:
			// An attempt before may have committed: what its repeat runs into says
			// nothing of the values, and halves of it would be written again.
			b.fail(ps, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
			return
		case outcome == rejected && ofTheStatement(err):
			b.fail(ps, err)
			return
		case outcome == rejected && len(ps) > 1:
			b.mu.Lock()
			b.stats.Halvings++
			b.mu.Unlock()
			b.ground(ps)
			half := len(ps) / 2 // the first of them goes first: values of one key stay in order
			b.write(ctx, ps[:half])
			b.write(ctx, ps[half:])
			return
		case outcome == rejected, outcome == hopeless && !open:
			b.fail(ps, err)
			return
		case outcome == hopeless, outcome == unknown && !b.cfg.Idempotent:
			b.fail(ps, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
			return
		}

		if open = open || outcome == unknown; !open {
			b.ground(ps)
		}
		if failing.IsZero() {
			failing = start
		}
		b.mu.Lock()
		b.stats.Retries++
		b.mu.Unlock()
		b.log.Warn("flush failed, repeating", "values", len(ps), "repeat", try+1, "error", err)
		if time.Since(failing) < b.cfg.RetryFor && b.pause(ctx, try) {
			continue
		}
		if open {
			b.fail(ps, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
			return
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%w; last: %w", errUnwritten, err)
		}
		ps, _ = b.board(ps) // without those that were withdrawn
		b.fail(ps, err)
		return
	}
}

// batchOf groups ps, which are sorted by key, by key; results and refused are those
// of the entries, in the order of ps.
func batchOf[K comparable, V, R any](writer string, seq uint64, ps []*put[K, V, R]) (batch Batch[K, V, R], results []R, refused []error) {
	values := make([]V, len(ps))
	results = make([]R, len(ps))
	refused = make([]error, len(ps))
	for i, p := range ps {
		values[i] = p.value
	}
	batch.Writer, batch.Seq = writer, seq
	for from, to := 0, 1; from < len(ps); to++ {
		if to < len(ps) && ps[to].key == ps[from].key {
			continue
		}
		batch.Entries = append(batch.Entries, Entry[K, V, R]{
			Key:     ps[from].key,
			Values:  values[from:to:to],
			Results: results[from:to:to],
			Errors:  refused[from:to:to],
		})
		from = to
	}
	return batch, results, refused
}

// pause waits 50 ms × 2^try ± half of it, at most 5 s, and less when Run is told to
// end meanwhile; false when ctx ended first.
func (b *Batcher[K, V, R]) pause(ctx context.Context, try int) bool {
	d := min(50*time.Millisecond<<min(try, 10), 5*time.Second)
	t := time.NewTimer(min(d/2+rand.N(d), 5*time.Second))
	defer t.Stop()
	var closing <-chan struct{}
	select {
	case <-b.closing: // no news
	default:
		closing = b.closing
	}
	select {
	case <-ctx.Done():
		return false
	case <-closing:
	case <-t.C:
	}
	return true
}
