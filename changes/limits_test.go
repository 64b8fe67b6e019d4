package changes_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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

// L1: what a BEFORE ROW trigger, or a function that the statement calls, does to rows that the
// statement has changed is logged first, too, by row and by statement. Doctor tells of such triggers
// by what their function says: of those that set columns of NEW, which most do, there is nothing to tell.
func TestL1WhatIsCalledInTheMiddleTurnsChangesAround(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE FUNCTION shift() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN update Only public."items" SET v = v + 10; RETURN NEW; END';
		CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v + 1; UPDATE items_2 SET v = v; RETURN NEW; END';
		CREATE FUNCTION bump(i int) RETURNS int LANGUAGE plpgsql AS 'BEGIN UPDATE calls SET v = v + 10 WHERE id < i; RETURN 1; END';
		CREATE TABLE items (id int PRIMARY KEY, v int); CREATE TABLE items_2 (v int); CREATE TABLE calls (id int PRIMARY KEY, v int);
		CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION touch();
		INSERT INTO calls VALUES (1, 0), (2, 0)`)
	var start changes.Position
	for _, bulk := range []bool{false, true} {
		capture(t, l, changes.Capture{Table: "public.items", Bulk: bulk}, changes.Capture{Table: "public.calls", Bulk: bulk})
		if found := found(t, l, ""); len(found) != 0 {
			t.Errorf("found %q", found)
		}
		exec(t, pool, `CREATE TRIGGER shift BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION shift(); INSERT INTO items VALUES (1, 0), (2, 0); UPDATE calls SET v = v + bump(id)`)
		if diff := cmp.Diff([]string{"public.items"}, found(t, l, "trigger-foreign-order ")); diff != "" {
			t.Errorf("doctor (-want +found):\n%s", diff)
		}
		var feed []changes.Change
		feed, start = readAll(t, l, start, 100, changes.Filter{})
		last := map[string]string{}
		for _, c := range feed {
			last[c.Table+string(c.Key)] = string(c.New)
		}
		for _, table := range []string{"items", "calls"} {
			var is string
			if err := pool.QueryRow(t.Context(), fmt.Sprintf(`SELECT format('{"v":%%s,"id":1}', v) FROM %s WHERE id = 1`, table)).Scan(&is); err != nil {
				t.Fatal(err)
			}
			if said := last[table+`{"id":1}`]; said == is || said == "" {
				t.Errorf("bulk %t: the row of %s is %s, and the last that is said of it %s: the limit is another", bulk, table, is, said)
			}
		}
		exec(t, pool, `DROP TRIGGER shift ON items; TRUNCATE items`)
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

	// Of a partitioned table it is told as a whole, where the foreign key is that of the whole.
	exec(t, pool, `
		CREATE TABLE p (id int PRIMARY KEY, a int REFERENCES a, b int) PARTITION BY RANGE (id);
		CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100); CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (100) TO (200)`)
	if diff := cmp.Diff([]string{"p"}, found(t, l, "truncate-cascade public.")); diff != "" {
		t.Errorf("doctor (-want +found):\n%s", diff)
	}
	capture(t, l, changes.Capture{Table: "public.p"})
	if found := found(t, l, "truncate-cascade "); len(found) != 0 {
		t.Errorf("found %q, which it is told of", found)
	}
	exec(t, pool, `ALTER TABLE p DROP CONSTRAINT p_a_fkey; ALTER TABLE p_1 ADD FOREIGN KEY (b) REFERENCES b`)
	before := len(told(t, l))
	exec(t, pool, `TRUNCATE b CASCADE`)
	if got := told(t, l)[before:]; len(got) != 2 { // b, c
		t.Errorf("%q, without a word of p_1", got)
	}
	if diff := cmp.Diff([]string{"p_1"}, found(t, l, "truncate-cascade public.")); diff != "" {
		t.Errorf("doctor (-want +found):\n%s", diff)
	}
}

// L5: what JSON is larger than PostgreSQL can keep cannot be logged, and is not written (W2),
// until the column is left out.
func TestL5TooLargeARowIsNotWritten(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v bit varying)`) // JSON has a letter for each bit
	capture(t, l, changes.Capture{Table: "public.a"})
	const large = `INSERT INTO a SELECT 1, b || b || b || b FROM (SELECT 0::bit(67108864) AS b) b`
	_, err := pool.Exec(t.Context(), large)
	if stateOf(err) != "54000" {
		t.Errorf("%v, want that it is too large", err)
	}
	capture(t, l, changes.Capture{Table: "public.a", Except: []string{"v"}})
	exec(t, pool, large)
	if diff := cmp.Diff([]string{`insert a {"id":1}`}, told(t, l)); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
}

// W2, F3: type json takes what no jsonb can be. A row that holds some cannot be logged, until
// the column is left out; and then the rest of it is as ever, whatever the connection has set.
func TestF3ExceptOfWhatIsNoJSON(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE a (id int, at timestamptz, x bytea, "n o" numeric, j json, gone int, PRIMARY KEY (id, at)) PARTITION BY RANGE (id);
		CREATE TABLE a_1 (gone text, j json, x bytea, at timestamptz NOT NULL, id int NOT NULL, "n o" numeric); ALTER TABLE a_1 DROP gone, ADD gone int;
		ALTER TABLE a ATTACH PARTITION a_1 DEFAULT; ALTER TABLE a DROP gone`)
	insert := func(id int, j string) string {
		return fmt.Sprintf(`INSERT INTO a (id, at, x, "n o", j) VALUES (%d, '2026-07-01 12:00Z', '\x00ff', 1.10, '%s')`, id, j)
	}
	capture(t, l, changes.Capture{Table: "public.a", Payload: changes.PayloadFull})
	for _, j := range []string{`{"a":"\u0000"}`, `["\ud800"]`, `1e200000`} {
		_, err := pool.Exec(t.Context(), insert(1, j))
		if state := stateOf(err); !strings.HasPrefix(state, "22") {
			t.Errorf("%s: %v, want that it cannot be logged", j, err)
		}
		for _, payload := range []changes.Payload{changes.PayloadFull, changes.PayloadDiff} {
			capture(t, l, changes.Capture{Table: "public.a", Payload: payload, Except: []string{"j"}})
			start, err := l.Sync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, set := range []string{``, `SET LOCAL bytea_output = escape; SET LOCAL timezone = 'Asia/Kathmandu'; `} {
				exec(t, pool, set+strings.Join([]string{insert(1, j), insert(2, `{}`), `UPDATE a SET "n o" = 2`, `DELETE FROM a`}, ";"))
			}
			feed, _ := readAll(t, l, start, 100, changes.Filter{})
			byID := map[string][]string{}
			for _, c := range feed {
				var key struct{ ID int }
				if err := json.Unmarshal(c.Key, &key); err != nil {
					t.Fatal(err)
				}
				id := fmt.Sprint(key.ID)
				byID[id] = append(byID[id], strings.ReplaceAll(fmt.Sprintf("%s %s %s %s", c.Op, c.Key, c.Old, c.New), `"id":`+id, `"id":0`))
			}
			if len(byID["2"]) != 6 || !strings.Contains(byID["2"][3], `\\x00ff`) {
				t.Errorf("%q, want six changes", byID["2"])
			}
			if diff := cmp.Diff(byID["2"], byID["1"]); diff != "" {
				t.Errorf("%s in the row, payload %s (-without +with):\n%s", j, payload, diff)
			}
		}
		capture(t, l, changes.Capture{Table: "public.a", Payload: changes.PayloadFull})
	}
}
