package pg_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// A standby that takes over has its own idea of which transaction numbers were
// used. This one is a cold copy, which shares even the time of its statistics
// with the primary: only the timeline tells them apart.
func TestBatcherAcrossAPromotion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		done    bool // COMMIT, on the primary and on the standby
		unknown bool
	}{
		{"lost on the way there", false, false},
		{"lost on the way back", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			primary, standby := replicated(t)
			cfg, proxy, direct := proxied(t, primary.URL())
			there, err := pgx.ParseConfig(standby.URL())
			if err != nil {
				t.Fatal(err)
			}
			pc, err := pgxpool.ParseConfig(proxy.URL())
			if err != nil {
				t.Fatal(err)
			}
			var failedOver, flushed atomic.Bool
			pc.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
				if failedOver.Load() {
					cc.Host, cc.Port, cc.TLSConfig, cc.Fallbacks = there.Host, there.Port, there.TLSConfig, nil
				}
				return nil
			}
			if cfg.Pool, err = pgxpool.NewWithConfig(soon(t), pc); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cfg.Pool.Close)
			cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
				if flushed.CompareAndSwap(false, true) {
					if c.done {
						proxy.CutOn([]byte("commit"))
					} else {
						proxy.Drop([]byte("commit"))
					}
					proxy.Refuse(true)
				}
				return flushLogbook(ctx, tx, batch)
			}
			b := pg.NewBatcher(cfg)
			run(t, b)
			a := put(soon(t), b, "k", "x")
			eventually(t, "the connection is cut", func() bool { return flushed.Load() && cfg.Pool.Stat().TotalConns() == 0 })
			if c.done {
				eventually(t, "the commit", func() bool { return logged(t, direct)["k"] == "x" })
			}
			replica := pgtest.Pool(t, standby.URL())
			var end string
			if err := direct.QueryRow(soon(t), "SELECT pg_current_wal_flush_lsn()::text").Scan(&end); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the standby has it", func() (ok bool) {
				err := replica.QueryRow(soon(t), "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", end).Scan(&ok)
				return err == nil && ok
			})
			if _, err := replica.Exec(soon(t), "SELECT pg_promote()"); err != nil {
				t.Fatal(err)
			}
			failedOver.Store(true) // whoever is still on his way to the old one is refused
			got := answered(t, a)
			if errors.Is(got.err, pg.ErrOutcomeUnknown) != c.unknown || got.err != nil && !c.unknown {
				t.Errorf("Put = %v, want unknown: %v", got, c.unknown)
			}
			if row := logged(t, replica)["k"]; row != "x" {
				t.Errorf("k = %q, want x", row)
			}
		})
	}
}

// replicated starts a primary and a standby that follows it, a cold copy.
func replicated(t *testing.T) (primary, standby *localpg.Server) {
	t.Helper()
	conf := localpg.Config{
		Tied:     true,
		Settings: map[string]string{"fsync": "off"},
		Log:      slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	start := func(dir string) *localpg.Server {
		conf.Dir = dir
		s, err := localpg.Start(soon(t), conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(t, s) })
		return s
	}
	first := pgtest.Server(t) // removes its directory
	stop(t, first)
	other := first.Dir() + "-standby"
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	for _, args := range [][]string{
		{"-a", first.Dir(), other},
		{"-a", filepath.Join(other, "data", "PG_VERSION"), filepath.Join(other, "data", "standby.signal")},
	} {
		if out, err := exec.Command("cp", args...).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	primary = start(first.Dir())
	conf.Settings = map[string]string{"fsync": "off", "primary_conninfo": primary.URL()}
	return primary, start(other)
}

func stop(t *testing.T, s *localpg.Server) {
	t.Helper()
	if err := s.Stop(soon(t)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Stop = %v", err)
	}
}
