package counters_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// as returns a pool on the same schema for a role of the test's own, which has grants.
func as(t testing.TB, pool *pgxpool.Pool, name string, grants ...string) *pgxpool.Pool {
	t.Helper()
	ctx := t.Context()
	cfg := pool.Config()
	own := cfg.ConnConfig.RuntimeParams["search_path"]
	if own == "" {
		own = "public"
	}
	schema, role := pgx.Identifier{own}.Sanitize(), pgx.Identifier{name + "_" + own}.Sanitize()
	sql := `CREATE ROLE ` + role + `; GRANT USAGE ON SCHEMA ` + schema + ` TO ` + role
	for _, grant := range grants {
		sql += `; GRANT ` + grant + ` TO ` + role
	}
	if _, err := pool.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET ROLE `+role)
		return err
	}
	theirs, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		theirs.Close()
		if _, err := pool.Exec(context.WithoutCancel(ctx), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	return theirs
}

// A role that may only read its table reads everything of it, what waits in slots too, and
// nothing of others; where it writes it is told which rights are missing.
func TestARoleThatMayOnlyRead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}, Striped: []string{"hot"}})
	if err := errors.Join(s.Track(ctx, "k", at, counters.Values{"n": 1}), s.Beam(ctx, "k", at, counters.Values{"n": 1})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fold(ctx); err != nil {
		t.Fatal(err)
	}
	secret := counters.New(pool, counters.Config{Table: pgx.Identifier{"secret"}})
	if err := errors.Join(secret.Setup(ctx), secret.Track(ctx, "hot", at, counters.Values{"n": 99}), s.Track(ctx, "hot", at, counters.Values{"n": 1})); err != nil {
		t.Fatal(err)
	}
	before := checksum(t, pool, "trifle_stats", "trifle_stats_ping")
	const denied = -1
	const tables, notes = "SELECT ON trifle_stats, trifle_stats_ping", "SELECT ON ALL TABLES IN SCHEMA howdah"
	for name, grants := range map[string][]string{"all of howdah's": {tables, notes}, "its table": {tables}} {
		theirs := as(t, pool, name, grants...)
		s := counters.New(theirs, counters.Config{})
		for sql, want := range map[string]int{
			`SELECT coalesce(sum((data ->> 'n')::int), 0)::int FROM howdah.counter_slots_readable WHERE starts_with(key, 'hot') AND starts_with(tbl, current_schema() || '.')`: 2,
			`SELECT count(*)::int FROM howdah.counter_tables_readable WHERE starts_with(tbl, current_schema() || '.')`:                                                         1,
			`SELECT count(*)::int FROM howdah.counter_slots`:  denied,
			`SELECT count(*)::int FROM howdah.counter_tables`: denied,
		} {
			var n int
			err := theirs.QueryRow(ctx, sql).Scan(&n)
			if want != denied && (n != want || err != nil) || want == denied && name == "its table" && pg.KindOf(err) != fault.Denied {
				t.Errorf("%s: %s: %d, %v", name, sql, n, err)
			}
		}
		for what, read := range map[string]func() error{
			"Values": func() error {
				_, err := s.Values(ctx, counters.Query{Key: "k", From: at, To: at, Granularity: "1d"})
				return err
			},
			"Values of a hot name": func() error {
				series, err := s.Values(ctx, counters.Query{Key: "hot", From: at, To: at, Granularity: "1d"})
				if diff := cmp.Diff([]counters.Values{{"n": number(1)}}, series.Values); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
				return err
			},
			"Get of the system's": func() error {
				rows, err := s.Get(ctx, key("__system__key__::1d::1746489600"))
				if diff := cmp.Diff([]counters.Values{{"count": number(2), "keys": counters.Values{"k": number(1), "hot": number(1)}}}, rows); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
				return err
			},
			"Get":  func() error { _, err := s.Get(ctx, key("k::1d::1746489600")); return err },
			"Scan": func() error { _, _, err := s.Scan(ctx, "k"); return err },
			"Page": func() error { _, err := s.Page(ctx, "", 10); return err },
			"Settings": func() error {
				settings, err := s.Settings(ctx)
				if !settings.Recorded || len(settings.Granularities) != 2 {
					t.Errorf("%s: %+v", name, settings)
				}
				return err
			},
			"Export": func() error {
				n := 0
				for _, err := range s.Export(ctx, "") {
					if err != nil {
						return err
					}
					n++
				}
				if n != 6 {
					t.Errorf("%s: Export: %d rows, want 6", name, n)
				}
				return nil
			},
			"Verify": func() error {
				for d, err := range s.Verify(ctx, "k", "1d", "1h", at, at) {
					if err != nil {
						return err
					}
					t.Errorf("%s: Verify: %v", name, d)
				}
				return nil
			},
		} {
			if err := read(); err != nil {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		for what, write := range map[string]func() error{
			"Track":  func() error { return s.Track(ctx, "k", at, counters.Values{"n": 1}) },
			"Assert": func() error { return s.Assert(ctx, "k", at, counters.Values{"n": 1}) },
			"Apply": func() error {
				_, err := s.Apply(ctx, counters.Event{ID: "i", Key: "k", At: at, Values: counters.Values{"n": 1}})
				return err
			},
			"Inc":     func() error { _, err := s.Inc(ctx, key("k"), counters.Values{"n": 1}); return err },
			"Set":     func() error { _, err := s.Set(ctx, key("k"), counters.Values{"n": 1}); return err },
			"Beam":    func() error { return s.Beam(ctx, "k", at.Add(time.Hour), counters.Values{"n": 1}) },
			"Delete":  func() error { _, err := s.Delete(ctx, "k", nil, time.Time{}, time.Time{}); return err },
			"Rename":  func() error { _, err := s.Rename(ctx, "k", "l"); return err },
			"Rebuild": func() error { _, err := s.Rebuild(ctx, "k", "1d", at, at); return err },
			"Import": func() error {
				_, err := s.Import(ctx, func(yield func(counters.Row, error) bool) {
					yield(counters.Row{Key: "k", Granularity: "1d", At: at, Values: counters.Values{"n": 1}}, nil)
				})
				return err
			},
		} {
			if err := write(); !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), "GRANT") {
				t.Errorf("%s: %s: %v; want Denied, and the grant", name, what, err)
			}
		}
	}
	if checksum(t, pool, "trifle_stats", "trifle_stats_ping") != before {
		t.Error("something was written")
	}
}

// Slots are shown to who may read all of a table. One who may read some rows of it, or
// some columns, is told what is missing instead of other numbers.
func TestARoleThatMayReadAPart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Granularities: []counters.Granularity{"1d"}, Striped: []string{"hot"}})
	if err := errors.Join(s.Track(ctx, "k", at, counters.Values{"n": 1}), s.Track(ctx, "hot", at, counters.Values{"n": 1})); err != nil {
		t.Fatal(err)
	}
	rows := as(t, pool, "rows", "SELECT ON trifle_stats")
	columns := as(t, pool, "columns", "SELECT (key, data) ON trifle_stats")
	if _, err := pool.Exec(ctx, `ALTER TABLE trifle_stats ENABLE ROW LEVEL SECURITY; CREATE POLICY cold ON trifle_stats FOR SELECT USING (key NOT LIKE 'hot%')`); err != nil {
		t.Fatal(err)
	}
	for name, pool := range map[string]*pgxpool.Pool{"rows": rows, "columns": columns} {
		var n int
		if err := pool.QueryRow(ctx, `SELECT count(*) FROM howdah.counter_slots_readable WHERE starts_with(tbl, current_schema() || '.')`).Scan(&n); n != 0 || err != nil {
			t.Errorf("%s: %d slots, %v", name, n, err)
		}
		theirs := counters.New(pool, counters.Config{})
		if settings, err := theirs.Settings(ctx); !settings.Recorded || err != nil {
			t.Errorf("%s: %+v, %v", name, settings, err)
		}
		for key, want := range map[string]error{"k": nil, "hot": fault.Denied} {
			series, err := theirs.Values(ctx, counters.Query{Key: key, From: at, To: at, Granularity: "1d"})
			if !errors.Is(err, want) {
				t.Errorf("%s: Values of %s = %v, %v, want %v", name, key, series, err, want)
			}
		}
	}
}

// One who may only read looks slots up by their keys, as all do.
func TestARoleThatMayOnlyReadLooksSlotsUp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Granularities: []counters.Granularity{"1d"}, Striped: []string{"hot"}})
	if err := s.Track(ctx, "hot", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `INSERT INTO howdah.counter_slots SELECT current_schema() || '.trifle_stats', 'hot::1d::' || (1746489600 - 86400 * n), 1, '{"n": 1}' FROM generate_series(1, 20000) AS n`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `ANALYZE howdah.counter_slots`); err != nil {
		t.Fatal(err)
	}
	theirs := as(t, pool, "reader", "SELECT ON trifle_stats")
	for name, pool := range map[string]*pgxpool.Pool{"owner": pool, "reader": theirs} {
		s := counters.New(pool, counters.Config{})
		if _, err := s.Settings(ctx); err != nil { // the look at the table is not to be explained
			t.Fatal(err)
		}
		explained := pgtest.Explain(t, pool)
		rows, err := s.WithTx(explained).Get(ctx, key("hot::1d::1746489600"))
		if diff := cmp.Diff([]counters.Values{{"n": number(1)}}, rows); diff != "" || err != nil {
			t.Errorf("%s: %s, %v", name, diff, err)
		}
		if plan := explained.Plan(); strings.Contains(plan, "Seq Scan on counter_slots") || !strings.Contains(plan, "counter_slots_pk") {
			t.Errorf("%s:\n%s", name, plan)
		}
	}
	if _, err := pool.Exec(ctx, `DELETE FROM howdah.counter_slots WHERE tbl = current_schema() || '.trifle_stats'`); err != nil {
		t.Error(err)
	}
}

// Doctor answers what a role may know, and names what it may not look at, in a
// transaction too, which goes on.
func TestDoctorOfARoleThatMayOnlyRead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1d"}})
	if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `ALTER TABLE trifle_stats DROP CONSTRAINT trifle_stats_pkey`); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		grant  string
		unseen []string
	}{
		"all":   {"SELECT ON trifle_stats, howdah.counter_events, howdah.counter_turns", nil},
		"table": {"SELECT ON trifle_stats", []string{"howdah.counter_events", "howdah.counter_turns"}},
		"keys":  {"SELECT (key) ON trifle_stats", []string{"howdah.counter_events", "howdah.counter_slots", "trifle_stats"}},
	} {
		theirs := as(t, pool, name, c.grant)
		tx, err := theirs.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		findings, err := counters.New(tx, counters.Config{}).Doctor(ctx)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var unseen []string
		keyless := false
		for _, f := range findings {
			keyless = keyless || f.Code == "no-key"
			if f.Code != "not-looked-at" {
				continue
			}
			if !strings.Contains(f.Cure, "GRANT SELECT ON "+f.Object+" TO ") || !strings.Contains(f.Problem, "may not read it: whether ") {
				t.Errorf("%s: %+v", name, f)
			}
			object := f.Object
			if !strings.HasPrefix(object, "howdah.") { // its schema is the test's
				_, object, _ = strings.Cut(object, ".")
			}
			unseen = append(unseen, object)
		}
		if diff := cmp.Diff(c.unseen, unseen); diff != "" || !keyless {
			t.Errorf("%s: no-key found: %v, not looked at (-want +got):\n%s", name, keyless, diff)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Where the views for those who may only read are not there yet, before howdah migrate,
// whoever may read howdah's tables counts on.
func TestBeforeTheViewsOfReaders(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t))
	migrated(t, pool)
	s := counters.New(pool, counters.Config{Granularities: []counters.Granularity{"1h"}})
	if err := s.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `DROP VIEW howdah.counter_tables_readable, howdah.counter_slots_readable`)
	again := counters.New(pool, counters.Config{})
	if err := again.Track(t.Context(), "k", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	if found := codes(t, again); len(found) != 0 && !slices.Equal(found, []string{"warning slots-unfolded"}) {
		t.Errorf("Doctor() = %q", found)
	}
	if page, err := s.Page(t.Context(), "", 9); err != nil || len(page) != 1 || len(page[0].Granularities) != 1 {
		t.Errorf("Page() = %+v, %v", page, err)
	}
}
