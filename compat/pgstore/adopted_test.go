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

// adopted makes the original's table in a database of its own and adopts it.
func adopted(t *testing.T, url string) *checklists.Store {
	t.Helper()
	ctx := t.Context()
	pool := pgtest.Pool(t, url)
	if _, err := pool.Exec(ctx, table); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{})
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// The calls get the original's answers on an adopted table, too, from us and from
// the original, which has no right to anything of howdah's; and its calls count.
func TestAnswersOnAnAdoptedTable(t *testing.T) {
	t.Parallel()
	for name, replays := range map[string]func(t *testing.T, url string, all []call){
		"ours":     func(t *testing.T, url string, all []call) { replay(t, open(t, url), all) },
		"original": func(t *testing.T, url string, all []call) { replay(t, original{iidy(t, url)}, all) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			s := adopted(t, url)
			replays(t, url, calls(t, "calls.jsonl"))
			wantRows(t, pgtest.Pool(t, url))
			if p, err := s.Progress(t.Context(), "big"); err != nil || p.Left < 1000 || p.Done == 0 {
				t.Errorf("%+v, %v", p, err)
			}
		})
		t.Run(name+", in another order", func(t *testing.T) {
			t.Parallel()
			if url, ok := pgtest.ICUDatabase(t, "en-US"); ok {
				adopted(t, url)
				replays(t, url, calls(t, "calls_icu.jsonl"))
			}
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
		if err := m.LoadMigrations(fstest.MapFS{"001_lists.sql": &fstest.MapFile{Data: []byte(table)}}); err != nil {
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
