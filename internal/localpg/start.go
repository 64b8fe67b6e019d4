//go:build unix

package localpg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// launch brings up a server on the state directory, or finds the one that is
// up. The caller holds the start lock.
func (s *Server) launch(ctx context.Context) (found pidFile, p *process, reused bool, err error) {
	data := s.Data()
	found, err = s.running(ctx)
	if err != nil {
		return pidFile{}, nil, false, err
	}
	if found.pid != 0 {
		return found, &process{pid: found.pid, data: data}, true, nil
	}
	as, err := serverAccount(data, s.cfg.accounts)
	if err != nil {
		return pidFile{}, nil, false, err
	}
	if err := as.reach(s.cfg.Dir); err != nil {
		return pidFile{}, nil, false, fmt.Errorf("state directory: %w", err)
	}
	bin, err := find(ctx, s.cfg, as, data)
	if err != nil {
		return pidFile{}, nil, false, err
	}
	version, err := clusterVersion(data)
	if err == nil && version == 0 {
		err = create(ctx, s.cfg, bin, as)
	}
	if err != nil {
		return pidFile{}, nil, false, err
	}
	found, p, err = s.boot(ctx, bin, as)
	return found, p, false, err
}

// running returns the server that is up; one that is on its way up or down is
// waited for.
func (s *Server) running(ctx context.Context) (pidFile, error) {
	var found pidFile
	err := poll(ctx, func() (bool, error) {
		var err error
		found, err = postmaster(s.Data())
		if err == nil && found.single {
			err = fmt.Errorf("process %d works on %s in single-user mode", found.pid, s.Data())
		}
		return found.pid == 0 || found.ready(), err
	})
	return found, err
}

// boot starts a postmaster on an existing cluster and waits until it serves.
func (s *Server) boot(ctx context.Context, bin binaries, as account) (pidFile, *process, error) {
	socketDir, err := s.socketDir(as)
	if err != nil {
		return pidFile{}, nil, err
	}
	log, err := openLog(s.path("postgres.log"))
	if err != nil {
		return pidFile{}, nil, err
	}
	defer log.Close()
	if err := s.keepPassword(ctx, bin, as); err != nil {
		return pidFile{}, nil, err
	}
	patience, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if err := s.expel(patience); err != nil {
			return pidFile{}, nil, err
		}
		if err := s.removeStale(socketDir); err != nil {
			return pidFile{}, nil, err
		}
		info, err := log.Stat()
		if err != nil {
			return pidFile{}, nil, err
		}
		p, err := spawn(ctx, s.cfg, bin, as, socketDir, log)
		if err != nil {
			return pidFile{}, nil, err
		}
		found, err := s.settle(ctx, p)
		if err == nil {
			return found, p, nil
		}
		if !errors.Is(err, errEnded) {
			return pidFile{}, nil, errors.Join(err, p.stop(ctx, 0))
		}
		// The kernel may take a moment to notice that the last process let go
		// of the shared memory; where there is no /proc, the processes may too.
		said := tail(log, info.Size())
		if !bytes.Contains(said, []byte("is still in use")) || patience.Err() != nil {
			return pidFile{}, nil, fmt.Errorf("%w: %s", err, lastLines(said, 5))
		}
		select {
		case <-patience.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// expel ends the processes that a killed server left behind. They hold its
// shared memory, and PostgreSQL refuses to start beside it, until they notice
// that their postmaster is gone; one that is computing never looks.
func (s *Server) expel(ctx context.Context) error {
	left := servers(s.Data())
	if len(left) == 0 {
		return nil
	}
	s.cfg.Log.Warn("ending what a killed private postgresql left running", "data", s.Data(), "pids", left)
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGQUIT) // one that is gone already is as good
	}
	err := poll(ctx, func() (bool, error) {
		there := func(pid int) bool { return serves(pid, s.Data()) } // on its way out, too
		return len(servers(s.Data())) == 0 && !slices.ContainsFunc(left, there), nil
	})
	if err != nil {
		return fmt.Errorf("processes of a killed server do not end: %w", err)
	}
	return nil
}

// settle records that p is ours and waits until it serves.
func (s *Server) settle(ctx context.Context, p *process) (pidFile, error) {
	if err := writeFile(s.path("started"), strconv.Itoa(p.pid)+"\n"); err != nil {
		return pidFile{}, err
	}
	return p.awaitReady(ctx)
}

// startedByUs reports whether the server with this pid was started by howdah, in
// this process or another, and not by somebody's hand.
func (s *Server) startedByUs(pid int) bool {
	b, err := os.ReadFile(s.path("started"))
	return err == nil && string(bytes.TrimSpace(b)) == strconv.Itoa(pid)
}

// removeStale removes the files by which a dead server would keep a new one
// from starting: PostgreSQL takes any live process with the pid in such a file
// for the server. The caller knows that none works on our data.
func (s *Server) removeStale(socketDir string) error {
	file := filepath.Join(s.Data(), "postmaster.pid")
	if found, err := readPidFile(file); err != nil {
		return err
	} else if found.pid != 0 {
		s.cfg.Log.Info("removing what a dead private postgresql left", "file", file, "pid", found.pid)
	}
	if err := remove(file, s.path("started")); err != nil {
		return err
	}
	locks, err := filepath.Glob(filepath.Join(escapeGlob(socketDir), ".s.PGSQL.*.lock"))
	if err != nil {
		return err
	}
	for _, lock := range locks {
		found, err := readPidFile(lock)
		if err != nil {
			return err
		}
		if found.pid != 0 && serves(found.pid, found.data) {
			continue // a server on other data, put here by somebody: PostgreSQL will say so
		}
		if err := remove(strings.TrimSuffix(lock, ".lock"), lock); err != nil {
			return err
		}
	}
	return nil
}

// remove removes those of the files that exist.
func remove(files ...string) error {
	for _, file := range files {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// escapeGlob makes every character of path stand for itself in a pattern.
func escapeGlob(path string) string {
	var b []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			b = append(b, '\\')
		}
		b = append(b, path[i])
	}
	return string(b)
}

// longest is how long a socket's path may be: the systems' limit is 104 or 108
// bytes with the zero at the end, and PostgreSQL adds to it for the lock.
const longest = 90

// socketPath is the directory of the server's socket: in the state directory,
// or, if its path does not do for a socket, in the directory for temporary
// files, under a name that is always the same for this state directory.
func (s *Server) socketPath() string {
	fits := func(dir string) bool {
		// A comma separates hosts in a connection string, and nothing escapes it.
		return len(dir)+len("/.s.PGSQL.5432") <= longest && !strings.Contains(dir, ",")
	}
	if dir := s.path("run"); fits(dir) {
		return dir
	}
	sum := sha256.Sum256([]byte(s.cfg.Dir))
	name := "howdah-" + hex.EncodeToString(sum[:8])
	if dir := filepath.Join(os.TempDir(), name); fits(dir) {
		return dir
	}
	return filepath.Join("/tmp", name)
}

// socketDir makes that directory.
func (s *Server) socketDir(as account) (string, error) {
	dir := s.socketPath()
	if err := as.mkdir(dir); err != nil {
		return "", fmt.Errorf("socket directory: %w", err)
	}
	if err := as.reach(dir); err != nil {
		return "", fmt.Errorf("socket directory: %w", err)
	}
	return dir, nil
}
