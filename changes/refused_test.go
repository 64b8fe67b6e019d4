package changes_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What would be captured wrongly, or not at all, is refused.
func TestCapturesThatCannotBeRight(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE plain (id int PRIMARY KEY);
		CREATE TABLE torn (id int PRIMARY KEY, a int REFERENCES plain ON DELETE CASCADE, b int REFERENCES plain ON UPDATE CASCADE);
		CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
		CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parts DEFAULT`)
	for want, c := range map[string]changes.Capture{
		"bulk: cannot be had with always":        {Table: "public.plain", Bulk: true, Always: true},
		"bulk: cannot be had with a foreign key": {Table: "public.torn", Bulk: true},
		"has tables that inherit from it":        {Table: "public.parent"},
		"bulk: cannot be had with INHERITS":      {Table: "public.child", Bulk: true},
		"bulk: cannot be had with partitions":    {Table: "public.part", Bulk: true},
		"ops: a row that moves":                  {Table: "public.parts", Ops: []changes.Op{changes.Update}},
	} {
		if _, err := l.Apply(t.Context(), []changes.Capture{c}, false); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

// PostgreSQL cuts a name that is too long, and so a value of its type for names: what is
// asked for is not the table whose name the beginning is.
func TestNamesAreNotCut(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	name := strings.Repeat("ü", 31) + "t"
	exec(t, pool, `CREATE SCHEMA "`+name+`"; CREATE TABLE "`+name+`"."`+name+`" (id int PRIMARY KEY)`)
	for _, table := range []string{name + "." + name + "x", name + "x." + name, name + "x.*"} {
		_, err := l.Apply(t.Context(), []changes.Capture{{Table: table}}, false)
		invalid(t, table, err, "table: ")
	}
	capture(t, l, changes.Capture{Table: name + "." + name})
	consumer := changes.NewConsumer(pool, nil, changes.ConsumerConfig{Name: "c", From: "now", Backfill: []string{name + "." + name + "x"}})
	consumer.Handle("*", effect("c"))
	invalid(t, "backfill", consumer.Register(t.Context()), "backfill: ")
}

// What is refused says of which of the captures it is, where in a condition, and leaves
// all of them alone, those too that could have been.
func TestRefusedCapturesChangeNothing(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE SCHEMA shop; CREATE TABLE shop.a (id int PRIMARY KEY); CREATE TABLE shop.b (id int PRIMARY KEY DEFERRABLE);
		CREATE TABLE public.t (id int PRIMARY KEY, "größe" int);
		CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; CREATE FOREIGN TABLE far (id int) SERVER nowhere`)
	good := changes.Capture{Table: "shop.a"}
	for _, c := range []struct {
		want []changes.Capture
		says string
	}{
		{[]changes.Capture{{Table: "public.far"}}, `table: "public.far" is no table (a view, or foreign)`},
		{[]changes.Capture{{Table: "public.t", Columns: []string{"a\x00"}}}, "columns: a NUL byte"},
		{[]changes.Capture{{Table: "public.t", Key: []string{"a\xff"}}}, "key: invalid UTF-8"},
		{[]changes.Capture{{Table: "a\x00.*"}}, "table: a NUL byte"},
		{[]changes.Capture{{Table: "shop.*", Payload: "all"}}, `payload: "all"; want`}, // which no table is to blame for
		{[]changes.Capture{{Table: "public.t", When: `NEW."größe" > OLD.wrong`}}, "when: column old.wrong does not exist at character 15"},
		{[]changes.Capture{{Table: "public.t", Ops: []changes.Op{changes.Insert}, When: "NEW.id > 1 AND OLD.id > 1"}}, "when: INSERT trigger's WHEN condition cannot reference OLD values at character 16"},
		{[]changes.Capture{{Table: "public.t", When: "NEW.id::nothing > 1"}}, `when: type "nothing" does not exist at character 9`},
		{[]changes.Capture{{Table: "public.t", When: "NEW.id >"}}, `when: syntax error at or near ")"`},
		{[]changes.Capture{good, {Table: "shop.none"}}, "captures[1].table: "},
		{[]changes.Capture{good, {Table: "shop.a"}}, "captures[1].table: "},
		{[]changes.Capture{good, {Table: "none.*"}}, "captures[1].table: "},
		{[]changes.Capture{{Table: "shop.*"}, {Table: "public.t", Payload: "all"}}, `captures[0].key: shop.b: "id" is in`}, // shop.b is the second table, and of the first capture
		{[]changes.Capture{{Table: "shop.*", Key: []string{"id"}, Bulk: true}}, "key: shop.b: "},
		{[]changes.Capture{{Table: "public.*", Ops: []changes.Op{changes.Insert}, When: `NEW.wrong > 1`}}, `when: public.t: column new.wrong does not exist at character 1`},
		{[]changes.Capture{good, {Table: "public.t", Payload: "all"}}, "captures[1].payload: "},
		{[]changes.Capture{good, {Table: "public.t", When: "NEW.id > (SELECT 1)"}}, "captures[1].when: cannot use subquery in trigger WHEN condition at character 10"},
		{[]changes.Capture{{Table: "public.t", Ops: []changes.Op{changes.Insert}, When: "NEW.id > 1"}, {Table: "shop.a", When: "wrong"}}, "captures[1].when: column \"wrong\" does not exist at character 1"},
	} {
		steps, err := l.Apply(t.Context(), c.want, false)
		invalid(t, jsonOf(t, c.want), err, c.says)
		if got := triggers(t, pool); len(steps) != 0 || got != "" {
			t.Fatalf("%s was refused, and did %+v: %s", jsonOf(t, c.want), steps, got)
		}
	}
	if captured, err := l.Captures(t.Context(), false); err != nil || len(captured) != 0 {
		t.Errorf("%+v, %v: something is recorded", captured, err)
	}
}

