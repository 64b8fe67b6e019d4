package counters_test

import (
	"context"
	"errors"
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
	"github.com/howdah-db/howdah/fault"
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

// Nothing that is added to a striped name is lost or counted twice, by many at once with
// folds beside them, and what a reader sees never goes back.
func TestStripedIncrementsAtOnce(t *testing.T) {
	t.Parallel()
	each := pgtest.Size(100, 30)
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"hot"}})
			plain := counters.New(pool, counters.Config{})
			done := make(chan struct{})
			var writers, others sync.WaitGroup
			for i := range 16 {
				writers.Go(func() {
					for j := range each {
						var err error
						switch {
						case i%4 == 0 && j%10 == 0: // folds first
							_, err = s.Apply(ctx, counters.Event{Op: counters.OpPut, Key: "hot", At: at, Values: counters.Values{"note": fmt.Sprint(i, j)}}, counters.Event{Key: "hot", At: at, Values: counters.Values{"n": 1}})
						case i%4 == 1:
							err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return s.WithTx(tx).Track(ctx, "hot", at, counters.Values{"n": 1}) })
						case i%4 == 2 && j%10 == 0: // so does this
							err = s.Track(ctx, "hot", at, counters.Values{"n": 1, "peak": counters.Max(j)})
						default:
							err = s.Track(ctx, "hot", at, counters.Values{"n": 1})
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range 2 {
				others.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						if _, err := s.Fold(ctx); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for i, read := range map[string]func() counters.Values{
				"Values": func() counters.Values { return hour(t, plain, "hot") },
				"Get": func() counters.Values {
					got, err := s.Get(ctx, []counters.Key{{"hot", "1h", "1746522000"}})
					if err != nil {
						t.Error(err)
					}
					return got[0]
				},
				"system": func() counters.Values { return hour(t, s, counters.SystemKey) },
			} {
				others.Go(func() {
					last := number(0)
					for {
						select {
						case <-done:
							return
						default:
						}
						v := read()
						n, ok := v["n"].(counters.Number)
						if i == "system" {
							n, ok = v["count"].(counters.Number)
						}
						if ok && n.Cmp(last) < 0 {
							t.Errorf("%s went back from %s to %s", i, last, n)
							return
						}
						if ok {
							last = n
						}
					}
				})
			}
			writers.Wait()
			close(done)
			others.Wait()
			look := func(when string) {
				t.Helper()
				for _, g := range counters.DefaultGranularities {
					for _, key := range []string{"hot", counters.SystemKey} {
						got, err := plain.Values(ctx, counters.Query{Key: key, From: at, To: at, Granularity: g})
						n, field := 16*each, "n"
						if key != "hot" {
							n, field = 16*each+4*each/10, "count"
						}
						if err != nil || len(got.Values) != 1 || !number(n).Equal(got.Values[0][field].(counters.Number)) {
							t.Errorf("%s, %s of %s: %v, %v, want %d", when, key, g, got, err, n)
						}
					}
				}
			}
			look("before the last Fold")
			if _, err := s.Fold(ctx); err != nil {
				t.Error(err)
			}
			if n := slots(t, pool, "hot") + slots(t, pool, counters.SystemKey); n > 0 {
				t.Errorf("%d slots are left", n)
			}
			look("after the last Fold")
		})
	}
}

