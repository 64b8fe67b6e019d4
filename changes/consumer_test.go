package changes_test

import (
	"context"
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
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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

var eventually = pgtest.Until

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
	url = migrated.Database(t)
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

// The most specific pattern has the change, and each handler is called in the order
// of the feed, with one transaction after the other.
func TestC3HandlersByPattern(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	var mu sync.Mutex
	var calls []string
	note := func(name string) changes.Handler {
		return func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range cs {
				calls = append(calls, fmt.Sprintf("%s %s %s %d", name, c.Op, c.Key, len(cs)))
			}
			return nil
		}
	}
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2)`)
	exec(t, pool, `INSERT INTO b VALUES (1, 1)`)
	exec(t, pool, `BEGIN; INSERT INTO a VALUES (3, 3); DELETE FROM a WHERE id = 1; INSERT INTO a VALUES (4, 4); INSERT INTO b VALUES (2, 2); COMMIT`)
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Handle("*", note("all"))
		c.Handle("public.a", note("a"))
		c.Handle("public.a:delete", note("gone"))
	})
	handled(t, l, "c")
	want := []string{
		`a insert {"id":1} 2`, `a insert {"id":2} 2`,
		`all insert {"id":1} 1`,
		`a insert {"id":3} 1`, `gone delete {"id":1} 1`, `a insert {"id":4} 1`, `all insert {"id":2} 1`,
	}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Error(diff)
	}
}

// A batch has whole transactions, unless one alone is longer: its last change says so.
func TestBatchesAreWholeTransactions(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	for i, n := range []int{2, 1, 2, 7, 3} {
		exec(t, pool, `INSERT INTO a SELECT $1 * 100 + g, 1 FROM generate_series(1, $2) g`, i, n)
	}
	var mu sync.Mutex
	var batches []string
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 3}, func(c *changes.Consumer) {
		c.Handle("*", func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
			mu.Lock()
			defer mu.Unlock()
			batches = append(batches, fmt.Sprint(len(cs), cs[len(cs)-1].Last))
			return nil
		})
	})
	handled(t, l, "c")
	if diff := cmp.Diff([]string{"3 true", "2 true", "3 false", "3 false", "1 true", "3 true"}, batches); diff != "" {
		t.Error(diff)
	}
}

// Two instances of one name: each change is handled once, and when one ends the other
// goes on.
func TestC5TwoAtOnce(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	handle := func(c *changes.Consumer) { c.Handle("*", effect("c")) }
	cfg := changes.ConsumerConfig{Name: "c", From: "start", Shards: 2, Batch: 7}
	first := start(t, url, cfg, handle)
	start(t, url, cfg, handle)
	for i := range 100 {
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, i)
		if i == 50 {
			first.stop()
		}
	}
	handled(t, l, "c")
	got := effectsOf(t, pool, "c")
	slices.SortFunc(got, inFeedOrder)
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), got); diff != "" {
		t.Error(diff)
	}
}

func inFeedOrder(a, b string) int {
	p, _ := changes.ParsePosition(a)
	q, _ := changes.ParsePosition(b)
	return p.Compare(q)
}

// A writes B, B writes A: neither sees what it caused itself, by whatever way. A third
// sees all of it, and what it has been through.
func TestC6LoopComesToRest(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	copies := func(from, to string) func(*changes.Consumer) {
		return func(c *changes.Consumer) {
			c.Handle("public."+from, changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
				_, err := tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %s SELECT (c->>'id')::int, 1 FROM (SELECT $1::jsonb AS c) s ON CONFLICT (id) DO UPDATE SET v = %[1]s.v + 1`, to), string(c.Key))
				return err
			}))
		}
	}
	start(t, url, changes.ConsumerConfig{Name: "alpha", From: "start"}, copies("a", "b"))
	start(t, url, changes.ConsumerConfig{Name: "beta", From: "start"}, copies("b", "a"))
	origins := []string{}
	audit := start(t, url, changes.ConsumerConfig{Name: "audit", From: "start"}, func(c *changes.Consumer) {
		c.Handle("*", changes.Each(func(_ context.Context, _ pgx.Tx, c changes.Change) error {
			origins = append(origins, fmt.Sprintf("%s %s %s", c.Table, c.New, c.Origin))
			return nil
		}))
	})
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	// Both have handled what the other did about what they did.
	for range 3 {
		handled(t, l, "alpha")
		handled(t, l, "beta")
	}
	handled(t, l, "audit")
	audit.stop()
	want := []string{`a {"v":1,"id":1} `, `b {"v":1,"id":1} alpha`, `a {"v":2,"id":1} alpha,beta`}
	if diff := cmp.Diff(want, origins); diff != "" {
		t.Error(diff)
	}
}

