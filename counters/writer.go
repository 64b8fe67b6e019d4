package counters

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// WriterConfig configures a [Writer]. The zero WriterConfig is right for most.
type WriterConfig struct {
	Fast      bool          // calls return when their events are in memory, not when they are committed
	MaxEvents int           // in memory, waiting and in flight; then calls wait for room; default 65,536
	Every     time.Duration // how long a flush waits for company; default 0: it starts when no other runs
	RetryFor  time.Duration // how long what passes (a restart, a failover) is waited for; default 6 days
	Log       *slog.Logger  // default slog.Default()
}

// Writer is the events of many callers, added up in memory before they are written:
// while Run runs, those that come at the same time share a transaction, in which each
// row is written once, whatever their number. They are applied in the order in which
// they came, each exactly once, also where the connection is lost on the way: no ID is
// needed for that. What is wrong with one fails no other. While Run does not run, and
// in a transaction, all calls are those of the Store. DESIGN.md says how it is done.
//
// A call returns after the commit that holds its events, or with its own error. Where
// its ctx ends first, nothing was written, unless the error is [pg.ErrOutcomeUnknown];
// an ID makes it safe to repeat.
//
// A Fast Writer returns when it has taken the events into memory, at most MaxEvents of
// them; where there is no room for more, it waits, and is Exhausted when its ctx ends.
// What becomes of them is told by [Writer.Flush], the log, and [Writer.Stats]. A crash
// loses those for which Flush had not returned.
type Writer struct {
	s       *Store
	cfg     WriterConfig
	id      pgtype.UUID // of its receipts
	lane    uint32      // of the slots it adds to
	batcher *pg.Batcher[struct{}, load, answer]
	running atomic.Bool
	last    outcome // of the last flush that came to its end

	mu      sync.Mutex
	unheard int   // events of a Fast Writer that failed, of which Flush has not told
	first   error // why the first of them did
	missed  int   // those that the end of Run left unwritten
}

// load is what one call brings.
type load struct {
	t      *table
	events []prepared
	each   bool // stands or falls alone; else all together
}

// answer is what became of a load.
type answer struct {
	applied int
	each    []Outcome
}

// Outcome is what became of one event of [Writer.ApplyEach].
type Outcome struct {
	Applied bool // else its ID was seen before, or there is an Err
	Err     error
}

const (
	room     = 1 << 10 // bytes of memory that an event counts for, if its texts are not longer
	maxFlush = 8 << 20 // of such bytes in one transaction
)

// NewWriter returns a Writer on s. It starts nothing. In a transaction nothing is
// to be shared: there all calls are those of the Store, and Run fails.
func NewWriter(s *Store, cfg WriterConfig) *Writer { return newWriter(s, cfg, maxFlush/room) }

func newWriter(s *Store, cfg WriterConfig, maxBatch int) *Writer {
	cfg.MaxEvents = max(1, cmp.Or(cfg.MaxEvents, 65_536))
	cfg.RetryFor = cmp.Or(cfg.RetryFor, keptReceipts-day*time.Second) // or it would find its receipt gone
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	w := &Writer{s: s, cfg: cfg, lane: newLane()}
	rand.Read(w.id.Bytes[:]) // it never fails
	w.id.Valid = true
	if pool, ok := s.db.(*pgxpool.Pool); ok {
		w.batcher = pg.NewBatcher(pg.BatcherConfig[struct{}, load, answer]{
			Name: "writer", Pool: pool, Flush: w.flush, Idempotent: true, Failed: w.failed, Size: sizeOf,
			MaxBatch: maxBatch, MaxBatchBytes: maxFlush,
			MaxPending: cfg.MaxEvents, MaxPendingBytes: max(maxFlush, cfg.MaxEvents*room),
			Every: cfg.Every, RetryFor: cfg.RetryFor, Log: cfg.Log,
		})
	}
	return w
}

func sizeOf(_ struct{}, l load) (size int) {
	for _, e := range l.events {
		n := len(e.Key) + len(e.ID)
		for _, f := range e.fields {
			n += len(f.path) + textOf(f.other)
		}
		size += max(n, room)
	}
	return size
}

