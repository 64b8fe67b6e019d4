package changes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// Runner runs the consumers that [Log.Save] keeps in the database, for as long as they
// are there and as they are changed. Any number of servers may: one at a time moves a
// shard.
type Runner struct {
	log  *Log
	hub  *pg.Hub
	open func(ctx context.Context) (*pgxpool.Pool, error)

	pool  *pgxpool.Pool // of all of them; nil before the first
	turns chan struct{} // of their shards

	mu      sync.Mutex
	running map[string]*instance

	pace  pace          // of the consumers
	every time.Duration // that it looks for what was saved

	begun func() // of tests, which wait in it, for each consumer that begins
}

// instance is a consumer that a Runner runs.
type instance struct {
	kept  string // as it is in the database
	stop  context.CancelFunc
	ended chan struct{} // closed once it is over
}

// NewRunner returns a Runner of the consumers that are kept with l, woken by hub. open
// opens the pool of all of them, once there is one: handlers may take their time, and are
// not to take connections from others. However many shards are saved, they take turns
// with its connections, those of each consumer with its share. It starts nothing.
func NewRunner(l *Log, hub *pg.Hub, open func(ctx context.Context) (*pgxpool.Pool, error)) *Runner {
	return &Runner{log: l, hub: hub, open: open, running: map[string]*instance{}, pace: usual, every: time.Second}
}

// Run runs consumers until ctx is done. A database that is away is waited for.
func (r *Runner) Run(ctx context.Context) error {
	if pg.InTx(r.log.db) {
		return pg.Wrap("changes: runner", ErrInTx)
	}
	defer r.close()
	var background sync.WaitGroup
	defer background.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	away := trouble{of: "the consumers that are saved cannot be looked up"}
	for {
		err := r.look(ctx, &away, &background)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !away.wait(ctx, err) {
				return nil
			}
			continue
		}
		away.over()
		if !sleep(ctx, r.every, nil) {
			return nil
		}
	}
}

// keptConsumer is a row of howdah.change_consumer with a sink, and the sink.
type keptConsumer struct {
	Name     string
	Shards   int // that there are to be
	Most     int // of these and those that there still are
	Patterns []string
	Sink     string
	Turns    int `db:"-"` // that its shards may have at once
}

// look starts what is new, and stops what is gone or was changed.
func (r *Runner) look(ctx context.Context, away *trouble, background *sync.WaitGroup) error {
	var all []keptConsumer
	err := away.ask(ctx, r.log, func(ctx context.Context) (err error) {
		rows, _ := r.log.db.Query(ctx, `
			SELECT c.name, coalesce(c.next_shards, c.shards) AS shards, greatest(c.next_shards, c.shards) AS most, c.patterns, s.sink
			FROM howdah.change_consumer c
			JOIN howdah.change_sink s ON s.consumer = c.name
			WHERE c.sink IS NOT NULL`)
		all, err = pgx.CollectRows(rows, pgx.RowToStructByName[keptConsumer])
		return err
	})
	if err != nil {
		return err
	}
	if len(all) > 0 && r.pool == nil {
		if err := away.ask(ctx, r.log, func(ctx context.Context) (err error) {
			r.pool, err = r.open(ctx)
			return err
		}); err != nil {
			return err
		}
		r.turns = make(chan struct{}, max(int(r.pool.Config().MaxConns)-2, 1)) // ticks, and what is read ahead, take one, too
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := map[string]bool{}
	most := shared(all, cap(r.turns))
	for _, k := range all {
		wanted[k.Name] = true
		k.Turns = min(k.Most, most)
		kept := fmt.Sprintln(k.Shards, k.Turns, strings.Join(k.Patterns, "\n"), k.Sink)
		i := r.running[k.Name]
		if i != nil && i.kept == kept {
			continue
		}
		var before chan struct{}
		if i == nil {
			i = new(instance)
			r.running[k.Name] = i
		} else {
			i.stop()
			before = i.ended
		}
		var running context.Context
		running, i.stop = context.WithCancel(ctx)
		ended := make(chan struct{})
		i.kept, i.ended = kept, ended
		background.Go(func() {
			defer close(ended)
			if before != nil {
				<-before
			}
			r.run(running, k)
		})
	}
	for name, i := range r.running {
		if wanted[name] {
			continue
		}
		i.stop()
		i.kept = "" // one that is saved under its name meanwhile waits for its end
		select {
		case <-i.ended:
			delete(r.running, name)
		default:
		}
	}
	return nil
}

// shared is how many turns a consumer may have at most: who needs fewer leaves the rest to
// others, and who hangs with all of his leaves them theirs.
func shared(all []keptConsumer, turns int) (most int) {
	for most = 1; most < maxShards; most++ {
		sum := 0
		for _, k := range all {
			sum += min(k.Most, most+1)
		}
		if sum > turns {
			break
		}
	}
	return most
}

func (r *Runner) close() {
	if r.pool != nil {
		r.pool.Close()
		r.pool = nil
	}
}

// run runs a consumer until ctx is done. One that ends by itself is run again: another
// of the name may have been in its way, or it was forgotten and is saved anew.
func (r *Runner) run(ctx context.Context, k keptConsumer) {
	ended := trouble{of: "a consumer of changes that is saved cannot run", name: k.Name}
	for {
		began := time.Now()
		err := r.runOnce(ctx, k)
		if ctx.Err() != nil {
			return
		}
		if ends(err) { // it was changed or forgotten, which look is about to see
			if !sleep(ctx, r.every, nil) {
				return
			}
			continue
		}
		if time.Since(began) > time.Minute {
			ended.pause = 0 // something else than before
		}
		if !ended.wait(ctx, err) {
			return
		}
	}
}

func (r *Runner) runOnce(ctx context.Context, k keptConsumer) error {
	if r.begun != nil {
		r.begun()
	}
	var s saved
	if err := json.Unmarshal([]byte(k.Sink), &s); err != nil {
		return err
	}
	c := NewConsumer(r.pool, r.hub, ConsumerConfig{Name: k.Name, Shards: k.Shards, Batch: s.Batch, Chunk: s.Chunk, Echo: s.Echo, Timeout: s.Timeout})
	c.log.looks, c.pace, c.kept = r.log.looks, r.pace, true
	c.turns = []chan struct{}{make(chan struct{}, k.Turns), r.turns}
	handler := s.Handler()
	for _, pattern := range k.Patterns {
		c.Handle(pattern, handler)
	}
	slog.InfoContext(ctx, "consumer of changes runs", "consumer", k.Name, "sink", s.Sink.String())
	return c.Run(ctx)
}
