//go:build unix

package localpg

import (
	"context"
	"sync"
	"time"
)

// Run keeps the server up: when it ends without our doing, by kill -9 for
// instance, Run clears up after it and starts it again, on the same URL. When
// ctx is done it stops the server as [Server.Stop] does and returns what that
// returns. It also returns when somebody else calls Stop.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-s.stopping:
			cancel() // a start under way is given up too
		case <-ctx.Done():
		}
	})
	s.supervise(ctx)
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancelLast()
	return s.Stop(last)
}

const (
	firstPause = 100 * time.Millisecond
	longPause  = 5 * time.Second
	stableFor  = 30 * time.Second // after that, an end is a new story
)

// supervise returns when ctx is done.
func (s *Server) supervise(ctx context.Context) {
	var pause time.Duration // none before the first attempt
	for {
		up := time.Now()
		proc := s.process()
		if proc.wait(ctx) != nil {
			return
		}
		s.cfg.Log.Warn("private postgresql has ended; starting it again", "data", s.Data(), "pid", proc.pid)
		if time.Since(up) > stableFor {
			pause = 0
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(max(2*pause, firstPause), longPause)
			err := s.bringUp(ctx)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			s.cfg.Log.Error("private postgresql does not start", "data", s.Data(), "error", err, "again_in", pause)
		}
	}
}