// Run commits what is called until ctx is done, and then for up to 10 s what it has
// taken. It returns an error that says how many events were not written, if any were
// not. A Writer runs once.
func (w *Writer) Run(ctx context.Context) error {
	const op = "counters: writer"
	if w.batcher == nil {
		return pg.Wrap(op, errors.New("run: the Store is not on a pool"))
	}
	defer context.AfterFunc(ctx, func() { w.running.Store(false) })()
	w.running.Store(ctx.Err() == nil)
	err := w.batcher.Run(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.missed > 0 {
		err = fmt.Errorf("events that were taken and not written: %d: %w", w.missed, err)
	}
	return pg.Wrap(op, err)
}

// Apply is [Store.Apply]. A Fast Writer returns how many it has taken.
func (w *Writer) Apply(ctx context.Context, events ...Event) (applied int, err error) {
	applied, err = w.apply(ctx, events)
	return applied, pg.Wrap("counters: apply", err)
}

// Track is [Store.Track].
func (w *Writer) Track(ctx context.Context, key string, at time.Time, v Values) error {
	_, err := w.apply(ctx, []Event{{Key: key, At: at, Values: v}})
	return pg.Wrap("counters: track", err)
}

// Assert is [Store.Assert].
func (w *Writer) Assert(ctx context.Context, key string, at time.Time, v Values) error {
	_, err := w.apply(ctx, []Event{{Op: OpPut, Key: key, At: at, Values: v}})
	return pg.Wrap("counters: assert", err)
}

func (w *Writer) apply(ctx context.Context, events []Event) (int, error) {
	t, all, err := w.prepare(ctx, events)
	if err != nil {
		return 0, err
	}
	l := load{t: t, events: all}
	if !w.shares(l) {
		if err := w.caughtUp(ctx); err != nil {
			return 0, err
		}
		return w.s.apply(ctx, events)
	}
	if !w.cfg.Fast {
		a, err := w.batcher.Put(ctx, struct{}{}, l)
		return a.applied, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := w.batcher.Post(ctx, struct{}{}, l); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no room for more than %d events: %w: %w", w.cfg.MaxEvents, fault.Exhausted, err)
		}
		return 0, err
	}
	return len(events), nil
}

// ApplyEach applies events in their order, each by itself: what is wrong with one of
// them fails no other. It returns what became of each. A Fast Writer waits for the
// commit, too.
func (w *Writer) ApplyEach(ctx context.Context, events ...Event) []Outcome {
	outcomes := make([]Outcome, len(events))
	l := load{each: true}
	var at []int // where in outcomes the events of l are
	for i := range events {
		t, one, err := w.prepare(ctx, events[i:i+1])
		if err != nil {
			outcomes[i].Err = pg.Wrap("counters: apply", err)
			continue
		}
		l.t, l.events, at = t, append(l.events, one[0]), append(at, i)
	}
	if !w.shares(l) {
		err := w.caughtUp(ctx)
		for _, i := range at {
			n := 0
			if err == nil {
				n, outcomes[i].Err = w.s.Apply(ctx, events[i])
			} else {
				outcomes[i].Err = pg.Wrap("counters: apply", err)
			}
			outcomes[i].Applied = n == 1
		}
		return outcomes
	}
	a, err := w.batcher.Put(ctx, struct{}{}, l)
	for n, i := range at {
		if err == nil {
			outcomes[i] = a.each[n]
		} else {
			outcomes[i].Err = err
		}
		outcomes[i].Err = pg.Wrap("counters: apply", outcomes[i].Err)
	}
	return outcomes
}

// prepare is that of the Store, which now and then looks the table up. A database that
// is away is waited for as it is for a commit.
func (w *Writer) prepare(ctx context.Context, events []Event) (t *table, all []prepared, err error) {
	began := time.Now()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		t, all, err = w.s.prepare(ctx, events)
		away := err != nil && pg.KindOf(err) == fault.Unavailable
		if !away || !w.running.Load() || time.Since(began) > w.cfg.RetryFor {
			return t, all, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, err
		case <-time.After(pause):
		}
	}
}

// shares reports whether a load is to share a transaction. One that is larger than a
// transaction has one to itself.
func (w *Writer) shares(l load) bool {
	return w.running.Load() && len(l.events) > 0 && sizeOf(struct{}{}, l) <= maxFlush
}

// caughtUp waits, before the Store is called, for what the caller may have left in
// memory: it came first.
func (w *Writer) caughtUp(ctx context.Context) error {
	if !w.cfg.Fast || w.batcher == nil {
		return nil
	}
	return w.batcher.Sync(ctx)
}

// Flush returns when everything that was taken before has been committed. It returns
// an error that says how many events were not, since the last Flush, and why the first
// of them was not.
func (w *Writer) Flush(ctx context.Context) error {
	const op = "counters: flush"
	if w.batcher == nil {
		return nil
	}
	if err := w.batcher.Sync(ctx); err != nil {
		return pg.Wrap(op, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n, first := w.unheard, w.first
	w.unheard, w.first = 0, nil
	if n == 0 {
		return nil
	}
	return pg.Wrap(op, fmt.Errorf("events that were not written: %d, the first of them: %w", n, first))
}

// failed hears of a load that a Fast Writer took and that was not written.
func (w *Writer) failed(_ struct{}, l load, err error) {
	for _, e := range l.events {
		w.cfg.Log.Error("event was not written", "op", either(e.Op, OpAdd), "key", e.Key, "at", e.At, "id", e.ID, "values", flat(e.fields), "error", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unheard == 0 {
		w.first = err
	}
	w.unheard += len(l.events)
	w.missed += len(l.events)
}

// Stats returns counts since the Writer was made; a value is what one call brought.
func (w *Writer) Stats() pg.BatcherStats {
	if w.batcher == nil {
		return pg.BatcherStats{}
	}
	return w.batcher.Stats()
}
