package changes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// running is an instance of a consumer.
type running struct {
	stop func()     // and wait for the end
	done chan error // of Run
}

// start runs a consumer until the test ends or it is stopped.
func start(t testing.TB, url string, cfg changes.ConsumerConfig, handle func(*changes.Consumer)) *running {
	t.Helper()
	pool := pgtest.Pool(t, withConns(url, 8))
	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	c := changes.NewConsumer(pool, hub, cfg)
	handle(c)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &running{done: make(chan error, 1)}
	var background sync.WaitGroup
	background.Go(func() { hub.Run(ctx) })
	background.Go(func() { r.done <- c.Run(ctx) })
	r.stop = sync.OnceFunc(func() {
		cancel()
		background.Wait()
		select {
		case err := <-r.done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		default: // the test has seen it
		}
	})
	t.Cleanup(r.stop)
	return r
}

// withConns is url for a pool of at most n connections.
func withConns(url string, n int) string {
	if strings.Contains(url, "?") {
		return fmt.Sprintf("%s&pool_max_conns=%d", url, n)
	}
	return fmt.Sprintf("%s?pool_max_conns=%d", url, n)
}

// handled waits until a consumer has handled all that has committed.
func handled(t testing.TB, l *changes.Log, name string) {
	t.Helper()
	if err := wait(t, l, name); err != nil {
		t.Fatal(err)
	}
}

// wait is Log.Wait for all that has committed, once the consumer is there.
func wait(t testing.TB, l *changes.Log, name string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	end, err := l.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, name+" is registered", func() bool {
		_, err := l.Consumer(ctx, name)
		return err == nil
	})
	return l.Wait(ctx, name, end)
}

// eventually waits for something that no bell rings for.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for tick := time.NewTicker(5 * time.Millisecond); !is(); {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("still not so: %s", what)
		}
	}
}

// effects makes table public.effects, which a handler writes what it was handed into.
func effects(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, `CREATE TABLE effects (n bigserial, consumer text, position text, key jsonb)`)
}

// effect is the handler that does.
func effect(name string) changes.Handler {
	return changes.SQL(`INSERT INTO public.effects (consumer, position, key) SELECT '` + name + `', c->>'position', c->'key' FROM (SELECT $1::jsonb AS c) s`)
}

// effectsOf are the positions that a consumer was handed, in order.
func effectsOf(t testing.TB, pool *pgxpool.Pool, name string) []string {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `SELECT position FROM effects WHERE consumer = $1 ORDER BY n`, name)
	positions, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return positions
}

// positions are those of the feed.
func positions(t testing.TB, l *changes.Log, f changes.Filter) (all []string) {
	t.Helper()
	cs, _ := readAll(t, l, changes.Position{}, 1000, f)
	for _, c := range cs {
		all = append(all, c.Position.String())
	}
	return all
}

// consumed is a database with captured tables a and b, and effects.
func consumed(t testing.TB) (url string, l *changes.Log, pool *pgxpool.Pool) {
	t.Helper()
	url = pgtest.Database(t)
	l, pool = logOf(t, url)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"}, changes.Capture{Table: "public.b"})
	effects(t, pool)
	return url, l, pool
}

func TestSQLHandlesTheFeed(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a SELECT g, g FROM generate_series(1, 2500) g`)
	start(t, url, changes.ConsumerConfig{Name: "copy", From: "start"}, func(c *changes.Consumer) { c.Handle("*", effect("copy")) })
	start(t, url, changes.ConsumerConfig{Name: "late"}, func(c *changes.Consumer) { c.Handle("public.b", effect("late")) })
	handled(t, l, "copy")
	handled(t, l, "late")
	for i := range 30 {
		exec(t, pool, `INSERT INTO b VALUES ($1, 1)`, i)
		exec(t, pool, `UPDATE a SET v = 0 WHERE id = $1`, i+1)
	}
	handled(t, l, "copy")
	handled(t, l, "late")
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "copy")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(positions(t, l, changes.Filter{Patterns: patterns(t, "public.b")}), effectsOf(t, pool, "late")); diff != "" {
		t.Error(diff)
	}
}

var _ = fmt.Sprint
var _ = slices.Sort[[]int]
var _ = strings.Cut
var _ = errors.Is
var _ = json.Marshal
var _ = fault.Conflict
