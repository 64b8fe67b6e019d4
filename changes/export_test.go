package changes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
)

// MostSpecific chooses a consumer's handler.
var MostSpecific = mostSpecific

// Compact is compact.
var Compact = compact

// Hurry lets a consumer wait for nothing longer than a test likes to.
func (c *Consumer) Hurry() { c.pace = hurried() }

// Grace is what a batch has beside its handler, and who holds one up is cut off after.
func (c *Consumer) Grace(d time.Duration) { c.pace.grace = d }

// Between is how long a Keeper waits, Soon for how long the leaf that is next is spared, and
// Leaf for how long one is written to.
var Between, Soon, Leaf = between, soon, leaf

// Forget deletes a part of the commits, and of the ticks, that told of what is gone.
func Forget(ctx context.Context, tx pgx.Tx, commit, tick int64) (int64, int64, error) {
	commit, err := commits.part(ctx, tx, commit)
	if err == nil {
		tick, err = ticks.part(ctx, tx, tick)
	}
	return commit, tick, err
}

// Seen is how often an instance says that it runs.
func (c *Consumer) Seen(d time.Duration) { c.pace.seen = d }

// Hurry lets a Runner, and its consumers, wait for nothing longer than a test likes to.
func (r *Runner) Hurry() { r.pace, r.every = hurried(), 500*time.Millisecond }

// Running returns the names of the consumers that a Runner runs.
func (r *Runner) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.running))
}

// Shared is shared, of consumers that have so many shards.
func Shared(shards []int, turns int) int {
	var all []keptConsumer
	for _, n := range shards {
		all = append(all, keptConsumer{Most: n})
	}
	return shared(all, turns)
}

// Begun has each consumer that a Runner begins to run call f first.
func (r *Runner) Begun(f func()) { r.begun = f }

// Close closes what Look has opened.
func (r *Runner) Close() { r.close() }

// Shards is how many shards the consumer has that a Runner runs under name.
func (r *Runner) Shards(name string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.running[name]; i != nil {
		fmt.Sscan(i.kept, &n)
	}
	return n
}

// Flap has the shards of a consumer fail, and go on, so many times.
func Flap(name string, shards, times int) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // no pauses
	c := NewConsumer(nil, nil, ConsumerConfig{Name: name})
	var running sync.WaitGroup
	for n := range shards {
		running.Go(func() {
			s := newShard(c, n, shards)
			for range times {
				s.away.wait(ctx, fault.Unavailable)
				s.away.over()
			}
		})
	}
	running.Wait()
}

func hurried() pace {
	const ms = time.Millisecond
	return pace{
		inPlace: []time.Duration{ms, 2 * ms, 3 * ms},
		parked:  5 * ms, most: 20 * ms,
		probe: 5 * ms, probes: 20 * ms,
		unseen: 50 * ms, rival: 20 * ms, grace: usual.grace, seen: usual.seen,
	}
}

// Stop and Later are the errors that handlers of this package have for their consumer.
func Stop(err error) error { return &stopError{err} }

func Later(err error, after time.Duration) error { return &laterError{err, after} }

// Batch is one that has come to a step.
type Batch struct {
	Step  string
	Shard int
	Seq   int64   // of the checkpoint that the shard stood at, when it was last seen
	Tx    *pgx.Tx // may be put another in the place of
}

// Failpoint has f called at each step of each batch of c.
func (c *Consumer) Failpoint(f func(Batch)) {
	c.failpoint = func(b *batch, step string) { f(Batch{step, b.n, b.shard.at.seq, &b.tx}) }
}

// PathThrough is pathThrough.
var PathThrough = pathThrough

// Statements runs the statements of a batch of consumer "c" on tx: what it begins
// with, what it asks about a change, and what takes a parked one away.
func Statements(ctx context.Context, pool *pgxpool.Pool, tx pgx.Tx, c Change, place int64) error {
	b := &batch{shard: newShard(NewConsumer(pool, nil, ConsumerConfig{Name: "c"}), 0, 1), ctx: ctx, tx: tx}
	st, err := b.standing()
	if err != nil {
		return err
	}
	b.at = st.mark
	if _, _, err := b.sort(st, []Change{c}); err != nil {
		return err
	}
	if _, err := b.due(); err != nil {
		return err
	}
	if err := b.unpark(&parkedChange{place: place}, st); err != nil {
		return err
	}
	var pipeline pgx.Batch
	b.queueMove(&pipeline, c.Position, 0, nil)
	return tx.SendBatch(ctx, &pipeline).Close()
}

// Old is how long a transaction may be open before Doctor says so.
func (l *Log) Old(d time.Duration) { l.old = d }

// Full is of how much of the queue of NOTIFY Doctor speaks.
func (l *Log) Full(part float64) { l.full = part }

// Large is of how many bytes of the log Doctor speaks.
func (l *Log) Large(bytes int64) { l.large = bytes }

// Impatient has PostgreSQL end a transaction of l that is not gone on with for so long, and
// who follows l give up what is not answered.
func (l *Log) Impatient(d time.Duration) { l.stopped = d }

// Impatient has the consumer give up what is not answered for so long.
func (c *Consumer) Impatient(d time.Duration) { c.log.Impatient(d) }

// Kept is Tend as a Keeper does it, until it succeeds.
func (l *Log) Kept(ctx context.Context) {
	away := trouble{of: "a test"}
	for err := l.tend(ctx, &away); err != nil && away.wait(ctx, err); err = l.tend(ctx, &away) {
	}
}

// Look looks for consumers once.
func (r *Runner) Look(ctx context.Context, background *sync.WaitGroup) error {
	return r.look(ctx, new(trouble), background)
}

// Scan is how many changes a page with a filter looks at, or one more than it can hold.
func (l *Log) Scan(n int) { l.scan = n }

// PageBytes is how much a page holds.
func (l *Log) PageBytes(n int) { l.bytes = n }
