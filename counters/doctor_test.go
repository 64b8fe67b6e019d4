package counters_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// codes are what Doctor finds.
func codes(t testing.TB, s *counters.Store) []string {
	t.Helper()
	findings, err := s.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := []string{}
	for _, f := range findings {
		if f.Object == "" || f.Problem == "" || f.Cure == "" || f.Severity != "error" && f.Severity != "warning" || strings.Contains(f.Problem+f.Cure, "%!") {
			t.Errorf("finding without words: %+v", f)
		}
		found = append(found, f.Severity+" "+f.Code)
	}
	return found
}

// A table that howdah has made is well from the first moment on, as is one in use.
func TestDoctorOfAHealthyTable(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		s, _ := newStore(t, counters.Config{Mode: mode})
		if found := codes(t, s); len(found) != 0 {
			t.Errorf("%s: %q", mode, found)
		}
		if _, err := s.Apply(t.Context(), counters.Event{ID: "a", Key: "orders", At: at, Values: counters.Values{"count": 1}}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"warning slots-unfolded"}, codes(t, s)); diff != "" {
			t.Errorf("%s in use, and not kept:\n%s", mode, diff)
		}
		if _, err := s.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
		if found := codes(t, s); len(found) != 0 {
			t.Errorf("%s in use: %q", mode, found)
		}
	}
	pool := newPool(t)
	execute(t, pool, `SELECT howdah.counters_setup('trifle_stats', 'trifle_stats_ping', 'full')`) // as a migration does
	if found := codes(t, counters.New(pool, counters.Config{})); len(found) != 0 {
		t.Errorf("not set up: %q", found)
	}
	if found := codes(t, counters.New(pool, counters.Config{Location: zone(t, "Asia/Kolkata")})); cmp.Diff([]string{"warning settings-unrecorded"}, found) != "" {
		t.Errorf("in another zone: %q", found)
	}
}

func TestDoctorFinds(t *testing.T) {
	t.Parallel()
	const table = `CREATE TABLE own (key varchar(255) COLLATE "C" PRIMARY KEY, data jsonb NOT NULL DEFAULT '{}'); `
	recorded := func(zone string) string {
		return `INSERT INTO howdah.counter_tables SELECT quote_ident(current_schema()) || '.own', '{"time_zone": "` + zone + `"}'; `
	}
	for _, tc := range []struct {
		name, sql string
		cfg       counters.Config
		want      []string
	}{
		{"nothing", table + recorded("UTC"), counters.Config{}, []string{}},
		{"no table", ``, counters.Config{}, []string{"warning table-missing"}},
		{"no record", table, counters.Config{}, []string{"warning settings-unrecorded"}},
		{"no key", `CREATE TABLE own (key text COLLATE "C", data jsonb); CREATE INDEX ON own (key); ` + recorded("UTC"), counters.Config{}, []string{"error no-key"}},
		{"no index", `CREATE TABLE own (key varchar(255) PRIMARY KEY, data jsonb); ` + recorded("UTC"), counters.Config{}, []string{"warning no-bytewise-index"}},
		{"a view", `CREATE TABLE rows (key text PRIMARY KEY, data jsonb); CREATE VIEW own AS SELECT * FROM rows; ` + recorded("UTC"), counters.Config{}, []string{}},
		{"another zone", table + recorded("Asia/Kolkata") + `INSERT INTO own SELECT 'orders::1d::' || 1746489600 + 86400 * i FROM generate_series(1, 20) AS i`, counters.Config{}, []string{"error settings-contradicted"}},
		{"D6", table + recorded("America/New_York") + `INSERT INTO own SELECT 'orders::1d::' || 1740805200 + 86400 * i FROM generate_series(1, 30) AS i ON CONFLICT DO NOTHING;
			DELETE FROM own WHERE key > 'orders::1d::1741496400'; INSERT INTO own VALUES ('orders::1d::1741492800')`, counters.Config{}, []string{"warning twin-buckets"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			execute(t, pool, tc.sql)
			tc.cfg.Table = pgx.Identifier{"own"}
			if diff := cmp.Diff(tc.want, codes(t, counters.New(pool, tc.cfg))); diff != "" {
				t.Errorf("(-want +found):\n%s", diff)
			}
		})
	}
}

// Servers keep the tables that are recorded, which doctor says of those that are not.
func TestDoctorSaysWhoKeepsATable(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := counters.New(pool, counters.Config{Table: pgx.Identifier{"own"}})
	for _, tc := range []struct{ sql, cure string }{
		{`SELECT howdah.counters_setup('own', 'own_ping', 'full')`, "record it (howdah adopt trifle, howdah counters setup), and run howdah serve"},
		{`INSERT INTO howdah.counter_tables SELECT quote_ident(current_schema()) || '.own', '{}'`, "run howdah serve"},
	} {
		execute(t, pool, tc.sql)
		s.Age(time.Hour)
		if err := s.Track(t.Context(), "k", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
		findings, err := s.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(findings, func(f counters.Finding) bool { return f.Code == "slots-unfolded" })
		if i < 0 || !strings.HasPrefix(findings[i].Cure, tc.cure) {
			t.Errorf("after %s: %+v, want the cure %s", tc.sql, findings, tc.cure)
		}
	}
}

// What is told of the whole database has one of its own.
func TestDoctorFindsBesideTheTable(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	execute(t, pool, `CREATE TABLE trifle_stats (key varchar(255) COLLATE "C" PRIMARY KEY, data jsonb NOT NULL DEFAULT '{}')`)
	s := counters.New(pool, counters.Config{})
	if diff := cmp.Diff([]string{"error not-migrated", "warning settings-unrecorded"}, codes(t, s)); diff != "" {
		t.Errorf("before migrating:\n%s", diff)
	}
	migrated(t, pool)
	if err := s.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := codes(t, s); len(found) != 0 {
		t.Errorf("healthy: %q", found)
	}
	execute(t, pool, `INSERT INTO howdah.counter_events (tbl, id, at) VALUES ('public.trifle_stats', 'a', now() - interval '9 days')`)
	if diff := cmp.Diff([]string{"warning ids-kept"}, codes(t, s)); diff != "" {
		t.Error(diff)
	}
	execute(t, pool, `DELETE FROM howdah.counter_events`)

	// Of 12,000 rows each is updated once, and finds no room.
	execute(t, pool, `ALTER TABLE trifle_stats SET (autovacuum_enabled = false); INSERT INTO trifle_stats SELECT 'k' || i || '::1h::1746489600' FROM generate_series(1, 12000) AS i`)
	execute(t, pool, `CREATE INDEX ON trifle_stats ((data ->> 'x'))`)
	execute(t, pool, `UPDATE trifle_stats SET data = '{"x": 1}'`)
	execute(t, pool, `DELETE FROM trifle_stats WHERE key < 'k5'`)
	wanted := []string{"warning bloat", "warning no-fillfactor"}
	within(t, pool, func() bool { return cmp.Diff(wanted, codes(t, s)) == "" })
}

// within waits until PostgreSQL has told its statistics, which it does as it likes.
func within(t testing.TB, pool *pgxpool.Pool, done func() bool) {
	t.Helper()
	for end := time.Now().Add(pgtest.Patience); time.Now().Before(end); {
		pool.Reset() // a session that ends tells its own
		if done() {
			return
		}
	}
	t.Errorf("it was never found: %s", one[string](t, pool, `SELECT row(n_live_tup, n_dead_tup, n_tup_upd, n_tup_hot_upd)::text FROM pg_stat_all_tables WHERE relname = 'trifle_stats'`))
}
