package pgtest

import (
	"os"
	"syscall"
	"testing"
)

// Program writes a file that can be run at once. What is open for writing is too busy to
// be run, and a process that was forked meanwhile would have it open until it execs:
// whoever forks waits.
func Program(t testing.TB, path string, content []byte) {
	t.Helper()
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, content, 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
}
