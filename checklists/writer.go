package checklists

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// WriterConfig configures a [Writer]. The zero WriterConfig is right for most.
type WriterConfig struct {
	MaxBatch int           // calls in one transaction; default 1,000
	RetryFor time.Duration // how long what passes (a restart, a failover) is waited for; default 3 s
	Log      *slog.Logger  // default slog.Default()
}

// Writer is the calls of a Store that many make for one item at a time: while Run
// runs, calls about one item that come at the same time share a transaction, and
// so its commit. Each is answered after that, as the Store would have answered it
// in the order in which they came; what is wrong with one fails no other. Calls
// about several items, or all of a lease, are the Store's own, and so are all
// calls while Run does not run.
//
// An item that another transaction has locked holds up nobody else: its call goes
// to the Store alone and waits there. So does the call of who is alone anyway.
//
// On failure nothing was written, unless the error is [pg.ErrOutcomeUnknown]; that
// is also what a call gets whose ctx ends while a transaction carries it.
type Writer struct {
	s       *Store
	batcher *pg.Batcher[target, call, answer]
	running atomic.Bool
	callers atomic.Int64 // whose calls may share
}

// target is the item a call is about.
type target struct{ list, item string }

// call is what is to become of an item.
type call struct {
	verb  verb
	token string // of Done and Fail
	text  string // of Fail
	wait  time.Duration
}

// verb is a method of the Writer. The order is that of the statements of a batch.
type verb int

const (
	inserting verb = iota
	incrementing
	deleting
	finishing
	failing
)

// answer is what became of a call.
type answer struct {
	n     int64
	alone bool // nothing was done: the caller is to go to the Store
}

// NewWriter returns a Writer on s. It starts nothing. In a transaction nothing is
// to be shared: there all calls are those of the Store, and Run fails.
func NewWriter(s *Store, cfg WriterConfig) *Writer {
	w := &Writer{s: s}
	if pool, ok := s.db.(*pgxpool.Pool); ok {
		w.batcher = pg.NewBatcher(pg.BatcherConfig[target, call, answer]{
			Name: "writer", Pool: pool, Flush: w.flush, Compare: compareTargets,
			MaxBatch: cfg.MaxBatch, RetryFor: cmp.Or(cfg.RetryFor, 3*time.Second), Log: cfg.Log,
		})
	}
	return w
}

func compareTargets(a, b target) int {
	return cmp.Or(strings.Compare(a.list, b.list), strings.Compare(a.item, b.item))
}

// Run commits what is called until ctx is done, and then what it has taken. A
// Writer runs once.
func (w *Writer) Run(ctx context.Context) error {
	const op = "checklists: writer"
	if w.batcher == nil {
		return pg.Wrap(op, errors.New("run: the Store is not on a pool"))
	}
	defer context.AfterFunc(ctx, func() { w.running.Store(false) })()
	w.running.Store(ctx.Err() == nil)
	return pg.Wrap(op, w.batcher.Run(ctx))
}

// Insert is [Store.Insert].
func (w *Writer) Insert(ctx context.Context, list string, items ...string) (added int64, err error) {
	if !w.shares(len(items)) {
		return w.s.Insert(ctx, list, items...)
	}
	return w.share(ctx, "checklists: insert", w.s.checkNew(list, items), target{list, items[0]}, call{verb: inserting},
		func() (int64, error) { return w.s.Insert(ctx, list, items...) })
}

// Increment is [Store.Increment].
func (w *Writer) Increment(ctx context.Context, list string, items ...string) (int64, error) {
	if !w.shares(len(items)) {
		return w.s.Increment(ctx, list, items...)
	}
	return w.share(ctx, "checklists: increment", w.s.check(list, items), target{list, items[0]}, call{verb: incrementing},
		func() (int64, error) { return w.s.Increment(ctx, list, items...) })
}

// Delete is [Store.Delete].
func (w *Writer) Delete(ctx context.Context, list string, items ...string) (int64, error) {
	if !w.shares(len(items)) {
		return w.s.Delete(ctx, list, items...)
	}
	return w.share(ctx, "checklists: delete", w.s.check(list, items), target{list, items[0]}, call{verb: deleting},
		func() (int64, error) { return w.s.Delete(ctx, list, items...) })
}

// Done is [Store.Done].
func (w *Writer) Done(ctx context.Context, l Lease, items ...string) (int64, error) {
	if !w.shares(len(items)) {
		return w.s.Done(ctx, l, items...)
	}
	return w.share(ctx, "checklists: done", w.s.checkHeld(ctx, l, items), target{l.List, items[0]},
		call{verb: finishing, token: strings.ToLower(l.Token)},
		func() (int64, error) { return w.s.Done(ctx, l, items...) })
}

// Fail is [Store.Fail].
func (w *Writer) Fail(ctx context.Context, l Lease, fs ...Failure) (int64, error) {
	if !w.shares(len(fs)) {
		return w.s.Fail(ctx, l, fs...)
	}
	f := fs[0]
	return w.share(ctx, "checklists: fail", w.s.checkHeld(ctx, l, []string{f.Item}), target{l.List, f.Item},
		call{verb: failing, token: strings.ToLower(l.Token), text: cleaned(f.Error), wait: f.RetryIn},
		func() (int64, error) { return w.s.Fail(ctx, l, fs...) })
}

// shares reports whether a call about so many items is to share a transaction.
func (w *Writer) shares(items int) bool { return items == 1 && w.running.Load() }

// share makes a call, unless it was refused, in a transaction with others, or
// alone where that cannot be.
func (w *Writer) share(ctx context.Context, op string, refused error, t target, c call, alone func() (int64, error)) (int64, error) {
	if refused != nil {
		return 0, pg.Wrap(op, refused)
	}
	defer w.callers.Add(-1)
	if w.callers.Add(1) == 1 {
		return alone() // with nobody to share with: a round trip, not three
	}
	a, err := w.batcher.Put(ctx, t, c)
	if err == nil && a.alone {
		return alone()
	}
	if err == nil && c.token != "" {
		err = lost(a.n, 1)
	}
	return a.n, pg.Wrap(op, err)
}
