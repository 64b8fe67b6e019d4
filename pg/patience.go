package pg

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
)

// Patience is how long an answer is waited for by who asks again and again: over a
// connection that leads nowhere any more none comes, and nobody says so. It is not for
// several goroutines. The zero Patience is a new one.
type Patience struct {
	last time.Duration // that was not enough; 0 = it was
}

// Ask has fn ask db, and ends its context after first, with which the connection ends that
// it waits on. Those that lie idle in a pool may lead nowhere, too, and are taken no more.
// The error is Unavailable then, and fn has twice as long the next time, and so on until
// [Patience.Over]: a server that needs its time is not cut off for ever.
func (p *Patience) Ask(ctx context.Context, db DB, first time.Duration, fn func(ctx context.Context) error) error {
	most := max(first, 2*p.last)
	asking, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	err := fn(asking)
	if err == nil || asking.Err() == nil || ctx.Err() != nil {
		return err
	}
	p.last = most
	if pool, ok := db.(*pgxpool.Pool); ok {
		pool.Reset()
	}
	return fmt.Errorf("no answer within %s: %w: %w", most, fault.Unavailable, err)
}

// Over says that all there was to ask has been answered.
func (p *Patience) Over() { p.last = 0 }
