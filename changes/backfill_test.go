package changes_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// filling is a consumer that reads tables.
func filling(tables ...string) changes.ConsumerConfig {
	return changes.ConsumerConfig{Name: "fill", Backfill: tables, Chunk: 7, Batch: 3}
}

// on handles every change with h.
func on(h changes.Handler) func(*changes.Consumer) {
	return func(c *changes.Consumer) { c.Hurry(); c.Handle("*", h) }
}

// filled waits until a consumer has read all that it was to read.
func filled(t *testing.T, m *auditedLog, name string) {
	t.Helper()
	eventually(t, name+" has read its tables", func() bool {
		return m.number(t, `SELECT count(*) FROM howdah.change_checkpoint WHERE consumer = $1 AND backfill IS NULL`, name) > 0 &&
			m.number(t, `SELECT count(*) FROM howdah.change_checkpoint WHERE consumer = $1 AND backfill IS NOT NULL`, name) == 0
	})
}

// A copy is made of a table that is written to all the time, by instances of three
// shards that come and go: each row that is read is what the copy has of it already, or
// new, and in the end the copy is the table.
func TestC7BackfillUnderWrites(t *testing.T) {
	t.Parallel()
	rows, writers := pgtest.Size(300, 150), 4
	m := newAudited(t)
	url := m.pool.Config().ConnString()
	exec(t, m.pool, `
		CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
		CREATE TABLE copy (id int PRIMARY KEY, v int NOT NULL);
		CREATE TABLE wrong (what text, change jsonb, had int);
		CREATE FUNCTION take(c jsonb) RETURNS void LANGUAGE plpgsql AS $$
		DECLARE
			k   int := c->'key'->>'id';
			is_ int := c->'new'->>'v';
			had int := (SELECT v FROM public.copy WHERE id = k);
		BEGIN
			IF c->>'op' = 'delete' THEN
				DELETE FROM public.copy WHERE id = k;
				RETURN;
			END IF;
			IF c->>'op' = 'read' AND had <> is_ THEN
				INSERT INTO public.wrong VALUES ('read', c, had);
			END IF;
			INSERT INTO public.copy VALUES (k, is_) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v;
		END $$`)
	exec(t, m.pool, `INSERT INTO t SELECT g, 0 FROM generate_series(1, $1) g`, rows)
	capture(t, m.log, changes.Capture{Table: "public.t"})
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	var writing sync.WaitGroup
	for w := range writers {
		random := rand.New(rand.NewPCG(uint64(w), 1))
		writing.Go(func() {
			for ctx.Err() == nil {
				var far bool // a copy that is slower than the writers has no end
				if err := m.pool.QueryRow(ctx, `SELECT coalesce(max(t.n) - min(k.n) > 200, false) FROM howdah.change_tick t, howdah.change_checkpoint k`).Scan(&far); err != nil || far {
					continue
				}
				id := 1 + random.IntN(rows*5/4)
				sql := []string{
					`UPDATE t SET v = v + 1 WHERE id = $1`,
					`UPDATE t SET v = v + 1 WHERE id BETWEEN $1 AND $1 + 5`,
					`DELETE FROM t WHERE id = $1`,
					`INSERT INTO t VALUES ($1, 0) ON CONFLICT DO NOTHING`,
					`UPDATE t SET id = id + 1000 WHERE id = $1`,
				}[random.IntN(5)]
				_, err := m.pool.Exec(ctx, sql, id) // some wait for each other in a circle
				if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "40P01") && !strings.Contains(err.Error(), "23505") {
					t.Error(err)
				}
			}
		})
	}
	cfg := filling("public.t")
	cfg.Shards, cfg.Batch = 3, 50
	instance := func() *running {
		return start(t, url, cfg, func(c *changes.Consumer) {
			c.Hurry()
			c.Handle("public.t", changes.SQL(`SELECT public.take($1::jsonb)`))
		})
	}
	other := instance()
	for range pgtest.Size(5, 3) {
		one := instance()
		before := m.number(t, `SELECT coalesce(sum(seq), 0)::bigint FROM howdah.change_checkpoint`)
		eventually(t, "it goes on", func() bool {
			return m.number(t, `SELECT coalesce(sum(seq), 0)::bigint FROM howdah.change_checkpoint`) > before+20
		})
		other.stop()
		other = one
	}
	filled(t, m, "fill")
	calm()
	writing.Wait()
	handled(t, m.log, "fill")
	if n := m.number(t, `SELECT count(*) FROM wrong`); n > 0 {
		t.Errorf("%d rows were read that the copy had otherwise", n)
	}
	if n := m.number(t, `SELECT count(*) FROM (SELECT * FROM t EXCEPT ALL SELECT * FROM copy UNION ALL (SELECT * FROM copy EXCEPT ALL SELECT * FROM t)) d`); n > 0 {
		t.Errorf("the copy differs from the table in %d rows", n)
	}
}

