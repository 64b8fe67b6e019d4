package changes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ConsumerConfig are settings of a [Consumer]. Only Name is needed.
type ConsumerConfig struct {
	Name     string        // up to 40 of a-z 0-9 _ and -; the first is none of the last two
	Shards   int           // parts that are handled beside each other, a key always in the same; default 1, at most 64
	Batch    int           // most changes handed over at once; default 100, at most 10,000
	From     string        // where a new one begins: start, now (the default), a position, or a time; see [Log.Find]
	Backfill []string      // tables whose rows a new one is handed, too, as they stand, beside what happens to them; they are captured and have a key
	Chunk    int           // rows of a backfill that are read at once; default 1,000
	Echo     bool          // show it what it caused itself, too
	Timeout  time.Duration // for a handler; default 30 s; the same in all instances, or the shortest may cut off who is sending for longer
}

var (
	// ErrNoConsumer reports a consumer that was never made, or was forgotten.
	ErrNoConsumer = fmt.Errorf("there is no such consumer: %w", fault.NotFound)

	// errDiffers: instances of one name would hand out different things.
	errDiffers = fmt.Errorf("instances differ: %w", fault.Conflict)
	// errResharded: there are as many shards now as this instance is to have.
	errResharded = errors.New("the number of shards has changed")

	validConsumer = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,39}$`)
)

const (
	maxName   = 40 // bytes of a consumer's name
	maxShards = 64

	handlerTimeout = 30 * time.Second // if none is set
	maxTimeout     = 24 * time.Hour
)

// Consumer hands the feed to functions: each change once, in the order of the feed.
// Any number of them may run under one name, in one program or many: one at a time
// moves a shard, and where it ends, however it does, another goes on.
type Consumer struct {
	pool *pgxpool.Pool
	hub  *pg.Hub
	log  *Log
	cfg  ConsumerConfig
	feed feed
	pace pace

	patterns []Pattern // of handlers
	handlers []Handler
	refused  error // a pattern that is none

	kept  bool            // by Log.Save, so that it is not this instance's to make or to change
	turns []chan struct{} // for its shards to take, in that order, where they share fewer connections; none: each has one

	told, parks, stalls seldom // what its shards have to say

	failpoint func(b *batch, step string) // of tests, which do harm there
}

// NewConsumer returns a Consumer that works on pool, woken by hub. It starts nothing.
func NewConsumer(pool *pgxpool.Pool, hub *pg.Hub, cfg ConsumerConfig) *Consumer {
	cfg.Shards = cmp.Or(cfg.Shards, 1)
	cfg.Batch = cmp.Or(cfg.Batch, 100)
	cfg.From = cmp.Or(cfg.From, "now")
	cfg.Timeout = cmp.Or(cfg.Timeout, handlerTimeout)
	return &Consumer{pool: pool, hub: hub, log: New(pool, Config{}), cfg: cfg, feed: newFeed(), pace: usual}
}

// Handle has h called for the changes that pattern names, such as
// "public.users:insert,update"; see [ParsePattern]. Where several name one, the most
// specific does: a table before a schema, a schema before everything, one with
// operations before one without. It is called before Run, which tells of a pattern
// that is none.
func (c *Consumer) Handle(pattern string, h Handler) {
	p, err := ParsePattern(pattern)
	if err == nil && slices.ContainsFunc(c.patterns, func(q Pattern) bool { return q.text == p.text }) {
		err = pg.Refuse("pattern", "%q has a handler already", pattern)
	}
	if err != nil {
		c.refused = cmp.Or(c.refused, err)
		return
	}
	c.patterns, c.handlers = append(c.patterns, p), append(c.handlers, h)
}

// check refuses what a consumer could never run with.
func (c *Consumer) check() error {
	if err := c.checkSettings(); err != nil {
		return err
	}
	return c.room(c.cfg.Shards)
}

func (c *Consumer) checkSettings() error {
	switch cfg := c.cfg; {
	case !validConsumer.MatchString(cfg.Name):
		return pg.Refuse("name", "%q; want up to 40 of a-z 0-9 _ and -, beginning with a letter or digit", cfg.Name)
	case cfg.Shards < 1 || cfg.Shards > maxShards:
		return pg.Refuse("shards", "%d; want 1 to %d", cfg.Shards, maxShards)
	case cfg.Batch < 1 || cfg.Batch > 10_000:
		return pg.Refuse("batch", "%d; want 1 to 10000", cfg.Batch)
	case cfg.Chunk < 0 || cfg.Chunk > 100_000:
		return pg.Refuse("chunk", "%d; want 1 to 100000", cfg.Chunk)
	case cfg.Timeout < 0 || cfg.Timeout > maxTimeout:
		return pg.Refuse("timeout", "%v; want more than nothing, and at most %v", cfg.Timeout, maxTimeout)
	case c.refused != nil:
		return c.refused
	case len(c.handlers) == 0:
		return pg.Refuse("handlers", "there are none: see Handle")
	}
	return nil
}

// room makes sure that the shards do not take all connections: handlers may want
// one, and ticks and what is read ahead do.
func (c *Consumer) room(shards int) error {
	if most := c.pool.Config().MaxConns; c.turns == nil && int(most) < shards+2 {
		return pg.Refuse("pool", "pool_max_conns is %d; want %d for shards and 2 more", most, shards)
	}
	return nil
}

// names are the patterns as they are kept: the order of Handle says nothing.
func (c *Consumer) names() []string {
	names := make([]string, len(c.patterns))
	for i, p := range c.patterns {
		names[i] = p.text
	}
	slices.Sort(names)
	return names
}

// Register makes the consumer, if it is not there: from now on it has a place in the
// feed, and what follows is kept for it. Run does it too. It returns Conflict where there
// is one of the name with other shards or patterns, and says which differ, and where one
// of the name is saved: servers run that. To change patterns, pause it, register it with
// others, which waits for what is being handled, and resume it; to change shards see
// [Log.Reshard]. One that has expired, and has a Backfill, begins anew.
func (c *Consumer) Register(ctx context.Context) error {
	_, err := c.register(ctx)
	return err
}

// register returns how many shards there are.
func (c *Consumer) register(ctx context.Context) (shards int, err error) {
	const op = "changes: register"
	if err := c.check(); err != nil {
		return 0, pg.Wrap(op, err)
	}
	err = pg.Retry(ctx, c.pool, func() error {
		shards, err = c.join(ctx)
		if err == nil && len(c.cfg.Backfill) > 0 {
			err = c.refill(ctx)
		}
		if c.kept || !errors.Is(err, ErrNoConsumer) {
			return err
		}
		if err := c.create(ctx, nil); err != nil {
			return err
		}
		shards, err = c.join(ctx)
		return err
	})
	return shards, pg.Wrap(op, err)
}

// create makes the consumer, unless another instance does; sink is of one that is kept.
func (c *Consumer) create(ctx context.Context, sink *saved) error {
	from, err := c.log.find(ctx, "from", c.cfg.From)
	if err != nil {
		return err
	}
	rows, err := toFill(ctx, c.pool, c.patterns, c.cfg.Backfill)
	if err != nil {
		return err
	}
	return c.log.begin(ctx, func(tx pgx.Tx) error {
		if err := held(ctx, tx, from); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			WITH did AS (
				INSERT INTO howdah.change_consumer (name, shards, patterns, sink)
				VALUES ($1, $4, $5, $3)
				ON CONFLICT (name) DO NOTHING
				RETURNING name),`+keptSink+`
			INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id, backfill)
			SELECT name, shard, 1, $6, $7, $8::jsonb
			FROM did, generate_series(0, $4::int - 1) AS shard`,
			c.cfg.Name, sink, sink.label(), c.cfg.Shards, c.names(), from.Commit, from.ID, rows)
		return err
	})
}

