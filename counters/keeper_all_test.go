package counters_test

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A keeper of all tables keeps each that is recorded, also one that is set up while it
// runs. One that is gone, that cannot be written or that its role may not write, is told
// of once, and keeps nobody from the others; and a second keeper is in nobody's way.
func TestKeeperOfAllTables(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	migrated(t, pool) // without the default table, which is that of the keepers
	execute(t, pool, `CREATE SCHEMA "Its own"`)
	theirs := as(t, pool, "keeper "+rand.Text(), `USAGE ON SCHEMA "Its own"`)
	role := scalar[string](t, theirs, `SELECT quote_ident(current_user)`)
	use := func(table pgx.Identifier, cfg counters.Config) {
		t.Helper()
		cfg.Table = table
		s := counters.New(pool, cfg)
		if err := s.Setup(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
	}
	grant := func(table pgx.Identifier) {
		t.Helper()
		execute(t, pool, `GRANT SELECT, INSERT, UPDATE, DELETE ON `+table.Sanitize()+` TO `+role)
	}
	shop, other := pgx.Identifier{"shop"}, pgx.Identifier{"Its own", "shop"}
	gone, closed, odd, late := pgx.Identifier{"gone"}, pgx.Identifier{"closed"}, pgx.Identifier{"odd"}, pgx.Identifier{"late"}
	for _, table := range []pgx.Identifier{shop, gone, closed, odd} {
		use(table, counters.Config{Retention: counters.Retention{"1m": 24 * time.Hour}})
	}
	use(other, counters.Config{Mode: counters.Partial})
	execute(t, pool, `DROP TABLE gone, odd; CREATE VIEW odd AS SELECT 'k'::text AS key, '{}'::jsonb AS data`)
	execute(t, pool, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA howdah TO `+role)
	for _, table := range []pgx.Identifier{shop, other, odd} {
		grant(table)
	}

	var logs [2]journal
	var stops []func()
	for i := range logs {
		stops = append(stops, keep(t, counters.NewKeeper(counters.New(theirs, counters.Config{}), counters.KeeperConfig{
			All: true, Fold: 20 * time.Millisecond, Drop: 20 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&logs[i], nil)),
		})))
	}
	folded := func(table pgx.Identifier) {
		t.Helper()
		where := `key = '__system__key__::1h::1746522000'`
		if table[0] == other[0] {
			where = `key = '__system__key__::1h' AND at = to_timestamp(1746522000)`
		}
		pgtest.UntilSQL(t, pool, fmt.Sprint("the fold of ", table), `SELECT EXISTS (SELECT FROM `+table.Sanitize()+` WHERE `+where+` AND data = '{"count": 1, "keys.k": 1}')`)
	}
	folded(shop)
	folded(other)
	pgtest.UntilSQL(t, pool, "the pruning of shop", `SELECT NOT EXISTS (SELECT FROM shop WHERE key LIKE '%::1m::%')`)
	use(late, counters.Config{})
	grant(late)
	folded(late)
	pgtest.Until(t, "warnings", func() bool {
		return logs[0].count("gone")*logs[1].count("gone") > 0 && logs[0].count("closed")+logs[1].count("closed") > 0 && logs[0].count("odd")+logs[1].count("odd") > 0
	})
	for i := range logs {
		for _, table := range []pgx.Identifier{gone, closed, odd} {
			if n := logs[i].count(`table="\"public\".\"` + table[0]); n > 1 {
				t.Errorf("%d lines of %s: %s", n, table, logs[i].text.String())
			}
		}
		if n := logs[i].count("shop") + logs[i].count("trifle_stats"); n > 0 {
			t.Errorf("%d lines of tables that are well, or waited for: %s", n, logs[i].text.String())
		}
	}
	grant(closed)
	folded(closed)
	execute(t, pool, `DELETE FROM howdah.counter_tables WHERE tbl = 'public.gone'`)
	for _, stop := range stops {
		stop()
	}
	for _, table := range []pgx.Identifier{shop, other, late, closed} {
		s := counters.New(pool, counters.Config{Table: table})
		series, err := s.Values(ctx, counters.Query{Key: counters.SystemKey, From: at, To: at, Granularity: "1d"})
		if err != nil || fmt.Sprint(series.Values[0]["count"]) != "1" {
			t.Errorf("%s: %v, %v", table, series, err)
		}
	}
}
