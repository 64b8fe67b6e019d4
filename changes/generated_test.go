package changes_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What a row has that is computed from its other columns is told as it is, or not at all
// (F3): of a column that is computed when it is read, which PostgreSQL has from 18 on, a
// trigger sees NULL.
func TestF3GeneratedColumns(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	kind, virtual := "STORED", m.number(t, `SELECT current_setting('server_version_num')::bigint`) >= 180000
	if virtual {
		kind = "VIRTUAL"
	}
	exec(t, m.pool, `CREATE TABLE g (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED, thrice int GENERATED ALWAYS AS (v * 3) `+kind+`)`)
	row := func() (columns map[string]any) {
		t.Helper()
		var text []byte
		if err := m.pool.QueryRow(t.Context(), `SELECT max(to_jsonb(g)::text) FROM g`).Scan(&text); err != nil {
			t.Fatal(err)
		}
		if text != nil {
			columns = objectOf(t, text)
		}
		return columns
	}
	// holds checks that image says nothing else of a row, and leaves out no more than it has to.
	holds := func(what string, image json.RawMessage, row map[string]any, least int) {
		t.Helper()
		if image == nil {
			return
		}
		said := objectOf(t, image)
		for name, value := range said {
			if diff := cmp.Diff(row[name], value); diff != "" {
				t.Errorf("%s: %s of %s is told otherwise: %s", what, name, image, diff)
			}
		}
		if len(said) < least {
			t.Errorf("%s: %s, want %d columns at least", what, image, least)
		}
	}
	write := func(payload changes.Payload, least int) {
		t.Helper()
		from := m.sync(t)
		for _, sql := range []string{`INSERT INTO g (id, v) VALUES (1, 10)`, `UPDATE g SET v = v + 1`, `UPDATE g SET id = 2, v = 12`, `DELETE FROM g`} {
			was := row()
			exec(t, m.pool, sql)
			is := row()
			said, end := readAll(t, m.log, from, 10, changes.Filter{Patterns: patterns(t, "public.g")})
			if len(said) == 0 {
				t.Errorf("%s: %s is not told", payload, sql)
			}
			for _, c := range said {
				holds(string(payload)+", old: "+sql, c.Old, was, least)
				holds(string(payload)+", new: "+sql, c.New, is, least)
			}
			from = end
		}
	}
	for payload, least := range map[changes.Payload]int{changes.PayloadRow: 3, changes.PayloadFull: 3, changes.PayloadDiff: 2} {
		capture(t, m.log, changes.Capture{Table: "public.g", Payload: payload})
		write(payload, least)
	}

	// One that is added later is found, and Apply sees to it.
	captured := changes.Capture{Table: "public.g", Columns: []string{"thrice"}} // which it may well depend on
	capture(t, m.log, captured)
	exec(t, m.pool, `ALTER TABLE g ADD later int GENERATED ALWAYS AS (v * 4) `+kind)
	const finding = "virtual-column public.g"
	if found := codes(t, m.log); slices.Contains(found, finding) != virtual {
		t.Errorf("a column that was added later: %q, with %q: %v", found, finding, virtual)
	}
	capture(t, m.log, captured)
	write("once more", 3)
	if found := codes(t, m.log); slices.Contains(found, finding) {
		t.Errorf("after Apply: %q", found)
	}

	// Keys say nothing of it; by statement it cannot be left out.
	exec(t, m.pool, `CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE bulky (id int PRIMARY KEY)`)
	capture(t, m.log, changes.Capture{Table: "public.keyed", Payload: changes.PayloadKeys}, changes.Capture{Table: "public.bulky", Bulk: true})
	for _, table := range []string{"keyed", "bulky"} {
		exec(t, m.pool, `ALTER TABLE `+table+` ADD twice int GENERATED ALWAYS AS (id * 2) `+kind)
	}
	all, err := m.log.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(f changes.Finding) bool { return f.Code != "virtual-column" })
	if ok := len(all) == 1 && all[0].Object == "public.bulky" && strings.Contains(all[0].Cure, "without bulk"); ok != virtual || !virtual && len(all) > 0 {
		t.Errorf("doctor finds %+v", all)
	}

	// What a backfill reads has the columns that changes have.
	exec(t, m.pool, `INSERT INTO g (id, v) VALUES (3, 30)`)
	read := make(chan changes.Change, 10)
	start(t, m.pool.Config().ConnString(), filling("public.g"), on(func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
		for _, c := range cs {
			if c.Table == "g" {
				read <- c
			}
		}
		return nil
	}))
	filled(t, m, "fill")
	c := pgtest.Receive(t, read, "the row that is read")
	logged, _ := readAll(t, m.log, changes.Position{}, 1000, changes.Filter{Patterns: patterns(t, "public.g"), Ops: []changes.Op{changes.Insert}})
	if diff := cmp.Diff(objectOf(t, logged[len(logged)-1].New), objectOf(t, c.New)); diff != "" {
		t.Errorf("a row that is read: -logged +read\n%s", diff)
	}

	// By statement they are not left out, and rows are not told apart by them.
	_, err = m.log.Plan(t.Context(), []changes.Capture{{Table: "public.g", Bulk: true}}, false)
	if virtual {
		invalid(t, "by statement", err, "bulk")
		_, err = m.log.Plan(t.Context(), []changes.Capture{{Table: "public.g", Key: []string{"thrice"}}}, false)
		invalid(t, "as a key", err, "key")
	} else if err != nil {
		t.Error(err)
	}
}

func objectOf(t *testing.T, text []byte) (object map[string]any) {
	t.Helper()
	if err := json.Unmarshal(text, &object); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return object
}
