package checklists_test

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

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

const end = "e327430c2eabc087f87829dab3a70ac0"

// original returns a store on a database that the original left, migrated.
func original(t *testing.T) (*checklists.Store, *pgxpool.Pool) {
	t.Helper()
	url := pgtest.Database(t)
	pgtest.Restore(t, url, "testdata/compat/end.sql.gz")
	pool := pgtest.Pool(t, url)
	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	return s, pool
}

// schema is all that the catalogs say of the table iidy.lists, a line each: what a
// dump would hold.
func schema(t testing.TB, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `
		SELECT format('column %s %s collation %s null %s default %s comment %s', attname, format_type(atttypid, atttypmod), nullif(attcollation, 0)::regcollation,
			NOT attnotnull, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
		FROM pg_attribute
		LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		WHERE attrelid = 'iidy.lists'::regclass AND attnum > 0 AND NOT attisdropped
		UNION ALL
		SELECT format('constraint %s %s comment %s', conname, pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint'))
		FROM pg_constraint
		WHERE conrelid = 'iidy.lists'::regclass
		UNION ALL
		SELECT format('index %s valid %s comment %s', pg_get_indexdef(indexrelid), indisvalid, obj_description(indexrelid, 'pg_class'))
		FROM pg_index
		WHERE indrelid = 'iidy.lists'::regclass
		UNION ALL
		SELECT format('trigger %s enabled %s', pg_get_triggerdef(oid), tgenabled)
		FROM pg_trigger
		WHERE tgrelid = 'iidy.lists'::regclass AND NOT tgisinternal
		UNION ALL
		SELECT format('table options %s rights %s owner %s comment %s', reloptions, relacl, relowner::regrole, obj_description(oid, 'pg_class'))
		FROM pg_class
		WHERE oid = 'iidy.lists'::regclass
		ORDER BY 1`)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func mustSurvey(t testing.TB, s *checklists.Store) checklists.Survey {
	t.Helper()
	v, err := s.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustAdopt(t testing.TB, s *checklists.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	if err := s.Adopt(ctx, nil); err != nil {
		t.Fatal(err)
	}
}

// one is the only value of a query's only row.
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
		t.Fatalf("%s: %v", sql, err)
	}
}

// adoptedDrift compares what is counted of iidy.lists and what is there.
func adoptedDrift(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	differs := one[string](t, pool, `
		WITH fact AS (SELECT list COLLATE "C" AS list, count(*) AS items FROM iidy.lists GROUP BY list),
		kept AS (SELECT list, sum(items) AS items FROM howdah.checklist_count WHERE relation = 'iidy.lists'::regclass GROUP BY list)
		SELECT coalesce(string_agg(format('%s has %s, counted %s', list, fact.items, kept.items), '; '), '')
		FROM fact
		FULL JOIN kept USING (list)
		WHERE coalesce(fact.items, 0) <> coalesce(kept.items, 0)`)
	if differs != "" {
		t.Errorf("counts: %s", differs)
	}
}