// Tables of every kind are read to the end, each row once, whatever its key is made of,
// and as their captures say.
func TestBackfillReadsEveryRow(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `
		CREATE SCHEMA "odd one";
		CREATE TABLE "odd one"."a""b" ("K,1" text COLLATE "C", k2 timestamptz, k3 bytea, k4 numeric, i int[], r text, PRIMARY KEY ("K,1", k2, k3, k4, i));
		INSERT INTO "odd one"."a""b" SELECT chr(32 + g % 20) || 'x''"', '2026-01-01'::timestamptz + g * interval '1.000001 s', decode(lpad(to_hex(g), 4, '0'), 'hex'), g * 1.50, ARRAY[g], 'r' || g FROM generate_series(1, 50) g;
		CREATE TABLE parts (id int, part int, secret text, none json, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
		CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
		CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
		INSERT INTO parts SELECT g, g % 2, 'secret', '{"secret": "\u0000"}' FROM generate_series(1, 30) g;
		CREATE TABLE wide (u uuid PRIMARY KEY, text text);
		INSERT INTO wide SELECT gen_random_uuid(), repeat('x', g * 10) FROM generate_series(1, 20) g;
		CREATE TABLE none (id int PRIMARY KEY)`)
	capture(t, m.log,
		changes.Capture{Table: `odd one.a"b`, Payload: "full"},
		changes.Capture{Table: "public.parts", Except: []string{"secret", "none"}},
		changes.Capture{Table: "public.wide", MaxBytes: 150},
		changes.Capture{Table: "public.none", Payload: "keys"})
	var mu sync.Mutex
	seen := map[string][]changes.Change{}
	tables := []string{`odd one.a"b`, "public.none", "public.parts", "public.wide"}
	start(t, m.pool.Config().ConnString(), filling(tables...), on(func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range cs {
			seen[c.Schema+"."+c.Table] = append(seen[c.Schema+"."+c.Table], c)
		}
		return nil
	}))
	filled(t, m, "fill")
	mu.Lock()
	defer mu.Unlock()
	for table, want := range map[string]int{tables[0]: 50, tables[1]: 0, tables[2]: 30, tables[3]: 20} {
		keys := map[string]bool{}
		for _, c := range seen[table] {
			keys[string(c.Key)] = true
			if c.Op != changes.Read || c.Position.ID != 0 || c.Position.Commit != seen[table][0].Position.Commit && c.Position.Commit == 0 || c.XID != "" || c.Last || c.Old != nil || c.At.IsZero() {
				t.Errorf("a read of %s: %+v", table, c)
			}
			if table == "public.parts" && string(c.New) != string(c.Key) {
				t.Errorf("secret and what is no JSON were to be left out: %s", c.New)
			}
			if c.Trimmed != (c.New == nil) {
				t.Errorf("trimmed %v: %s", c.Trimmed, c.New)
			}
		}
		if len(keys) != want || len(seen[table]) != want {
			t.Errorf("%s: %d reads of %d rows, want %d", table, len(seen[table]), len(keys), want)
		}
	}
	trimmed := slices.IndexFunc(seen["public.wide"], func(c changes.Change) bool { return c.Trimmed })
	whole := slices.IndexFunc(seen["public.wide"], func(c changes.Change) bool { return !c.Trimmed })
	if trimmed < 0 || whole < 0 {
		t.Errorf("of wide rows some are left out: %d, %d", trimmed, whole)
	}
}

