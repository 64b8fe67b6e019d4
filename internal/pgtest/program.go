package pgtest

import (
	"os"
	"syscall"
	"testing"
)

// Program writes a file that can be run at once. A process that were forked while it is
// written would have it open until it execs, and what is open for writing is too busy to
// be run: whoever forks waits.
func Program(t testing.TB, path string, content []byte) {
	t.Helper()
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, content, 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
}
