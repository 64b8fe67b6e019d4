//go:build unix

package localpg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

const (
	lockPatience   = 40 * time.Second // for another's start or stop
	stopPatience   = 20 * time.Second // for a fast shutdown
	reusePatience  = 10 * time.Second // for a server that is up to answer
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
	_ = syscall.Flock(int(s.users.Fd()), syscall.LOCK_UN) // at the latest, Close does it
	defer s.users.Close()
	// A child cannot be left behind, so we wait for the lock even if ctx is done.
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockPatience)
	defer cancel()
	if !s.process().child() {
		patient = ctx
	}
	held, err := lock(patient, s.path("start.lock"))
	if err == nil {
		defer held.Close()
	}
	// Only now: a Run that was starting the server again may have held the lock.
	proc := s.process()
	child := proc.child()
	if err != nil && !child {
		return fmt.Errorf("waiting for another start or stop: %w", err)
	}
	last, err := tryLock(s.users, syscall.LOCK_EX)
	if child {
		if !last && err == nil {
			some, cancel := context.WithTimeout(ctx, cmp.Or(s.cfg.others, othersPatience))
			_ = poll(some, func() (bool, error) {
				last, err = tryLock(s.users, syscall.LOCK_EX)
				return last, err
			})
			cancel()
		}
		err = errors.Join(err, proc.stop(ctx, stopPatience))
	}
	if !last {
		return err // what is up is theirs now
	}
	return errors.Join(err, s.stopFound(ctx))
}

func (s *Server) process() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// stopFound stops the server that is up, which after a crash need not be the
// one we knew, unless it was started by hand. Of one that was killed it ends
// what is left.
func (s *Server) stopFound(ctx context.Context) error {
	found, err := postmaster(s.Data())
	if err != nil {
		return err
	}
	ours := s.startedByUs(s.process().pid)
	if found.pid != 0 {
		if !s.startedByUs(found.pid) {
			return nil
		}
		p := &process{pid: found.pid, data: s.Data()}
		if err := p.stop(ctx, stopPatience); err != nil {
			return err
		}
		ours = true
	}
	if !ours {
		return nil
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	if err := s.expel(patience); err != nil {
		return err
	}
	if dir := s.socketPath(); dir != s.path("run") {
		_ = os.Remove(dir) // in the directory for temporary files; not if it is not empty
	}
	return remove(s.path("started"))
}
