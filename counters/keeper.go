package counters

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// KeeperConfig says how often a [Keeper] does its work.
type KeeperConfig struct {
	All  bool          // keep every table of the database that is recorded, beside that of the Store
	Fold time.Duration // between two folds of slots; default 10 s
	Drop time.Duration // between two looks for what is old; default 10 min
	Log  *slog.Logger  // default slog.Default
}

// Keeper does what a table needs now and then: it folds slots into their rows, drops the
// IDs of events, and the receipts of Writers, that are older than 7 days, and prunes what
// is no longer to be kept. Any number may run on one table, in one process or several:
// each turn is one's.
type Keeper struct {
	store    *Store
	cfg      KeeperConfig
	log      *slog.Logger
	recorded bool // its table is one that another Keeper found in the records

	mu   sync.Mutex
	said map[string]string // what is wrong, and logged, by the tasks that met it
}

// NewKeeper returns a Keeper of the table of s, which is not in a transaction, or of all
// tables of its database.
func NewKeeper(s *Store, cfg KeeperConfig) *Keeper {
	cfg.Fold = cmp.Or(cfg.Fold, 10*time.Second)
	cfg.Drop = cmp.Or(cfg.Drop, 10*time.Minute)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	return &Keeper{store: s, cfg: cfg, log: cfg.Log.With("table", s.cfg.Table.Sanitize()), said: map[string]string{}}
}

// task is something that is done every so often.
type task struct {
	name  string
	every time.Duration
	do    func(context.Context) error
}

// Run keeps the table until ctx is done, and then folds once more, so that others see
// all that was counted. A database that is away, or that has no such table, is waited
// for; what goes wrong is logged, once. It returns an error only where the Config of the
// Store cannot be.
//
// With [KeeperConfig.All] it looks for recorded tables whenever it folds. One that is
// gone, or that the role may not write, is logged and keeps it from no other.
func (k *Keeper) Run(ctx context.Context) error {
	if k.store.bad != nil {
		return pg.Wrap("counters: keeper", k.store.bad)
	}
	fold := task{foldTask, k.cfg.Fold, func(ctx context.Context) error { _, err := k.store.Fold(ctx); return err }}
	var group sync.WaitGroup
	for _, t := range []task{
		fold,
		{"drop ids", k.cfg.Drop, k.store.dropIDs},
		{"drop receipts", k.cfg.Drop, k.store.dropReceipts},
		{"prune", k.cfg.Drop, func(ctx context.Context) error { _, err := k.store.Prune(ctx, time.Now()); return err }},
	} {
		group.Go(func() { k.repeat(ctx, t) })
	}
	if k.cfg.All {
		group.Go(func() { k.keepRecorded(ctx) })
	}
	group.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFold)
	defer cancel()
	if t, err := k.store.tableIfAny(last); err == nil && t != nil {
		if err := fold.do(last); err != nil && k.said[foldTask] == "" {
			k.log.Warn("what is in slots will be folded by the next keeper", "error", err)
		}
	}
	return nil
}

// foldTask is the name of the turns in which slots are folded.
const foldTask = "fold"

// lastFold bounds the fold on the way out.
const lastFold = 5 * time.Second

// repeat does a task whenever it is this keeper's turn, until ctx is done.
func (k *Keeper) repeat(ctx context.Context, t task) {
	for {
		mine, err := k.turn(ctx, t)
		if mine {
			err = t.do(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if mine || err != nil {
			k.tell(t.name, err)
		}
		if !pause(ctx, t.every) {
			return
		}
	}
}

// pause waits, and returns false where ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wait.C:
		return true
	}
}

// tell logs what came of a task: once what is wrong, whichever tasks meet it, and once
// that it is over.
func (k *Keeper) tell(name string, err error) {
	if k.recorded && pg.KindOf(err) == fault.Unavailable {
		return // so are all tables, and the keeper that found this one says it
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	known := func(why string) bool { return slices.Contains(slices.Collect(maps.Values(k.said)), why) }
	if err == nil {
		why, failed := k.said[name]
		if delete(k.said, name); failed && !known(why) {
			k.log.Info("the counters' keeper is at work again", "task", name)
		}
		return
	}
	why := err.Error()
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		why = pgErr.Message // the same, whatever was to be done
	}
	if !known(why) {
		k.log.Warn("a task of the counters' keeper failed; trying again", "task", name, "error", err)
	}
	k.said[name] = why
}

var errGone = errors.New("it is recorded, and not there; if it is to stay so, delete it from howdah.counter_tables and howdah.counter_slots")

// turn is that of the Store; a table that was recorded has to be there.
func (k *Keeper) turn(ctx context.Context, of task) (mine bool, err error) {
	if k.recorded {
		t, err := k.store.tableIfAny(ctx)
		if err == nil && t == nil {
			err = errGone
		}
		if err != nil {
			return false, err
		}
	}
	return k.store.turn(ctx, of)
}

// turn reports whether it is time for a task, and nobody else's: who is told so is on
// it. A turn that is not finished is somebody's again next time. There is no turn where
// there is no table, or nothing of howdah's.
func (s *Store) turn(ctx context.Context, of task) (mine bool, err error) {
	t, err := s.tableIfAny(ctx)
	if err != nil || t == nil || !t.migrated {
		return false, err
	}
	err = pg.Retry(ctx, s.db, func() error {
		tag, err := s.db.Exec(ctx, `
			INSERT INTO howdah.counter_turns AS t (tbl, task, at)
			VALUES ($1, $2, clock_timestamp())
			ON CONFLICT (tbl, task) DO UPDATE
			SET at = EXCLUDED.at
			WHERE abs(extract(epoch FROM EXCLUDED.at - t.at)) >= $3`, // whatever the clock did
			t.name, of.name, 0.9*of.every.Seconds()) // one that comes a moment early has its turn
		mine = tag.RowsAffected() == 1
		return err
	})
	return mine, s.told(err)
}

// maxDropped is how many IDs are dropped at a time.
const maxDropped = 10_000

// dropIDs drops the IDs of events, of any table, that have had their 7 days.
func (s *Store) dropIDs(ctx context.Context) error {
	for {
		var n int64
		err := pg.Retry(ctx, s.db, func() error {
			tag, err := s.db.Exec(ctx, `
				DELETE FROM howdah.counter_events e
				USING (
					SELECT tbl, id
					FROM howdah.counter_events
					WHERE at < now() - interval '7 days'
					ORDER BY at
					LIMIT $1
					FOR UPDATE SKIP LOCKED) AS old
				WHERE e.tbl = old.tbl AND e.id = old.id`, maxDropped)
			n = tag.RowsAffected()
			return err
		})
		if err != nil || n < maxDropped {
			return pg.Wrap("counters: drop ids", err)
		}
	}
}
