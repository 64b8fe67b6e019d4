package changes_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
)

// told are the table, key and operation of each change of the feed, in its order.
func told(t *testing.T, l *changes.Log) (all []string) {
	t.Helper()
	feed, _ := readAll(t, l, changes.Position{}, 100, changes.Filter{})
	for _, c := range feed {
		all = append(all, strings.TrimSpace(string(c.Op)+" "+c.Table+" "+string(c.Key)))
	}
	return all
}

// found are those findings of Doctor that begin with prefix, without it.
func found(t *testing.T, l *changes.Log, prefix string) []string {
	t.Helper()
	rest := []string{}
	for _, code := range codes(t, l) {
		if object, ok := strings.CutPrefix(code, prefix); ok {
			rest = append(rest, object)
		}
	}
	return rest
}

// planned are the tables that Plan would do something to.
func planned(t *testing.T, l *changes.Log, want ...changes.Capture) (tables []string) {
	t.Helper()
	steps, err := l.Plan(t.Context(), want, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		tables = append(tables, string(s.Action)+" "+s.Table)
	}
	return tables
}

const partitioned = `
	CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100);
	CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
	CREATE TABLE p_2_1 PARTITION OF p_2 FOR VALUES FROM (100) TO (200)`

// The rows are in the partitions, and it is their triggers that fire.
func TestDoctorLooksIntoPartitions(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, partitioned)
	p := changes.Capture{Table: "public.p"}
	capture(t, l, p)
	id := 0
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{`ALTER TABLE p_1 DISABLE TRIGGER ALL`, []string{"trigger-disabled public.p_1", "trigger-disabled public.p_1", "trigger-disabled public.p_1"}},
		{`ALTER TABLE p_1 DISABLE TRIGGER "!howdah_insert"`, []string{"trigger-disabled public.p_1"}},
		{`ALTER TABLE p_1 ENABLE REPLICA TRIGGER "!howdah_insert"`, []string{"trigger-disabled public.p_1"}},
		{`ALTER TABLE p_1 ENABLE ALWAYS TRIGGER "!howdah_insert"`, []string{"trigger-drift public.p"}},
		{`UPDATE pg_trigger SET tgname = 'mine' WHERE tgrelid = 'p_1'::regclass AND tgname = '!howdah_insert'`, []string{"trigger-drift public.p"}}, // as ALTER TRIGGER does, in PostgreSQL 14
		{`ALTER TABLE p_2_1 DISABLE TRIGGER "!howdah_insert"`, []string{"trigger-disabled public.p_2_1"}},
		{`ALTER TABLE p_2 DISABLE TRIGGER "!howdah_insert"`, []string{"trigger-disabled public.p_2"}}, // and with it those of its own partitions
		{`ALTER TABLE p DISABLE TRIGGER "!howdah_insert"`, []string{"trigger-disabled public.p"}},
		{`ALTER TABLE p DISABLE TRIGGER "!howdah_truncate"`, []string{"trigger-disabled public.p"}},
		{`CREATE TABLE p_3 PARTITION OF p DEFAULT`, []string{}}, // no matter how many there are
		{`ALTER TABLE p DETACH PARTITION p_2; CREATE TABLE p_4 PARTITION OF p FOR VALUES FROM (100) TO (200)`, []string{}},
	} {
		exec(t, pool, c.sql)
		if diff := cmp.Diff(c.want, codes(t, l)); diff != "" {
			t.Errorf("%s: (-want +found):\n%s", c.sql, diff)
		}
		var steps []string
		if len(c.want) > 0 {
			steps = []string{"replace public.p"}
		}
		if diff := cmp.Diff(steps, planned(t, l, p)); diff != "" {
			t.Errorf("%s: Plan (-want +got):\n%s", c.sql, diff)
		}
		capture(t, l, p)
		if found, steps := codes(t, l), planned(t, l, p); len(found)+len(steps) != 0 {
			t.Errorf("%s: after Apply found %q, to do %q", c.sql, found, steps)
		}
		id++
		before := len(told(t, l))
		exec(t, pool, `INSERT INTO p VALUES ($1), ($1 + 100)`, id)
		if diff := cmp.Diff([]string{fmt.Sprintf(`insert p {"id":%d}`, id), fmt.Sprintf(`insert p {"id":%d}`, 100+id)}, told(t, l)[before:]); diff != "" {
			t.Errorf("%s: after Apply the feed (-want +got):\n%s", c.sql, diff)
		}
	}
}

