package changes_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// S11: what information_schema.triggers hides is there: triggers of tables of others', and
// those of TRUNCATE. That of a partition is that of its table.
func TestS11TriggersOfOthersAndOfTruncate(t *testing.T) {
	t.Parallel()
	url := migrated.Database(t)
	l, pool := logOf(t, url)
	exec(t, pool, `
		CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE referring (id int REFERENCES a); CREATE VIEW seen AS SELECT * FROM a;`+partitioned+`;
		CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; CREATE FOREIGN TABLE far (id int) SERVER nowhere;
		CREATE SCHEMA shop; CREATE FUNCTION shop.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER wiped AFTER TRUNCATE ON a EXECUTE FUNCTION shop.f();
		CREATE TRIGGER far AFTER INSERT OR DELETE ON far FOR EACH ROW EXECUTE FUNCTION shop.f();
		CREATE TRIGGER seen INSTEAD OF UPDATE ON seen FOR EACH ROW EXECUTE FUNCTION shop.f();
		CREATE TRIGGER part AFTER INSERT ON p_2_1 FOR EACH ROW EXECUTE FUNCTION shop.f();
		ALTER TABLE p_2_1 DISABLE TRIGGER part`)
	capture(t, l, changes.Capture{Table: "public.a"}, changes.Capture{Table: "public.p", Ops: []changes.Op{changes.Delete}, Always: true})
	exec(t, pool, `ALTER TABLE a ENABLE REPLICA TRIGGER "!howdah_update"`)

	_, theirs := as(t, url, pool, rightsOf(t, readers))
	var shown int
	if err := theirs.QueryRow(t.Context(), `SELECT count(*) FROM information_schema.triggers`).Scan(&shown); err != nil || shown != 0 {
		t.Errorf("information_schema shows %d, %v", shown, err)
	}
	got, err := changes.New(theirs, changes.Config{}).Triggers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []changes.Trigger{
		{Table: "public.a", Name: "!howdah_delete", Events: "delete", Enabled: "yes", Owner: "howdah"},
		{Table: "public.a", Name: "!howdah_insert", Events: "insert", Enabled: "yes", Owner: "howdah"},
		{Table: "public.a", Name: "!howdah_truncate", Events: "truncate", Enabled: "yes", Owner: "howdah"},
		{Table: "public.a", Name: "!howdah_update", Events: "update", Enabled: "replica", Owner: "howdah"},
		{Table: "public.a", Name: "wiped", Events: "truncate", Enabled: "yes", Owner: "shop.f"},
		{Table: "public.far", Name: "far", Events: "insert,delete", Enabled: "yes", Owner: "shop.f"},
		{Table: "public.p", Name: "!howdah_delete", Events: "delete", Enabled: "always", Owner: "howdah"},
		{Table: "public.p_2_1", Name: "part", Events: "insert", Enabled: "no", Owner: "shop.f"},
		{Table: "public.seen", Name: "seen", Events: "update", Enabled: "yes", Owner: "shop.f"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Triggers() (-want +got):\n%s", diff)
	}
}

// An operator that others have made for the table's row type, or of the built-in one's name in a schema
// that is looked in first, has no say in what is logged (F1).
func TestF1OperatorsOfOthersAreNotAsked(t *testing.T) {
	t.Parallel()
	url := migrated.Database(t)
	_, pool := logOf(t, url)
	exec(t, pool, `
		CREATE TABLE a (id int PRIMARY KEY, v int);
		CREATE FUNCTION never(a, a) RETURNS boolean LANGUAGE sql RETURN false;
		CREATE FUNCTION never(record, record) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN false; END';
		CREATE OPERATOR *<> (LEFTARG = a, RIGHTARG = a, FUNCTION = never);
		CREATE OPERATOR *<> (LEFTARG = record, RIGHTARG = record, FUNCTION = never);
		CREATE TYPE record AS (v int)`)
	l := changes.New(pgtest.Pool(t, url+"&search_path=public,pg_catalog"), changes.Config{})
	for v, columns := range [][]string{nil, {"v"}} {
		capture(t, l, changes.Capture{Table: "public.a", Columns: columns})
		exec(t, pool, `INSERT INTO a VALUES ($1, 0)`, v)
		exec(t, pool, `UPDATE a SET v = 1 WHERE id = $1`, v)
	}
	if diff := cmp.Diff([]string{`insert a {"id":0}`, `update a {"id":0}`, `insert a {"id":1}`, `update a {"id":1}`}, told(t, l)); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
}
