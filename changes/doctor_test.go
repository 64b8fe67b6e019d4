package changes_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// codes are what Doctor finds, each with its object.
func codes(t *testing.T, l *changes.Log) []string {
	t.Helper()
	findings, err := l.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := []string{}
	for _, f := range findings {
		if f.Problem == "" || f.Cure == "" || f.Severity != "error" && f.Severity != "warning" {
			t.Errorf("finding without words: %+v", f)
		}
		if of := f.Code + " " + f.Object; of != possible { // in the server of the tests they always are
			found = append(found, of)
		}
	}
	return found
}

// possible is that transactions can be prepared, where tables are captured that notify.
const possible = "prepared-transactions max_prepared_transactions"

const (
	consumerSQL = `INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('slow', 1, '{*}'); INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n) VALUES ('slow', 0, 1, 0)`
	parkedSQL   = `INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head) VALUES ('slow', 0, 1, 1, 1, 'public.a', false, '{}', true)`
)

func TestDoctorFinds(t *testing.T) {
	t.Parallel()
	for want, sql := range map[string]string{
		"trigger-missing public.a":        `DROP TRIGGER "!howdah_delete" ON a`,
		"trigger-disabled public.a":       `ALTER TABLE a DISABLE TRIGGER "!howdah_insert"`,
		"trigger-drift public.a":          `DROP TRIGGER "!howdah_update" ON a; CREATE TRIGGER "!howdah_update" AFTER UPDATE ON a FOR EACH ROW EXECUTE FUNCTION howdah.change_capture('public', 'a', 'keys', '1', 'poll', '{}', '{}')`,
		"trigger-drift public.renamed":    `ALTER TABLE a RENAME TO renamed`,
		"trigger-foreign-order public.a":  `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER f AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()`,
		"key-renamed public.a":            `ALTER TABLE a RENAME id TO ident`,
		"key-deferrable public.a":         `ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (id) DEFERRABLE`,
		"truncate-cascade public.b":       `ALTER TABLE b ADD a int REFERENCES a`,
		"unlogged public.a":               `ALTER TABLE a SET UNLOGGED`,
		"sequence-cache howdah.change_id": `ALTER SEQUENCE howdah.change_id CACHE 10`,
		"restored howdah.change":          `UPDATE howdah.change_state SET system = 1`,
		"era commit 1000000":              `INSERT INTO howdah.change_era VALUES (1000000, 3, '00000002')`,
		"consumer-behind slow":            consumerSQL + `; UPDATE howdah.change_tick SET at = at - interval '4 days'`,
		"consumer-expired slow":           consumerSQL + `; UPDATE howdah.change_consumer SET state = 'expired', reason = 'it was behind'`,
		"parked slow":                     consumerSQL + `; ` + parkedSQL,
		"dead slow":                       consumerSQL + `; ` + parkedSQL + `; UPDATE howdah.change_parked SET dead = true`,
		"unread howdah.change":            `INSERT INTO a VALUES (1); UPDATE howdah.change_tick SET at = at - interval '2 hours'`,
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			l, pool := newLog(t)
			exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
			capture(t, l, changes.Capture{Table: "public.a"})
			exec(t, pool, `INSERT INTO a VALUES (0)`)
			if _, err := l.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if found := codes(t, l); len(found) != 0 {
				t.Fatalf("before: %q", found)
			}
			exec(t, pool, sql)
			if diff := cmp.Diff([]string{want}, codes(t, l)); diff != "" {
				t.Errorf("after %s (-want +found):\n%s", sql, diff)
			}
			if !strings.HasPrefix(want, "trigger-") || want == "trigger-foreign-order public.a" {
				return
			}
			// Apply mends what was done to triggers by hand.
			capture(t, l, changes.Capture{Table: strings.Fields(want)[1]})
			if found := codes(t, l); len(found) != 0 {
				t.Errorf("after Apply: %q", found)
			}
		})
	}
}

