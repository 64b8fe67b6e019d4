package changes

import (
	"context"
	"sync"
	"time"
)

// turn waits until a shard may take a connection; done lets another have it. It is waited for
// as long as handlers of others take, so the time of a batch begins after it.
func (c *Consumer) turn(ctx context.Context) (done func(), err error) {
	taken := 0
	done = func() {
		for _, turns := range c.turns[:taken] {
			<-turns
		}
	}
	for _, turns := range c.turns {
		select {
		case turns <- struct{}{}:
			taken++
		case <-ctx.Done():
			done()
			return nil, ctx.Err()
		}
	}
	return done, nil
}

// seldom lets one of many say what all of them have to say, and again after a while.
type seldom struct {
	mu   sync.Mutex
	last time.Time
}

// now reports whether it is to be said. Where there is nobody else, nil, it always is.
func (s *seldom) now() bool {
	const while = 10 * time.Second
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last) < while {
		return false
	}
	s.last = time.Now()
	return true
}
