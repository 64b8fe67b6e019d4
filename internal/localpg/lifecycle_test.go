package localpg_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Four processes that start at once make one cluster with one server, and the
// last one out stops it.
func TestFourStartsMakeOneServer(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	var workers []*worker
	for range 4 {
		workers = append(workers, newWorker(t, order{Dir: dir}, nil))
	}
	var reports []report
	fresh := 0
	for _, w := range workers {
		r := w.report()
		if !r.Reused {
			fresh++
		}
		reports = append(reports, r)
	}
	if fresh != 1 {
		t.Errorf("%d started a server, want 1", fresh)
	}
	for _, r := range reports {
		if r.PID != reports[0].PID || r.URL != reports[0].URL {
			t.Errorf("process %d and %d, want one server", r.PID, reports[0].PID)
		}
		ask[int](t, r.URL, "SELECT 1")
	}
	for _, w := range workers[:3] {
		w.finish()
	}
	ask[int](t, reports[3].URL, "SELECT 1")
	workers[3].finish()
	if localpg.Running(reports[0].PID) {
		t.Error("the server is still there after the last one left")
	}
}

// A server that is not tied outlives a starter killed by kill -9, is reused by
// the next, and stopped by the last, though that one did not start it.
func TestOrphanIsReusedAndStopped(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	w := newWorker(t, order{Dir: dir}, nil)
	r := w.report()
	w.kill()
	server := start(t, localpg.Config{Dir: dir, Tied: true}) // tied or not, it reuses
	if !server.Reused() || server.PID() != r.PID {
		t.Errorf("Reused, PID = %v, %d, want true, %d", server.Reused(), server.PID(), r.PID)
	}
	ask[int](t, server.URL(), "SELECT 1")
	stop(t, server)
	if localpg.Running(r.PID) {
		t.Error("the orphan is still there after its last user left")
	}
}

// A tied server ends with its starter, even by kill -9; the next start waits
// for that end and finds everything that was committed.
func TestTiedServerEndsWithItsStarter(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	w := newWorker(t, order{Dir: dir, Tied: true}, nil)
	r := w.report()
	run(t, r.URL, "CREATE TABLE kept AS SELECT 7 AS n")
	w.kill()
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	if server.Reused() || server.PID() == r.PID {
		t.Errorf("Reused, PID = %v, %d: the dying server was taken for a living one", server.Reused(), server.PID())
	}
	if n := ask[int](t, server.URL(), "SELECT n FROM kept"); n != 7 {
		t.Errorf("n = %d, want 7", n)
	}
	eventually(t, "the tied server ends", func() bool { return !localpg.Running(r.PID) })
}

// A Ctrl-C at the terminal goes to a whole process group; the server is stopped
// by us, when we are done with it, and not by that.
func TestServerIsInAnotherGroup(t *testing.T) {
	t.Parallel()
	for _, tied := range []bool{true, false} {
		server := start(t, localpg.Config{Dir: clusterDir(t), Tied: tied})
		group, err := syscall.Getpgid(server.PID())
		if err != nil {
			t.Fatal(err)
		}
		if group == syscall.Getpgrp() {
			t.Errorf("tied %v: the server is in our process group", tied)
		}
	}
}

// Whoever has a server tied to it and stops waits for the others a while.
func TestTiedStarterWaitsForOthers(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	tied := start(t, localpg.WithOthersPatience(localpg.Config{Dir: dir, Tied: true}, pgtest.Patience)) // for the other to be at work on a busy machine
	other := start(t, localpg.Config{Dir: dir})
	conn, err := pgx.Connect(within(t), other.URL())
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- tied.Stop(context.Background()) }()
	// Stop holds the start lock while it waits; until then the other is at work.
	eventually(t, "Stop has begun", func() bool { return locked(t, filepath.Join(dir, "start.lock")) })
	if err := conn.Ping(within(t)); err != nil {
		t.Errorf("while the starter waits: %v", err)
	}
	_ = conn.Close(context.Background())
	stop(t, other)
	if err := pgtest.Receive(t, stopped, "the end of Stop"); err != nil {
		t.Errorf("Stop = %v", err)
	}
	if localpg.Running(tied.PID()) {
		t.Error("the server is still there")
	}
}

// It does not wait for ever: another that stays loses the server.
func TestTiedStarterStopsAtLast(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	tied := start(t, localpg.WithOthersPatience(localpg.Config{Dir: dir, Tied: true}, 100*time.Millisecond))
	other := start(t, localpg.Config{Dir: dir})
	stop(t, tied)
	if localpg.Running(tied.PID()) {
		t.Error("the server is still there")
	}
	stop(t, other) // finds nothing to stop
}

