package counters

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

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
// each turn is one's, and who fails leaves it to the next.
type Keeper struct {
	store    *Store
	cfg      KeeperConfig
	log      *slog.Logger
	recorded bool          // its table is one that another Keeper found in the records
	spread   time.Duration // within which its tasks begin, each at a time of its own

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
	name   string
	every  time.Duration
	do     func(context.Context) error
	needs  []string // rights on the table without which it cannot be done
	common bool     // it is done for all tables at once
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
	fold := task{name: foldTask, every: k.cfg.Fold, needs: []string{"SELECT", "INSERT", "UPDATE"},
		do: func(ctx context.Context) error { _, err := k.store.Fold(ctx); return err }}
	tasks := []task{fold, {name: pruneTask, every: k.cfg.Drop, needs: []string{"SELECT", "DELETE"},
		do: func(ctx context.Context) error { _, err := k.store.Prune(ctx, time.Now()); return err }}}
	if !k.recorded { // the keeper that found it does these
		tasks = append(tasks,
			task{name: "drop ids", every: k.cfg.Drop, do: k.store.dropIDs, common: true},
			task{name: "drop receipts", every: k.cfg.Drop, do: k.store.dropReceipts, common: true})
	}
	var group sync.WaitGroup
	for _, t := range tasks {
		group.Go(func() { k.repeat(ctx, t) })
	}
	if k.cfg.All {
		group.Go(func() { k.keepRecorded(ctx) })
	}
	group.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastly)
	defer cancel()
	if t, err := k.store.tableIfAny(last); err == nil && t != nil {
		if err := fold.do(last); err != nil && k.said[foldTask] == "" {
			k.log.Warn("what is in slots will be folded by the next keeper", "error", err)
		}
	}
	return nil
}

// Names of turns: those in which slots are folded, and buckets pruned.
const foldTask, pruneTask = "fold", "prune"

// lastly bounds what is done on the way out.
const lastly = 5 * time.Second

// repeat does a task whenever it is this keeper's turn, until ctx is done.
func (k *Keeper) repeat(ctx context.Context, t task) {
	if first := min(k.spread, t.every); first > 0 && !pause(ctx, rand.N(first)) {
		return
	}
	for {
		mine, err := k.turn(ctx, t)
		if mine != nil {
			if err = t.do(ctx); err == nil {
				mine.done(ctx)
			} else {
				mine.giveBack(ctx)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if mine != nil || err != nil {
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
	if k.recorded && ofTheServer(err) {
		return // so it is for all tables, and the keeper that found this one says it
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

// ofTheServer reports whether err says that nothing can be done there just now, whatever
// the table; what else may be over in a moment is of one table.
func ofTheServer(err error) bool {
	var pgErr *pgconn.PgError
	return pg.LostConnection(err) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &pgErr) && strings.HasPrefix(pgErr.Code, "53") // no room, memory or connection
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