// Calls that write the same striped rows in other orders, with puts that fold and with
// rows that are not striped, do not wait for each other in a circle.
func TestStripedBatchesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Striped: []string{"s*"}, Slots: 2, Granularities: []counters.Granularity{"1m", "1h"}})
	names := []string{"a", "s1", "s2", "s3", "z", counters.SystemKey}
	var group sync.WaitGroup
	for i := range 12 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for j := range 60 {
				var events []counters.Event
				for _, k := range random.Perm(len(names)) {
					e := counters.Event{Key: names[k], At: at, Values: counters.Values{"n": 1}}
					if random.IntN(4) == 0 {
						e = counters.Event{Op: counters.OpPut, Key: names[k], At: at, Values: counters.Values{"last": j}}
					}
					events = append(events, e)
				}
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { // where nothing is repeated
					_, err := s.WithTx(tx).Apply(ctx, events...)
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
				if i < 2 {
					if _, err := s.Fold(ctx); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	group.Wait()
}

// D11: events of a bucket do not wait for each other's system row, nor for a striped
// name; of a row that is neither they do.
func TestWhoWaitsForWhom(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, c := range []struct {
		name  string
		cfg   counters.Config
		other string // counted while hot is
		waits bool
	}{
		{"sync", counters.Config{System: counters.Sync}, "other", true},
		{"deferred", counters.Config{}, "other", false},
		{"the same row", counters.Config{System: counters.Off}, "hot", true},
		{"striped", counters.Config{Striped: []string{"h*"}}, "hot", false},
	} {
		s, pool := newStriped(t, c.cfg)
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.WithTx(tx).Track(ctx, "hot", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
		counted := 0
		for range 20 { // some may meet the first in its slot
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '10ms'`); err != nil {
					return err
				}
				return s.WithTx(tx).Track(ctx, c.other, at, counters.Values{"n": 1})
			})
			if err == nil {
				counted++
			} else if !errors.Is(err, fault.Unavailable) {
				t.Fatal(err)
			}
		}
		if c.waits != (counted == 0) {
			t.Errorf("%s: %d of 20 did not wait", c.name, counted)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if got := hour(t, s, c.other)["n"]; c.other == "hot" && !number(counted+1).Equal(got.(counters.Number)) {
			t.Errorf("%s: %v, want %d", c.name, got, counted+1)
		}
	}
}

// What is put comes after what was added before, also where that is in the slot of a
// transaction that is still open when the put begins.
func TestPutsWaitForSlots(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range modes {
		s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"hot"}, Slots: 1})
		if err := s.Track(ctx, "hot", at, counters.Values{"n": 1, "m": 1}); err != nil {
			t.Fatal(err)
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.WithTx(tx).Track(ctx, "hot", at, counters.Values{"n": 1, "m": 1}); err != nil {
			t.Fatal(err)
		}
		put := make(chan error, 1)
		go func() { put <- s.Assert(ctx, "hot", at, counters.Values{"n": 10}) }()
		waits(t, pool, "transactionid")
		if err := errors.Join(tx.Commit(ctx), pgtest.Receive(t, put, "the end of Assert")); err != nil {
			t.Fatal(err)
		}
		if err := s.Track(ctx, "hot", at, counters.Values{"n": 1, "m": 1}); err != nil {
			t.Fatal(err)
		}
		want := counters.Values{"n": number(11), "m": number(3)}
		if diff := cmp.Diff(want, hour(t, s, "hot")); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		// The other ways to write to a row.
		if _, err := s.Set(ctx, []counters.Key{{"hot", "1h", "1746522000"}}, counters.Values{"m": 5}); err != nil {
			t.Error(err)
		}
		if err := s.Track(ctx, "hot", at, counters.Values{"n": 1, "m": counters.Min(4)}); err != nil {
			t.Error(err)
		}
		if _, err := s.Inc(ctx, []counters.Key{{"hot", "1h", "1746522000"}}, counters.Values{"n": 1}); err != nil {
			t.Error(err)
		}
		want = counters.Values{"n": number(13), "m": number(4)}
		if diff := cmp.Diff(want, hour(t, s, "hot")); diff != "" || slots(t, pool, "hot") > 0 {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}

// waits waits until somebody with locks in this schema waits for event, and returns his
// pid.
func waits(t testing.TB, pool *pgxpool.Pool, event string) (pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	pgtest.Until(t, "somebody waits for "+event, func() bool {
		err := pool.QueryRow(ctx, `
			SELECT pid
			FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event = $1
				AND pid IN (SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE c.relnamespace = quote_ident(current_schema())::regnamespace)`, event).Scan(&pid)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			t.Fatal(err)
		}
		return err == nil
	})
	return pid
}

// Nobody uses slots of a name before all can know to look there, and all do so after it
// is no longer striped.
func TestStripedNamesChange(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	plain, pool := newStore(t, counters.Config{})
	track := func(s *counters.Store) {
		t.Helper()
		if err := s.Track(ctx, "hot", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
	}
	sees := func(s *counters.Store, n int) {
		t.Helper()
		if diff := cmp.Diff(counters.Values{"n": number(n)}, hour(t, s, "hot")); diff != "" {
			t.Error(diff)
		}
	}
	track(counters.New(pool, counters.Config{Striped: []string{"hot"}})) // which nobody recorded
	s := counters.New(pool, counters.Config{Striped: []string{"hot", "b*", "hot"}, Slots: 4})
	if err := s.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	track(s)
	track(counters.New(pool, counters.Config{}))
	if n := slots(t, pool, "hot"); n > 0 {
		t.Errorf("%d slots of a name that was striped just now", n)
	}
	sees(plain, 3)
	s = known(t, pool, counters.Config{})
	track(s)
	if n := slots(t, pool, "hot"); n == 0 {
		t.Error("no slots of a striped name")
	}
	plain.Age(11 * time.Second) // as if it had looked before
	sees(plain, 4)
	set, err := plain.Settings(ctx)
	if diff := cmp.Diff([]string{"b*", "hot"}, set.Striped); err != nil || diff != "" || set.Slots != 4 {
		t.Errorf("Settings = %+v, %v", set, err)
	}
	if err := counters.New(pool, counters.Config{Striped: []string{}, Slots: 2}).Setup(ctx); err != nil {
		t.Fatal(err)
	}
	track(s) // has not heard of it
	after := known(t, pool, counters.Config{})
	sees(after, 5)
	track(after)
	if err := after.Assert(ctx, "hot", at, counters.Values{"n": 7}); err != nil {
		t.Fatal(err)
	}
	if n := slots(t, pool, "hot"); n > 0 {
		t.Errorf("%d slots after a put", n)
	}
	sees(after, 7)
	if set, err := after.Settings(ctx); err != nil || len(set.Striped) > 0 || set.Slots != 2 || set.System != counters.Deferred {
		t.Errorf("Settings = %+v, %v", set, err)
	}
	for field, cfg := range map[string]counters.Config{"striped[1]: empty": {Striped: []string{"a", ""}}, "striped[0]: a NUL": {Striped: []string{"\x00"}}, "slots: -1": {Slots: -1}, "slots: 257": {Slots: 257}} {
		if err := counters.New(pool, cfg).Setup(ctx); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%v, want Invalid: %s", err, field)
		}
	}
}