func locked(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// Many come and go: whoever has started has a server until it stops.
func TestComingAndGoing(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 6 {
				if err := comeAndGo(dir); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if files, _ := filepath.Glob(filepath.Join(dir, "run", ".s*")); len(files) > 0 {
		t.Errorf("a server is left: %q", files)
	}
}

func comeAndGo(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	defer cancel()
	server, err := localpg.Start(ctx, localpg.Config{Dir: dir, Log: quiet})
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, server.URL())
	if err == nil {
		_, err = conn.Exec(ctx, "SELECT 1")
		err = errors.Join(err, conn.Close(ctx))
	}
	return errors.Join(err, server.Stop(ctx))
}

// A server that was started by hand on our data is used, and not stopped.
func TestServerStartedByHandIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	first := start(t, localpg.Config{Dir: dir, Tied: true})
	bin := first.BinDir()
	stop(t, first)
	byHand := postgres(t, bin, filepath.Join(dir, "data"), "-c", "listen_addresses=",
		"-c", "unix_socket_directories="+filepath.Join(dir, "run"))
	eventually(t, "the server by hand is ready", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
		return strings.Contains(string(b), "ready")
	})
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	if !server.Reused() || server.PID() != byHand.Process.Pid {
		t.Errorf("Reused, PID = %v, %d, want true, %d", server.Reused(), server.PID(), byHand.Process.Pid)
	}
	ask[int](t, server.URL(), "SELECT 1")
	stop(t, server)
	if !localpg.Running(byHand.Process.Pid) {
		t.Fatal("the server by hand was stopped")
	}
	ask[int](t, server.URL(), "SELECT 1")
}

// postgres runs a postmaster as a child of the test, under the user to whom the
// data belongs; it is ended with the test.
func postgres(t *testing.T, bin, data string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "postgres"), append([]string{"-D", data}, args...)...)
	cmd.Dir = filepath.Dir(data)
	cmd.SysProcAttr = as(t, data)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	})
	return cmd
}

// Somebody who repairs the cluster by hand is not disturbed.
func TestSingleUserModeIsRespected(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	first := start(t, localpg.Config{Dir: dir, Tied: true})
	bin := first.BinDir()
	stop(t, first)
	data := filepath.Join(dir, "data")
	single := exec.Command(filepath.Join(bin, "postgres"), "--single", "-D", data, "postgres")
	single.Dir = dir
	single.SysProcAttr = as(t, data)
	stdin, err := single.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := single.Start(); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(data, "postmaster.pid")
	eventually(t, "single-user mode is on", func() bool { // the file is there before it says so
		b, _ := os.ReadFile(pidFile)
		return strings.HasPrefix(string(b), "-") && strings.Contains(string(b), "\n")
	})
	_, err = localpg.Start(within(t), localpg.Config{Dir: dir, Log: quiet})
	if err == nil || !strings.Contains(err.Error(), "single-user") {
		t.Errorf("Start = %v, want an error that names single-user mode", err)
	}
	_ = stdin.Close()
	if err := single.Wait(); err != nil {
		t.Errorf("single-user mode ended with %v: it was disturbed", err)
	}
	ask[int](t, start(t, localpg.Config{Dir: dir, Tied: true}).URL(), "SELECT 1")
}

func TestStopAgain(t *testing.T) {
	t.Parallel()
	for _, tied := range []bool{true, false} {
		server := start(t, localpg.Config{Dir: clusterDir(t), Tied: tied})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if err := server.Stop(context.Background()); err != nil {
					t.Errorf("Stop = %v", err)
				}
				if localpg.Running(server.PID()) {
					t.Error("Stop returned before the server was gone")
				}
			})
		}
		all.Wait()
	}
}

// A fast shutdown waits for its processes. Where one does not answer (here it
// is suspended) an immediate one follows: after 20 s, or when ctx is done.
func TestStopThatTakesTooLong(t *testing.T) {
	t.Parallel()
	var stops sync.WaitGroup // at once: PostgreSQL itself waits for 5 s
	servers := map[bool]*localpg.Server{}
	for _, tied := range []bool{true, false} {
		server := start(t, localpg.Config{Dir: clusterDir(t), Tied: tied})
		servers[tied] = server
		run(t, server.URL(), "CREATE TABLE kept AS SELECT 7 AS n")
		conn, err := pgx.Connect(within(t), server.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if err := syscall.Kill(int(conn.PgConn().PID()), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		stops.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			if err := server.Stop(ctx); err != nil {
				t.Errorf("tied %v: Stop = %v", tied, err)
			}
			if localpg.Running(server.PID()) {
				t.Errorf("tied %v: the server is still there", tied)
			}
		})
	}
	stops.Wait()
	for tied, server := range servers {
		again := start(t, localpg.Config{Dir: server.Dir(), Tied: tied})
		if n := ask[int](t, again.URL(), "SELECT n FROM kept"); n != 7 {
			t.Errorf("tied %v: n = %d, want 7", tied, n)
		}
	}
}

func TestStartCanBeCalledOff(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	f, err := os.OpenFile(filepath.Join(dir, "start.lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := localpg.Start(ctx, localpg.Config{Dir: dir, Log: quiet}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start while another holds the lock = %v, want context.DeadlineExceeded", err)
	}
}
