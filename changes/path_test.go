package changes_test

import (
	"testing"

	"github.com/howdah-db/howdah/changes"
)

// rev is a type whose values are ordered by operators of its own, as an extension's may be,
// and not as those of pg_catalog, which take it, too, would.
const rev = `
	CREATE TYPE rev AS (n int);
	CREATE FUNCTION rev_cmp(rev, rev) RETURNS int LANGUAGE sql IMMUTABLE RETURN btint4cmp(($2).n, ($1).n);
	CREATE FUNCTION rev_lt(rev, rev) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN ($1).n > ($2).n;
	CREATE FUNCTION rev_gt(rev, rev) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN ($1).n < ($2).n;
	CREATE FUNCTION rev_eq(rev, rev) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN ($1).n = ($2).n;
	CREATE OPERATOR = (LEFTARG = rev, RIGHTARG = rev, FUNCTION = rev_eq);
	CREATE OPERATOR < (LEFTARG = rev, RIGHTARG = rev, FUNCTION = rev_lt, COMMUTATOR = >);
	CREATE OPERATOR > (LEFTARG = rev, RIGHTARG = rev, FUNCTION = rev_gt, COMMUTATOR = <);
	CREATE OPERATOR CLASS rev_ops DEFAULT FOR TYPE rev USING btree AS OPERATOR 1 <, OPERATOR 3 =, OPERATOR 5 >, FUNCTION 1 rev_cmp(rev, rev)`

// A row that is read has the key that its changes have, and is read once, whichever schemas
// who captured it, who made the consumer and who reads it look into.
func TestC7BackfillWhateverThePath(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	effects(t, m.pool)
	url := m.pool.Config().ConnString()
	exec(t, m.pool, rev)
	exec(t, m.pool, `
		CREATE DOMAIN order_no AS text;
		CREATE TABLE named (r regclass PRIMARY KEY);
		CREATE TABLE numbered (id order_no PRIMARY KEY);
		CREATE TABLE turned (part int, id rev, PRIMARY KEY (part, id))`)
	tables := []string{"public.named", "public.numbered", "public.turned"}
	for _, table := range tables {
		capture(t, m.log, changes.Capture{Table: table})
	}
	exec(t, m.pool, `
		INSERT INTO named VALUES ('named'), ('chk.a'), ('pg_class');
		INSERT INTO numbered SELECT 'o' || g FROM generate_series(1, 20) g;
		INSERT INTO turned SELECT g % 2, ROW(g)::rev FROM generate_series(1, 20) g`)
	cfg := filling(tables...)
	cfg.From, cfg.Shards = "start", 2
	c := changes.NewConsumer(m.pool, nil, cfg)
	on(effect("fill"))(c)
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, url+"&search_path=chk", cfg, on(effect("fill")))
	eventually(t, "it has read its tables, or is paused", func() bool {
		return m.number(t, `SELECT count(*) FROM howdah.change_checkpoint WHERE backfill IS NOT NULL`) == 0 || status(t, m.log, "fill").State == "paused"
	})
	if s := status(t, m.log, "fill"); s.State != "running" {
		t.Fatalf("it is %s: %s", s.State, s.Reason)
	}
	handled(t, m.log, "fill")
	keys := effectsByKey(t, m.pool, "fill")
	for key, positions := range keys {
		if len(positions) != 2 {
			t.Errorf("%s was handed over at %q, want once as it was inserted, once as it was read", key, positions)
		}
	}
	if len(keys) != 43 {
		t.Errorf("%d keys, want 43", len(keys))
	}
}
