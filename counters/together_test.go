package counters_test

import (
	"crypto/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
)

// counting returns a pool like another, and how many deadlocks it met.
func countingDeadlocks(t testing.TB, pool *pgxpool.Pool) (*pgxpool.Pool, *atomic.Int64) {
	t.Helper()
	var n atomic.Int64
	cfg := pool.Config()
	cfg.ConnConfig.RuntimeParams["deadlock_timeout"] = "20ms"
	cfg.ConnConfig.RuntimeParams["application_name"] = rand.Text() // so that a test may find its connections
	theirs := cfg.ConnConfig.OnPgError
	cfg.ConnConfig.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		if err.Code == "40P01" {
			n.Add(1)
			t.Logf("%s: %s", err.Message, err.Where+err.Detail)
		}
		return theirs(conn, err)
	}
	watched, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watched.Close)
	return watched, &n
}

// Replace and those who count lock rows in one order, also where the finest buckets come
// before some of the others.
func TestReplaceDoesNotDeadlock(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		eachStriping(t, counters.Config{Mode: mode, Granularities: []counters.Granularity{"15m", "1h", "1d", "1mo"}, System: counters.Off}, func(t *testing.T, of *counters.Store) {
			ctx := t.Context()
			pool, deadlocks := countingDeadlocks(t, of.Pool())
			s := counters.New(pool, counters.Config{})
			day := at.Truncate(24 * time.Hour)
			var counting, replacing sync.WaitGroup
			counted := make(chan struct{})
			for range 4 {
				counting.Go(func() {
					for i := range 60 {
						if err := s.Track(ctx, "k", day.Add(time.Duration(i%24)*time.Hour), counters.Values{"n": 1}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			replacing.Go(func() {
				for {
					_, err := s.Replace(ctx, "k", day, day.AddDate(0, 0, 1), sequenceOf([]counters.Event{{At: at, Values: counters.Values{"n": 1}}}, nil))
					if err != nil {
						t.Error(err)
						return
					}
					select {
					case <-counted:
						return
					default:
					}
				}
			})
			counting.Wait()
			close(counted)
			replacing.Wait()
			if all := differ(t, s, "k", "1mo", "15m", day, day); len(all) > 0 {
				t.Errorf("%v", all)
			}
			if n := deadlocks.Load(); n > 0 {
				t.Errorf("%d deadlocks", n)
			}
		})
	}
}