// With Echo it is shown what it caused, and what a handler marks stands behind the
// path.
func TestC6EchoAndMark(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	origins := []string{}
	r := start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Echo: true}, func(c *changes.Consumer) {
		c.Handle("public.a", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
			origins = append(origins, c.Origin)
			if len(origins) == 4 {
				return nil
			}
			if len(origins) == 2 {
				if err := changes.New(tx, changes.Config{}).Mark(ctx, "crm", nil); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, `UPDATE a SET v = v + 1`)
			return err
		}))
	})
	exec(t, pool, `BEGIN; SET LOCAL howdah.origin = 'shop'; INSERT INTO a VALUES (1, 1); COMMIT`)
	for range 4 {
		handled(t, l, "c")
	}
	r.stop()
	if diff := cmp.Diff([]string{"shop", "shop,c", "shop,c,crm", "shop,c,crm"}, origins); diff != "" {
		t.Error(diff)
	}
}

func TestC6PathsAreWhole(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 100)
	names := "," + strings.Repeat("n", 40) + "," + strings.Repeat("m", 40) + "," + strings.Repeat("o", 40)
	for _, test := range []struct{ origin, want string }{
		{"", "c"}, {"crm", "crm,c"}, {"a,b", "a,b,c"}, {"c", "c"}, {"a,c,b", "a,c,b"},
		{long, strings.Repeat("ä", 99) + ",c"},
		{strings.Repeat("x", 70) + names, strings.Repeat("x", 70) + names + ",c"},
		{strings.Repeat("x", 77) + names, strings.Repeat("x", 75) + names + ",c"},
		{strings.Repeat("x", 30) + names + "," + strings.Repeat("p", 46), ""},
	} {
		got, err := changes.PathThrough(test.origin, "c")
		if got != test.want || (err != nil) != (test.want == "") || len(got) > 200 {
			t.Errorf("pathThrough(%q) = %q, %v, want %q", test.origin, got, err, test.want)
		}
	}
}

