package changes_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/changes"
)

// L1: a trigger of the table's own that changes rows which the same statement changes has its
// change logged first, and doctor tells of each that may. So do those of partitions.
func TestL1OwnTriggersTurnChangesAround(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			EXECUTE format('UPDATE %I SET v = 11 WHERE id = 2', TG_ARGV[0]);
			RETURN NULL;
		END $$;
		CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v + 10; RETURN NEW; END'`)
	const (
		plain = `CREATE TABLE %[1]s (id int PRIMARY KEY, v int);`
		parts = `CREATE TABLE %[1]s (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
			CREATE TABLE %[1]s_1 PARTITION OF %[1]s DEFAULT PARTITION BY RANGE (id); CREATE TABLE %[1]s_1_1 PARTITION OF %[1]s_1 DEFAULT;`
		follow = ` FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND NEW.id = 1) EXECUTE FUNCTION follow('%[1]s')`
	)
	for table, c := range map[string]struct {
		sql    string
		around bool
	}{
		"usual":      {plain + `CREATE TRIGGER mine AFTER UPDATE ON %[1]s` + follow, true},
		"immediate":  {plain + `CREATE CONSTRAINT TRIGGER mine AFTER UPDATE ON %[1]s DEFERRABLE` + follow, true},
		"deferred":   {plain + `CREATE CONSTRAINT TRIGGER mine AFTER UPDATE ON %[1]s DEFERRABLE INITIALLY DEFERRED` + follow, false},
		"earlier":    {plain + `CREATE TRIGGER mine BEFORE UPDATE ON %[1]s FOR EACH ROW EXECUTE FUNCTION own()`, false},
		"whole":      {parts + `CREATE TRIGGER mine AFTER UPDATE ON %[1]s` + follow, true},
		"part":       {parts + `CREATE TRIGGER mine AFTER UPDATE ON %[1]s_1_1` + follow, true},
		"late":       {parts + `CREATE CONSTRAINT TRIGGER mine AFTER UPDATE ON %[1]s_1_1 DEFERRABLE INITIALLY DEFERRED` + follow, false},
		"referenced": {parts + `CREATE TABLE other (id int REFERENCES %[1]s DEFERRABLE)`, false}, // which is triggers, too
	} {
		exec(t, pool, fmt.Sprintf(c.sql, table))
		exec(t, pool, fmt.Sprintf(`INSERT INTO %s VALUES (1, 0), (2, 0)`, table))
		capture(t, l, changes.Capture{Table: "public." + table})
		exec(t, pool, fmt.Sprintf(`UPDATE %s SET v = 1`, table))
		pattern, err := changes.ParsePattern("public." + table)
		if err != nil {
			t.Fatal(err)
		}
		feed, _ := readAll(t, l, changes.Position{}, 10, changes.Filter{Patterns: []changes.Pattern{pattern}, Match: json.RawMessage(`{"id":2}`)})
		var is string
		if err := pool.QueryRow(t.Context(), fmt.Sprintf(`SELECT format('{"v":%%s,"id":2}', v) FROM %s WHERE id = 2`, table)).Scan(&is); err != nil {
			t.Fatal(err)
		}
		if said := string(feed[len(feed)-1].New); (said != is) != c.around {
			t.Errorf("%s: the row is %s, and the last that is said of it %s", table, is, said)
		}
	}
	want := []string{"immediate", "part_1_1", "usual", "whole"}
	if diff := cmp.Diff(want, found(t, l, "trigger-foreign-order public.")); diff != "" {
		t.Errorf("doctor (-want +found):\n%s", diff)
	}
}

// L3: TRUNCATE … CASCADE of a captured table empties others, and of one that is not captured
// the feed says nothing. Doctor says of which that may be.
func TestL3TruncateCascadeIsSilent(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b);
		INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1); INSERT INTO c VALUES (1, 1)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	exec(t, pool, `TRUNCATE a CASCADE`)
	var left int
	if err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM b) + (SELECT count(*) FROM c)`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d rows are left, %v", left, err)
	}
	if diff := cmp.Diff([]string{"truncate a"}, told(t, l)); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"b", "c"}, found(t, l, "truncate-cascade public.")); diff != "" {
		t.Errorf("doctor (-want +found):\n%s", diff)
	}
	capture(t, l, changes.Capture{Table: "public.b"}, changes.Capture{Table: "public.c"}) // as it says
	exec(t, pool, `TRUNCATE a CASCADE`)
	got := told(t, l)
	slices.Sort(got)
	if diff := cmp.Diff([]string{"truncate a", "truncate a", "truncate b", "truncate c"}, got); diff != "" || len(found(t, l, "")) != 0 {
		t.Errorf("all captured (-want +got):\n%s\nfound %q", diff, found(t, l, ""))
	}
}

// L5: what JSON is larger than PostgreSQL can keep cannot be logged, and is not written (W2),
// though the column is left out: that is done to the JSON.
func TestL5TooLargeARowIsNotWritten(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v bit varying)`) // JSON has a letter for each bit
	capture(t, l, changes.Capture{Table: "public.a", Except: []string{"v"}})
	_, err := pool.Exec(t.Context(), `INSERT INTO a SELECT 1, b || b || b || b FROM (SELECT 0::bit(67108864) AS b) b`)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "54000" {
		t.Errorf("%v, want that it is too large", err)
	}
	exec(t, pool, `INSERT INTO a VALUES (2)`)
	if diff := cmp.Diff([]string{`insert a {"id":2}`}, told(t, l)); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
}
