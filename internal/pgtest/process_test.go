package pgtest_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// What a whole test process does is seen from outside: the test binary runs
// again, with one test and something special that this variable names.
const specialVar = "HOWDAH_PGTEST_SPECIAL"

// prepare does the special thing.
func prepare() {
	if os.Getenv(specialVar) == "leak" {
		pgtest.LeakPatience(0)
		go func() { select {} }()
	}
}

// again makes a process that runs one test of this binary.
func again(t *testing.T, test, special string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+test+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), specialVar+"="+special)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// TestHold only matters in a process that is to be killed: it tells where the
// server's data is and holds it until stdin ends.
func TestHold(t *testing.T) {
	t.Parallel()
	if os.Getenv(specialVar) != "hold" {
		return
	}
	fmt.Println("data " + ask[string](t, connect(t, pgtest.URL(t)), "SHOW data_directory"))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// kill -9 of a test process ends its server, and the next one removes the
// directory. What a living one uses stays.
func TestKilledProcessLeavesNothing(t *testing.T) {
	t.Parallel()
	cmd := again(t, "TestHold", "hold", "HOWDAH_TEST_DATABASE_URL=")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	for lines := bufio.NewScanner(out); dir == "" && lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data "); ok {
			dir = filepath.Dir(data)
		}
	}
	if !strings.Contains(filepath.Base(dir), fmt.Sprintf("-%d-", cmd.Process.Pid)) {
		t.Errorf("directory %q, want one that names its owner %d", dir, cmd.Process.Pid)
	}
	pgtest.RemoveDead(filepath.Dir(dir))
	if _, err := os.Stat(filepath.Join(dir, "data", "PG_VERSION")); err != nil {
		t.Errorf("the directory of a living process: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // tells that it was killed
	pgtest.Until(t, "the server has ended", func() bool {
		pgtest.RemoveDead(filepath.Dir(dir))
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
}

// On a server that goes on after the tests, nothing is left either.
func TestGivenServer(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	cmd := again(t, "TestSchemasAreApart|TestDatabaseIsDroppedUnderItsUsers", "", "HOWDAH_TEST_DATABASE_URL="+url)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tests on a given server: %v\n%s", err, out)
	}
	pattern := fmt.Sprintf("howdah_test_%d_%%", cmd.Process.Pid)
	if n := ask[int](t, connect(t, url), "SELECT count(*) FROM pg_database WHERE datname LIKE $1", pattern); n != 0 {
		t.Errorf("%d databases are left, want 0", n)
	}
}

// Without PostgreSQL tests fail, and say what to do.
func TestWithoutPostgres(t *testing.T) {
	t.Parallel()
	cmd := again(t, "TestSchemasAreApart", "", "HOWDAH_TEST_DATABASE_URL=", "HOWDAH_PG_BIN="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "install PostgreSQL") {
		t.Errorf("tests without PostgreSQL: %v, want a failure that says what to do\n%s", err, out)
	}
}

func TestLeakFails(t *testing.T) {
	t.Parallel()
	out, err := again(t, "TestHold", "leak").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "goroutine") {
		t.Errorf("tests that leak: %v, want a failure that names the goroutine\n%s", err, out)
	}
}

func TestRemoveDeadIsCareful(t *testing.T) {
	t.Parallel()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	directory := func(name string) string {
		dir := filepath.Join(parent, name)
		if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	pid := dead.Process.Pid
	gone := directory(fmt.Sprintf("howdah-test-%d-x", pid))
	stay := []string{
		directory(fmt.Sprintf("howdah-test-%d-x", os.Getpid())),
		directory(fmt.Sprintf("other-%d-x", pid)),
		directory("howdah-test-x"),
	}
	pgtest.RemoveDead(parent)
	if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of a dead process: %v, want it removed", err)
	}
	for _, dir := range stay {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("a directory that is not of a dead process: %v", err)
		}
	}
}
