package localpg_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// workerVar makes the test binary, started again, a process that uses a private
// server: what several processes do to each other, one process cannot show.
const workerVar = "HOWDAH_LOCALPG_WORKER"

func TestMain(m *testing.M) {
	if order := os.Getenv(workerVar); order != "" {
		os.Exit(work(order))
	}
	code := pgtest.Run(m)
	if err := os.RemoveAll(made.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// order is what a worker is to do, report what it tells about its server.
type (
	order struct {
		Dir    string
		Tied   bool
		Serves int // if not 0: only tell whether that process serves Dir/data
	}
	report struct {
		URL    string
		PID    int
		Reused bool
		Serves bool
		Error  string
	}
)

// work starts the server, reports it, holds it until stdin ends and stops it.
func work(line string) int {
	var o order
	if err := json.Unmarshal([]byte(line), &o); err != nil {
		return 2
	}
	ctx := context.Background()
	if o.Serves != 0 {
		_ = json.NewEncoder(os.Stdout).Encode(report{Serves: localpg.Serves(o.Serves, filepath.Join(o.Dir, "data"))})
		return 0
	}
	var r report
	server, err := localpg.Start(ctx, localpg.Config{Dir: o.Dir, Tied: o.Tied, Log: quiet})
	if err != nil {
		r.Error = err.Error()
	} else {
		r = report{URL: server.URL(), PID: server.PID(), Reused: server.Reused()}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil || r.Error != "" {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := server.Stop(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var quiet = slog.New(slog.DiscardHandler)

// worker is such a process.
type worker struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
	ended  bool
}

// newWorker starts a worker; prepare may change how, and be nil.
func newWorker(t *testing.T, o order, prepare func(*exec.Cmd)) *worker {
	t.Helper()
	line, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), workerVar+"="+string(line))
	cmd.Stderr = os.Stderr
	if prepare != nil {
		prepare(cmd)
	}
	w := &worker{t: t, cmd: cmd}
	if w.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.stdout = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !w.ended {
			w.finish()
		}
	})
	return w
}

// report waits until the worker has its server.
func (w *worker) report() report {
	w.t.Helper()
	line, err := w.stdout.ReadBytes('\n')
	if err != nil {
		w.t.Fatalf("the worker said nothing: %v", err)
	}
	var r report
	if err := json.Unmarshal(line, &r); err != nil {
		w.t.Fatal(err)
	}
	if r.Error != "" {
		w.t.Fatalf("worker: %s", r.Error)
	}
	return r
}

// finish lets the worker stop its use of the server and waits for its end.
func (w *worker) finish() {
	w.t.Helper()
	w.ended = true
	_ = w.stdin.Close()
	if err := w.cmd.Wait(); err != nil {
		w.t.Errorf("worker: %v", err)
	}
}

// kill ends the worker by kill -9.
func (w *worker) kill() {
	w.t.Helper()
	w.ended = true
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait() // tells that it was killed
}

// stateDir makes a state directory.
func stateDir(t *testing.T) string {
	t.Helper()
	return pgtest.StateDir(t)
}

// made is a state directory that tests get copies of: to make a cluster takes longer
// than most of what they do with it.
var made cluster

type cluster struct {
	once     sync.Once
	dir, bin string
	err      error
}

func makeOnce(t *testing.T) *cluster {
	t.Helper()
	made.once.Do(func() {
		if made.dir, made.err = os.MkdirTemp("", fmt.Sprintf("howdah-test-%d-*", os.Getpid())); made.err != nil {
			return
		}
		if made.err = os.Chmod(made.dir, 0o711); made.err != nil {
			return
		}
		server, err := localpg.Start(within(t), localpg.Config{Dir: made.dir, Tied: true, Log: quiet})
		if made.err = err; err == nil {
			made.bin = server.BinDir()
			made.err = server.Stop(within(t))
		}
	})
	if made.err != nil {
		t.Fatal(made.err)
	}
	return &made
}

// clusterDir makes a state directory with a cluster.
func clusterDir(t *testing.T) string {
	t.Helper()
	dir := stateDir(t)
	if out, err := exec.Command("cp", "-a", makeOnce(t).dir+"/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// programDir makes a directory for programs that the server's user can reach,
// which it could not below t.TempDir. Memory may be mounted noexec.
func programDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("howdah-test-%d-*", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// start starts a server, which is stopped when the test ends if not before.
func start(t *testing.T, cfg localpg.Config) *localpg.Server {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	server, err := localpg.Start(within(t), cfg)
	if err != nil {
		t.Fatalf("Start = %v", err)
	}
	t.Cleanup(func() { stop(t, server) })
	return server
}

func stop(t *testing.T, server *localpg.Server) {
	t.Helper()
	if err := server.Stop(within(t)); err != nil {
		t.Errorf("Stop = %v", err)
	}
}

func ask[T any](t *testing.T, url, sql string, args ...any) T {
	t.Helper()
	conn, err := pgx.Connect(within(t), url)
	if err != nil {
		t.Fatalf("Connect = %v", err)
	}
	defer conn.Close(context.Background())
	var v T
	if err := conn.QueryRow(within(t), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func run(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(within(t), url)
	if err != nil {
		t.Fatalf("Connect = %v", err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(within(t), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

var eventually = pgtest.Until

func kill9(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill -9 %d: %v", pid, err)
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if mode&0o111 != 0 {
		pgtest.Program(t, path, []byte(content))
		return
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// as makes a process one of the user to whom the path belongs.
func as(t *testing.T, path string) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	uid := uidOf(t, path)
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// asNobody makes a worker run as the user nobody, if we are root. The test
// binary lies where only we can reach it, so that a copy runs.
func asNobody(t *testing.T) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		t.Helper()
		if os.Geteuid() != 0 {
			return
		}
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(nobody.Uid) // numbers on every unix
		gid, _ := strconv.Atoi(nobody.Gid)
		binary, err := os.ReadFile(cmd.Path)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Dir = programDir(t)
		cmd.Path = filepath.Join(cmd.Dir, "worker")
		pgtest.Program(t, cmd.Path, binary)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
}
