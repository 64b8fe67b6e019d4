package localpg_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/localpg"
)

func TestNewCluster(t *testing.T) {
	t.Parallel()
	var said []string
	dir := filepath.Join(stateDir(t), "made", "by", "start")
	server := start(t, localpg.Config{Dir: dir, Tied: true, Say: func(line string) { said = append(said, line) }})
	if len(said) != 1 || !strings.Contains(said[0], dir) {
		t.Errorf("said %q, want one line with the directory", said)
	}
	if server.Dir() != dir || server.Data() != filepath.Join(dir, "data") || server.Reused() {
		t.Errorf("Dir, Data, Reused = %s, %s, %v", server.Dir(), server.Data(), server.Reused())
	}
	for name, want := range map[string]string{
		"server_version":   server.Version(),
		"listen_addresses": "",
		"server_encoding":  "UTF8",
		"lc_messages":      "C",
		"fsync":            "on",
		"data_directory":   server.Data(),
		"search_path":      "public", // although there will be a schema called like the role
	} {
		got := ask[string](t, server.URL(), "SELECT current_setting($1)", name)
		if got, _, _ = strings.Cut(got, " ("); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if got := ask[string](t, server.URL(), "SELECT datcollate FROM pg_database WHERE datname = 'howdah'"); got != "C" {
		t.Errorf("locale = %q, want C", got)
	}
	if got := ask[string](t, server.URL(), "SELECT current_user || ' ' || current_database()"); got != "howdah howdah" {
		t.Errorf("user and database = %q, want howdah howdah", got)
	}
	if got := ask[string](t, server.URL(), "SELECT string_agg(DISTINCT auth_method, ' ') FROM pg_hba_file_rules"); got != "scram-sha-256" {
		t.Errorf("ways in = %q, want scram-sha-256 alone", got)
	}
	for file, want := range map[string]os.FileMode{"password": 0o600, "postgres.log": 0o600, "data": 0o700, "run": 0o700} {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", file, info.Mode().Perm(), want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "password.*")); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestOnlyThePasswordOpens(t *testing.T) {
	t.Parallel()
	server := start(t, localpg.Config{Dir: clusterDir(t), Tied: true})
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("howdah", "guessed")
	_, err = pgx.Connect(within(t), u.String())
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "28P01" {
		t.Errorf("Connect with a wrong password = %v, want 28P01", err)
	}
}

// The directory's name is an argument, a list element, and part of a URL, where
// a comma cannot be.
func TestAwkwardDirectory(t *testing.T) {
	t.Parallel()
	for _, name := range []string{`a b&c=d%2F+e'f"g[h]é`, "a,b"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			awkwardDirectory(t, filepath.Join(stateDir(t), name))
		})
	}
}

func awkwardDirectory(t *testing.T, dir string) {
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	ask[int](t, server.URL(), "SELECT 1")
	psql := filepath.Join(server.BinDir(), "psql")
	if _, err := os.Stat(psql); err != nil {
		psql = "psql"
	}
	out, err := exec.Command(psql, server.URL(), "-XAtc", "SELECT current_database()").CombinedOutput()
	if err != nil || string(out) != "howdah\n" {
		t.Errorf("psql = %q, %v, want howdah", out, err)
	}
	server2 := start(t, localpg.Config{Dir: dir})
	if !server2.Reused() || server2.BinDir() != server.BinDir() {
		t.Errorf("Reused, BinDir = %v, %s, want true, %s", server2.Reused(), server2.BinDir(), server.BinDir())
	}
}

// A socket's path has a limit near 100 bytes; a directory's is far longer.
func TestLongDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(stateDir(t), strings.Repeat("long", 30), "state")
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	ask[int](t, server.URL(), "SELECT 1")
	cfg, err := pgx.ParseConfig(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Host) > 90 {
		t.Errorf("socket directory has %d bytes: %s", len(cfg.Host), cfg.Host)
	}
	info, err := os.Stat(cfg.Host)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("socket directory has mode %v, %v, want 0700", info, err)
	}
	other := start(t, localpg.Config{Dir: dir})
	if other.URL() != server.URL() || !other.Reused() {
		t.Errorf("second start: URL %v, reused %v, want the same and true", other.URL() == server.URL(), other.Reused())
	}
	stop(t, other)
	stop(t, server)
	if _, err := os.Stat(cfg.Host); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket directory after Stop: %v, want it gone", err)
	}
	// Where others may write, a directory with that name may be another's.
	if err := os.Mkdir(cfg.Host, 0o777); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(cfg.Host)
	if err := os.Chmod(cfg.Host, 0o777); err != nil {
		t.Fatal(err)
	}
	if s, err := localpg.Start(within(t), localpg.Config{Dir: dir, Log: quiet}); err == nil {
		stop(t, s)
		t.Error("Start took a socket directory that is open to all")
	}
}

