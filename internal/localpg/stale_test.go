package localpg_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// stranger starts a process that is not PostgreSQL but, if we are root, runs
// as the server's user: PostgreSQL asks whether a signal could reach it.
func stranger(t *testing.T, data string) int {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.Dir = data // even in the data directory it is no server
	cmd.SysProcAttr = as(t, data)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !localpg.Running(cmd.Process.Pid) {
			t.Error("a process that has nothing to do with it was ended")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// zombie makes a process that has ended and for which nobody has waited.
func zombie(t *testing.T, data string) int {
	t.Helper()
	cmd := exec.Command("true")
	cmd.SysProcAttr = as(t, data)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	eventually(t, "the process ends", func() bool {
		return !localpg.Running(cmd.Process.Pid)
	})
	return cmd.Process.Pid
}

// Files that a dead server left name a pid that by now is another's, or that of
// a zombie. PostgreSQL takes both for the server and refuses to start.
func TestStaleFiles(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	data, socket := filepath.Join(dir, "data"), filepath.Join(dir, "run", ".s.PGSQL.5432")
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	run(t, server.URL(), "CREATE TABLE kept AS SELECT 7 AS n")
	pidFile := contents(t, filepath.Join(data, "postmaster.pid"))
	socketLock := contents(t, socket+".lock")
	stop(t, server)
	naming := func(file string, pid int) string {
		_, rest, _ := strings.Cut(file, "\n")
		return fmt.Sprintf("%d\n%s", pid, rest)
	}
	for _, test := range []struct {
		name               string
		pidFile, socketLck string
	}{
		{"pid file of a stranger", naming(pidFile, stranger(t, data)), ""},
		{"pid file of a zombie", naming(pidFile, zombie(t, data)), ""},
		{"pid file of the dead", pidFile, socketLock},
		{"pid file cut short", "12", ""},
		{"empty pid file", "", ""},
		{"garbage in the pid file", "one\ntwo\n", ""},
		{"socket lock of a stranger", "", naming(socketLock, stranger(t, data))},
		{"socket lock of a zombie", "", naming(socketLock, zombie(t, data))},
		{"both", naming(pidFile, stranger(t, data)), naming(socketLock, zombie(t, data))},
	} {
		t.Run(test.name, func(t *testing.T) { // one after the other: they share the cluster
			if test.pidFile != "" || test.name == "empty pid file" {
				owned(t, filepath.Join(data, "postmaster.pid"), test.pidFile)
			}
			if test.socketLck != "" {
				owned(t, socket+".lock", test.socketLck)
				owned(t, socket, "")
			}
			server := start(t, localpg.Config{Dir: dir, Tied: true})
			if server.Reused() {
				t.Error("Reused = true, want a new server")
			}
			if n := ask[int](t, server.URL(), "SELECT n FROM kept"); n != 7 {
				t.Errorf("n = %d, want 7", n)
			}
		})
	}
}

// The backends of a postmaster that was killed hold its shared memory; one that
// computes does not notice that the postmaster is gone.
func TestOrphanedBackends(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	server := start(t, localpg.Config{Dir: dir})
	run(t, server.URL(), "CREATE TABLE kept AS SELECT 7 AS n")
	conn, err := pgx.Connect(within(t), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	busy := int(conn.PgConn().PID())
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b")
		ended <- err
		_ = conn.Close(context.Background())
	}()
	eventually(t, "the backend computes", func() bool {
		return ask[bool](t, server.URL(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active')", busy)
	})
	kill9(t, server.PID())
	again := start(t, localpg.Config{Dir: dir, Tied: true})
	if again.Reused() || localpg.Running(busy) {
		t.Errorf("Reused %v, orphan runs %v, want neither", again.Reused(), localpg.Running(busy))
	}
	if err := pgtest.Receive(t, ended, "the end of the orphan's statement"); err == nil {
		t.Error("the statement of the orphan ended well")
	}
	if n := ask[int](t, again.URL(), "SELECT n FROM kept"); n != 7 {
		t.Errorf("n = %d, want 7", n)
	}
	stop(t, server) // first, or the tied one waits for it
}

// A server counts as ours only if it works on our data, not on another's.
func TestServes(t *testing.T) {
	t.Parallel()
	one := start(t, localpg.Config{Dir: clusterDir(t), Tied: true})
	two := start(t, localpg.Config{Dir: clusterDir(t), Tied: true})
	for _, test := range []struct {
		pid  int
		data string
		want bool
	}{
		{one.PID(), one.Data(), true},
		{two.PID(), two.Data(), true},
		{one.PID(), two.Data(), false},
		{os.Getpid(), one.Data(), false},
		{0, one.Data(), false},
		{-1, one.Data(), false},
		{stranger(t, one.Data()), one.Data(), false},
		{zombie(t, one.Data()), one.Data(), false},
	} {
		if got := localpg.Serves(test.pid, test.data); got != test.want {
			t.Errorf("Serves(%d, %s) = %v, want %v", test.pid, test.data, got, test.want)
		}
	}
}

func contents(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// owned writes a file that belongs to the server's user, like those of PostgreSQL.
func owned(t *testing.T, path, content string) {
	t.Helper()
	write(t, path, content, 0o600)
	uid := int(uidOf(t, filepath.Dir(path)))
	if err := os.Chown(path, uid, -1); err != nil {
		t.Fatal(err)
	}
}
