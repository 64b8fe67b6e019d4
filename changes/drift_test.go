package changes_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
)

// Whether triggers are as they were made does not depend on where who asks looks for
// names: else two of different settings would undo each other's, under a lock that
// nobody reads through.
func TestDriftOnAnySearchPath(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA shop; CREATE TYPE shop.state AS ENUM ('x', 'y'); CREATE TABLE shop.a (id int PRIMARY KEY, s shop.state)`)
	want := changes.Capture{Table: "shop.a", When: "NEW.s = 'x'::shop.state", Ops: []changes.Op{changes.Insert}}
	capture(t, l, want)
	for _, path := range []string{"public", "shop, public", "howdah, shop", "howdah, pg_catalog", `""`} {
		cfg := pool.Config()
		cfg.ConnConfig.RuntimeParams["search_path"] = path
		other, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(other.Close)
		looks := changes.New(other, changes.Config{})
		if found := codes(t, looks); len(found) != 0 {
			t.Errorf("search_path %s: %q", path, found)
		}
		if steps, err := looks.Plan(t.Context(), []changes.Capture{want}, false); err != nil || len(steps) != 0 {
			t.Errorf("search_path %s: %+v, %v", path, steps, err)
		}
	}
}

// What is not to be logged is so by its name.
func TestDoctorFindsARenamedException(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, password text)`)
	capture(t, l, changes.Capture{Table: "public.a", Except: []string{"password"}})
	if found := codes(t, l); len(found) != 0 {
		t.Fatalf("before: %q", found)
	}
	exec(t, pool, `ALTER TABLE a RENAME password TO secret`)
	if diff := cmp.Diff([]string{"except-renamed public.a"}, codes(t, l)); diff != "" {
		t.Error(diff)
	}
	capture(t, l, changes.Capture{Table: "public.a", Except: []string{"secret"}})
	if found := codes(t, l); len(found) != 0 {
		t.Errorf("after: %q", found)
	}
}

// What is picked by its name is not that column any more where another bears the name.
func TestDoctorFindsColumnsOfAnotherName(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (gone int, id int PRIMARY KEY, password text)`)
	want := changes.Capture{Table: "public.a", Except: []string{"password"}}
	capture(t, l, want)
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{`ALTER TABLE a DROP gone`, []string{}},
		{`ALTER TABLE a RENAME id TO number; ALTER TABLE a ADD id int`, []string{"column id of its key is called number now"}},
		{`ALTER TABLE a RENAME id TO spare; ALTER TABLE a RENAME number TO id`, []string{}},
		{`ALTER TABLE a RENAME password TO secret; ALTER TABLE a ADD password text`, []string{"column password, which is not to be logged, is called secret now: under another name it is logged"}},
		{`ALTER TABLE a DROP secret`, []string{}}, // what bears the name is left out, too
		{`UPDATE howdah.change_spec SET spec = spec || '{"relation":1,"numbers":{"id":1,"password":2}}'`, []string{}}, // restored from a dump
	} {
		exec(t, pool, c.sql)
		findings, err := l.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		problems := []string{}
		for _, f := range findings {
			if strings.HasSuffix(f.Code, "-renamed") {
				problems = append(problems, f.Problem)
			}
		}
		if diff := cmp.Diff(c.want, problems); diff != "" {
			t.Errorf("%s (-want +found):\n%s", c.sql, diff)
		}
	}
	if steps, err := l.Plan(t.Context(), []changes.Capture{want}, false); err != nil || len(steps) != 0 {
		t.Errorf("where it was restored: %+v, %v", steps, err)
	}
}

// A key is one of a row, and each row has one, as long as it is what it was captured as.
func TestDoctorFindsAKeyThatChanged(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE a (id int PRIMARY KEY, tenant int NOT NULL DEFAULT 0);
		CREATE TABLE at (at timestamp PRIMARY KEY);
		CREATE TABLE loose (id int, twice int)`)
	loose := changes.Capture{Table: "public.loose", Key: []string{"id"}} // as somebody says, who may know better
	a, at := changes.Capture{Table: "public.a"}, changes.Capture{Table: "public.at"}
	capture(t, l, a, at, loose)
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{`ALTER TABLE a ADD UNIQUE (tenant)`, []string{}},
		{`ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (tenant, id)`, []string{"key-changed public.a"}},
		{`CREATE UNIQUE INDEX part ON a (id) WHERE tenant = 1; CREATE UNIQUE INDEX other ON a ((id + 1))`, []string{"key-changed public.a"}},
		{`CREATE UNIQUE INDEX whole ON a (id) INCLUDE (tenant)`, []string{}},
		{`DROP INDEX whole; ALTER TABLE at ALTER at TYPE timestamptz`, []string{"key-changed public.a", "key-changed public.at"}},
	} {
		exec(t, pool, c.sql)
		if diff := cmp.Diff(c.want, codes(t, l)); diff != "" {
			t.Errorf("%s (-want +found):\n%s", c.sql, diff)
		}
	}
	if diff := cmp.Diff([]string{"replace public.a", "replace public.at"}, planned(t, l, a, at, loose)); diff != "" {
		t.Error(diff)
	}
	capture(t, l, a, at, loose)
	if found := codes(t, l); len(found) != 0 {
		t.Errorf("after Apply: %q", found)
	}
}

// Who is waited for is named: a reader, too, where triggers are dropped, and who has but
// a partition.
func TestWhoIsInTheWayIsNamed(t *testing.T) {
	t.Parallel()
	_, pool := newLog(t)
	cfg := pool.Config()
	cfg.ConnConfig.RuntimeParams["lock_timeout"] = "20ms"
	hasty, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hasty.Close)
	l := changes.New(hasty, changes.Config{})
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (9)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	for name, test := range map[string]struct {
		lock string
		does func() error
	}{
		"Release": {`SELECT FROM a`, func() error { _, err := l.Release(t.Context(), "public.a"); return err }},
		"Apply": {`INSERT INTO p_1 VALUES (1)`, func() error {
			_, err := l.Apply(t.Context(), []changes.Capture{{Table: "public.p"}}, false)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) { // one after the other: to look at the triggers of a table waits for who drops one
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), test.lock); err != nil {
					return err
				}
				err := test.does()
				if pid := fmt.Sprintf("locked by process %d ", tx.Conn().PgConn().PID()); !errors.Is(err, fault.Unavailable) || err != nil && !strings.Contains(err.Error(), pid) {
					t.Errorf("%v, want %s", err, pid)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
