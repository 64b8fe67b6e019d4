package counters_test

import (
	"context"
	"errors"
	"fmt"
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
)

// schema is all that the catalogs say of tables whose names begin so, a line each: what
// a dump would hold.
func schema(t testing.TB, pool *pgxpool.Pool, prefix string) []string {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `
		WITH mine AS (SELECT * FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND starts_with(relname, $1))
		SELECT format('%s column %s %s collation %s null %s default %s', relname, attname, format_type(atttypid, atttypmod), nullif(attcollation, 0)::regcollation,
			NOT attnotnull, pg_get_expr(adbin, adrelid))
		FROM mine JOIN pg_attribute ON attrelid = mine.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		WHERE attnum > 0
		UNION ALL
		SELECT format('%s constraint %s %s', relname, conname, pg_get_constraintdef(c.oid)) FROM mine JOIN pg_constraint c ON conrelid = mine.oid
		UNION ALL
		SELECT format('%s index %s valid %s', relname, pg_get_indexdef(indexrelid), indisvalid) FROM mine JOIN pg_index ON indrelid = mine.oid
		UNION ALL
		SELECT format('%s options %s rights %s owner %s comment %s triggers %s file %s', relname, reloptions, relacl, relowner::regrole, obj_description(oid, 'pg_class'), relhastriggers, relfilenode) FROM mine
		ORDER BY 1`, prefix)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func mustSurvey(t testing.TB, s *counters.Store, add counters.Extras) counters.Survey {
	t.Helper()
	v, err := s.Survey(t.Context(), add)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func one[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (v T) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func execute(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
}

var everything = counters.Extras{Index: true, Fillfactor: true, Ping: true}

// Tables of the original are adopted with the settings they were written with, answer
// as before to who says nothing of those, and are given back as they were.
func TestTablesOfTheOriginalAreAdoptedAndGivenBack(t *testing.T) {
	t.Parallel()
	for _, d := range datasets(t) {
		if d.StoredRows != nil {
			continue
		}
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			pool := newPool(t)
			load(t, pool)
			before, rows := schema(t, pool, d.Table), checksum(t, pool, d.Table)
			named := d.config(t, d.Table)
			s := counters.New(pool, counters.Config{Table: named.Table, Location: named.Location, WeekStart: named.WeekStart})

			v := mustSurvey(t, s, everything)
			if v.Recorded || int(v.Rows) != d.Rows || v.Estimated || v.Sample != nil || v.Mode != named.Mode || !v.SystemRows || v.Unparsed+v.Twins+v.Strays+v.Encoded != 0 ||
				v.Problems != nil || v.Loss != nil || !slices.Contains(v.Zones, v.TimeZone) {
				t.Errorf("survey: %+v", v)
			}
			if diff := cmp.Diff(d.Granularities, v.Granularities); diff != "" {
				t.Errorf("granularities:\n%s", diff)
			}
			var told []string
			if err := s.Adopt(ctx, everything, func(a counters.Adopting) {
				if a.Waiting == "" && a.Total == 0 {
					told = append(told, a.Step)
				}
			}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.Steps, told); diff != "" {
				t.Errorf("announced and done:\n%s", diff)
			}
			adopted := counters.New(pool, counters.Config{Table: pgx.Identifier{d.Table}})
			d.ask(t, adopted)
			if got := mustSurvey(t, adopted, everything); !got.Recorded || got.TimeZone != v.TimeZone || !got.Bytewise || !got.Ping || len(got.Steps) != 0 || got.Problems != nil || got.Loss == nil || !got.Loss.Settings {
				t.Errorf("adopted: %+v", got)
			}
			if checksum(t, pool, d.Table) != rows {
				t.Error("the rows have changed")
			}
			now := schema(t, pool, d.Table)
			if err := s.Adopt(ctx, everything, nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(now, schema(t, pool, d.Table)); diff != "" {
				t.Errorf("adopted twice:\n%s", diff)
			}
			for range 2 {
				if err := adopted.UndoAdopt(ctx, nil); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, schema(t, pool, d.Table)); diff != "" {
					t.Errorf("given back:\n%s", diff)
				}
			}
			if n := one[int](t, pool, `SELECT count(*) FROM howdah.counter_tables WHERE tbl = current_schema() || '.' || $1`, d.Table); n != 0 {
				t.Errorf("%d records are left", n)
			}
		})
	}
}

