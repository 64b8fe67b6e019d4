package pgstore_test

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	tern "github.com/jackc/tern/v2/migrate"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// the table as iidy makes it, in an order of its own.
const originalTable = `
	CREATE SCHEMA iidy;
	CREATE TABLE iidy.lists (
		list text COLLATE "%s" NOT NULL,
		item text COLLATE "%s" NOT NULL,
		attempts integer NOT NULL DEFAULT 0,
		CONSTRAINT list_pk PRIMARY KEY (list, item))`

// The calls get the original's answers on an adopted table, too, in either order.
func TestAnswersOnAnAdoptedTable(t *testing.T) {
	t.Parallel()
	for collation, file := range map[string]string{"C": "calls.jsonl", "en-US-x-icu": "calls_icu.jsonl"} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			url := pgtest.Database(t)
			pool := pgtest.Pool(t, url)
			if _, err := pool.Exec(ctx, strings.ReplaceAll(originalTable, "%s", collation)); err != nil {
				t.Fatal(err)
			}
			s := checklists.New(pool, checklists.Config{})
			if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
				t.Fatal(err)
			}
			if err := s.Adopt(ctx, nil); err != nil {
				t.Fatal(err)
			}
			replay(t, open(t, url), calls(t, file))
		})
	}
}

// The server of 2025 makes its table when it starts, and so starts on one that
// howdah made only after what docs/adopting.md says.
func TestTheServerOf2025StartsOnATableOfHowdahs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	open(t, url)
	pool := pgtest.Pool(t, url)
	start := func() error {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(ctx))
		m, err := tern.NewMigrator(ctx, conn, "public.iidy_schema_version")
		if err != nil {
			t.Fatal(err)
		}
		sql := strings.ReplaceAll(originalTable, ` COLLATE "%s"`, "")
		if err := m.LoadMigrations(fstest.MapFS{"001_lists.sql": &fstest.MapFile{Data: []byte(sql)}}); err != nil {
			t.Fatal(err)
		}
		return m.Migrate(ctx)
	}
	if err := start(); err == nil || !strings.Contains(err.Error(), "42P06") {
		t.Errorf("before: %v, want 42P06", err)
	}
	text, err := os.ReadFile("../../docs/adopting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, sql, _ := strings.Cut(string(text), "```sql\n")
	sql, _, found := strings.Cut(sql, "```")
	if _, err := pool.Exec(ctx, sql); err != nil || !found {
		t.Fatal(found, err)
	}
	for range 2 {
		if err := start(); err != nil {
			t.Error(err)
		}
	}
}
