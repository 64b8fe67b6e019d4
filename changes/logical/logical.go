// Package logical fills the log of changes from the WAL instead of from triggers.
//
// A [Pump] reads a replication slot, of this database or another, and writes what the
// tables of a publication went through into the log: one transaction for each of the
// source, in the order they committed. From there everything is as it is with triggers.
// Writers pay nothing for it.
//
// A transaction says whose it is, and what else it has to say, with messages that stand
// in it, as [changes.Log.Mark] and [changes.Log.Emit] do where the log is; the source has to
// be PostgreSQL 14 or newer:
//
//	SELECT pg_logical_emit_message(true, 'howdah.origin', 'crm')
//	SELECT pg_logical_emit_message(true, 'howdah.meta', '{"user": 7}')
//	SELECT pg_logical_emit_message(true, 'howdah.message.orders.shipped', '{"id": 1}')
//
// The first two are about the changes that follow them. Without, a transaction that a
// replication origin brought bears its name.
//
// What it does not do: values of composite types, and of those with a cast to json such as
// hstore, come as strings, as PostgreSQL writes them. Partitions have their own names, unless
// the publication has publish_via_partition_root. With REPLICA IDENTITY FULL the key is the
// primary key that the table has when the pump reads. The rows that a table has already are
// not read: the backfill of a consumer is about captured tables of the log's own database.
// DDL is not told of.
//
//	p, err := logical.New(pool, logical.Config{Source: url})
//	err = p.Run(ctx)
package logical

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Config says what a Pump reads.
type Config struct {
	Source      string       // URL of the database whose tables these are; its role needs REPLICATION
	Publication string       // whose tables; default "howdah"
	Slot        string       // a-z 0-9 _, at most 63; made by the first Run; default "howdah"
	Unbounded   bool         // start although the slot may fill the source's disk: max_slot_wal_keep_size is -1
	Log         *slog.Logger // what is retried; default slog.Default()
}

var (
	// ErrLost reports that the slot, or WAL that it needed, is gone, or that another was made
	// in its place, or it was moved on, or that the source failed over and lost what the log
	// has: the log is not what happened there. Drop the slot, forget the pump ([Pump.Forget])
	// and begin anew, with the present state of the tables.
	ErrLost = fmt.Errorf("the replication slot is lost, and with it changes: %w", fault.Conflict)
	// errTaken: it will have the slot, too, and is waited for.
	errTaken = errors.New("another pump has gone on in this one's place")
)

const (
	flushEvery = 50 * time.Millisecond // between commits that wait for the disk

	// Of the time that a pump is given to go on with a transaction: between messages that
	// let a slot move on where nothing is written, and that tell of a pump that it lives.
	beats = 3
	// So many without a word of the source, and the stream leads nowhere any more.
	silent = 30
)

var validSlot = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// Pump writes what a slot gives into a log. One at a time can: another waits until the
// slot is free.
type Pump struct {
	db     pg.DB
	cfg    Config
	source *pgx.ConnConfig
	odd    sync.Once // a topic was left out, and that was said

	stopped time.Duration // after so long PostgreSQL ends a transaction of ours that is not gone on with, and we what is not answered
}

// New returns a Pump into the log of db, which must be a pool. The error is Invalid.
func New(db pg.DB, cfg Config) (*Pump, error) {
	const op = "changes/logical"
	if cfg.Publication == "" {
		cfg.Publication = "howdah"
	}
	if cfg.Slot == "" {
		cfg.Slot = "howdah"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if !validSlot.MatchString(cfg.Slot) {
		return nil, pg.Wrap(op, pg.Refuse("slot", "%q; want up to 63 of a-z 0-9 _", cfg.Slot))
	}
	if pg.InTx(db) {
		return nil, pg.Wrap(op, pg.Refuse("db", "a transaction; want a pool"))
	}
	source, err := pgx.ParseConfig(cfg.Source)
	if err != nil || cfg.Source == "" {
		return nil, pg.Wrap(op, pg.Refuse("source", "want a URL such as postgres://host/database")) // that error may hold a password
	}
	return &Pump{db: db, cfg: cfg, source: source, stopped: 30 * time.Second}, nil
}

// Run pumps until ctx is done; it then returns nil. A database that is away, and a slot
// that another pump has, are tried again for ever. It returns ErrLost where the slot
// was lost, and Invalid where the source is not prepared: the error says what to do. A
// standby is Invalid at the first Run, and later waited for until it is promoted.
func (p *Pump) Run(ctx context.Context) error {
	const op = "changes/logical: run"
	wait, patience := time.Duration(0), pg.Patience{}
	for {
		moved, err := p.pump(ctx, func(ctx context.Context, fn func(ctx context.Context) error) error {
			return patience.Ask(ctx, p.db, p.stopped, fn)
		})
		if ctx.Err() != nil {
			return nil
		}
		if final(err) {
			return pg.Wrap(op, err)
		}
		if moved {
			wait = 0
			patience.Over()
		}
		wait = min(max(2*wait, 100*time.Millisecond), 5*time.Second)
		p.cfg.Log.Warn("the pump of changes tries again", "slot", p.cfg.Slot, "error", err, "in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// final reports whether err will be the same at the next try.
func final(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "55006" { // the slot is in use, or just was
		return false
	}
	return errors.Is(err, ErrLost) || errors.Is(err, fault.Invalid) || errors.Is(err, fault.Denied)
}

// An asking carries out fn, which asks one of the databases, with patience.
type asking func(ctx context.Context, fn func(ctx context.Context) error) error

// pump pumps until something fails or ctx is done; moved reports that it wrote something.
func (p *Pump) pump(ctx context.Context, ask asking) (moved bool, err error) {
	var s *source
	if err := ask(ctx, func(ctx context.Context) (err error) { s, err = connect(ctx, p.source); return err }); err != nil {
		return false, err
	}
	defer s.close()
	w := &writer{db: p.db, slot: p.cfg.Slot, ask: ask, stopped: p.stopped}
	if err := ask(ctx, func(ctx context.Context) error { return p.prepare(ctx, s, w) }); err != nil {
		return false, err
	}
	before := w.at
	err = p.stream(ctx, s, w)
	return w.at != before, err
}

// Forget forgets how far the pump had come, so that the next Run begins where a new slot
// does. The slot itself is the source's to drop: SELECT pg_drop_replication_slot('howdah').
func (p *Pump) Forget(ctx context.Context) error {
	const op = "changes/logical: forget"
	s, err := connect(ctx, p.source)
	if err != nil {
		return pg.Wrap(op, err)
	}
	defer s.close()
	_, err = p.db.Exec(ctx, `
		DELETE FROM howdah.change_pump
		WHERE system = $1 AND slot = $2`, s.system, p.cfg.Slot)
	return pg.Wrap(op, err)
}
