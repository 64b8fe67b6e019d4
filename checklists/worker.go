package checklists

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// WorkerConfig says what a [Worker] does. List, and one of Do and DoTx, are needed.
type WorkerConfig struct {
	List string
	Name string // who has the items; default host:pid

	// Do does an item and returns nil when it is done. An error is a failed attempt:
	// the item is tried again after the list's backoff, unless [RetryIn], [Dead] or
	// [Release] say otherwise. So is a panic.
	//
	// It may be called more than once for an item: when its process dies, or its lease
	// is lost, nobody knows how far it came. Its ctx ends when the lease is lost,
	// after Timeout, and when the worker stops and Grace has passed.
	Do func(ctx context.Context, item Item) error

	// DoTx is Do in a transaction in which the item is ticked off as well, so that
	// what it writes through tx and the tick are committed together, exactly once, or
	// not at all. Each of Parallel calls has a connection of the store's pool.
	DoTx func(ctx context.Context, tx pgx.Tx, item Item) error

	Parallel   int             // items done at the same time; default 8
	Batch      int             // items in hand, those that wait included; default 4 × Parallel, at most 1,000
	Lease      time.Duration   // extended at a third of it while the worker lives; default 1 minute
	Timeout    time.Duration   // of an attempt, which has failed after it: its ctx ends; default none, and the lease is extended as long as it runs
	Grace      time.Duration   // for what runs, when the worker is to stop; default 10 s, negative: none
	Hurry      <-chan struct{} // ends Grace early when it is closed
	UntilEmpty bool            // return when nothing is left on the list: nothing ready, waiting or leased
	Hub        *pg.Hub         // wakes the worker; without one it looks every second
	Log        *slog.Logger    // default slog.Default
}

// Worker does the items of a list, with as many others as there are, in any
// process and any language.
type Worker struct {
	store *Store
	cfg   WorkerConfig
}

// NewWorker returns a Worker on s, whose handle is a pool. It starts nothing.
func NewWorker(s *Store, cfg WorkerConfig) *Worker {
	cfg.Parallel = cmp.Or(cfg.Parallel, 8)
	cfg.Batch = cmp.Or(cfg.Batch, min(4*cfg.Parallel, 1000))
	cfg.Lease = cmp.Or(cfg.Lease, time.Minute)
	cfg.Grace = max(cmp.Or(cfg.Grace, 10*time.Second), 0)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	if cfg.Name == "" {
		host, _ := os.Hostname()
		cfg.Name = fmt.Sprintf("%s:%d", host, os.Getpid())
	}
	return &Worker{store: s, cfg: cfg}
}

func (w *Worker) check(ctx context.Context) error {
	cfg := &w.cfg
	switch {
	case (cfg.Do == nil) == (cfg.DoTx == nil):
		return pg.Refuse("Do", "want one of Do and DoTx")
	case pg.InTx(w.store.db):
		return pg.Refuse("store", "is in a transaction, and a worker outlives those")
	case cfg.Parallel < 0:
		return pg.Refuse("Parallel", "%d; want 1 or more", cfg.Parallel)
	case cfg.Timeout < 0:
		return pg.Refuse("Timeout", "%v; want 0s (none) or more", cfg.Timeout)
	case cfg.Batch < 0 || cfg.Batch > MaxClaim:
		return pg.Refuse("Batch", "%d; want 1 to %s", cfg.Batch, thousands(MaxClaim))
	}
	// Transactions that had all connections would leave none to extend the leases.
	if pool, ok := w.store.db.(*pgxpool.Pool); ok && cfg.DoTx != nil && cfg.Parallel+2 > int(pool.Config().MaxConns) {
		return pg.Refuse("Parallel", "%d, and 2 connections for leases; pool_max_conns is %d", cfg.Parallel, pool.Config().MaxConns)
	}
	if err := checkLease(cfg.Lease); err != nil {
		return err
	}
	if err := pg.CheckText("Name", cfg.Name); err != nil {
		return err
	}
	if err := w.store.check(cfg.List, nil); err != nil {
		return err
	}
	return w.store.needColumns(ctx)
}

// Run does items until ctx is done, or, with UntilEmpty, nothing is left. Then it
// starts nothing new, gives what runs its Grace, tells what became of it, and gives
// back what was never started.
//
// While the database is away it keeps what is to be told, tries until the lease
// has ended, and logs what it could not tell; such items come round again. Lost
// leases and attempts that panic are logged too. The error is Invalid where the
// configuration cannot be, ErrPlain on a plain table, that of the database where it
// refuses (Denied), or says how many calls of Do did not end when they were told to.
func (w *Worker) Run(ctx context.Context) error {
	const op = "checklists: worker"
	if err := w.check(ctx); err != nil {
		return pg.Wrap(op, err)
	}
	b, err := newBell(w.cfg.Hub)
	if err != nil {
		return pg.Wrap(op, err)
	}
	defer b.close()
	return pg.Wrap(op, newShift(ctx, w, b).work(ctx))
}
