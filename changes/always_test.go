package changes_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What replication applies is logged by a capture that is for that, and by no other.
func TestAlwaysLogsWhatReplicationApplies(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int);`+partitioned)
	for i, always := range []bool{false, true} {
		capture(t, l, changes.Capture{Table: "public.a", Always: always}, changes.Capture{Table: "public.p", Always: always})
		exec(t, pool, fmt.Sprintf(`CREATE TABLE later_%[1]d PARTITION OF p FOR VALUES FROM (%[1]d000) TO (%[1]d999)`, i+1))
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), fmt.Sprintf(`
				SET LOCAL session_replication_role = replica;
				INSERT INTO a VALUES (1, 1); UPDATE a SET v = 2; DELETE FROM a; TRUNCATE a;
				INSERT INTO p VALUES (%[1]d), (10%[1]d), (%[1]d000)`, i+1))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		if always {
			want = []string{`insert a {"id":1}`, `update a {"id":1}`, `delete a {"id":1}`, `truncate a`, `insert p {"id":2}`, `insert p {"id":102}`, `insert p {"id":2000}`}
		}
		if diff := cmp.Diff(want, told(t, l)); diff != "" {
			t.Errorf("always = %v: the feed (-want +got):\n%s", always, diff)
		}
	}
}

// Where connections are set to be replication's from the start, wherever that is said, captures
// log nothing, but those that are for it: doctor speaks of the others.
func TestDoctorFindsWhereNothingFires(t *testing.T) {
	t.Parallel()
	url := migrated.Database(t)
	l, pool := logOf(t, url)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
	database := pool.Config().ConnConfig.Database
	theirs := changes.New(pgtest.Pool(t, url+"&options=-csession_replication_role%3DREPLICA"), changes.Config{})
	exec(t, pool, fmt.Sprintf(`ALTER DATABASE %s SET session_replication_role = 'Replica'`, database))
	for _, c := range []struct {
		captures []changes.Capture
		of       string // "" for nothing
	}{
		{nil, ""}, // nothing to lose
		{[]changes.Capture{{Table: "public.a", Always: true}, {Table: "public.b"}}, "public.b"},
		{[]changes.Capture{{Table: "public.b", Always: true}}, ""}, // the cure cures
	} {
		capture(t, l, c.captures...)
		for _, at := range []struct {
			log     *changes.Log
			objects []string
		}{{l, []string{"everybody in " + database}}, {theirs, []string{"everybody in " + database, "this connection"}}} {
			findings, err := at.log.Doctor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var objects []string
			for _, f := range findings {
				if f.Code != "replica-role" {
					continue
				}
				objects = append(objects, f.Object)
				if f.Severity != "error" || !strings.Contains(f.Problem, c.of) || strings.Contains(f.Problem, "public.a") || !strings.Contains(f.Cure, "--always") {
					t.Errorf("%+v: doctor says %+v, want an error about %s", c.captures, f, c.of)
				}
			}
			if c.of == "" {
				at.objects = nil
			}
			if !slices.Equal(objects, at.objects) {
				t.Errorf("%+v: doctor finds %q, want %q", c.captures, objects, at.objects)
			}
		}
	}
}
