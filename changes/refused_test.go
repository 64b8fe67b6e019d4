package changes_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

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
		CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON UPDATE CASCADE);
		CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
		CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)`)
	for want, c := range map[string]changes.Capture{
		"bulk: cannot be had with always":        {Table: "public.plain", Bulk: true, Always: true},
		"bulk: cannot be had with a foreign key": {Table: "public.tree", Bulk: true},
		"has tables that inherit from it":        {Table: "public.parent"},
		"ops: a row that moves":                  {Table: "public.parts", Ops: []changes.Op{changes.Update}},
	} {
		if _, err := l.Apply(t.Context(), []changes.Capture{c}, false); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
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

// More snapshots at once than a pool has connections wait for each other.
func TestManySnapshotsOnASmallPool(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	logOf(t, url)
	cfg := url + "&pool_max_conns=3"
	l := changes.New(pgtest.Pool(t, cfg), changes.Config{})
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
}