// A transaction of the caller's waits for locks as long as it did before.
func TestCaptureInATransactionLeavesItsSettings(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		var during, after string
		if _, err := tx.Exec(t.Context(), `SET LOCAL lock_timeout = '7s'`); err != nil {
			return err
		}
		_, err := l.WithTx(tx).Apply(t.Context(), []changes.Capture{{Table: "public.a", When: "true"}, {Table: "public.b"}}, false)
		if err != nil {
			return err
		}
		err = tx.QueryRow(t.Context(), `SELECT current_setting('lock_timeout'), coalesce((SELECT string_agg(tgname, ' ') FROM pg_trigger WHERE tgrelid = 'a'::regclass), '')`).Scan(&after, &during)
		if after != "7s" || strings.Count(during, "!howdah_") != 4 {
			t.Errorf("lock_timeout %s, triggers %s", after, during)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Where nobody has looked for as long as the ring goes round and longer, the first who
// does finds all of it, in order, by one tick.
func TestNobodyLookedForAWeek(t *testing.T) {
	t.Parallel()
	const days = 20 // in each of which other leaves are written to
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	for day := range days {
		exec(t, pool, fmt.Sprintf(`CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint LANGUAGE sql VOLATILE RETURN (%d %% 8)::smallint`, day))
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, day)
		exec(t, pool, `UPDATE a SET v = v + 1 WHERE id = $1`, day/2)
	}
	exec(t, pool, `UPDATE howdah.change SET at = at - interval '7 days'`)
	all, end := readAll(t, l, changes.Position{}, 7, changes.Filter{})
	var ticks int // that numbered something: one that finds nothing is written, too, where many of the cluster were open at the last
	if err := pool.QueryRow(t.Context(), `SELECT count(DISTINCT n) FROM howdah.change_tick WHERE n > 0`).Scan(&ticks); err != nil {
		t.Fatal(err)
	}
	if len(all) != 2*days || end.Commit != 2*days || ticks != 1 {
		t.Fatalf("%d changes up to %s by %d ticks", len(all), end, ticks)
	}
	for i, c := range all {
		key := fmt.Sprintf(`{"id":%d}`, i/2)
		if i%2 == 1 {
			key = fmt.Sprintf(`{"id":%d}`, i/4)
		}
		if c.Position.Commit != int64(i+1) || string(c.Key) != key {
			t.Errorf("change %d is %s of %s, want of %s", i, c.Position, c.Key, key)
		}
	}
}

// A partition is captured by itself, or with its parent, and never both ways: each
// change would be in the log twice.
func TestPartitionAndParent(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE half PARTITION OF whole FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
		CREATE TABLE leaf PARTITION OF half FOR VALUES FROM (0) TO (10);
		CREATE TABLE other PARTITION OF half FOR VALUES FROM (10) TO (20);
		CREATE TABLE apart (id int PRIMARY KEY)`)
	refused := func(tables ...string) {
		t.Helper()
		var want []changes.Capture
		for _, table := range tables {
			want = append(want, changes.Capture{Table: table})
		}
		if _, err := l.Apply(t.Context(), want, false); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "twice") {
			t.Errorf("capture of %q: %v, want Invalid", tables, err)
		}
	}
	refused("public.whole", "public.leaf")
	refused("public.leaf", "public.whole")
	capture(t, l, changes.Capture{Table: "public.leaf"}, changes.Capture{Table: "public.other"}) // beside each other is well
	refused("public.whole")
	refused("public.half")
	exec(t, pool, `INSERT INTO whole VALUES (1), (11), (2)`)
	for _, table := range []string{"public.leaf", "public.other"} {
		if _, err := l.Release(t.Context(), table); err != nil {
			t.Fatal(err)
		}
	}
	capture(t, l, changes.Capture{Table: "public.whole"}, changes.Capture{Table: "public.apart"})
	refused("public.leaf")
	refused("public.half")
	exec(t, pool, `INSERT INTO whole VALUES (3), (12)`)
	// PostgreSQL itself refuses to make a partition of one that is captured by itself.
	if _, err := pool.Exec(t.Context(), `ALTER TABLE whole ATTACH PARTITION apart FOR VALUES FROM (100) TO (200)`); err == nil {
		t.Error("a table that is captured became a partition of one that is")
	}
	var got []string
	all, _ := readAll(t, l, changes.Position{}, 100, changes.Filter{})
	for _, c := range all {
		got = append(got, c.Table+" "+string(c.Key))
	}
	want := []string{`leaf {"id":1}`, `other {"id":11}`, `leaf {"id":2}`, `whole {"id":3}`, `whole {"id":12}`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
}

// A role that may look at the log cannot write into it through a trigger of its
// own, nor run anything as its owner.
func TestW3NobodyBorrowsTheTrigger(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	_, pool := logOf(t, url)
	role := "reader_" + pool.Config().ConnConfig.Database
	exec(t, pool, `CREATE ROLE `+role+` LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA howdah TO `+role+`; GRANT SELECT ON ALL TABLES IN SCHEMA howdah TO `+role+`; GRANT CREATE ON SCHEMA public TO `+role)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	reader := pgtest.Pool(t, pgtest.As(t, url, role, "secret"))
	exec(t, reader, `CREATE TABLE public.mine (id int PRIMARY KEY)`)
	for _, function := range []string{"change_capture", "change_capture_bulk"} {
		_, err := reader.Exec(t.Context(), `CREATE TRIGGER x AFTER INSERT ON public.mine FOR EACH ROW EXECUTE FUNCTION howdah.`+function+`('billing', 'invoices', 'row', '1000000', 'notify', '{id}', '{}')`)
		if err == nil || !strings.Contains(err.Error(), "permission denied for function") {
			t.Errorf("%s: %v, want permission denied", function, err)
		}
	}
}

// Ranges are spelled the same whatever the writer's DateStyle.
func TestF3RangesAreTheSameForAllWriters(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, d daterange)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	for i, style := range []string{"ISO, MDY", "SQL, DMY", "SQL, MDY", "German", "Postgres, MDY"} {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `SELECT set_config('datestyle', $1, true)`, style); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `INSERT INTO a VALUES ($1, daterange(make_date(2024, 1, 2), make_date(2024, 3, 4)))`, i)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	all, _ := readAll(t, l, changes.Position{}, 10, changes.Filter{})
	for _, c := range all {
		if !strings.Contains(string(c.New), `"d":"[2024-01-02,2024-03-04)"`) {
			t.Errorf("%s", c.New)
		}
	}
}

// More snapshots at once than a pool has connections wait for each other, whether they
// are of one Log or of several.
func TestManySnapshotsOnASmallPool(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	logOf(t, url)
	pool := pgtest.Pool(t, withConns(url, 3))
	var all sync.WaitGroup
	for range 12 {
		l := changes.New(pool, changes.Config{})
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := l.Snapshot(ctx, func(tx pgx.Tx, _ changes.Position) error {
				_, err := tx.Exec(ctx, `SELECT pg_sleep(0.01)`)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := changes.New(pgtest.Pool(t, withConns(url, 1)), changes.Config{}).Snapshot(t.Context(), nil); !errors.Is(err, fault.Invalid) {
		t.Errorf("Snapshot on a pool of one: %v, want Invalid", err)
	}
}