// As far as the log is concerned, a pooler in transaction mode is a server that rings
// somewhere else.
func TestDoctorFindsThatTheDoorbellIsSilent(t *testing.T) {
	t.Parallel()
	_, pool := newLog(t)
	elsewhere := pgtest.Pool(t, pgtest.Database(t)).Config().ConnConfig
	deaf := changes.New(pool, changes.Config{Direct: elsewhere})
	if diff := cmp.Diff([]string{"doorbell-silent notifications"}, codes(t, deaf)); diff != "" {
		t.Error(diff)
	}
	hears := changes.New(pool, changes.Config{Direct: pool.Config().ConnConfig})
	if found := codes(t, hears); len(found) != 0 {
		t.Errorf("found %q", found)
	}
}

// Where nobody may listen the rest is found all the same.
func TestDoctorThatCannotListen(t *testing.T) {
	t.Parallel()
	_, pool := newLog(t)
	nowhere := pool.Config().ConnConfig
	nowhere.Database += "_gone"
	if diff := cmp.Diff([]string{"not-looked-at notifications"}, codes(t, changes.New(pool, changes.Config{Direct: nowhere}))); diff != "" {
		t.Error(diff)
	}
}

// Where nothing is installed that is all there is to find, for any role, and a transaction
// of the caller's can go on.
func TestDoctorBeforeTheMigration(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t))
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	l := changes.New(pool, changes.Config{})
	for _, l := range []*changes.Log{l, l.WithTx(tx)} {
		if diff := cmp.Diff([]string{"not-migrated howdah.change"}, codes(t, l)); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := tx.Exec(t.Context(), `SELECT 1`); err != nil {
		t.Error(err)
	}
}

func TestDoctorFindsTablesWithoutAKey(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (v int)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	if diff := cmp.Diff([]string{"no-key public.a"}, codes(t, l)); diff != "" {
		t.Error(diff)
	}
}

// schema.* stands for the tables of a schema; one that is named is captured as
// named, and a new one is found missing.
func TestPatternsOfCaptures(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE SCHEMA shop;
		CREATE TABLE shop.a (id int PRIMARY KEY); CREATE TABLE shop.b (id int PRIMARY KEY); CREATE VIEW shop.v AS SELECT 1;
		CREATE TABLE shop.p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE shop.p_1 PARTITION OF shop.p DEFAULT`)
	want := []changes.Capture{{Table: "shop.*", Payload: changes.PayloadKeys}, {Table: "shop.b", Payload: changes.PayloadFull}}
	if _, err := l.Apply(t.Context(), want, true); err != nil {
		t.Fatal(err)
	}
	captured := func() (all []string) {
		captures, err := l.Captures(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range captures {
			all = append(all, fmt.Sprint(c.Table, " ", c.Payload))
		}
		return all
	}
	if diff := cmp.Diff([]string{"shop.a keys", "shop.b full", "shop.p keys"}, captured()); diff != "" {
		t.Error(diff)
	}
	exec(t, pool, `CREATE TABLE shop.c (id int PRIMARY KEY)`)
	if diff := cmp.Diff([]string{"new-table shop.c"}, codes(t, l)); diff != "" {
		t.Error(diff)
	}
	for range 2 {
		if _, err := l.Apply(t.Context(), want, true); err != nil {
			t.Fatal(err)
		}
	}
	if found := codes(t, l); len(found) != 0 {
		t.Errorf("after Apply: %q", found)
	}
	if _, err := l.Apply(t.Context(), want[1:], true); err != nil { // the pattern is given up
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"shop.b full"}, captured()); diff != "" || len(codes(t, l)) != 0 {
		t.Errorf("%s, found %q", diff, codes(t, l))
	}
	if _, err := l.Apply(t.Context(), []changes.Capture{{Table: "nowhere.*"}}, false); !errors.Is(err, fault.Invalid) {
		t.Errorf("no such schema: %v", err)
	}
	// It is ended as it was begun, whatever became of its tables; what is a service's own is not meant.
	capture(t, l, want...)
	exec(t, pool, `UPDATE howdah.change_spec SET owner = 'documents' WHERE relation = 'shop.p'::regclass`)
	for _, c := range []struct{ release, steps, left string }{
		{"shop.a", "[shop.a]", "[shop.b full shop.c keys]"},
		{"shop.*", "[shop.b shop.c shop.*]", "[]"},
	} {
		steps, err := l.Release(t.Context(), c.release)
		var tables []string
		for _, s := range steps {
			tables = append(tables, s.Table)
		}
		if left := captured(); err != nil || fmt.Sprint(tables) != c.steps || fmt.Sprint(left) != c.left {
			t.Errorf("Release(%s) = %q, %v, leaves %q", c.release, tables, err, left)
		}
	}
	if left := triggers(t, pool); len(codes(t, l)) != 0 || strings.Contains(left, "ON shop.b ") || !strings.Contains(left, "ON shop.p ") {
		t.Errorf("after Release found %q; triggers %s", codes(t, l), left)
	}
	if _, err := l.Release(t.Context(), "shop.*"); !errors.Is(err, fault.NotFound) {
		t.Errorf("released again: %v, want NotFound", err)
	}
}

// A table that others hold is told with their pids, and the others are done.
func TestALockedTableIsToldAndTheOthersAreDone(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	_, pool := logOf(t, url)
	l := changes.New(pgtest.Pool(t, url+"&lock_timeout=20"), changes.Config{}) // who is less patient than we are is not made to wait
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `INSERT INTO a VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	steps, err := l.Apply(t.Context(), []changes.Capture{{Table: "public.a"}, {Table: "public.b"}}, false)
	pid := fmt.Sprint(tx.Conn().PgConn().PID())
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "process "+pid) || !strings.Contains(err.Error(), "public.a") {
		t.Errorf("%v, want Unavailable with process %s", err, pid)
	}
	if len(steps) != 1 || steps[0].Table != "public.b" {
		t.Errorf("done: %+v, want public.b", steps)
	}
}

