package changes_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
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