func TestConsumersThatCannotRun(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	run := func(cfg changes.ConsumerConfig, patterns ...string) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := changes.NewConsumer(pgtest.Pool(t, withConns(url, 6)), hub, cfg)
		for _, p := range patterns {
			c.Handle(p, effect("c"))
		}
		return c.Run(ctx)
	}
	start(t, url, changes.ConsumerConfig{Name: "c", Shards: 2}, func(c *changes.Consumer) {
		c.Handle("public.b", effect("c"))
		c.Handle("public.a", effect("c"))
	})
	handled(t, l, "c")
	for _, test := range []struct {
		cfg      changes.ConsumerConfig
		patterns []string
		kind     fault.Kind
		says     string
	}{
		{changes.ConsumerConfig{}, []string{"*"}, fault.Invalid, "name: "},
		{changes.ConsumerConfig{Name: "Billing"}, []string{"*"}, fault.Invalid, `name: "Billing"`},
		{changes.ConsumerConfig{Name: strings.Repeat("x", 41)}, []string{"*"}, fault.Invalid, "name: "},
		{changes.ConsumerConfig{Name: "d", Shards: 65}, []string{"*"}, fault.Invalid, "shards: 65; want 1 to 64"},
		{changes.ConsumerConfig{Name: "d", Shards: -1}, []string{"*"}, fault.Invalid, "shards: -1"},
		{changes.ConsumerConfig{Name: "d", Batch: 10_001}, []string{"*"}, fault.Invalid, "batch: 10001; want 1 to 10000"},
		{changes.ConsumerConfig{Name: "d", Timeout: -1}, []string{"*"}, fault.Invalid, "timeout: "},
		{changes.ConsumerConfig{Name: "d", Shards: 5}, []string{"*"}, fault.Invalid, "pool: pool_max_conns is 6; want 5 for shards and 2 more"},
		{changes.ConsumerConfig{Name: "d"}, nil, fault.Invalid, "handlers: there are none"},
		{changes.ConsumerConfig{Name: "d"}, []string{"users"}, fault.Invalid, `pattern: "users" has no schema`},
		{changes.ConsumerConfig{Name: "d"}, []string{"*", "*"}, fault.Invalid, `pattern: "*" has a handler already`},
		{changes.ConsumerConfig{Name: "d", From: "yesterday"}, []string{"*"}, fault.Invalid, `from: "yesterday"; want start, now`},
		{changes.ConsumerConfig{Name: "d", From: "99"}, []string{"*"}, fault.Conflict, "ahead of the feed"},
		{changes.ConsumerConfig{Name: "c", Shards: 3}, []string{"public.a", "public.b"}, fault.Conflict, "shards: c has 2, this one 3"},
		{changes.ConsumerConfig{Name: "c", Shards: 2}, []string{"public.a"}, fault.Conflict, `c has the patterns ["public.a" "public.b"], this one ["public.a"]`},
	} {
		err := run(test.cfg, test.patterns...)
		if !errors.Is(err, test.kind) || !strings.Contains(fmt.Sprint(err), test.says) {
			t.Errorf("%+v %q: %v, want %q", test.cfg, test.patterns, err, test.says)
		}
	}
	if all, err := l.Consumers(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v: something was written", all, err)
	}
}

// A consumer begins where it is told to; one that is there goes on where it was.
func TestWhereConsumersBegin(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	first, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	between := time.Now()
	exec(t, pool, `INSERT INTO a VALUES (2, 2)`)
	all := positions(t, l, changes.Filter{})
	for name, test := range map[string]struct {
		from string
		want []string
	}{
		"start":    {"start", all},
		"now":      {"", []string{}},
		"position": {first.String(), all[1:]},
		"inside":   {all[0], all[1:]},
		"time":     {between.Format(time.RFC3339Nano), all[1:]},
	} {
		cfg := changes.ConsumerConfig{Name: name, From: test.from}
		r := start(t, url, cfg, func(c *changes.Consumer) { c.Handle("*", effect(name)) })
		handled(t, l, name)
		r.stop()
		if diff := cmp.Diff(test.want, effectsOf(t, pool, name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		cfg.From = "start"
		start(t, url, cfg, func(c *changes.Consumer) { c.Handle("*", effect(name)) })
		handled(t, l, name)
		if diff := cmp.Diff(test.want, effectsOf(t, pool, name)); diff != "" {
			t.Errorf("%s again: %s", name, diff)
		}
	}
}

// What a handler wrote is flushed with the checkpoint; a checkpoint alone is not: what it
// tells of may be done again.
func TestBatchIsFlushedForWhatWasWritten(t *testing.T) {
	t.Parallel()
	_, _, pool := consumed(t)
	exec(t, pool, `INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n) VALUES ('c', 0, 1, 0)`)
	for _, c := range []struct{ write, want string }{
		{`SELECT FROM a`, "off"},
		{`INSERT INTO a VALUES (1, 1)`, "on"},
		{`SELECT FROM a FOR UPDATE`, "on"},
	} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{`SET LOCAL synchronous_commit = on`, c.write} {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		if _, err := tx.Exec(t.Context(), `SELECT howdah.change_move('c', 0, seq, 0, 0, 0, '', NULL, 1, 0) FROM howdah.change_place('c', 0)`); err != nil {
			t.Fatal(err)
		}
		var flushed string
		if err := tx.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&flushed); err != nil || flushed != c.want {
			t.Errorf("after %s synchronous_commit is %q (%v); want %q", c.write, flushed, err, c.want)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
