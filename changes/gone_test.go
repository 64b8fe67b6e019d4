package changes_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
)

// A table that is dropped takes its triggers along: who makes it anew, or renames another
// in its place, is told that it is not captured.
func TestDoctorFindsATableThatIsGone(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	recorded := func() (n int) {
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM howdah.change_spec`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, b, c := changes.Capture{Table: "public.a.1"}, changes.Capture{Table: "public.b"}, changes.Capture{Table: "public.c"}
	exec(t, pool, `CREATE TABLE "a.1" (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY)`)
	capture(t, l, a, b, c)
	exec(t, pool, `UPDATE howdah.change_spec SET owner = 'documents' WHERE relation = 'c'::regclass`) // which would keep it
	exec(t, pool, `
		DROP TABLE "a.1"; CREATE TABLE "a.1" (id int PRIMARY KEY);
		CREATE TABLE new (LIKE b INCLUDING ALL); ALTER TABLE b RENAME TO old; ALTER TABLE new RENAME TO b; DROP TABLE old;
		DROP TABLE c`)
	findings, err := l.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var gone [][]string
	for _, f := range findings {
		if f.Code == "table-gone" {
			gone = append(gone, []string{f.Severity, f.Object, f.Cure})
		}
	}
	if diff := cmp.Diff([][]string{
		{"error", "public.a.1", "howdah changes apply, with this capture"},
		{"error", "public.b", "howdah changes apply, with this capture"},
		{"warning", "public.c", "howdah changes release public.c"},
	}, gone); diff != "" {
		t.Error(diff)
	}
	if captures, err := l.Captures(t.Context(), true); err != nil || len(captures) != 0 {
		t.Errorf("captured: %+v, %v", captures, err)
	}

	want := []string{"release public.a.1", "create public.a.1"}
	if diff := cmp.Diff(want, planned(t, l, a)); diff != "" {
		t.Error(diff)
	}
	capture(t, l, a)
	if diff := cmp.Diff([]string{"public.b", "public.c"}, found(t, l, "table-gone ")); diff != "" {
		t.Error(diff)
	}
	exec(t, pool, `INSERT INTO "a.1" VALUES (1)`)
	if diff := cmp.Diff([]string{`insert a.1 {"id":1}`}, told(t, l)); diff != "" {
		t.Error(diff)
	}
	if _, err := l.Release(t.Context(), "public.c"); err != nil {
		t.Error(err)
	}
	if _, err := l.Apply(t.Context(), []changes.Capture{a}, true); err != nil {
		t.Error(err)
	}
	if found, n := found(t, l, ""), recorded(); len(found) != 0 || n != 1 {
		t.Errorf("in the end %d captures are recorded, and Doctor finds %q", n, found)
	}

	exec(t, pool, `DROP TABLE "a.1"`)
	if err := l.Uninstall(t.Context()); err != nil {
		t.Error(err)
	}
}
