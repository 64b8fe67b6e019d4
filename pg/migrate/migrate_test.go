package migrate_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// set is the migrations of a service called things, on table public.things.
func set(files map[string]string) pg.Migrations {
	fsys := fstest.MapFS{}
	for name, sql := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(sql)}
	}
	return pg.Migrations{Service: "things", About: "things of a test", Files: fs.FS(fsys),
		Names: pg.NewNames(map[string]pgx.Identifier{"things": {"public", "thi'ngs"}})}
}

var twoFiles = map[string]string{
	"001_table.sql":  `CREATE TABLE {{.things}} (id int); COMMENT ON TABLE {{.things}} IS {{.things_text}};`,
	"002_column.sql": `ALTER TABLE {{.things}} ADD name text;`,
}

func up(ctx context.Context, t *testing.T, url string, sets ...pg.Migrations) error {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, pgtest.Patience)
	defer cancel()
	return migrate.Up(ctx, cfg, slog.New(slog.DiscardHandler), sets...)
}

func version(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT version FROM howdah.things_version`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUpFromNothingAndAgain(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	first := map[string]string{"001_table.sql": twoFiles["001_table.sql"]}
	for _, files := range []map[string]string{first, first, twoFiles, twoFiles} {
		if err := up(t.Context(), t, url, set(files)); err != nil {
			t.Fatal(err)
		}
		if got := version(t, pool); got != len(files) {
			t.Errorf("version %d, want %d", got, len(files))
		}
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO public."thi'ngs" (id, name) VALUES (1, 'a')`); err != nil {
		t.Error(err)
	}
	err := up(t.Context(), t, url, set(first))
	if !errors.Is(err, migrate.ErrNewer) || !errors.Is(err, fault.Conflict) {
		t.Errorf("an older program: %v, want ErrNewer", err)
	}
}

func TestSeveralAtOnceMigrateOnce(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	var group errgroup.Group
	for range 8 {
		group.Go(func() error { return up(t.Context(), t, url, set(twoFiles)) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := version(t, pgtest.Pool(t, url)); got != 2 {
		t.Errorf("version %d, want 2", got)
	}
}

func TestAFailureNamesFileLineAndColumn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ sql, want string }{
		"syntax":            {"-- é\nSELECT 1;\n  SELEKT 2;", `002_bad.sql:3:3: ERROR: syntax error at or near "SELEKT"`},
		"unknown name":      {"SELECT no_such_column;", `002_bad.sql:1:8: ERROR: column "no_such_column" does not exist`},
		"in a block":        {"DO $$ BEGIN\n PERFORM 1/0;\nEND $$;", `002_bad.sql: ERROR: division by zero`},
		"in a block, where": {"DO $$ BEGIN\n PERFORM 1/0;\nEND $$;", `line 2 at PERFORM`},
	} {
		url := pgtest.Database(t)
		err := up(t.Context(), t, url, set(map[string]string{"001_table.sql": twoFiles["001_table.sql"], "002_bad.sql": tc.sql}))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		// What came before stays, and the mended file goes on from there.
		if err := up(t.Context(), t, url, set(twoFiles)); err != nil {
			t.Errorf("%s: mended: %v", name, err)
		}
	}
}

func TestARoleWithoutRightsIsToldWhatToGrant(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	database := pool.Config().ConnConfig.Database
	role := "poor_" + database
	if _, err := pool.Exec(ctx, `CREATE ROLE `+role+` LOGIN PASSWORD 'secret'`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(ctx), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	as := pgtest.As(t, url, role, "secret")
	err := up(ctx, t, as, set(map[string]string{"001_schema.sql": `CREATE SCHEMA things;`}))
	grant := `GRANT CREATE ON DATABASE "` + database + `" TO "` + role + `"`
	if !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), grant) {
		t.Fatalf("%v, want Denied and %s", err, grant)
	}
	if _, err := pool.Exec(ctx, grant); err != nil {
		t.Fatal(err)
	}
	if err := up(ctx, t, as, set(map[string]string{"001_schema.sql": `CREATE SCHEMA things;`})); err != nil {
		t.Errorf("with what was asked for: %v", err)
	}
}

func TestAReadOnlyServerThatIsUpToDateIsFine(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	if err := up(ctx, t, url, set(map[string]string{"001_table.sql": twoFiles["001_table.sql"]})); err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Pool(t, url)
	if _, err := pool.Exec(ctx, `ALTER DATABASE `+pool.Config().ConnConfig.Database+` SET default_transaction_read_only = on`); err != nil {
		t.Fatal(err)
	}
	if err := up(ctx, t, url, set(map[string]string{"001_table.sql": twoFiles["001_table.sql"]})); err != nil {
		t.Errorf("nothing to do: %v", err)
	}
	err := up(ctx, t, url, set(twoFiles))
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("something to do: %v, want Unavailable", err)
	}
}

func TestACrashInTheMiddleIsMadeUpFor(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	killed := set(map[string]string{
		"001_table.sql":  twoFiles["001_table.sql"],
		"002_column.sql": twoFiles["002_column.sql"] + ` SELECT pg_terminate_backend(pg_backend_pid());`,
	})
	if err := up(t.Context(), t, url, killed); !errors.Is(err, fault.Unavailable) {
		t.Errorf("%v, want Unavailable", err)
	}
	if err := up(t.Context(), t, url, set(twoFiles)); err != nil {
		t.Errorf("again: %v", err)
	}
	if got := version(t, pgtest.Pool(t, url)); got != 2 {
		t.Errorf("version %d, want 2", got)
	}
}
