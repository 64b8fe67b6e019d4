package localpg

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

const (
	stopPatience   = 20 * time.Second // for a fast shutdown
	othersPatience = 5 * time.Second  // for the others that use a server tied to us
)

// Stop ends this process's use of the server. Whoever is the last to do so
// stops it, if howdah started it: fast, after 20 s or when ctx is done
// immediately. A server tied to this process cannot stay: the others that use
// it get 5 s to finish.
//
// When Stop returns nil, nothing of the server is left that this process has to
// care for. A second Stop waits for the first and returns what it returned.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	select {
	case <-s.stopping:
		s.mu.Unlock()
		<-s.stopped
		return s.stopErr
	default:
	}
	close(s.stopping)
	s.mu.Unlock()

	defer close(s.stopped)
	if err := s.stop(ctx); err != nil {
		s.stopErr = fmt.Errorf("localpg: stop: %w", err)
	}
	return s.stopErr
}

func (s *Server) stop(ctx context.Context) error {
	// We leave first and look then who is left. The other way round, one who
	// waits below for the others would wait for somebody who waits for the lock.
	err := syscall.Flock(int(s.users.Fd()), syscall.LOCK_UN)
	defer s.users.Close()
	if err != nil {
		return err
	}
	s.mu.Lock()
	proc := s.proc
	s.mu.Unlock()

	child := proc.exited != nil
	lockCtx := ctx
	if child { // cannot be left behind, so it is stopped even if ctx is done
		var cancel context.CancelFunc
		lockCtx, cancel = context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
		defer cancel()
	}
	held, err := lock(lockCtx, s.path("start.lock"))
	if err == nil {
		defer held.Close()
	} else if !child {
		return fmt.Errorf("waiting for another start or stop: %w", err)
	}
	last, err := tryLock(s.users, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	if !last && !child {
		return nil // it is theirs now
	}
	if !last {
		some, cancel := context.WithTimeout(ctx, othersPatience)
		_ = poll(some, func() (bool, error) { return tryLock(s.users, syscall.LOCK_EX) })
		cancel()
	}
	if child {
		err = proc.stop(ctx, stopPatience)
	} else {
		err = s.stopFound(ctx)
	}
	if err == nil {
		s.cfg.Log.Info("private postgresql is stopped", "data", s.Data(), "pid", proc.pid)
	}
	return err
}

// stopFound stops the server that is up, which after a crash need not be the
// one we knew, unless it was started by hand.
func (s *Server) stopFound(ctx context.Context) error {
	found, err := postmaster(s.Data())
	if err != nil || found.pid == 0 || !s.startedByUs(found.pid) {
		return err
	}
	p := &process{pid: found.pid, data: s.Data()}
	return p.stop(ctx, stopPatience)
}