// The server never is root, whoever we are.
func TestAccount(t *testing.T) {
	t.Parallel()
	server := start(t, localpg.Config{Dir: clusterDir(t), Tied: true})
	uid := userOf(t, server.PID())
	if uid == 0 || uid != uidOf(t, server.Data()) {
		t.Errorf("the server runs as %d, its data is of %d, want the same and not 0", uid, uidOf(t, server.Data()))
	}
	if os.Geteuid() != 0 {
		return
	}
	// Where there is no user postgres, nobody has to do; and it stays with the
	// cluster when postgres comes.
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	dir := stateDir(t)
	for _, names := range [][]string{{"no-such-user", "nobody"}, {"postgres"}} {
		server := start(t, localpg.WithAccounts(localpg.Config{Dir: dir, Tied: true}, names...))
		if uid := userOf(t, server.PID()); strconv.Itoa(int(uid)) != nobody.Uid {
			t.Errorf("with accounts %q the server runs as %d, want %s", names, uid, nobody.Uid)
		}
		stop(t, server)
	}
	_, err = localpg.Start(within(t), localpg.WithAccounts(localpg.Config{Dir: stateDir(t), Log: quiet}, "no-such-user"))
	if err == nil || !strings.Contains(err.Error(), "no-such-user") {
		t.Errorf("Start with nobody to run it = %v, want an error that names the users", err)
	}
	// Root's own directories are closed to the server: that is said, not tried.
	closed := filepath.Join(stateDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = localpg.Start(within(t), localpg.Config{Dir: filepath.Join(closed, "state"), Log: quiet})
	if err == nil || !strings.Contains(err.Error(), closed) {
		t.Errorf("Start below a closed directory = %v, want an error that names it", err)
	}
}

// userOf returns the user as whom a process runs.
func userOf(t *testing.T, pid int) uint32 {
	t.Helper()
	out, err := exec.Command("ps", "-o", "uid=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		t.Fatalf("ps: %v", err)
	}
	uid, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 32)
	if err != nil {
		t.Fatalf("ps: %v", err)
	}
	return uint32(uid)
}

