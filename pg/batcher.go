package pg

import (
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// BatcherConfig configures a [Batcher]. Pool and Flush are required.
type BatcherConfig[K comparable, V, R any] struct {
	Name string // in errors and logs; default "pg: batcher"
	Pool *pgxpool.Pool

	// Flush writes batch inside tx, which the Batcher began and will commit, and
	// fills in the results. It may run several times for the same values, each
	// time in a transaction of its own of which at most one commits, so it must
	// not change values or anything else outside tx.
	Flush func(ctx context.Context, tx pgx.Tx, batch Batch[K, V, R]) error

	// Compare orders the keys of a batch, so that transactions which lock rows
	// in that order cannot deadlock. Without it keys come in order of arrival,
	// and one flush runs at a time.
	Compare func(a, b K) int

	// Idempotent says that a Flush repeated with the same [Batch.Writer] and Seq
	// does no harm if the first one did commit: it is then repeated, not asked
	// about, when the connection is lost in COMMIT. An outcome is unknown only
	// where every repeat fails.
	Idempotent bool

	// Failed is called once for each value of [Batcher.Post] that was not
	// written, or of which that is unknown. It must not block; default: a log entry.
	Failed func(key K, value V, err error)

	Size            func(key K, value V) int // bytes, for the two limits in bytes; default none
	MaxBatch        int                      // values in one transaction; default 1,000
	MaxBatchBytes   int                      // default 8 MiB
	MaxPending      int                      // values in memory, those in flight included; then Put and Post block; default 10,000
	MaxPendingBytes int                      // default 64 MiB

	Every    time.Duration // how long a flush waits for company; default 0: it starts when no other runs
	Parallel int           // flushes at a time, never two with the same key; default 1
	Timeout  time.Duration // of one attempt, so that a silent network is noticed; default 1 minute
	RetryFor time.Duration // how long passing failures are repeated; default: until Run ends
	DrainFor time.Duration // how long Run goes on writing after its context ended; default 10 s
	Log      *slog.Logger  // default slog.Default()
}

// Batch is what one transaction writes: each key once.
type Batch[K comparable, V, R any] struct {
	// Writer is a name that no other Batcher has, in whatever process. Seq counts
	// its attempts, upwards from 1. Only a repeat after an unknown outcome has the
	// Seq of its first attempt, and exactly its entries: a Flush that records
	// (Writer, Seq) in its transaction can tell that it had committed.
	Writer  string
	Seq     uint64
	Entries []Entry[K, V, R]
}

// Entry is a key and what is to be written to it.
type Entry[K comparable, V, R any] struct {
	Key     K
	Values  []V // in order of arrival
	Results []R // zero; Flush sets Results[i] to what Put(Key, Values[i]) returns

	// Errors are nil; Flush sets Errors[i] where it left Values[i] alone out of its
	// transaction: then that is what Put returns, as it is.
	Errors []error
}

// Batcher is group commit: values put by many callers are written together, in
// one transaction, by whoever's turn it is. A flush starts as soon as none runs
// and takes everything that came meanwhile, so that batches grow with the load
// and a lone caller waits for nobody.
//
// Every caller is answered once, after the commit that holds its value, or with
// its own error: a value that makes a transaction fail is found by halving and
// the others are written without it. Failures that pass (a deadlock, a restart,
// a failover) are repeated, each value written exactly once or not at all.
// BATCHER.md says how.
type Batcher[K comparable, V, R any] struct {
	cfg BatcherConfig[K, V, R]
	log *slog.Logger
	id  string // see Batch.Writer

	wake    chan struct{} // one signal: there may be something to flush
	closing chan struct{} // closed when Run's context has ended

	mu     sync.Mutex
	state  batcherState
	lanes  map[K]*lane[K, V, R] // of every key with undecided values
	ready  []*lane[K, V, R]     // those with waiting values and none in a flush, in order of arrival
	since  time.Time            // when ready was last empty
	queued int                  // values waiting in ready
	qbytes int                  // their size
	rooms  list.List            // of *put: those that found the Batcher full
	era    *era                 // to which new values belong
	eras   []*era               // those that a Sync has closed and that have undecided values
	seq    uint64
	missed int // values not written when Run ended
	stats  BatcherStats
}

type batcherState int

const (
	batcherNew batcherState = iota
	batcherRunning
	batcherClosing // takes nothing new, writes what it has
	batcherEnded
)

// NewBatcher returns a Batcher. It starts nothing: values are kept until Run
// writes them.
func NewBatcher[K comparable, V, R any](cfg BatcherConfig[K, V, R]) *Batcher[K, V, R] {
	cfg.Name = cmp.Or(cfg.Name, "pg: batcher")
	cfg.MaxBatch = max(1, cmp.Or(cfg.MaxBatch, 1_000))
	cfg.MaxPending = max(1, cmp.Or(cfg.MaxPending, 10_000))
	cfg.MaxBatchBytes = cmp.Or(cfg.MaxBatchBytes, 8<<20)
	cfg.MaxPendingBytes = cmp.Or(cfg.MaxPendingBytes, 64<<20)
	if cfg.Size == nil {
		cfg.Size = func(K, V) int { return 0 }
	}
	cfg.Parallel = max(1, cfg.Parallel)
	if cfg.Compare == nil {
		cfg.Parallel = 1
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute)
	cfg.RetryFor = cmp.Or(cfg.RetryFor, time.Duration(math.MaxInt64))
	cfg.DrainFor = cmp.Or(cfg.DrainFor, 10*time.Second)
	return &Batcher[K, V, R]{
		cfg:     cfg,
		id:      rand.Text(),
		log:     cmp.Or(cfg.Log, slog.Default()).With("batcher", cfg.Name),
		wake:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		lanes:   make(map[K]*lane[K, V, R]),
		era:     newEra(),
	}
}

// Put writes value to key and returns, after the commit, the result that Flush
// gave it. It blocks while the Batcher is full, and before Run has started.
//
// On failure nothing was written, unless the error is [ErrOutcomeUnknown]. When
// ctx ends the value is withdrawn and the error is that of ctx; if a transaction
// carries it at that moment, it may still be written and the error is
// ErrOutcomeUnknown as well. A value that is larger than a batch may be is
// Exhausted. Once Run has been told to end, Put returns Unavailable.
func (b *Batcher[K, V, R]) Put(ctx context.Context, key K, value V) (R, error) {
	p := &put[K, V, R]{key: key, value: value, size: b.cfg.Size(key, value), done: make(chan struct{})}
	if err := b.admit(ctx, p); err != nil {
		return p.result, err
	}
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return b.leave(ctx, p)
	}
}

