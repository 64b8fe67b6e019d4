package changes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// newTail returns a running Tail of a database's feed.
func newTail(t *testing.T, url string) *changes.Tail {
	t.Helper()
	pool := pgtest.Pool(t, url)
	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	tail := changes.NewTail(changes.New(pool, changes.Config{}), hub)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{"hub": hub.Run, "tail": tail.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	t.Cleanup(func() { stop(); running.Wait() })
	return tail
}

// watch reads n changes.
func watch(t *testing.T, tail *changes.Tail, after changes.Position, f changes.Filter, n int) (all []changes.Change) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for c, err := range tail.Watch(ctx, after, f) {
		if err != nil {
			t.Fatalf("Watch after %d changes: %v", len(all), err)
		}
		if all = append(all, c); len(all) == n {
			return all
		}
	}
	t.Fatalf("Watch ended after %d changes, want %d", len(all), n)
	return nil
}

func watched(t *testing.T) (url string, l *changes.Log, pool *pgxpool.Pool) {
	t.Helper()
	url = migrated.Database(t)
	l, pool = logOf(t, url)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"}, changes.Capture{Table: "public.b"})
	return url, l, pool
}

// However many watch, from wherever and through whatever filter, each sees what
// pages show: while writers are at it, and in the middle of transactions.
func TestEveryWatcherSeesTheFeed(t *testing.T) {
	t.Parallel()
	url, l, pool := watched(t)
	tail := newTail(t, url)
	const writers, transactions = 4, 40
	written := make(chan struct{}) // tells some watcher that there is more, and at the end all
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(w)))
			for i := range transactions {
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					for j := range 1 + random.IntN(5) {
						id := w*1_000_000 + i*100 + j
						if _, err := tx.Exec(t.Context(), fmt.Sprintf(`INSERT INTO %c VALUES (%d, %d)`, 'a'+random.IntN(2), id, id%3)); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				select {
				case written <- struct{}{}:
				default: // nobody is slow just now
				}
			}
		})
	}
	filters := []changes.Filter{{}, {Patterns: patterns(t, "public.a")}, {Ops: []changes.Op{changes.Insert}, Match: []byte(`{"v":1}`)}}
	got := make([][]changes.Change, 3*len(filters))
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	for i := range got {
		watching.Go(func() {
			for c, err := range tail.Watch(ctx, changes.Position{}, filters[i%len(filters)]) {
				if err != nil {
					t.Error(err)
					return
				}
				got[i] = append(got[i], c)
				if i >= len(filters) && rand.IntN(20) == 0 { // some are slow
					<-written
				}
			}
		})
	}
	writing.Wait()
	close(written)
	// A last one that every filter lets through tells that all have seen all.
	exec(t, pool, `INSERT INTO a VALUES (-1, 1)`)
	want := make([][]changes.Change, len(filters))
	for i, f := range filters {
		want[i], _ = readAll(t, l, changes.Position{}, 100, f)
	}
	for _, f := range filters {
		watch(t, tail, changes.Position{}, f, len(want[0])/10)
	}
	deadline := time.Now().Add(patience)
	for i := range got {
		last := watch(t, tail, changes.Position{}, filters[i%len(filters)], len(want[i%len(filters)]))
		if diff := cmp.Diff(want[i%len(filters)], last); diff != "" {
			t.Fatalf("a watcher that comes late (filter %d):\n%s", i%len(filters), diff)
		}
		if time.Now().After(deadline) {
			t.Fatal("too slow")
		}
	}
	stop()
	watching.Wait()
	for i := range got {
		all := want[i%len(filters)]
		if len(got[i]) > len(all) {
			t.Fatalf("watcher %d saw %d changes, there are %d", i, len(got[i]), len(all))
		}
		if diff := cmp.Diff(all[:len(got[i])], got[i]); diff != "" {
			t.Errorf("watcher %d:\n%s", i, diff)
		}
	}
}

