package changes_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
)

// F3, F5: by statement, too, a row that one statement changes several times, as foreign keys
// with actions do, is told each time, in order; and one that takes the key of another
// after that.
func TestF5BulkTellsEachChangeOfARow(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA row; CREATE SCHEMA bulk`)
	for _, schema := range []string{"row", "bulk"} {
		exec(t, pool, strings.ReplaceAll(`
			CREATE TABLE {s}.users (id int PRIMARY KEY);
			CREATE TABLE {s}.docs (id int PRIMARY KEY,
				made int DEFAULT 0 REFERENCES {s}.users ON UPDATE CASCADE ON DELETE SET DEFAULT,
				changed int REFERENCES {s}.users ON UPDATE CASCADE ON DELETE SET NULL,
				approved int REFERENCES {s}.users ON UPDATE SET NULL ON DELETE SET NULL);
			CREATE TABLE {s}.of (id int PRIMARY KEY REFERENCES {s}.users ON UPDATE CASCADE, "by" int REFERENCES {s}.users ON UPDATE CASCADE);
			CREATE TABLE {s}.tree (id int PRIMARY KEY, up int REFERENCES {s}.tree ON UPDATE CASCADE);
			CREATE TABLE {s}.lines (id int, v int);
			INSERT INTO {s}.users SELECT generate_series(0, 40);
			INSERT INTO {s}.docs SELECT g, g, 1 + g % 40, g FROM generate_series(1, 40) g;
			INSERT INTO {s}.of SELECT g, g FROM generate_series(1, 40) g;
			INSERT INTO {s}.tree SELECT g, g / 2 FROM generate_series(0, 40) g;
			INSERT INTO {s}.lines SELECT g % 3, g FROM generate_series(1, 9) g`, "{s}", schema))
	}
	tables := []string{"docs", "of", "tree", "lines"}
	for _, payload := range []changes.Payload{changes.PayloadFull, changes.PayloadRow, changes.PayloadKeys} {
		for _, table := range tables {
			var key []string
			if table == "lines" {
				key = []string{"id"} // which several rows have
			}
			capture(t, l, changes.Capture{Table: "row." + table, Payload: payload, Key: key}, changes.Capture{Table: "bulk." + table, Payload: payload, Key: key, Bulk: true})
		}
		start, err := l.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		statements := []string{
			`UPDATE users SET id = id + 1000 WHERE id BETWEEN 1 AND 900`, `DELETE FROM of`, `DELETE FROM users WHERE id % 7 = 1`,
			`UPDATE tree SET id = id + 100`, `UPDATE lines SET v = v + 1 WHERE id > 0`, `UPDATE lines SET id = id + 1, v = v + id`, `DELETE FROM lines WHERE v = 3`,
			`UPDATE docs SET id = s.id FROM (SELECT id, lead(id, 1, id + 1) OVER (ORDER BY id) FROM docs ORDER BY id DESC LIMIT 1) AS s (last, id) WHERE docs.id = s.last`,
			`UPDATE users SET id = id - 1000 WHERE id > 900`, `INSERT INTO of SELECT id, id FROM users WHERE id > 0`,
		}
		for _, schema := range []string{"row", "bulk"} {
			if failed := transact(t, pool, schema, statements); failed != "" {
				t.Fatalf("%s: %s", schema, failed)
			}
		}
		all, _ := readAll(t, l, start, 1000, changes.Filter{})
		rows, bulk := bySchema(all)
		if diff := cmp.Diff(rows, bulk); diff != "" {
			t.Fatalf("payload %s: -row +bulk\n%s", payload, diff)
		}
		if told := len(rows[`docs{"id":3}`]); told < 4 { // three times by one statement
			t.Errorf("document 3 is told of %d times: what is tested did not happen: %q", told, rows[`docs{"id":3}`])
		}
	}
}

// Where one statement may update a row and delete it, as foreign keys that do either can, there are
// two triggers by statement, and the deletion may be logged first. So it is refused, and found where
// it comes later.
func TestF5BulkRefusesTwoKindsOfActions(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE users (id int PRIMARY KEY);
		CREATE TABLE docs (id int PRIMARY KEY, made int REFERENCES users ON DELETE CASCADE ON UPDATE CASCADE, changed int, seen int REFERENCES users);
		INSERT INTO users VALUES (1), (2);
		INSERT INTO docs VALUES (1, 2, 1), (2, 1, 2)`)
	byStatement := changes.Capture{Table: "public.docs", Bulk: true}
	capture(t, l, byStatement)
	if found := found(t, l, ""); len(found) != 0 {
		t.Errorf("found %q", found)
	}
	exec(t, pool, `ALTER TABLE docs ADD FOREIGN KEY (changed) REFERENCES users ON DELETE SET NULL`)
	if diff := cmp.Diff([]string{"public.docs"}, found(t, l, "bulk-order ")); diff != "" {
		t.Errorf("doctor (-want +found):\n%s", diff)
	}
	exec(t, pool, `DELETE FROM users`)
	if all := told(t, l); !strings.HasPrefix(all[len(all)-1], "update") {
		t.Errorf("%q: as this is in order it need not be refused", all)
	}
	if _, err := l.Plan(t.Context(), []changes.Capture{byStatement}, false); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "ON DELETE CASCADE") {
		t.Errorf("%v, want Invalid", err)
	}
	capture(t, l, changes.Capture{Table: "public.docs"}) // as doctor says
	if found := found(t, l, ""); len(found) != 0 {
		t.Errorf("then found %q", found)
	}
}