// Post takes value into memory and returns; it blocks only while the Batcher is
// full. A nil error says that the value will be written or that
// [BatcherConfig.Failed] will hear of it. On failure it was not taken: ctx ended,
// the value is larger than a batch may be (Exhausted), or Run has been told to
// end (Unavailable).
func (b *Batcher[K, V, R]) Post(ctx context.Context, key K, value V) error {
	p := &put[K, V, R]{key: key, value: value, size: b.cfg.Size(key, value), posted: true}
	if err := b.admit(ctx, p); err != nil {
		return err
	}
	if p.taken == nil {
		return nil
	}
	select {
	case <-p.taken:
		return p.refused
	case <-ctx.Done():
		return b.abandon(ctx, p)
	}
}

// Sync returns when every value that was taken before has been decided: it was
// written, or its caller or [BatcherConfig.Failed] knows that it was not. It
// hastens flushes that wait for company. It fails only when ctx ends first.
func (b *Batcher[K, V, R]) Sync(ctx context.Context) error {
	for _, e := range b.closeEra() {
		select {
		case <-e.done:
		case <-ctx.Done():
			return Wrap(b.cfg.Name, ctx.Err())
		}
	}
	return nil
}

// Pending returns the values of key that have been taken and not yet decided, in
// order of arrival.
func (b *Batcher[K, V, R]) Pending(key K) []V {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lanes[key]
	if l == nil {
		return nil
	}
	var values []V
	for _, ps := range [][]*put[K, V, R]{l.taken, l.waiting} {
		for _, p := range ps {
			if !p.decided && (p.flying || !p.gone) {
				values = append(values, p.value)
			}
		}
	}
	return values
}

// BatcherStats counts what a [Batcher] has done since it was made. Written
// divided by Flushes is the mean size of a batch.
type BatcherStats struct {
	Pending, PendingBytes int // values in memory, waiting and in flight
	Blocked               int // callers that wait for room

	Written, Failed, Unknown, Withdrawn uint64        // values, by what became of them
	Flushes                             uint64        // transactions committed
	Largest                             int           // values in the largest of them
	FlushTime                           time.Duration // spent in them
	Retries                             uint64        // transactions repeated after a failure that passes
	Halvings                            uint64        // batches divided to find a value that fails
}

// Stats returns the current counts.
func (b *Batcher[K, V, R]) Stats() BatcherStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Blocked = b.rooms.Len()
	return s
}