// Tables are as they were before, whatever was in use: consumers, parked changes, a pump.
func TestUninstallLeavesTablesAsTheyWere(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l, pool := logOf(t, url)
	if err := l.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `
		CREATE SCHEMA shop;
		CREATE TABLE shop.a (id int PRIMARY KEY, v text); CREATE TABLE shop.b (x int, y uuid, v int, PRIMARY KEY (x, y)); CREATE TABLE shop.c (v int);
		CREATE TABLE shop.p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE shop.p_1 PARTITION OF shop.p DEFAULT;
		CREATE FUNCTION shop.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER mine AFTER INSERT ON shop.b FOR EACH ROW EXECUTE FUNCTION shop.f()`)
	before := pgtest.Catalog(t, pool)
	l, _ = logOf(t, url)
	capture(t, l,
		changes.Capture{Table: "shop.a", Bulk: true}, changes.Capture{Table: "shop.b", Always: true, Wake: "poll", Payload: changes.PayloadFull},
		changes.Capture{Table: "shop.c", Columns: []string{"v"}, When: "NEW.v > 0", Ops: []changes.Op{changes.Update}}, changes.Capture{Table: "shop.p"})
	exec(t, pool, `INSERT INTO shop.a VALUES (1, 'a'); INSERT INTO shop.p VALUES (1)`)
	if err := l.Retain(t.Context(), time.Hour, 0); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, consumerSQL+`; `+parkedSQL)
	if err := l.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, pgtest.Catalog(t, pool)); diff != "" {
		t.Errorf("before and after:\n%s", diff)
	}
}