func patterns(t *testing.T, texts ...string) []changes.Pattern {
	t.Helper()
	all, err := changes.ParsePatterns(texts...)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Whoever begins again at the last position it saw misses and repeats nothing,
// wherever that lies: in the ring, behind it, inside a transaction.
func TestWatchersResume(t *testing.T) {
	t.Parallel()
	url, l, pool := watched(t)
	tail := newTail(t, url)
	exec(t, pool, `INSERT INTO a SELECT g, g FROM generate_series(1, 2500) g`) // one transaction, several pages
	exec(t, pool, `INSERT INTO b VALUES (1, 1)`)
	exec(t, pool, `UPDATE a SET v = 0 WHERE id <= 10`)
	all, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	first := watch(t, tail, changes.Position{}, changes.Filter{}, len(all))
	if !slices.EqualFunc(all, first, equal) {
		t.Fatal(cmp.Diff(all, first))
	}
	for _, i := range []int{0, 1, 999, 1000, 1001, 2499, 2500, 2501, len(all) - 2} {
		rest := watch(t, tail, all[i].Position, changes.Filter{}, len(all)-i-1)
		if !slices.EqualFunc(all[i+1:], rest, equal) {
			t.Errorf("after %s:\n%s", all[i].Position, cmp.Diff(all[i+1:], rest))
		}
	}
}

func TestF9WatchersAreTold(t *testing.T) {
	t.Parallel()
	url, l, pool := watched(t)
	tail := newTail(t, url)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	head, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	told := func(after changes.Position) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for _, err := range tail.Watch(ctx, after, changes.Filter{}) {
			return err
		}
		return ctx.Err()
	}
	if err := told(changes.Position{Commit: head.Commit + 1}); !errors.Is(err, changes.ErrAhead) {
		t.Errorf("ahead: %v", err)
	}
	exec(t, pool, `UPDATE howdah.change_state SET floor = $1`, head.Commit)
	if err := told(changes.Position{}); !errors.Is(err, changes.ErrExpired) {
		t.Errorf("expired: %v", err)
	}
}

// A database that goes away and comes back costs watchers nothing.
func TestWatchersOutliveTheirConnections(t *testing.T) {
	t.Parallel()
	url, _, pool := watched(t)
	proxy := pgtest.NewProxy(t, url)
	tail := newTail(t, proxy.URL())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	next := 1
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	for c, err := range tail.Watch(ctx, changes.Position{}, changes.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(`{"id":%d}`, next); string(c.Key) != want {
			t.Fatalf("key %s, want %s", c.Key, want)
		}
		if next++; next > 20 {
			return
		}
		if next%5 == 0 {
			proxy.Cut()
		}
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, next)
	}
	t.Fatalf("ended at %d: %v", next, ctx.Err())
}

// The state that a Snapshot shows and the changes that follow it are the whole,
// whatever is written meanwhile.
func TestSnapshotAndWhatFollows(t *testing.T) {
	t.Parallel()
	_, l, pool := watched(t)
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	for w := range 4 {
		writing.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := pool.Exec(t.Context(), `INSERT INTO a VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET v = a.v + 1`, (i*7+w)%50); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		state := map[string]string{}
		var at changes.Position
		err := l.Snapshot(t.Context(), func(tx pgx.Tx, p changes.Position) error {
			at = p
			rows, _ := tx.Query(t.Context(), `SELECT id::text, v::text FROM a`)
			var id, v string
			_, err := pgx.ForEachRow(rows, []any{&id, &v}, func() error { state[id] = v; return nil })
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		all, _ := readTo(t, l, at)
		replayed := map[string]string{}
		for _, c := range all {
			id, v := field(t, c.Key, "id"), field(t, c.New, "v")
			replayed[id] = v
		}
		if diff := cmp.Diff(replayed, state); diff != "" {
			t.Errorf("the feed up to %s and the state then differ (-feed +state):\n%s", at, diff)
		}
	}
	stop()
	writing.Wait()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if err := l.WithTx(tx).Snapshot(t.Context(), nil); !errors.Is(err, changes.ErrInTx) {
		t.Errorf("in a transaction: %v, want ErrInTx", err)
	}
}

// readTo reads the feed up to a position.
func readTo(t *testing.T, l *changes.Log, end changes.Position) (all []changes.Change, last changes.Position) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for last.Compare(end) < 0 {
		page, next, err := l.Page(ctx, last, 1000, changes.Filter{})
		if err != nil {
			t.Fatalf("on the way to %s, after %s: %v", end, last, err)
		}
		for _, c := range page {
			if c.Position.Compare(end) < 0 {
				all = append(all, c)
			}
		}
		last = next
	}
	return all, last
}

func field(t *testing.T, object []byte, name string) string {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(object, &fields); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(fields[name])
}
