// Package pgtest gives tests a real PostgreSQL: a schema in milliseconds
// ([Schema]), a database of its own where a test needs one ([Database]), a
// durable server to kill ([Server]), and a network to cut ([NewProxy]).
//
// One server is started per test process, when the first test asks for it, and
// is gone when the process is, however it ends. It forgets everything in a crash
// (fsync, full_page_writes and synchronous_commit are off). The environment
// variable HOWDAH_TEST_DATABASE_URL puts another in its place; its role must be
// allowed to create databases. Where there is no PostgreSQL, tests fail.
//
// Every package with such tests has
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
package pgtest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/howdah-db/howdah/internal/localpg"
)

// shared is the server of this test process.
var shared struct {
	once   sync.Once
	server *localpg.Server // nil when another URL was given
	url    string
	err    error
}

// Main runs the tests as [Run] does, and exits.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run runs the tests, stops and removes the server if one was started, fails if
// a goroutine is left, and returns the exit code.
func Run(m *testing.M) int {
	for name, value := range map[string]int{ // the command line has the last word
		"rapid.checks":  Size(100, 25),
		"test.parallel": 2 * runtime.GOMAXPROCS(0), // they wait for a server, and for time to pass, more than they compute
	} {
		if known := flag.Lookup(name); known != nil {
			_ = known.Value.Set(strconv.Itoa(value))
		}
	}
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	// A test that failed may well leave something; that is not the news then.
	if code == 0 {
		if err := leaked(); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			code = 1
		}
	}
	return code
}

// leakPatience is longer than a connection that a test has let go of may take for its
// last words.
var leakPatience = 30 * time.Second

// leaked tells of goroutines that do not end.
func leaked() (err error) {
	for end := time.Now().Add(leakPatience); ; { // Find itself waits for half a second: on a busy machine that is nothing
		if err = goleak.Find(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// URL returns the URL of the test server's maintenance database. Tests share
// it: they change nothing there.
func URL(t testing.TB) string {
	t.Helper()
	shared.once.Do(startShared)
	if shared.err != nil {
		t.Fatalf("pgtest: no server: %v", shared.err)
	}
	return shared.url
}

func startShared() {
	if url := os.Getenv("HOWDAH_TEST_DATABASE_URL"); url != "" {
		shared.url = url
		return
	}
	for _, parent := range parents() {
		removeDead(parent)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	shared.server, shared.err = localpg.Start(ctx, localpg.Config{
		Dir:  newDir(fastParent()),
		Tied: true,
		Log:  slog.New(slog.DiscardHandler),
		Settings: map[string]string{
			"fsync":              "off",
			"full_page_writes":   "off",
			"synchronous_commit": "off",
			// Other packages' tests run beside these, each on its own server.
			"shared_buffers":            "32MB",
			"max_wal_size":              "256MB",
			"min_wal_size":              "32MB",
			"max_connections":           "200",
			"wal_level":                 "logical",
			"max_prepared_transactions": "10",
			"track_commit_timestamp":    "off",
		},
	})
	if shared.err == nil {
		shared.url = shared.server.URL()
		shared.err = quickLogin(shared.url)
	}
}

func stopShared() error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	err := dropKept()
	if shared.server == nil {
		return err
	}
	return errors.Join(err, shared.server.Stop(ctx), os.RemoveAll(shared.server.Dir()))
}

// Server starts a server of the test's own, durable as users have it, for what
// would disturb other tests: kills, restarts, settings. It is stopped and
// removed when the test ends.
func Server(t testing.TB, opts ...func(*localpg.Config)) *localpg.Server {
	t.Helper()
	cfg := localpg.Config{
		Dir:  newDir(os.TempDir()),
		Tied: true,
		Log:  slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, opt := range opts {
		opt(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	server, err := localpg.Start(ctx, cfg)
	if err != nil {
		t.Fatalf("pgtest: no server: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Errorf("pgtest: %v", err)
			return
		}
		if err := os.RemoveAll(filepath.Clean(server.Dir())); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return server
}
