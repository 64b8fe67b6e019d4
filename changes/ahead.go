package changes

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"
)

// coming is a page of the feed that is read while what is before it is handled: what
// has a number does not change.
type coming struct {
	done  chan struct{} // closed when the rest is known
	after Position
	page  []Change
	end   Position
	more  bool // the feed goes on behind end
	err   error
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
		select {
		case <-c.done:
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
		if c.err == nil { // else it is read again, to see
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
	c, here := &coming{done: make(chan struct{}), after: s.end}, s.at.timeline
	s.coming = c
	s.reading.Go(func() {
		defer close(c.done)
		ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout+s.pace.grace)
		defer cancel()
		c.err = s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
			c.page, c.end, c.more, err = New(conn, Config{}).page(ctx, c.after, n, f)
			var history string
			if err == nil {
				err = conn.QueryRow(ctx, `SELECT `+timeline).Scan(&history)
			}
			if err == nil && history != here {
				return errors.New("the connection leads to another server than the batches' one")
			}
			return err
		})
	})
}