func uidOf(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// When we are root, the way of everybody else is gone in another process; when
// we are not, every other test goes it, and this one too.
func TestAsAnotherUser(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	w := newWorker(t, order{Dir: filepath.Join(dir, "state"), Tied: true}, func(cmd *exec.Cmd) {
		asNobody(t)(cmd)
		if attr := cmd.SysProcAttr; attr != nil {
			if err := os.Chown(dir, int(attr.Credential.Uid), int(attr.Credential.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	})
	r := w.report()
	if got := ask[string](t, r.URL, "SELECT current_user"); got != "howdah" {
		t.Errorf("current_user = %q, want howdah", got)
	}
	if uid := userOf(t, r.PID); uid == 0 || uid != uidOf(t, dir) {
		t.Errorf("the server runs as %d, want %d", uid, uidOf(t, dir))
	}
	info, err := os.Stat(filepath.Join(dir, "state"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory has mode %v, %v, want 0700", info.Mode(), err)
	}
	w.finish()
	eventually(t, "the server ends", func() bool { return !localpg.Running(r.PID) })
}

// A process killed in the middle of initdb leaves data.new; the next start does
// not trip over it, nor over an initdb that still runs.
func TestKilledWhileCreating(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	w := newWorker(t, order{Dir: dir}, nil)
	eventually(t, "initdb is at work", func() bool {
		_, err := os.Stat(filepath.Join(dir, "data.new", "PG_VERSION"))
		_, done := os.Stat(filepath.Join(dir, "data"))
		return err == nil || done == nil
	})
	w.kill()
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	ask[int](t, server.URL(), "SELECT 1")
	if _, err := os.Stat(filepath.Join(dir, "data.new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("data.new: %v, want it gone", err)
	}
}

func TestLeftoversOfCreating(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	write(t, filepath.Join(dir, "data.new", "base", "1", "half"), "x", 0o600)
	write(t, filepath.Join(dir, "password"), "of the cluster that never was\n", 0o600)
	ask[int](t, start(t, localpg.Config{Dir: dir, Tied: true}).URL(), "SELECT 1")
}

// A cluster of another major version is named with both, and not touched.
func TestOtherMajorVersion(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	bin, version := server.BinDir(), server.Version()
	stop(t, server)
	write(t, filepath.Join(dir, "data", "PG_VERSION"), "11\n", 0o600)
	before := listing(t, filepath.Join(dir, "data"))
	_, err := localpg.Start(within(t), localpg.Config{Dir: dir, BinDir: bin, Log: quiet})
	if !errors.Is(err, localpg.ErrVersion) || !errors.Is(err, fault.Conflict) {
		t.Fatalf("Start = %v, want ErrVersion", err)
	}
	major, _, _ := strings.Cut(version, ".")
	if !strings.Contains(err.Error(), "PostgreSQL 11") || !strings.Contains(err.Error(), "PostgreSQL "+major) {
		t.Errorf("Start = %q, want both 11 and %s named", err, major)
	}
	if after := listing(t, filepath.Join(dir, "data")); after != before {
		t.Error("the data directory was changed")
	}
	// With the right one among several, that one is taken.
	write(t, filepath.Join(dir, "data", "PG_VERSION"), major+"\n", 0o600)
	tree := programDir(t)
	fake(t, filepath.Join(tree, "99"), "99.1")
	usual := []string{filepath.Join(tree, "*"), bin}
	again := start(t, localpg.WithPlaces(localpg.Config{Dir: dir, Tied: true}, "", "", usual, ""))
	if again.BinDir() != bin {
		t.Errorf("BinDir = %s, want %s", again.BinDir(), bin)
	}
}

func TestForeignFilesAreNotOverwritten(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	write(t, filepath.Join(dir, "data", "thesis.txt"), "years of work", 0o600)
	before := listing(t, filepath.Join(dir, "data"))
	if _, err := localpg.Start(within(t), localpg.Config{Dir: dir, Log: quiet}); err == nil {
		t.Fatal("Start made a cluster among somebody's files")
	}
	if after := listing(t, filepath.Join(dir, "data")); after != before {
		t.Errorf("files are now %s, want %s", after, before)
	}
}

// listing describes every file below dir.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLostPassword(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	url := server.URL()
	run(t, url, "CREATE TABLE kept AS SELECT 7 AS n")
	stop(t, server)
	if err := os.Remove(filepath.Join(dir, "password")); err != nil {
		t.Fatal(err)
	}
	server = start(t, localpg.Config{Dir: dir, Tied: true})
	if server.URL() == url {
		t.Error("the password is the old one")
	}
	if n := ask[int](t, server.URL(), "SELECT n FROM kept"); n != 7 {
		t.Errorf("n = %d, want 7", n)
	}
}

func TestLogIsRotated(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	log := filepath.Join(dir, "postgres.log")
	write(t, log, "", 0o600)
	if err := os.Truncate(log, 11<<20); err != nil {
		t.Fatal(err)
	}
	start(t, localpg.Config{Dir: dir, Tied: true})
	for file, large := range map[string]bool{log: false, log + ".1": true} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 10<<20 != large {
			t.Errorf("%s has %d bytes", file, info.Size())
		}
	}
}

// What PostgreSQL says when it does not start is in the error, and nothing runs.
func TestServerThatDoesNotStart(t *testing.T) {
	t.Parallel()
	for _, tied := range []bool{true, false} {
		dir := clusterDir(t)
		cfg := localpg.Config{Dir: dir, Tied: tied, Log: quiet, Settings: map[string]string{"shared_buffers": "many"}}
		_, err := localpg.Start(within(t), cfg)
		if err == nil || !strings.Contains(err.Error(), "shared_buffers") {
			t.Errorf("Start = %v, want what the server said", err)
		}
		// The state is good for the next.
		cfg.Settings = map[string]string{"shared_buffers": "16MB"}
		if got := ask[string](t, start(t, cfg).URL(), "SHOW shared_buffers"); got != "16MB" {
			t.Errorf("shared_buffers = %s, want 16MB", got)
		}
	}
}

// No password gets into what is logged or into an error.
func TestPasswordIsNotTold(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	var told strings.Builder
	log := slog.New(slog.NewTextHandler(&told, &slog.HandlerOptions{Level: slog.LevelDebug}))
	server := start(t, localpg.Config{Dir: dir, Tied: true, Log: log})
	password, err := os.ReadFile(filepath.Join(dir, "password"))
	if err != nil {
		t.Fatal(err)
	}
	stop(t, server)
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = localpg.Start(canceled, localpg.Config{Dir: dir, Log: log})
	fmt.Fprintln(&told, err)
	log2, err := os.ReadFile(filepath.Join(dir, "postgres.log"))
	if err != nil {
		t.Fatal(err)
	}
	if secret := strings.TrimSpace(string(password)); strings.Contains(told.String()+string(log2), secret) {
		t.Error("the password was told")
	}
}
