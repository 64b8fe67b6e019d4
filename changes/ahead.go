package changes

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// coming is a page of the feed that is read while what is before it is handled: what
// has a number does not change.
type coming struct {
	done  chan struct{} // closed when the rest is known
	begun atomic.Bool   // it has a connection, or nobody wants it any more
	drop  func()        // ends it
	after Position
	page  []Change
	end   Position
	more  bool // the feed goes on behind end
	err   error
}

// got waits for what is read, and reports whether it was. It was not where that failed, nor
// where it has no connection yet: to wait for one with the batch's in hand could be for
// ever, if all who have one do. Then it is to be read with that.
func (c *coming) got(ctx context.Context) (bool, error) {
	if c.begun.CompareAndSwap(false, true) {
		c.drop()
		return false, nil
	}
	select {
	case <-c.done:
		return c.err == nil, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// readOn reads what follows: of what is ahead the rest of a transaction, or anything.
func (s *shard) readOn(b *batch) error {
	n := max(s.cfg.Batch, MaxPage)
	filter := Filter{Patterns: s.patterns, share: share{shard: s.n, shards: s.of}}
	if !s.cfg.Echo {
		filter.share.except = s.cfg.Name
	}
	if c := s.coming; c != nil && s.chunk == nil && c.after == s.end {
		s.coming = nil
		got, err := c.got(b.ctx)
		if err != nil {
			return err
		}
		if got {
			s.ahead, s.end = append(s.ahead, c.page...), c.end
			s.readAhead(b.parent, n, filter, c.more)
			return nil
		}
	}
	if s.chunk != nil {
		filter.share.until = s.chunk.at.Commit
	}
	page, end, more, err := b.page(n, filter)
	if err != nil {
		return err
	}
	s.ahead, s.end = page, end
	s.readAhead(b.parent, n, filter, more && s.chunk == nil)
	return nil
}

// readAhead begins to read what follows end, if there is more. It takes another
// connection for as long as that is.
func (s *shard) readAhead(ctx context.Context, n int, f Filter, more bool) {
	if !more {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout+s.pace.grace)
	c, here := &coming{done: make(chan struct{}), drop: cancel, after: s.end}, s.at.timeline
	s.coming = c
	s.reading.Go(func() {
		defer close(c.done)
		defer cancel()
		c.err = s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
			if !c.begun.CompareAndSwap(false, true) {
				return context.Canceled
			}
			if c.page, c.end, c.more, err = s.log.on(conn).page(ctx, c.after, n, f); err == nil {
				err = inHistory(ctx, conn, here)
			}
			return err
		})
	})
}

// forget lets go of what was read ahead, and is being: what follows end is to be read.
func (s *shard) forget(end Position) {
	if c := s.coming; c != nil {
		c.begun.Store(true)
		c.drop()
	}
	s.ahead, s.end, s.coming = nil, end, nil
}

// inHistory is an error where what db leads to has another history than the batches'
// server: a primary, say, that a standby has taken over from and that is still there.
func inHistory(ctx context.Context, db pg.DB, batches string) error {
	var history string
	if err := db.QueryRow(ctx, `SELECT `+timeline).Scan(&history); err != nil {
		return err
	}
	if history != batches {
		return fmt.Errorf("a connection leads to a server of timeline %s, and the batches' to one of %s", history, batches)
	}
	return nil
}