// A dump after an undo is what it was.
func TestAnUndoLeavesNoTraceInADump(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t))
	load(t, pool)
	s := counters.New(pool, counters.Config{Table: pgx.Identifier{"trifle_partial"}, Location: zone(t, "Europe/Bratislava")})
	migrated(t, pool)
	dump := func() []string { return append(pgtest.Catalog(t, pool), pgtest.Rows(t, pool)...) }
	before := dump()
	if err := s.Adopt(t.Context(), everything, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Apply(t.Context(), counters.Event{ID: "one", Key: "orders", At: at}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.Beam(t.Context(), "worker", at, nil); err != nil {
		t.Fatal(err)
	}
	if l := mustSurvey(t, s, everything).Loss; l == nil || *l != (counters.Loss{IDs: 1, Beams: 1, Settings: true}) {
		t.Errorf("loss: %+v", l)
	}
	if slices.Equal(dump(), before) {
		t.Error("an adoption leaves no trace")
	}
	if err := s.UndoAdopt(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `DELETE FROM trifle_partial WHERE at < '2025-06-01'`) // the event's
	if diff := cmp.Diff(before, dump()); diff != "" {
		t.Errorf("after the undo:\n%s", diff)
	}
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := counters.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// Settings that the rows contradict are not recorded.
func TestSettingsThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	load(t, pool)
	execute(t, pool, `
		CREATE TABLE sundays (key varchar(255) PRIMARY KEY, data jsonb NOT NULL DEFAULT '{}');
		INSERT INTO sundays SELECT 'orders::1w::' || extract(epoch FROM day)::bigint FROM generate_series('2025-01-05 00:00Z'::timestamptz, '2025-12-01', '7 days') AS day;
		CREATE TABLE slashes (key varchar(255) PRIMARY KEY, data jsonb NOT NULL DEFAULT '{}');
		INSERT INTO slashes SELECT 'orders/1d/' || extract(epoch FROM day)::bigint FROM generate_series('2025-01-05 00:00Z'::timestamptz, '2025-12-01', '1 day') AS day`)
	for _, tc := range []struct {
		cfg  counters.Config
		want string
	}{
		{counters.Config{Table: pgx.Identifier{"trifle_partial"}}, "at no midnight of UTC: say which time zone it is (--time-zone); these fit, and others that keep the same time: Europe/Berlin"},
		{counters.Config{Table: pgx.Identifier{"trifle_partial"}, Location: zone(t, "Asia/Kolkata")}, "at no midnight of Asia/Kolkata"},
		{counters.Config{Table: pgx.Identifier{"trifle_separated"}}, "these fit, and others that keep the same time: Asia/Kolkata"},
		{counters.Config{Table: pgx.Identifier{"sundays"}}, "do not begin on monday: say on which day they do (--week-start)"},
		{counters.Config{Table: pgx.Identifier{"slashes"}}, `are none with the separator "::", such as "orders/1d/`},
	} {
		s := counters.New(pool, tc.cfg)
		if v := mustSurvey(t, s, counters.Extras{}); len(v.Problems) != 1 || !strings.Contains(v.Problems[0], tc.want) {
			t.Errorf("%v: %q, want %q", tc.cfg.Table, v.Problems, tc.want)
		}
		if err := s.Adopt(t.Context(), counters.Extras{}, nil); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want a conflict: %q", tc.cfg.Table, err, tc.want)
		}
	}
	if n := one[int](t, pool, `SELECT count(*) FROM howdah.counter_tables WHERE starts_with(tbl, current_schema() || '.')`); n != 0 {
		t.Errorf("%d were recorded", n)
	}
	for table, cfg := range map[string]counters.Config{"sundays": {WeekStart: counters.Sunday}, "slashes": {Separator: "/"}} {
		cfg.Table = pgx.Identifier{table}
		s := counters.New(pool, cfg)
		if err := s.Adopt(t.Context(), counters.Extras{}, nil); err != nil {
			t.Error(err)
		}
		set, err := counters.New(pool, counters.Config{Table: cfg.Table}).Settings(t.Context())
		if err != nil || set.System != counters.Off || len(set.Granularities) != 1 || cfg.WeekStart != "" && set.WeekStart != cfg.WeekStart || cfg.Separator != "" && set.Separator != cfg.Separator {
			t.Errorf("%s: %+v, %v", table, set, err)
		}
		other := counters.New(pool, counters.Config{Table: cfg.Table, Location: zone(t, "Asia/Kolkata")})
		if err := other.Adopt(t.Context(), counters.Extras{}, nil); !errors.Is(err, counters.ErrSettings) {
			t.Errorf("%s: %v, want ErrSettings", table, err)
		}
	}
}

