package logical_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes/logical"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Where the source fails over to a standby that has its slots, a pump that had nothing
// which the standby lacked goes on; one that did says that the log and the source have
// come apart, and does not take what commits then for what it has.
func TestPumpThroughAFailover(t *testing.T) {
	t.Parallel()
	settings := map[string]string{"wal_level": "logical", "autovacuum": "off"} // it might remove what the standby's slots need
	primary, standby := pgtest.PairOf(t, settings, func(url string) {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if _, err := conn.Exec(t.Context(), `
			CREATE TABLE t (id int PRIMARY KEY, note text);
			CREATE PUBLICATION howdah FOR TABLE t`); err != nil {
			t.Fatal(err)
		}
		for _, slot := range []string{"behind", "ahead"} {
			if _, err := conn.Exec(t.Context(), `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot); err != nil {
				t.Fatal(err)
			}
		}
	})
	old, next := pgtest.Pool(t, primary.URL()), pgtest.Pool(t, standby.URL())
	behind, ahead := &fixture{sourceURL: primary.URL(), slot: "behind"}, &fixture{sourceURL: primary.URL(), slot: "ahead"}
	for _, f := range []*fixture{behind, ahead} {
		f.into(t, pgtest.Database(t))
		stop := f.start(t, f.target, f.config())
		exec(t, old, `INSERT INTO t VALUES ((SELECT count(*) FROM t), 'both have ' || (SELECT count(*) FROM t))`)
		feed(t, f.log, map[*fixture]string{behind: "both have 0", ahead: "both have 1"}[f])
		stop()
	}
	pgtest.Replayed(t, old, next)

	other := func(f *fixture) error {
		cfg := f.config()
		cfg.Source = standby.URL()
		p, err := logical.New(f.target, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
		defer cancel()
		return p.Run(ctx)
	}
	fresh := &fixture{slot: "fresh", target: behind.target}
	if err := other(fresh); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "source: a standby") {
		t.Errorf("Run at a standby: %v, want Invalid", err)
	}

	exec(t, next, `ALTER SYSTEM SET primary_conninfo = ''`)
	exec(t, next, `SELECT pg_reload_conf()`)
	pgtest.UntilSQL(t, old, "the standby is gone", `SELECT NOT EXISTS (SELECT FROM pg_stat_replication)`)
	stop := ahead.start(t, ahead.target, ahead.config())
	exec(t, old, `INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(10, 5000) g`)
	exec(t, old, `INSERT INTO t VALUES (9999, 'the standby lacks it')`)
	feed(t, ahead.log, "the standby lacks it")
	stop()

	behind.sourceURL = standby.URL()
	stop = behind.start(t, behind.target, behind.config()) // it waits for the standby
	exec(t, next, `SELECT pg_promote()`)
	exec(t, next, `INSERT INTO t VALUES (2, 'the new primary')`)
	feed(t, behind.log, "the new primary")
	stop()
	behind.start(t, behind.target, behind.config())()
	for range 2 {
		if err := other(ahead); !errors.Is(err, logical.ErrLost) || !strings.Contains(err.Error(), "failed over at ") {
			t.Errorf("Run of one that was ahead: %v, want ErrLost", err)
		}
	}
}