// A trigger is ours by what it calls. One that was given another name logs, too, but perhaps
// after others; mended beside it, each change would be logged twice.
func TestDoctorKnowsATriggerByWhatItCalls(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"a", "p"} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			l, pool := newLog(t)
			exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY);`+partitioned)
			c := changes.Capture{Table: "public." + table}
			capture(t, l, c)
			exec(t, pool, `ALTER TRIGGER "!howdah_insert" ON `+table+` RENAME TO mine`)
			findings, err := l.Doctor(t.Context())
			if err != nil || !slices.ContainsFunc(findings, func(f changes.Finding) bool {
				return f.Code == "trigger-drift" && f.Severity == "warning" && f.Object == c.Table && strings.Contains(f.Problem, "mine")
			}) {
				t.Errorf("found %+v, %v", findings, err)
			}
			if found := codes(t, l); len(found) != 1 {
				t.Errorf("found %q", found)
			}
			if diff := cmp.Diff([]string{"replace " + c.Table}, planned(t, l, c)); diff != "" {
				t.Errorf("Plan (-want +got):\n%s", diff)
			}
			all, err := l.Triggers(t.Context())
			if err != nil || !slices.Contains(all, changes.Trigger{Table: c.Table, Name: "mine", Events: "insert", Enabled: "yes", Owner: "howdah"}) {
				t.Errorf("Triggers() = %+v, %v", all, err)
			}
			capture(t, l, c)
			if found, steps := codes(t, l), planned(t, l, c); len(found)+len(steps) != 0 {
				t.Errorf("after Apply: found %q, to do %q", found, steps)
			}
			exec(t, pool, `INSERT INTO `+table+` VALUES (1)`)
			if diff := cmp.Diff([]string{`insert ` + table + ` {"id":1}`}, told(t, l)); diff != "" {
				t.Errorf("the feed (-want +got):\n%s", diff)
			}
			exec(t, pool, `ALTER TRIGGER "!howdah_insert" ON `+table+` RENAME TO mine`)
			if _, err := l.Release(t.Context(), c.Table); err != nil {
				t.Error(err)
			}
			if left := triggers(t, pool); left != "" {
				t.Errorf("after Release there are %s", left)
			}
		})
	}
}

// Statements of a table change the rows of those that inherit from it, and of that its
// triggers see nothing. Capture refuses such a table; one that inherits later is found.
func TestDoctorFindsTablesThatInherit(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	exec(t, pool, `CREATE TABLE child (PRIMARY KEY (id)) INHERITS (a); CREATE TABLE "Grand.Child" (PRIMARY KEY (id)) INHERITS (child)`)
	exec(t, pool, `INSERT INTO child VALUES (1, 0); INSERT INTO "Grand.Child" VALUES (2, 0); UPDATE a SET v = 1`)
	if got := told(t, l); len(got) != 0 {
		t.Errorf("the feed says %q", got)
	}
	if diff := cmp.Diff([]string{"new-child public.Grand.Child", "new-child public.child"}, codes(t, l)); diff != "" {
		t.Errorf("doctor (-want +found):\n%s", diff)
	}
	// What it says as cures: to capture it, too, by row, or to take it out.
	capture(t, l, changes.Capture{Table: "public.Grand.Child"})
	exec(t, pool, `ALTER TABLE "public"."child" NO INHERIT public.a`)
	if found := codes(t, l); len(found) != 0 {
		t.Errorf("after it is out, doctor finds %q", found)
	}
	exec(t, pool, `ALTER TABLE "Grand.Child" NO INHERIT child; ALTER TABLE "Grand.Child" INHERIT a`)
	if found := codes(t, l); len(found) != 0 {
		t.Errorf("beside a child that is captured, too, doctor finds %q", found)
	}
	exec(t, pool, `INSERT INTO a VALUES (3, 1); UPDATE a SET v = 2`)
	want := []string{`insert a {"id":3}`, `update a {"id":3}`, `update Grand.Child {"id":2}`}
	if diff := cmp.Diff(want, told(t, l)); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
}

// What is captured by statement is not told what statements of a parent do to its rows (F1). Capture
// refuses it; one that is given a parent later is found.
func TestDoctorFindsBulkBelowAParent(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE base (id int, v int); CREATE TABLE heir (id int PRIMARY KEY, v int);
		CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE part (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.heir", Bulk: true}, changes.Capture{Table: "public.part", Bulk: true})
	if found := codes(t, l); len(found) != 0 {
		t.Errorf("before: %q", found)
	}
	writes := func(id int) {
		for _, sql := range []string{`INSERT INTO heir VALUES ($1, 0)`, `INSERT INTO p VALUES ($1, 0)`, `UPDATE base SET v = 1 WHERE id = $1`, `UPDATE p SET v = 1 WHERE id = $1`} {
			exec(t, pool, sql, id)
		}
	}
	exec(t, pool, `ALTER TABLE heir INHERIT base; ALTER TABLE p ATTACH PARTITION part FOR VALUES FROM (0) TO (100)`)
	writes(1)
	if diff := cmp.Diff([]string{"bulk-parent public.heir", "bulk-parent public.part"}, codes(t, l)); diff != "" {
		t.Errorf("doctor (-want +found):\n%s", diff)
	}
	capture(t, l, changes.Capture{Table: "public.heir"}, changes.Capture{Table: "public.part"}) // its cure
	writes(2)
	if found := codes(t, l); len(found) != 0 {
		t.Errorf("after Apply: %q", found)
	}
	want := []string{`insert heir {"id":1}`, `insert heir {"id":2}`, `insert part {"id":2}`, `update heir {"id":2}`, `update part {"id":2}`}
	if diff := cmp.Diff(want, told(t, l)); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
}