func TestATableOfTheOriginalIsAdoptedAndGivenBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := original(t)
	before := schema(t, pool)
	v := mustSurvey(t, s)
	if v.Layout != checklists.LayoutPlain || v.Items != 39232 || v.Lists != 7 || v.Encoding != "UTF8" || len(v.Steps) != 6 || v.Problems != nil || v.Loss != nil {
		t.Errorf("survey: %+v", v)
	}
	if diff := cmp.Diff(before, schema(t, pool)); diff != "" {
		t.Errorf("a survey has changed something:\n%s", diff)
	}
	file := one[uint32](t, pool, `SELECT pg_relation_filenode('iidy.lists')`)
	if _, err := s.Claim(ctx, "big", "w", 1, time.Minute); !errors.Is(err, checklists.ErrPlain) || !strings.Contains(err.Error(), "howdah adopt iidy --yes") {
		t.Errorf("before: %v, want ErrPlain and what to do", err)
	}

	var told []string
	if err := s.Adopt(ctx, func(a checklists.Adopting) {
		if a.Waiting == "" && a.Total == 0 {
			told = append(told, a.Step)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(v.Steps, told); diff != "" {
		t.Errorf("announced and done:\n%s", diff)
	}
	if md5 := one[string](t, pool, md5OfRows); md5 != end {
		t.Errorf("rows: %s", md5)
	}
	if now := one[uint32](t, pool, `SELECT pg_relation_filenode('iidy.lists')`); now != file {
		t.Error("the table was written anew")
	}
	adoptedDrift(t, pool)
	if p := progress(t, s, "big"); p.Left == 0 || p.Done != 0 {
		t.Errorf("progress: %+v", p)
	}
	claim, err := s.Claim(ctx, "big", "w", 100, time.Minute)
	if err != nil || len(claim.Items) != 100 {
		t.Fatalf("%d items, %v", len(claim.Items), err)
	}
	if n, err := s.Release(ctx, claim.Lease); n != 100 || err != nil {
		t.Errorf("Release = %d, %v", n, err)
	}
	if err := s.Set(ctx, "big", checklists.Settings{KeepDone: true}); err != nil {
		t.Error(err)
	}
	insert(t, s, "kept", "a")
	if err := s.Set(ctx, "kept", checklists.Settings{KeepDone: true}); err != nil {
		t.Error(err)
	}
	if n, err := s.Delete(ctx, "kept", "a"); n != 1 || err != nil {
		t.Errorf("Delete = %d, %v", n, err)
	}
	execute(t, pool, `INSERT INTO howdah.checklist_import (relation, list, id, items, digest) VALUES ('iidy.lists'::regclass, 'big', 'a file', 1, '')`)

	// Again: nothing is missing.
	now := schema(t, pool)
	mustAdopt(t, s)
	if diff := cmp.Diff(now, schema(t, pool)); diff != "" {
		t.Errorf("adopted twice:\n%s", diff)
	}
	v = mustSurvey(t, s)
	if v.Layout != checklists.LayoutAdopted || len(v.Steps) != 0 || v.Loss == nil || v.Loss.Settings != 2 || v.Loss.Done != 1 {
		t.Errorf("survey: %+v, %+v", v, v.Loss)
	}

	if err := s.UndoAdopt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, schema(t, pool)); diff != "" {
		t.Errorf("after the undo:\n%s", diff)
	}
	if md5 := one[string](t, pool, md5OfRows); md5 != end {
		t.Errorf("rows after the undo: %s", md5)
	}
	if n := one[int](t, pool, `SELECT (SELECT count(*) FROM howdah.checklist) + (SELECT count(*) FROM howdah.checklist_count)
		+ (SELECT count(*) FROM howdah.checklist_done) + (SELECT count(*) FROM howdah.checklist_import)`); n != 0 {
		t.Errorf("%d rows about it are left", n)
	}
	if items, err := s.Page(ctx, "big", nil, 1); err != nil || len(items) != 1 {
		t.Errorf("Page: %v", err)
	}
	if err := s.UndoAdopt(ctx, nil); err != nil {
		t.Errorf("nothing to take back: %v", err)
	}
	mustAdopt(t, s) // and round again
	adoptedDrift(t, pool)
}

// What later migrations add to the tables that howdah makes, adopting adds too: an
// adopted table differs in its order and its comment only.
func TestAnAdoptedTableIsLikeOneMade(t *testing.T) {
	t.Parallel()
	s, pool := original(t)
	mustAdopt(t, s)
	made := pgtest.Pool(t, pgtest.Database(t))
	up(t, made, checklists.New(made, checklists.Config{}))
	same := func(lines []string) (out []string) {
		for _, line := range lines {
			line = strings.NewReplacer(`collation "C"`, "collation", `collation "default"`, "collation").Replace(line)
			if strings.HasPrefix(line, "table") {
				line, _, _ = strings.Cut(line, " comment")
			}
			if strings.HasPrefix(line, "column attempts") {
				line, _, _ = strings.Cut(line, " comment") // the table's own
			}
			out = append(out, line)
		}
		slices.Sort(out)
		return out
	}
	if diff := cmp.Diff(same(schema(t, made)), same(schema(t, pool))); diff != "" {
		t.Errorf("made and adopted:\n%s", diff)
	}
}

// A table's own comment and settings stay what they are, and come back.
func TestAdoptingKeepsWhatTheTableHad(t *testing.T) {
	t.Parallel()
	s, pool := original(t)
	execute(t, pool, `COMMENT ON TABLE iidy.lists IS E'It''s ours.\nHands off.'; ALTER TABLE iidy.lists SET (fillfactor = 70); COMMENT ON COLUMN iidy.lists.item IS 'a file'`)
	before := schema(t, pool)
	mustAdopt(t, s)
	want := "Adopted by howdah, which set autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold.\nIt's ours.\nHands off."
	if got := one[string](t, pool, `SELECT obj_description('iidy.lists'::regclass)`); got != want {
		t.Errorf("comment %q, want %q", got, want)
	}
	if got := one[[]string](t, pool, `SELECT reloptions FROM pg_class WHERE oid = 'iidy.lists'::regclass`); !slices.Contains(got, "fillfactor=70") {
		t.Errorf("options: %q", got)
	}
	if err := s.UndoAdopt(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, schema(t, pool)); diff != "" {
		t.Errorf("after the undo:\n%s", diff)
	}
}

func TestASurveySaysWhatAnUndoWouldLose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := original(t)
	mustAdopt(t, s)
	insert(t, s, "l", "a", "b", "c", "d")
	if err := s.Set(ctx, "l", checklists.Settings{KeepDone: true, Backoff: time.Hour, BackoffMax: time.Hour}); err != nil {
		t.Fatal(err)
	}
	claim, err := s.Claim(ctx, "l", "w", 3, time.Minute)
	if err != nil || len(claim.Items) != 3 {
		t.Fatal(claim, err)
	}
	_, err1 := s.Done(ctx, claim.Lease, "a")
	_, err2 := s.Fail(ctx, claim.Lease, checklists.Failure{Item: "b", Error: "no"})
	_, err3 := s.Kill(ctx, "l", "gone", "d")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `UPDATE iidy.lists SET payload = '{}', priority = 3 WHERE list = 'l' AND item = 'c'`)
	want := &checklists.Loss{Leased: 1, Waiting: 1, Dead: 1, Errors: 2, Payloads: 1, Priorities: 1, Done: 1, Settings: 1}
	if diff := cmp.Diff(want, mustSurvey(t, s).Loss); diff != "" {
		t.Errorf("loss:\n%s", diff)
	}
}

