package counters_test

import (
	"context"
	"flag"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

func TestMain(m *testing.M) {
	// A seed that tests can log; -rapid.seed takes its place.
	if err := flag.Set("rapid.seed", strconv.FormatUint(rand.Uint64()|1, 10)); err != nil {
		panic(err)
	}
	pgtest.Main(m)
}

// newPool returns a pool on a schema of the test's own, in a database that has been
// migrated: its tables are the test's to make.
func newPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Schema(t)
	migrated(t, pool)
	return pool
}

// migrated migrates a database, but makes no table in its search_path.
func migrated(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	conn := pool.Config().ConnConfig
	conn.RuntimeParams["search_path"] = "nowhere" // or one test's schema would get the default table
	if err := migrate.Up(ctx, conn, slog.New(slog.DiscardHandler), counters.New(pool, counters.Config{}).Migrations()); err != nil {
		t.Fatal(err)
	}
}

// newStore returns a store on a table of the test's own, which it has made.
func newStore(t testing.TB, cfg counters.Config) (*counters.Store, *pgxpool.Pool) {
	t.Helper()
	pool := newPool(t)
	s := counters.New(pool, cfg)
	if err := s.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, pool
}

var modes = []counters.Mode{counters.Full, counters.Partial, counters.Separated}

// key is the row of a bucket, as it is written in every mode.
func key(text string) []counters.Key { return []counters.Key{{text}} }

// row returns the data of one row of trifle_stats.
func row(t testing.TB, pool *pgxpool.Pool, key string) (data string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT data::text FROM trifle_stats WHERE key = $1`, key).Scan(&data); err != nil {
		t.Fatal(err)
	}
	return data
}