// What is odd in a table is counted, with an example, and stays.
func TestASurveyTellsWhatIsOdd(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	execute(t, pool, `
		CREATE TABLE odd (key varchar(255) PRIMARY KEY, data jsonb NOT NULL DEFAULT '{}');
		INSERT INTO odd
		SELECT 'orders::1d::' || extract(epoch FROM day)::bigint
		FROM generate_series('2025-02-01'::timestamp, '2025-11-30', '1 day') AS d, LATERAL (SELECT d AT TIME ZONE 'America/New_York') AS _(day);
		INSERT INTO odd VALUES
			('orders::1d::1741492800', '{}'), -- 9 March at 04:00Z: the original's second row of the day
			('orders::1y::1735707600', '{}'), ('orders::1y::1735704000', '{}'), -- 2025, of events in winter and in summer
			('orders::1mo::1740805200', '{}'), ('orders::1mo::1740801600', '{}'), -- 1 March, twice
			('test::now', '{"count": 1}'), ('plain', '[1]'), ('orders::1d::+1741492800', '{}'),
			('wide::1d::1740805200', '{"a%2Eb": 1, "c": 100}'), ('wide::1h::1740805200', '{"50%": 1}')`)
	v := mustSurvey(t, counters.New(pool, counters.Config{Table: pgx.Identifier{"odd"}, Location: zone(t, "America/New_York")}), counters.Extras{})
	if v.Unparsed != 3 || len(v.UnparsedSuch) != 3 || v.Twins != 3 || v.Strays != 3 || v.Encoded != 1 || v.EncodedSuch != "a%2Eb" || v.Problems != nil || v.SystemRows || v.System != counters.Off ||
		v.Offsets["-05:00"] == 0 || v.Offsets["-04:00"] == 0 || v.Zones[0] != "America/New_York" || slices.Contains(v.Zones, "UTC") || slices.Contains(v.Zones, "America/Bogota") {
		t.Errorf("survey: %+v", v)
	}
	if v.TwinSuch != "1y of orders at 2025-01-01T04:00:00Z and 2025-01-01T05:00:00Z" && !strings.HasPrefix(v.TwinSuch, "1d of orders at 2025-03-09T04:00:00Z and 2025-03-09T05:00:00Z") && !strings.HasPrefix(v.TwinSuch, "1mo of orders at 2025-03-01T04:00:00Z and 2025-03-01T05:00:00Z") {
		t.Errorf("twins: %s", v.TwinSuch)
	}
}

// Of a large table a sample is read, and the index is asked: not every row.
func TestASurveyOfALargeTableReadsSome(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			columns := map[counters.Mode]string{counters.Full: "key", counters.Partial: "key, at", counters.Separated: "key, granularity, at"}[mode]
			identity := map[counters.Mode]string{
				counters.Full: `metric || '::' || g || '::' || extract(epoch FROM at)::bigint`, counters.Partial: `metric || '::' || g, at`, counters.Separated: `metric, g, at`,
			}[mode]
			execute(t, pool, `
				CREATE UNLOGGED TABLE large (key varchar(255), `+map[counters.Mode]string{counters.Full: "", counters.Partial: "at timestamptz,", counters.Separated: "granularity varchar(255), at timestamptz,"}[mode]+`
					data jsonb NOT NULL DEFAULT '{}', PRIMARY KEY (`+columns+`));
				INSERT INTO large (`+columns+`, data)
				SELECT `+identity+`, jsonb_build_object('count', 1, 'padding', repeat('x', 140))
				FROM (SELECT 'm' || m || '::eu' AS metric FROM generate_series(1, 30) AS m UNION ALL VALUES ('__system__key__')) AS _, (VALUES ('1h', '1 hour'), ('1d', '1 day')) AS g(g, step),
					generate_series('2025-01-01 00:00Z'::timestamptz, '2025-06-30 23:59Z', step::interval) AS at;
				ANALYZE large`)
			e := pgtest.Explain(t, pool)
			v := mustSurvey(t, counters.New(e, counters.Config{Table: pgx.Identifier{"large"}}), counters.Extras{})
			all := one[int64](t, pool, `SELECT count(*) FROM large`)
			if v.Sample == nil || v.Sample.Rows < all/20 || v.Sample.Rows > all*9/10 || v.Sample.Metrics != 21 || !v.SystemRows || !v.Estimated || v.Rows < all*9/10 || v.Rows > all*11/10 || v.Problems != nil {
				t.Errorf("%d rows: %+v, %+v", all, v, v.Sample)
			}
			if got := fmt.Sprint(v.Found); got != "[{1h 2025-01-01 00:00:00 +0000 UTC 2025-06-30 23:00:00 +0000 UTC} {1d 2025-01-01 00:00:00 +0000 UTC 2025-06-30 00:00:00 +0000 UTC}]" {
				t.Errorf("found %s", got)
			}
			if plan := e.Plan(); strings.Contains(plan, "Seq Scan on large") || !strings.Contains(plan, "Sample Scan on large") || strings.Contains(plan, "top-N") {
				t.Error(plan)
			}
		})
	}
}

