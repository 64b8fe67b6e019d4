package counters_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// known returns a new store on a table whose striped names were recorded so long ago
// that everybody knows them.
func known(t testing.TB, pool *pgxpool.Pool, cfg counters.Config) *counters.Store {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `UPDATE howdah.counter_tables SET settings = settings || '{"striped_at": 1}' WHERE tbl LIKE quote_ident(current_schema()) || '.%'`); err != nil {
		t.Fatal(err)
	}
	return counters.New(pool, cfg)
}

// newStriped returns a store on a table of the test's own whose striped names all know.
func newStriped(t testing.TB, cfg counters.Config) (*counters.Store, *pgxpool.Pool) {
	t.Helper()
	_, pool := newStore(t, cfg)
	return known(t, pool, cfg), pool
}

// scalar returns the one value of a query.
func scalar[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (v T) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// slots returns how many slots there are of a key of trifle_stats.
func slots(t testing.TB, pool *pgxpool.Pool, key string) int {
	t.Helper()
	return scalar[int](t, pool, `SELECT count(*) FROM howdah.counter_slots WHERE tbl = quote_ident(current_schema()) || '.trifle_stats' AND key LIKE $1 || '::%'`, key)
}

// rowsOf returns how many rows of a key there are in trifle_stats.
func rowsOf(t testing.TB, pool *pgxpool.Pool, key string) int {
	t.Helper()
	return scalar[int](t, pool, `SELECT count(*) FROM trifle_stats WHERE key = $1 OR key LIKE $1 || '::%'`, key)
}

// What is added to a striped name is seen at once by every store, and is in the rows
// once it was folded.
func TestStripedNames(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"orders", "http::*"}})
			plain := counters.New(pool, counters.Config{}) // knows nothing but the record
			for _, name := range []string{"orders", "http::get", "other"} {
				for i := range 20 {
					if err := s.Track(ctx, name, at, counters.Values{"n": 1, "half": 0.5, fmt.Sprint("only", i%2): 1}); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Track(ctx, name, at.Add(time.Hour), nil); err != nil { // makes rows, too
					t.Fatal(err)
				}
			}
			look := func(when string) {
				t.Helper()
				want := counters.Values{"n": number(20), "half": number(10), "only0": number(10), "only1": number(10)}
				for _, name := range []string{"orders", "http::get", "other"} {
					for _, s := range []*counters.Store{s, plain} {
						if diff := cmp.Diff(want, hour(t, s, name)); diff != "" {
							t.Errorf("%s, Values(%q): %s", when, name, diff)
						}
						got, err := s.Get(ctx, []counters.Key{{name, "1h", "1746522000"}, {"none::1h::1746522000"}, {name, "1h", "1746522000"}, {"other::1h::1746525600"}})
						if diff := cmp.Diff([]counters.Values{want, {}, want, {}}, got); err != nil || diff != "" {
							t.Errorf("%s, Get(%q): %v\n%s", when, name, err, diff)
						}
						if n := countRows(s, t, counters.Query{Key: name, From: at, To: at.AddDate(0, 0, 1), Granularity: "1h"}); n != 2 {
							t.Errorf("%s, Rows(%q): %d, want 2", when, name, n)
						}
					}
				}
			}
			if n := rowsOf(t, pool, "orders") + rowsOf(t, pool, "http::get"); n != 0 {
				t.Errorf("%d rows of striped names before Fold", n)
			}
			if rowsOf(t, pool, "other") == 0 || slots(t, pool, "other") > 0 {
				t.Error("a name that is not striped is not in its rows")
			}
			look("before Fold")
			if n, err := s.Fold(ctx); err != nil || n != 3*9 { // 7 granularities and the next minute and hour, of two names and the system
				t.Errorf("Fold = %d, %v", n, err)
			}
			look("after Fold")
			if n := slots(t, pool, ""); n > 0 {
				t.Errorf("%d slots after Fold", n)
			}
			if n := rowsOf(t, pool, "orders"); n < 3 {
				t.Errorf("%d rows after Fold", n)
			}
			if n, err := s.Fold(ctx); err != nil || n != 0 {
				t.Errorf("Fold of nothing = %d, %v", n, err)
			}
		})
	}
}

var _ = []any{context.Background, rand.N[int], strings.Contains, sync.OnceFunc, pgx.ErrNoRows, pgtest.Explain}
