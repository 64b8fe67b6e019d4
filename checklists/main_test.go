package checklists_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// TestMain is also the worker that tests start as a process of its own.
func TestMain(m *testing.M) {
	if url := os.Getenv(workerVar); url != "" {
		os.Exit(workerProcess(url, os.Getenv(workerDoes)))
	}
	pgtest.Main(m)
}

// newStore returns a store on a table of the test's own.
func newStore(t testing.TB) (*checklists.Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Schema(t)
	var schema string
	if err := pool.QueryRow(t.Context(), `SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{schema, "lists"}})
	up(t, pool, s)
	return s, pool
}

func up(t testing.TB, pool *pgxpool.Pool, s *checklists.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
		t.Fatal(err)
	}
}

// insert puts items on a list or ends the test.
func insert(t testing.TB, s *checklists.Store, list string, items ...string) {
	t.Helper()
	if n, err := s.Insert(t.Context(), list, items...); err != nil || n != int64(len(items)) {
		t.Fatalf("Insert(%q) = %d, %v, want %d", list, n, err, len(items))
	}
}

// names are those of the items of a list, all of them.
func names(t testing.TB, s *checklists.Store, list string) []string {
	t.Helper()
	got := []string{}
	for item, err := range s.All(t.Context(), list) {
		if err != nil {
			t.Fatalf("All(%q): %v", list, err)
		}
		got = append(got, item.Name)
	}
	return got
}