// A row that cannot be handled is parked like a change, and the others go on.
func TestBackfillParks(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a SELECT g, 1 FROM generate_series(1, 20) g`)
	var cured sync.Map
	var mu sync.Mutex
	var done []string
	start(t, m.pool.Config().ConnString(), filling("chk.a"), on(func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range cs {
			if _, ok := cured.Load("now"); !ok && string(c.Key) == `{"id":9}` {
				return errors.New("unlucky")
			}
		}
		for _, c := range cs {
			done = append(done, string(c.Key))
		}
		return nil
	}))
	filled(t, m, "fill")
	parked, err := m.log.Parked(t.Context(), "fill", changes.Position{}, 10)
	if err != nil || len(parked) != 1 || string(parked[0].Change.Key) != `{"id":9}` || parked[0].Change.Op != changes.Read {
		t.Fatalf("parked %v, %v", parked, err)
	}
	cured.Store("now", true)
	if n, err := m.log.Retry(t.Context(), "fill"); err != nil || n > 1 { // it may have been tried by itself
		t.Fatalf("Retry = %d, %v", n, err)
	}
	eventually(t, "nothing is parked", func() bool { return m.number(t, `SELECT count(*) FROM howdah.change_parked`) == 0 })
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(done)
	if done = slices.Compact(done); len(done) != 20 {
		t.Errorf("%d rows were handled, want 20", len(done))
	}
}

func TestBackfillRefused(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `CREATE TABLE keyless (v int); CREATE TABLE loose (id int PRIMARY KEY); CREATE TABLE was (id int PRIMARY KEY)`)
	capture(t, m.log, changes.Capture{Table: "public.keyless"}, changes.Capture{Table: "public.was"})
	exec(t, m.pool, `ALTER TABLE was RENAME TO now`) // its changes bear the old name
	pool := pgtest.Pool(t, withConns(m.pool.Config().ConnString(), 8))
	for table, pattern := range map[string]string{"public.keyless": "*", "public.loose": "*", "public.nowhere": "*", "public.was": "*", "public.now": "*", "chk.a": "chk.a:insert,update"} {
		c := changes.NewConsumer(pool, nil, filling(table))
		c.Handle(pattern, effect("fill"))
		if err := c.Register(t.Context()); !errors.Is(err, fault.Invalid) || !strings.Contains(fmt.Sprint(err), "backfill: ") {
			t.Errorf("Register with the backfill %s: %v, want Invalid backfill", table, err)
		}
	}
	if n := m.number(t, `SELECT count(*) FROM howdah.change_consumer`); n != 0 {
		t.Errorf("%d consumers were made", n)
	}
}

// Where the tick's connection is lost before its snapshot was taken over, there is nothing
// for a person to mend: the rows are read anew.
func TestBackfillWhoseSnapshotIsGone(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	effects(t, m.pool)
	exec(t, m.pool, `INSERT INTO chk.a SELECT g, 1 FROM generate_series(1, 10) g`)
	cfg, err := pgxpool.ParseConfig(withConns(m.url, 8))
	if err != nil {
		t.Fatal(err)
	}
	var lost atomic.Int32
	cfg.ConnConfig.Tracer = beforeQuery(func(ctx context.Context, sql string) {
		if !strings.Contains(sql, "SET TRANSACTION SNAPSHOT") || lost.Load() > 0 {
			return
		}
		eventually(t, "the tick is cut off", func() bool {
			var n int32
			err := m.pool.QueryRow(ctx, `
				SELECT count(pg_terminate_backend(pid, 10000))
				FROM pg_stat_activity
				WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '%howdah.snapshot%' AND pid <> pg_backend_pid()`).Scan(&n)
			return lost.Add(n) > 0 || err != nil
		})
	})
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c := changes.NewConsumer(pool, pg.NewHub(pg.HubConfig{Conn: m.pool.Config().ConnConfig}), filling("chk.a"))
	on(effect("fill"))(c)
	ctx, stop := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	defer run.Wait()
	defer stop()
	eventually(t, "it has read its rows, or is paused", func() bool {
		return m.number(t, `
			SELECT count(*)
			FROM howdah.change_consumer c
			JOIN howdah.change_checkpoint k ON k.consumer = c.name
			WHERE c.state = 'paused' OR k.backfill IS NULL`) > 0
	})
	if s := status(t, m.log, "fill"); s.State != "running" || lost.Load() == 0 {
		t.Errorf("it is %s (%s), after %d connections were lost", s.State, s.Reason, lost.Load())
	}
}

// beforeQuery is called before each statement of a pool.
type beforeQuery func(ctx context.Context, sql string)

func (f beforeQuery) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	f(ctx, q.SQL)
	return ctx
}

func (beforeQuery) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A table that is gone pauses the consumer, which says so; one that has expired begins
// anew, with the rows again.
func TestBackfillGoesOn(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	effects(t, m.pool)
	url := m.pool.Config().ConnString()
	exec(t, m.pool, `INSERT INTO chk.a SELECT g, 1 FROM generate_series(1, 10) g`)
	exec(t, m.pool, `CREATE TABLE brief (id int PRIMARY KEY); INSERT INTO brief VALUES (1)`)
	capture(t, m.log, changes.Capture{Table: "public.brief"})
	pool := pgtest.Pool(t, withConns(url, 8))
	c := changes.NewConsumer(pool, nil, filling("chk.a", "public.brief"))
	c.Handle("*", effect("fill"))
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.log.Reshard(t.Context(), "fill", 2); !errors.Is(err, fault.Conflict) {
		t.Errorf("Reshard in a backfill: %v, want Conflict", err)
	}
	exec(t, m.pool, `DROP TABLE brief`)
	r := start(t, url, filling("chk.a", "public.brief"), on(effect("fill")))
	eventually(t, "it is paused", func() bool {
		s, err := m.log.Consumer(t.Context(), "fill")
		return err == nil && s.State == "paused" && strings.Contains(s.Reason, "public.brief")
	})
	r.stop()
	if n := len(effectsOf(t, m.pool, "fill")); n != 10 {
		t.Errorf("%d rows were handled before, want 10", n)
	}

	exec(t, m.pool, `UPDATE howdah.change_consumer SET state = 'expired'`)
	start(t, url, filling("chk.a"), on(effect("fill")))
	filled(t, m, "fill")
	exec(t, m.pool, `INSERT INTO chk.a VALUES (11, 1)`)
	handled(t, m.log, "fill")
	keys := map[string]int{}
	rows, _ := m.pool.Query(t.Context(), `SELECT key::text, count(*) FROM effects GROUP BY 1`)
	var key string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&key, &n}, func() error { keys[key] = n; return nil }); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{`{"id": 11}`: 1}
	for id := range 10 {
		want[fmt.Sprintf(`{"id": %d}`, id+1)] = 2
	}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("effects (-want +got):\n%s", diff)
	}
}