func TestWhatCannotBeAdopted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	up(t, pool, checklists.New(pool, checklists.Config{Table: pgx.Identifier{"mine"}}))
	const three = `list text NOT NULL, item text NOT NULL, attempts integer NOT NULL DEFAULT 0`
	execute(t, pool, `CREATE COLLATION careless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
	for name, tc := range map[string]struct{ sql, want string }{
		"shopping":    {`CREATE TABLE shopping (list text, thing text, attempts text)`, "it is no checklist: it has no column item text, attempts integer"},
		"partitioned": {`CREATE TABLE partitioned (` + three + `, PRIMARY KEY (list, item)) PARTITION BY LIST (list)`, "it is a partitioned table; only an ordinary"},
		"part":        {`CREATE TABLE part PARTITION OF partitioned DEFAULT`, "it is a part of another table"},
		"parent":      {`CREATE TABLE parent (` + three + `, PRIMARY KEY (list, item)); CREATE TABLE child () INHERITS (parent)`, "or has parts"},
		"sight":       {`CREATE VIEW sight AS SELECT * FROM mine`, "it is a view"},
		"stored":      {`CREATE MATERIALIZED VIEW stored AS SELECT * FROM mine`, "it is a materialized view"},
		"far": {`CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (` + three + `) SERVER far`,
			"it is a foreign table"},
		"keyless":  {`CREATE TABLE keyless (` + three + `)`, "it has no unique index on (list, item)"},
		"nulls":    {`CREATE TABLE nulls (list text, item text, attempts integer DEFAULT 0, UNIQUE (list, item))`, "it lets list, item, attempts be NULL"},
		"demands":  {`CREATE TABLE demands (` + three + `, who text NOT NULL, PRIMARY KEY (list, item))`, "without a value for who"},
		"own":      {`CREATE TABLE own (` + three + `, due date, PRIMARY KEY (list, item))`, "columns of its own by the names of howdah's: due date"},
		"half":     {`CREATE TABLE half (` + three + `, error text, worker text, PRIMARY KEY (list, item))`, "it has 2 of howdah's 7 columns"},
		"careless": {`CREATE TABLE careless (list text NOT NULL, item text COLLATE careless NOT NULL, attempts integer NOT NULL DEFAULT 0, PRIMARY KEY (list, item))`, "not deterministic"},
	} {
		if name == "part" {
			continue // made with the one that it is a part of
		}
		execute(t, pool, tc.sql)
		tables := map[string]string{name: tc.want}
		if name == "partitioned" {
			execute(t, pool, `CREATE TABLE part PARTITION OF partitioned DEFAULT`)
			tables["part"] = "it is a part of another table"
		}
		for table, want := range tables {
			s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"public", table}})
			v, err := s.Survey(ctx)
			if err != nil || !strings.Contains(strings.Join(v.Problems, "; "), want) {
				t.Errorf("%s: survey %q, %v, want %q", table, v.Problems, err, want)
			}
			err = s.Adopt(ctx, nil)
			if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want Conflict with %q", table, err, want)
			}
		}
	}
	if n := one[int](t, pool, `SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'howdah%' AND tgrelid NOT IN ('mine'::regclass, 'howdah.checklist_count'::regclass)`); n != 0 {
		t.Errorf("%d triggers were made", n)
	}
	none := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"public", "none"}})
	for name, err := range map[string]error{"Survey": second(none.Survey(ctx)), "Adopt": none.Adopt(ctx, nil), "UndoAdopt": none.UndoAdopt(ctx, nil)} {
		if !errors.Is(err, fault.NotFound) {
			t.Errorf("%s of no table: %v, want NotFound", name, err)
		}
	}
	mine := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"mine"}})
	if v, err := mine.Survey(ctx); err != nil || v.Layout != checklists.LayoutMade || len(v.Steps) != 0 || v.Loss != nil {
		t.Errorf("one that howdah made: %+v, %v", v, err)
	}
	if err := mine.Adopt(ctx, nil); err != nil {
		t.Errorf("one that howdah made: %v", err)
	}
	if err := mine.UndoAdopt(ctx, nil); !errors.Is(err, fault.Conflict) {
		t.Errorf("undo of one that howdah made: %v, want Conflict", err)
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return mine.WithTx(tx).Adopt(ctx, nil) })
	if !errors.Is(err, fault.Invalid) {
		t.Errorf("in a transaction: %v, want Invalid", err)
	}
}

// Nothing of howdah need be there for a survey.
func TestASurveyOfADatabaseThatWasNotMigrated(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pgtest.Restore(t, url, "testdata/compat/end.sql.gz")
	s := checklists.New(pgtest.Pool(t, url), checklists.Config{})
	if v := mustSurvey(t, s); v.Layout != checklists.LayoutPlain || len(v.Steps) != 6 || v.Problems != nil {
		t.Errorf("%+v", v)
	}
	if err := s.Adopt(t.Context(), nil); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "howdah migrate") {
		t.Errorf("Adopt: %v, want Unavailable and what to do", err)
	}
}
