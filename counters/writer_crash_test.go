package counters_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// hot is a metric of one row.
var hot = counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1d"}}

// ofURL returns a store on a database, which it migrates.
func ofURL(t testing.TB, url string) *counters.Store {
	t.Helper()
	pool := pgtest.Pool(t, url)
	s := counters.New(pool, hot)
	if err := migrate.Up(t.Context(), pool.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
		t.Fatal(err)
	}
	return s
}

// hits returns how often something was counted.
func hits(t testing.TB, s *counters.Store) int64 {
	t.Helper()
	series, err := s.Values(t.Context(), counters.Query{Key: "hot", From: at, To: at, Granularity: "1d"})
	if err != nil {
		t.Fatal(err)
	}
	n, _ := series.Values[0]["n"].(counters.Number)
	i, _ := n.Int64()
	return i
}

// callEach lets callers count through w, each so often, and returns how many were told
// that it was done. None may be told anything else.
func callEach(t testing.TB, w *counters.Writer, callers, each int, told *atomic.Int64) {
	t.Helper()
	var all errgroup.Group
	for range callers {
		all.Go(func() error {
			for range each {
				n, err := w.Apply(t.Context(), counters.Event{Key: "hot", At: at, Values: counters.Values{"n": 1}})
				if n != 1 || err != nil {
					return fmt.Errorf("told %d, %w", n, err)
				}
				told.Add(1)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}

// Connections are cut before COMMIT, after it and anywhere, and backends are ended: what
// callers were told is what was counted, in both ways to write.
func TestWriterOnABadNetwork(t *testing.T) {
	t.Parallel()
	for _, fast := range []bool{false, true} {
		t.Run(fmt.Sprint("fast ", fast), func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			direct, admin := ofURL(t, url), pgtest.Pool(t, url)
			proxy := pgtest.NewProxy(t, url)
			w := counters.NewWriter(counters.New(pgtest.Pool(t, proxy.URL()), hot), counters.WriterConfig{Fast: fast, MaxEvents: 50, Log: slog.New(slog.DiscardHandler)})
			stop := running(t, w)
			calm := make(chan struct{})
			var stir sync.WaitGroup
			stir.Go(func() {
				for begun := uint64(0); ; begun = w.Stats().Flushes {
					for wait := true; wait || w.Stats().Flushes == begun; wait = false { // one trouble at a time
						select {
						case <-calm:
							return
						case <-time.After(rand.N(10 * time.Millisecond)):
						}
					}
					switch rand.N(5) {
					case 0:
						proxy.Cut()
					case 1, 2:
						proxy.CutOn([]byte("commit"))
					case 3:
						proxy.Drop([]byte("commit"))
					case 4:
						_, _ = admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
							WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL`)
					}
				}
			})
			var told atomic.Int64
			callEach(t, w, 12, 60, &told)
			for w.Stats().Retries == 0 && !t.Failed() { // the trouble was late
				callEach(t, w, 1, 1, &told)
			}
			close(calm)
			stir.Wait()
			if err := stop(); err != nil {
				t.Error(err)
			}
			if got := hits(t, direct); got != told.Load() || got < 12*60 {
				t.Errorf("counted %d, told %d, want %d or more", got, told.Load(), 12*60)
			}
		})
	}
}

// The postmaster is killed in the middle and stays away for a while; another one is
// started on what is on the disk. Callers of both kinds of Writer wait, and what they were
// told is what was counted.
func TestWriterSurvivesItsServer(t *testing.T) {
	t.Parallel()
	var conf localpg.Config
	server := pgtest.Server(t, func(c *localpg.Config) { conf = *c })
	conf.Dir = server.Dir()
	s := ofURL(t, server.URL())
	silent := slog.New(slog.DiscardHandler)
	writers := []*counters.Writer{
		counters.NewWriter(s, counters.WriterConfig{Log: silent}),
		counters.NewWriter(s, counters.WriterConfig{Fast: true, MaxEvents: 50, Log: silent}),
	}
	var told atomic.Int64
	var calls sync.WaitGroup
	var stops []func() error
	enough := make(chan struct{}) // it was away
	for _, w := range writers {
		stops = append(stops, running(t, w))
		calls.Go(func() {
			for !t.Failed() {
				callEach(t, w, 16, 20, &told)
				select {
				case <-enough:
					return
				default:
				}
			}
		})
	}
	pgtest.Until(t, "500 have been told", func() bool { return told.Load() >= 500 })
	if err := syscall.Kill(server.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	if err := server.Stop(ctx); err != nil { // or the other would wait for it at the end
		t.Fatal(err)
	}
	for _, w := range writers {
		pgtest.Until(t, "it has tried five times", func() bool { return w.Stats().Retries >= 5 })
		if got := w.Stats().Pending; got == 0 || got > 66 { // 16 callers of the one, 50 events of the other and 16 who wait
			t.Errorf("%d events are in memory", got)
		}
	}
	close(enough)
	again, err := localpg.Start(ctx, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := again.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	calls.Wait()
	for _, stop := range stops {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	if got := hits(t, s); got != told.Load() {
		t.Errorf("counted %d, told %d", got, told.Load())
	}
}

// What the process that is to be killed has to know.
const (
	crashURL    = "HOWDAH_TEST_CRASH_URL"
	crashCaller = 8
)

// TestCountUntilKilled only matters in a process that is to be killed: it counts, and
// tells of each event that was.
func TestCountUntilKilled(t *testing.T) {
	t.Parallel()
	if os.Getenv(crashURL) == "" {
		return
	}
	pool, err := pgxpool.New(t.Context(), os.Getenv(crashURL))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	w := counters.NewWriter(counters.New(pool, hot), counters.WriterConfig{})
	running(t, w)
	var all errgroup.Group
	for range crashCaller {
		all.Go(func() error {
			for {
				if err := w.Track(t.Context(), "hot", at, counters.Values{"n": 1}); err != nil {
					return err
				}
				os.Stdout.WriteString("counted\n")
			}
		})
	}
	t.Fatal(all.Wait())
}

// A process that counts is killed: what it told of is counted, and nothing else but what
// was on its way.
func TestWriterWhoseProcessIsKilled(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	s := ofURL(t, url)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	told := int64(0)
	for killed := range int64(3) {
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestCountUntilKilled$", "-test.count=1")
		cmd.Env = append(os.Environ(), crashURL+"="+url)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "counted") {
				told++
			}
			if n++; n == 100 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("it ended before it was killed")
		}
		ended(t, url)
		if got := hits(t, s); got < told || got > told+(killed+1)*crashCaller {
			t.Errorf("counted %d, told %d", got, told)
		}
	}
}

// ended waits for transactions whose client is gone.
func ended(t testing.TB, url string) {
	t.Helper()
	pgtest.UntilSQL(t, pgtest.Pool(t, url), "they end", `
		SELECT NOT EXISTS (
			SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL)`)
}
