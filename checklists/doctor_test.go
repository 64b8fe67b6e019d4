package checklists_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
)

// found is what Doctor finds: code and problem.
func found(t testing.TB, s *checklists.Store) []string {
	t.Helper()
	findings, err := s.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, f := range findings {
		if !strings.HasSuffix(f.Object, "lists") || f.Cure == "" || f.Severity != "error" {
			t.Errorf("%+v", f)
		}
		all = append(all, f.Code+": "+f.Problem)
	}
	return all
}

func wantFound(t testing.TB, s *checklists.Store, want ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{}, want...), found(t, s)); diff != "" {
		t.Errorf("Doctor (-want +got):\n%s", diff)
	}
}

// unseen runs a statement that no trigger sees, as a restore does.
func unseen(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	execute(t, pool, `BEGIN; ALTER TABLE lists DISABLE TRIGGER USER; `+sql+`; ALTER TABLE lists ENABLE TRIGGER USER; COMMIT`)
}

// Counts that are not those of the items are found, whichever way they differ, on tables
// of any order, and Recount mends them.
func TestDoctorFindsCountsThatDrifted(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(testing.TB) (*checklists.Store, *pgxpool.Pool){"made": newStore, "adopted": newAdopted} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, pool := open(t)
			for _, list := range []string{"Fewer", "dead", "gone", "more"} {
				insert(t, s, list, "a", "b", "c")
			}
			if _, err := s.Kill(t.Context(), "dead", "no", "a"); err != nil {
				t.Fatal(err)
			}
			wantFound(t, s)
			const drifted = "counts-drifted: lists whose counts are not those of their items: 1, such as "
			for sql, want := range map[string]string{
				`DELETE FROM lists WHERE list = 'Fewer' AND item = 'a'`:                                   "Fewer (items: 3 counted, 2 there; dead: 0 counted, 0 there)",
				`UPDATE lists SET due = 'infinity' WHERE list = 'dead' AND item = 'b'`:                    "dead (items: 3 counted, 3 there; dead: 1 counted, 2 there)",
				`DELETE FROM lists WHERE list = 'gone'`:                                                   "gone (items: 3 counted, 0 there; dead: 0 counted, 0 there)",
				`INSERT INTO lists (list, item) SELECT 'more', 'new-' || g FROM generate_series(1, 9) g`:  "more (items: 3 counted, more there; dead: 0 counted, 0 there)",
				`INSERT INTO lists (list, item) SELECT 'never', 'new-' || g FROM generate_series(1, 9) g`: "never (items: 0 counted, more there; dead: 0 counted, 0 there)",
			} {
				unseen(t, pool, sql)
				wantFound(t, s, drifted+want)
				if err := s.Recount(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
				wantFound(t, s)
			}
		})
	}
}

// What is large is not counted, and does not hide what is small.
func TestDoctorReadsLittle(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	insert(t, s, "small", "a")
	// As if it had a million items: it has one, and that is not counted.
	unseen(t, pool, `INSERT INTO lists (list, item) VALUES ('large', 'a');
		INSERT INTO howdah.checklist_count (relation, list, bucket, items) VALUES ('lists'::regclass, 'large', '-infinity', 1000000)`)
	wantFound(t, s)
	unseen(t, pool, `DELETE FROM lists`)
	wantFound(t, s, "counts-drifted: lists whose counts are not those of their items: 2, such as large (items: 1000000 counted, 0 there; dead: 0 counted, 0 there)")
}

// Triggers that do not count are the reason, and are put back.
func TestDoctorFindsLostTriggers(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	execute(t, pool, `DROP TRIGGER howdah_inserted ON lists; ALTER TABLE lists DISABLE TRIGGER howdah_deleted`)
	insert(t, s, "l", "a")
	wantFound(t, s,
		"trigger-missing: trigger howdah_inserted is gone: what is put on a list is not counted",
		"trigger-disabled: trigger howdah_deleted is disabled: what leaves a list is not counted",
		"counts-drifted: lists whose counts are not those of their items: 1, such as l (items: 0 counted, more there; dead: 0 counted, 0 there)")
	findings, err := s.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings[:2] {
		sql, _, _ := strings.Cut(f.Cure, ", then howdah checklists recount")
		execute(t, pool, sql)
	}
	if err := s.Recount(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	wantFound(t, s)
	if n, err := s.Delete(t.Context(), "l", "a"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	insert(t, s, "l", "b", "c")
	wantFound(t, s)
}

// A plain table is well, and one that is not there is told.
func TestDoctorOfOtherTables(t *testing.T) {
	t.Parallel()
	s, pool := newOrdered(t)
	wantFound(t, s)
	findings, err := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"nothing"}}).Doctor(t.Context())
	if err != nil || len(findings) != 1 || findings[0].Code != "table-missing" || findings[0].Object != `"nothing"` {
		t.Errorf("%+v, %v", findings, err)
	}
}

// A role that may not come near the table is told what was not looked at.
func TestDoctorOfARoleWithoutRights(t *testing.T) {
	t.Parallel()
	_, pool := newStore(t)
	var schema string
	if err := pool.QueryRow(t.Context(), `SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	stranger := schema + "_stranger"
	execute(t, pool, `CREATE ROLE `+stranger)
	defer execute(t, pool, `DROP ROLE `+stranger)
	cfg := pool.Config()
	cfg.ConnConfig.RuntimeParams["role"] = stranger
	theirs, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	findings, err := checklists.New(theirs, checklists.Config{Table: pgx.Identifier{schema, "lists"}}).Doctor(t.Context())
	if err != nil || len(findings) != 1 || findings[0].Code != "not-looked-at" || findings[0].Severity != "warning" || findings[0].Object != `"`+schema+`"."lists"` {
		t.Errorf("%+v, %v", findings, err)
	}
}