// What cannot be adopted is told, and nothing is changed.
func TestTablesThatCannotBeAdopted(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	execute(t, pool, `
		CREATE TABLE parted (key varchar(255) PRIMARY KEY, data jsonb) PARTITION BY HASH (key);
		CREATE TABLE keyless (key varchar(255), data jsonb);
		INSERT INTO keyless VALUES (NULL, NULL);
		CREATE VIEW seen AS SELECT * FROM keyless;
		CREATE TABLE named (key varchar(255) PRIMARY KEY, data jsonb);
		CREATE TABLE named_bytewise ();
		CREATE TABLE other (id int)`)
	for table, want := range map[string]string{
		"parted": "it is a partitioned table", "seen": "it is a view", "keyless": "no unique index on (key)", "named": "the name named_bytewise is taken",
	} {
		s := counters.New(pool, counters.Config{Table: pgx.Identifier{table}})
		if v := mustSurvey(t, s, everything); len(v.Problems) == 0 || !strings.Contains(v.Problems[0], want) {
			t.Errorf("%s: %q, want %q", table, v.Problems, want)
		}
		if err := s.Adopt(t.Context(), everything, nil); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a conflict: %q", table, err, want)
		}
		if err := s.UndoAdopt(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", table, err)
		}
	}
	for table, want := range map[string]fault.Kind{"none": fault.NotFound, "other": fault.Invalid} {
		if _, err := counters.New(pool, counters.Config{Table: pgx.Identifier{table}}).Survey(t.Context(), counters.Extras{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %s", table, err, want)
		}
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if err := counters.New(tx, counters.Config{Table: pgx.Identifier{"named"}}).Adopt(t.Context(), everything, nil); !errors.Is(err, fault.Invalid) {
		t.Errorf("in a transaction: %v", err)
	}
}

// An adoption that was interrupted in its index goes on, and can be taken back, too.
func TestAnIndexThatWasInterrupted(t *testing.T) {
	t.Parallel()
	for _, undo := range []bool{false, true} {
		pool := newPool(t)
		load(t, pool)
		before := schema(t, pool, "trifle_stats")
		s := counters.New(pool, counters.Config{})
		if err := s.Adopt(t.Context(), everything, nil); err != nil {
			t.Fatal(err)
		}
		execute(t, pool, `UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'trifle_stats_bytewise'::regclass`)
		if undo {
			if err := s.UndoAdopt(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, schema(t, pool, "trifle_stats")); diff != "" {
				t.Error(diff)
			}
			continue
		}
		if v := mustSurvey(t, s, counters.Extras{}); len(v.Steps) != 1 || v.Bytewise {
			t.Errorf("survey: %+v", v)
		}
		if err := s.Adopt(t.Context(), counters.Extras{}, nil); err != nil {
			t.Fatal(err)
		}
		if v := mustSurvey(t, s, everything); len(v.Steps) != 0 || !v.Bytewise {
			t.Errorf("survey: %+v", v)
		}
	}
}

// Several adopt at once, beside writers: each finds it done, and no event is lost.
func TestAdoptionsAtOnceBesideWriters(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	load(t, pool)
	s := counters.New(pool, counters.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	errs := make(chan error)
	const adopters, writers, events = 3, 4, 50
	for range adopters {
		go func() { errs <- counters.New(pool, counters.Config{}).Adopt(ctx, everything, nil) }()
	}
	for range writers {
		go func() {
			var err error
			for range events {
				err = errors.Join(err, s.Track(ctx, "beside", at, counters.Values{"n": 1}))
			}
			errs <- err
		}()
	}
	for range adopters + writers {
		if err := pgtest.Receive(t, errs, "the end of an adoption, or of a writer"); err != nil {
			t.Error(err)
		}
	}
	if got := fmt.Sprint(hour(t, s, "beside")["n"]); got != fmt.Sprint(writers*events) {
		t.Errorf("counted %s", got)
	}
	if v := mustSurvey(t, s, everything); len(v.Steps) != 0 {
		t.Errorf("%+v", v)
	}
}