// Nothing stays behind, and it can be installed again.
func TestUninstall(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l, pool := logOf(t, url)
	objects := func() (n int) {
		if err := pool.QueryRow(t.Context(), `
			SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'howdah'::regnamespace) + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'howdah'::regnamespace)
				+ (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p DEFAULT`)
	capture(t, l, changes.Capture{Table: "public.*"})
	exec(t, pool, `INSERT INTO a VALUES (1); INSERT INTO p VALUES (1)`)
	if err := l.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := objects(); n != 0 {
		t.Errorf("%d objects stay behind", n)
	}
	exec(t, pool, `INSERT INTO a VALUES (2); TRUNCATE p`)
	again, _ := logOf(t, url)
	capture(t, again, changes.Capture{Table: "public.a"})
	exec(t, pool, `INSERT INTO a VALUES (3)`)
	if all, _ := readAll(t, again, changes.Position{}, 10, changes.Filter{}); len(all) != 1 {
		t.Errorf("%d changes after installing again, want 1", len(all))
	}
}

// Its cure is SQL, whatever the names, and of a partitioned table is done to the parts with the rows.
func TestDoctorFindsWhatIsNotLogged(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE UNLOGGED TABLE "My.T" (id int PRIMARY KEY);
		CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE UNLOGGED TABLE "p 1" PARTITION OF p DEFAULT`)
	capture(t, l, changes.Capture{Table: "public.My.T"}, changes.Capture{Table: "public.p"})
	findings, err := l.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cured := 0
	for _, f := range findings {
		if f.Code == "unlogged" {
			cure, _, _ := strings.Cut(f.Cure, ", or")
			exec(t, pool, cure)
			cured++
		}
	}
	if found := codes(t, l); cured != 2 || len(found) != 0 {
		t.Errorf("%d cured, then found %q", cured, found)
	}
}

// That a table cannot be written in a prepared transaction is said before somebody tries.
func TestDoctorFindsWhatCannotBePrepared(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY)`)
	for wake, want := range map[string]bool{"notify": true, "poll": false} {
		capture(t, l, changes.Capture{Table: "public.a", Wake: wake})
		findings, err := l.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if said := slices.ContainsFunc(findings, func(f changes.Finding) bool {
			return f.Code+" "+f.Object == possible && strings.Contains(f.Problem, "public.a")
		}); said != want {
			t.Errorf("wake = %s: %+v", wake, findings)
		}
	}
}

// What is prepared and forgotten is open, though no process has it.
func TestPreparedTransactionIsAnOldOne(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY)`)
	capture(t, l, changes.Capture{Table: "public.a", Wake: "poll"})
	id := pool.Config().ConnConfig.Database // others of the server have theirs
	if _, err := pool.Exec(t.Context(), `BEGIN; INSERT INTO a VALUES (1); PREPARE TRANSACTION '`+id+`'`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	defer pool.Exec(context.WithoutCancel(t.Context()), `ROLLBACK PREPARED '`+id+`'`)
	var open float64
	if err := pool.QueryRow(t.Context(), `SELECT extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts WHERE gid = $1`, id).Scan(&open); err != nil {
		t.Fatal(err)
	}
	if v, err := l.Vitals(t.Context()); err != nil || v.OldestTransaction.Seconds() < open {
		t.Errorf("Vitals() = %+v, %v, want a transaction open for %f s", v, err, open)
	}
	if found := codes(t, l); len(found) > 0 {
		t.Errorf("a young one: %q", found)
	}
	l.Old(0)
	if found := codes(t, l); !slices.Contains(found, "old-transaction prepared "+id) {
		t.Errorf("an old one: %q", found)
	}
}

func TestDoctorFindsAnOldTransaction(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	this := fmt.Sprint("old-transaction process ", tx.Conn().PgConn().PID())
	if _, err := tx.Exec(t.Context(), `SELECT 1`); err != nil { // it begins before doctor's clock is read
		t.Fatal(err)
	}
	if found := codes(t, l); len(found) > 0 {
		t.Errorf("a young one: %q", found)
	}
	l.Old(0)
	if found := codes(t, l); !slices.Contains(found, this) {
		t.Errorf("an old one: %q, want %s", found, this)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := codes(t, l); slices.Contains(found, this) {
		t.Errorf("one that has ended: %q", found)
	}
}

func TestDoctorFindsALargeLog(t *testing.T) {
	t.Parallel()
	l, _ := newLog(t)
	if found := codes(t, l); len(found) > 0 {
		t.Errorf("an empty one: %q", found)
	}
	l.Large(1 << 10) // its eight leaves have indexes
	if diff := cmp.Diff([]string{"log-large howdah.change"}, codes(t, l)); diff != "" {
		t.Error(diff)
	}
}

// Whatever doctor may find stands in the docs, as what it is.
func TestDoctorIsDocumented(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("doctor.go")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`['"]([a-z-]+)['"](?: AS code)?, ['"](error|warning)['"]`).FindAllSubmatch(source, -1)
	if len(said) < 25 {
		t.Fatalf("only %d findings are in the source: %q", len(said), said)
	}
	for _, m := range said {
		if of := fmt.Sprintf("`%s` (%s)", m[1], m[2]); !bytes.Contains(docs, []byte(of)) {
			t.Errorf("docs/operations.md does not say %s", of)
		}
	}
}