// join says that an instance runs, unless it differs from the others. It returns how many
// shards there are, which may be about to change.
func (c *Consumer) join(ctx context.Context) (shards int, err error) {
	shards, adopts, err := c.seen(ctx)
	if !adopts {
		return shards, err
	}
	// A batch that is under way passes over what the patterns that it began with do not
	// name, also of what commits from now on.
	err = c.log.alone(ctx, c.cfg.Name, func(tx pgx.Tx, _ int) error {
		_, err := tx.Exec(ctx, `
			UPDATE howdah.change_consumer
			SET patterns = $2
			WHERE name = $1 AND state = 'paused' AND shards = $3 AND sink IS NULL`, c.cfg.Name, c.names(), c.cfg.Shards)
		return err
	})
	if err == nil {
		shards, _, err = c.seen(ctx)
	}
	return shards, err
}

// noteSeen passes over a consumer that somebody is pausing, say, in a transaction that stays
// open: what commits has to be numbered and handled meanwhile.
const noteSeen = `
	UPDATE howdah.change_consumer
	SET seen_at = clock_timestamp()
	WHERE name = (SELECT name FROM howdah.change_consumer WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED)`

// seen notes that an instance was seen, unless it differs from the others. It reports
// whether they are to take over its patterns, which are what differs.
func (c *Consumer) seen(ctx context.Context) (shards int, adopts bool, err error) {
	var next *int
	var patterns []string
	var saved, paused bool
	err = c.log.begin(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			WITH noted AS (`+noteSeen+`)
			SELECT shards, next_shards, patterns, sink IS NOT NULL, state = 'paused'
			FROM howdah.change_consumer
			WHERE name = $1`, c.cfg.Name).
			Scan(&shards, &next, &patterns, &saved, &paused)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNoConsumer
		}
		if err != nil {
			return err
		}
		return cmp.Or(c.compare(saved, shards, next, patterns), c.room(shards))
	})
	return shards, errors.Is(err, errDiffers) && paused && !saved && !c.kept && shards == c.cfg.Shards, err
}

// compare returns an error where the consumer is not what this instance would run.
func (c *Consumer) compare(saved bool, shards int, next *int, patterns []string) error {
	switch {
	case saved && !c.kept:
		return fmt.Errorf("%s is saved, and run by servers: forget it first, or take another name: %w", c.cfg.Name, errDiffers)
	case !saved && c.kept:
		return fmt.Errorf("%s is run by a program of its own: %w", c.cfg.Name, errDiffers)
	}
	if shards != c.cfg.Shards && (next == nil || *next != c.cfg.Shards) {
		return fmt.Errorf("shards: %s has %d, this one %d; to change them reshard it: %w", c.cfg.Name, shards, c.cfg.Shards, errDiffers)
	}
	if names := c.names(); !slices.Equal(patterns, names) {
		return fmt.Errorf("%s has the patterns %q, this one %q; to change them pause it, start this one, resume it: %w", c.cfg.Name, patterns, names, errDiffers)
	}
	return nil
}

// held makes sure that what follows p is in the feed, and stays there until tx ends.
func held(ctx context.Context, tx pgx.Tx, p Position) error {
	if _, err := tx.Exec(ctx, `SELECT FROM howdah.change_state FOR SHARE`); err != nil {
		return err
	}
	_, _, _, err := New(tx, Config{}).page(ctx, p, 1, Filter{})
	return err
}

// Run hands over changes until ctx is done; then it returns nil. What fails in the
// database is tried again for ever, and what a handler fails on is put aside: see
// [Handler]. It returns at once what it could never run with: Invalid settings, and
// Conflict where the instances of the name differ, ErrRestored where the log came from
// another database; and ErrNoConsumer once the consumer was forgotten.
func (c *Consumer) Run(ctx context.Context) error {
	const op = "changes: consumer"
	if err := c.check(); err != nil {
		return pg.Wrap(op, err)
	}
	bell, err := newBell(c.hub, c.log.cfg.Idle)
	if err != nil {
		return pg.Wrap(op, err)
	}
	defer bell.close()
	registering := trouble{of: "a consumer of changes cannot be registered", name: c.cfg.Name}
	for {
		var shards int
		err := registering.ask(ctx, c.log, func(ctx context.Context) (err error) {
			if shards, err = c.register(ctx); err == nil { // in a copy it would do once more what it does where the log came from
				err = pg.Wrap(op, c.log.own(ctx))
			}
			return err
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, fault.Unavailable):
			if !registering.wait(ctx, err) {
				return nil
			}
			continue
		case err != nil:
			return err
		}
		registering.over()
		if err := c.runShards(ctx, bell, shards); !errors.Is(err, errResharded) {
			return pg.Wrap(op, err)
		}
	}
}

// runShards moves so many shards until ctx is done, or one finds that there is nothing
// for this instance to move.
func (c *Consumer) runShards(ctx context.Context, bell *bell, shards int) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.look(ctx, bell); err != nil {
			stop(err)
		}
	})
	running.Go(func() { NewKeeper(c.log).Run(ctx) })
	for n := range shards {
		running.Go(func() {
			if err := newShard(c, n, shards).run(ctx); err != nil {
				stop(err)
			}
		})
	}
	running.Wait()
	if cause := context.Cause(ctx); ends(cause) || errors.Is(cause, ErrRestored) {
		return cause
	}
	return nil
}

// ends reports whether err leaves an instance nothing to go on with.
func ends(err error) bool {
	return errors.Is(err, ErrNoConsumer) || errors.Is(err, errDiffers) || errors.Is(err, errResharded)
}

// look numbers what has committed, for all shards of this instance, until ctx is done. It
// returns ErrRestored where the log turns out to be from another database.
func (c *Consumer) look(ctx context.Context, bell *bell) error {
	away := trouble{of: "the feed of changes cannot be read", name: c.cfg.Name, told: new(seldom)}
	seen := time.Now()
	for {
		var head *int64
		err := away.ask(ctx, c.log, func(ctx context.Context) (err error) {
			head, err = c.log.tick(ctx, false)
			return err
		})
		if err == nil && time.Since(seen) > c.pace.seen {
			seen = time.Now()
			err = away.ask(ctx, c.log, func(ctx context.Context) error {
				_, err := c.pool.Exec(ctx, noteSeen, c.cfg.Name)
				return err
			})
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrRestored):
			return err
		case err != nil:
			if !away.wait(ctx, err) {
				return nil
			}
			continue
		}
		if head == nil { // another is at it, and will ring
			away.answered() // with as much patience: of several none would ever have enough
		} else if away.over(); c.feed.reached(*head, bell.rung) {
			bell.busy()
		}
		if !bell.wait(ctx) {
			return nil
		}
	}
}

// feed is how far the feed goes, as far as an instance knows.
type feed struct {
	mu   sync.Mutex
	head int64
	news chan struct{} // closed when there is something to look at
}

func newFeed() feed { return feed{news: make(chan struct{})} }

// reached says that the feed goes up to head. It reports whether that is further
// than before; rung wakes those who wait all the same.
func (f *feed) reached(head int64, rung bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	grown := head > f.head
	if f.head = max(f.head, head); grown || rung {
		close(f.news)
		f.news = make(chan struct{})
	}
	return grown
}

// more returns what is closed when there is something to look at.
func (f *feed) more() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.news
}
