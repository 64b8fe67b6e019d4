package pgtest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// prefix starts the name of every directory made here; the pid of the process
// that it belongs to and something random follow.
const prefix = "howdah-test-"

// newDir names a directory that does not exist yet.
func newDir(parent string) string {
	return filepath.Join(parent, fmt.Sprintf("%s%d-%s", prefix, os.Getpid(), strings.ToLower(rand.Text()[:8])))
}

// StateDir makes a directory that does for the Dir of a [localpg.Config], and is
// removed when the test ends. When tests run as root, the server runs as another
// user, who could not reach a directory below t.TempDir.
func StateDir(t testing.TB) string {
	t.Helper()
	dir := newDir(fastParent())
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	if os.Geteuid() == 0 {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatalf("pgtest: %v", err)
		}
	}
	return dir
}

const memory = "/dev/shm"

func parents() []string { return []string{memory, os.TempDir()} }

// fastParent is in memory where a cluster fits, with room for what tests write.
func fastParent() string {
	const enough = 1 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err == nil && uint64(fs.Bavail)*uint64(fs.Bsize) >= enough && writable(memory) {
		return memory
	}
	return os.TempDir()
}

func writable(dir string) bool {
	probe, err := os.MkdirTemp(dir, prefix+"probe-")
	return err == nil && os.Remove(probe) == nil
}

// removeDead removes what test processes that were killed left in parent. A
// directory is only taken if its owner's pid is dead and nobody holds the lock
// by which users of a server say that they are there: the pid alone could be
// that of a process in another container which shares the directory.
func removeDead(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, prefix+"[0-9]*"))
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		if unused(dir) {
			_ = os.RemoveAll(dir) // another process may be doing the same
		}
	}
}

// unused reports whether no process has a server in dir. The server itself,
// told to end when its owner died, may need a moment more: then the next run
// removes the directory.
func unused(dir string) bool {
	if _, err := os.Stat(filepath.Join(dir, "data", "postmaster.pid")); err == nil {
		if pid := postmasterPID(dir); pid > 0 && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return false
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "users.lock"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return true // its owner died before it had a server
	}
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

func postmasterPID(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, _ := strconv.Atoi(first)
	return pid
}
