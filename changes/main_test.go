package changes_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// TestMain also is a consumer, for tests that kill it.
func TestMain(m *testing.M) {
	if url := os.Getenv(consumerVar); url != "" {
		os.Exit(consumerProcess(url))
	}
	pgtest.Main(m)
}

// patience is how long a test waits for what has to come, on a machine that is busy with
// others: it is there to fail a test that hangs.
const patience = pgtest.Patience

// migrated is a database with a log.
var migrated = pgtest.Template{Make: func(ctx context.Context, url string) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	return migrate.Up(ctx, cfg, slog.New(slog.DiscardHandler), changes.New(nil, changes.Config{}).Migrations())
}}

// newLog returns the log of a database of the test's own: schema howdah, the
// doorbell and the locks are the database's.
func newLog(t testing.TB) (*changes.Log, *pgxpool.Pool) {
	t.Helper()
	return logOf(t, migrated.Database(t))
}

func logOf(t testing.TB, url string) (*changes.Log, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Pool(t, url)
	l := changes.New(pool, changes.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), l.Migrations()); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `SELECT howdah.change_own()`) // as the first tick would: some tests write ticks by hand
	return l, pool
}

// exec runs SQL or ends the test.
func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// capture begins to capture or ends the test.
func capture(t testing.TB, l *changes.Log, captures ...changes.Capture) {
	t.Helper()
	if _, err := l.Apply(t.Context(), captures, false); err != nil {
		t.Fatal(err)
	}
}

// readAll reads the feed from after to its end, in pages of n.
func readAll(t testing.TB, l *changes.Log, after changes.Position, n int, f changes.Filter) (all []changes.Change, end changes.Position) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience) // it may have no end
	defer cancel()
	for {
		page, next, err := l.Page(ctx, after, n, f)
		if err != nil {
			t.Fatalf("Page(%s): %v", after, err)
		}
		all = append(all, page...)
		if next == after {
			return all, after
		}
		after = next
	}
}
