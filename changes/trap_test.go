package changes_test

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// sound plays a script against the tick as it is.
func sound(t *testing.T, script func(*testing.T, *auditedLog) error) {
	t.Helper()
	t.Parallel()
	broken, err := playEdited(t, script, nil)
	if err != nil {
		t.Error(err)
	}
	report(t, broken)
}

func TestF1LatecomerIsNotLost(t *testing.T)                { sound(t, latecomer) }
func TestF4TransactionInTwoLeavesIsOneCommit(t *testing.T) { sound(t, twoLeaves) }
func TestF5EarlyIDDoesNotComeFirst(t *testing.T)           { sound(t, overtaking) }
func TestTrapXmaxIsPastTheLastFinished(t *testing.T)       { sound(t, youngerThanAnyFinished) }
func TestTrapLockBeforeRead(t *testing.T)                  { sound(t, twoTickers) }

// ticks is how many ticks were written.
func ticks(t *testing.T, m *auditedLog) (n int) {
	t.Helper()
	if err := m.pool.QueryRow(t.Context(), `SELECT count(*) FROM howdah.change_tick`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (m *auditedLog) sync(t *testing.T) changes.Position {
	t.Helper()
	at, err := m.log.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// A sequence says 1 before its first number and after it. Not in parallel: a tick
// is written, too, when many of the server's transactions have ended meanwhile.
func TestTrapSequenceIsCalled(t *testing.T) {
	m := newAudited(t)
	before := ticks(t, m)
	m.sync(t)
	if got := ticks(t, m); got != before {
		t.Errorf("nothing has happened, and %d ticks were written", got-before)
	}
	a := m.begin(t)
	m.in(t, a, `INSERT INTO chk.a VALUES (1, 1)`) // change 1, invisible
	m.sync(t)
	if got := ticks(t, m); got != before+1 {
		t.Errorf("%d ticks were written after the first change, want 1: next must pass the open transaction", got-before)
	}
	m.sync(t)
	if got := ticks(t, m); got != before+1 {
		t.Errorf("nothing new has happened, and %d ticks were written", got-before-1)
	}
	m.commit(t, a)
	if at := m.sync(t); at != (changes.Position{Commit: 1}) {
		t.Errorf("Sync() = %s, want 1", at)
	}
}

// A transaction's own id is missing from its snapshot.
func TestTickRefusesOwnXID(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	for _, begin := range []string{
		`BEGIN; SELECT pg_current_xact_id()`,
		`BEGIN; INSERT INTO chk.a VALUES (1, 1)`,
		`BEGIN ISOLATION LEVEL REPEATABLE READ`,
		`BEGIN ISOLATION LEVEL SERIALIZABLE`,
	} {
		conn, err := pgx.Connect(t.Context(), m.url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), begin); err != nil {
			t.Fatal(err)
		}
		if _, err := changes.New(conn, changes.Config{}).Sync(t.Context()); !errors.Is(err, changes.ErrInTx) || !errors.Is(err, fault.Invalid) {
			t.Errorf("Sync after %s: %v, want ErrInTx", begin, err)
		}
		conn.Close(t.Context())
	}
	tx := m.begin(t)
	if _, err := m.log.WithTx(tx).Sync(t.Context()); !errors.Is(err, changes.ErrInTx) {
		t.Errorf("Sync in a transaction: %v, want ErrInTx", err)
	}
	m.in(t, tx, `SELECT 1`) // which goes on
}

// A database may have another isolation level as its default.
func TestTickUnderAnotherDefaultIsolation(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	exec(t, m.pool, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$`)
	pool := pgtest.Pool(t, m.url)
	page, _, err := changes.New(pool, changes.Config{}).Page(t.Context(), changes.Position{}, 10, changes.Filter{})
	if err != nil || len(page) != 1 {
		t.Errorf("Page() = %d changes, %v, want 1", len(page), err)
	}
}

// What has a number must not be lost in a crash, however its reader and its
// writer are set.
func TestTickIsFlushed(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	for i, c := range []struct{ set, want string }{{"off", "on"}, {"local", "on"}, {"remote_write", "on"}, {"on", "on"}, {"remote_apply", "remote_apply"}} {
		conn, err := pgx.Connect(t.Context(), m.url)
		if err != nil {
			t.Fatal(err)
		}
		var during, after string
		for _, sql := range []string{`INSERT INTO chk.a VALUES (` + strconv.Itoa(i) + `, 1)`, `SET synchronous_commit = ` + c.set, `BEGIN`, `SELECT howdah.change_tick(true)`} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		err = errors.Join(
			conn.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&during),
			func() error { _, err := conn.Exec(t.Context(), `COMMIT`); return err }(),
			conn.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&after))
		if err != nil || during != c.want || after != c.set {
			t.Errorf("synchronous_commit = %s: %q at the tick's commit, %q after it, %v; want %q and %q", c.set, during, after, err, c.want, c.set)
		}
		conn.Close(t.Context())
	}
}

var buffersOf = regexp.MustCompile(`(hit|read)=(\d+)`)

// buffers is how many pages the first node of a plan touched, all below included.
func buffers(t *testing.T, plan string) (n int) {
	t.Helper()
	_, rest, ok := strings.Cut(plan, "Buffers: ")
	if !ok {
		t.Fatalf("no buffers in %s", plan)
	}
	line, _, _ := strings.Cut(rest, "\n")
	for _, m := range buffersOf.FindAllStringSubmatch(line, -1) {
		some, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		n += some
	}
	return n
}

// ticked returns the plan of a tick, which is committed.
func (m *auditedLog) ticked(t *testing.T) string {
	t.Helper()
	rows, _ := m.pool.Query(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) SELECT howdah.change_tick(true)`)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// loadSQL logs many changes at once, as a bulk capture would.
const loadSQL = `
	INSERT INTO howdah.change (slot, op, schema_name, table_name)
	SELECT s.slot, 'i', 'chk', 'load'
	FROM (SELECT howdah.change_slot() AS slot OFFSET 0) s, generate_series(1, $1::int)`

func TestInDoubtBulkLoadIsNotScanned(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	load := m.begin(t)
	m.in(t, load, `INSERT INTO chk.a VALUES (1, 1)`)
	m.sync(t) // as somebody does every moment
	m.in(t, load, loadSQL, pgtest.Size(300_000, 30_000))
	m.ticked(t) // it reads the sequence and the catalog for the first time
	for i := range 3 {
		exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, 10+i)
		if plan := m.ticked(t); buffers(t, plan) > 2000 { // the load has a thousand times as many rows as others in doubt
			t.Errorf("a tick beside an open load touches %d pages:\n%s", buffers(t, plan), plan)
		}
	}
	m.commit(t, load)
	if at := m.sync(t); at.Commit != 4 {
		t.Errorf("Sync() = %s, want 4", at)
	}
	page, _, err := m.log.Page(t.Context(), changes.Position{Commit: 3}, 1000, changes.Filter{})
	if err != nil || len(page) != 1000 || page[0].Table != "a" || page[999].Last {
		t.Errorf("the load's first page: %d changes, %v", len(page), err)
	}
}

// A writer has no rights on howdah and needs none (W3).
func TestW3WriterNeedsNoRights(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	role, conn := humble(t, m)
	if _, err := conn.Exec(t.Context(), `INSERT INTO chk.a VALUES (1, 1); UPDATE chk.a SET v = 2; DELETE FROM chk.a; TRUNCATE chk.a`); err != nil {
		t.Fatalf("a writer without rights: %v", err)
	}
	if all, _ := readAll(t, m.log, changes.Position{}, 100, changes.Filter{}); len(all) != 4 {
		t.Errorf("%d changes, want 4", len(all))
	}
	for _, sql := range []string{
		`SELECT * FROM howdah.change`, `INSERT INTO howdah.change (slot, op, schema_name, table_name) VALUES (0, 'i', 'x', 'y')`,
		`DELETE FROM howdah.change_commit`, `SELECT howdah.change_tick(true)`, `SELECT howdah.change_emit('x', '1')`, `SELECT nextval('howdah.change_id')`,
		`CREATE TABLE howdah.mine (id int)`, `SELECT * FROM howdah.database_trigger_logs`,
		`CREATE TEMP TABLE forged (id int); CREATE TRIGGER x AFTER INSERT ON forged FOR EACH ROW EXECUTE FUNCTION howdah.change_capture('chk', 'a', 'row', '1000', 'poll', '{}', '{}')`,
	} {
		if _, err := conn.Exec(t.Context(), sql); !errors.Is(denied(err), fault.Denied) {
			t.Errorf("%s as %s: %v, want a denial", sql, role, err)
		}
	}
}

// A change that cannot be logged does not happen (W2).
func TestW2UnloggedWriteFails(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	exec(t, m.pool, `ALTER TABLE howdah.change ADD CONSTRAINT log_is_full CHECK (op IN ('m')) NOT VALID`)
	for _, sql := range []string{`INSERT INTO chk.a VALUES (2, 1)`, `UPDATE chk.a SET v = 2`, `DELETE FROM chk.a`, `TRUNCATE chk.a`} {
		if _, err := m.pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s was let through unlogged", sql)
		}
	}
	exec(t, m.pool, `ALTER TABLE howdah.change DROP CONSTRAINT log_is_full`)
	feed, _ := readAll(t, m.log, changes.Position{}, 100, changes.Filter{})
	report(t, violations(feed, truth(t, m.pool), nil))
	if len(feed) != 1 {
		t.Errorf("%d changes, want 1", len(feed))
	}
}

// Writers wait neither for a tick nor for a reader (W1), and no reader or ticker
// waits for a writer (F7).
func TestW1WritersDoNotWait(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	tick, err := m.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tick.Rollback(context.WithoutCancel(t.Context()))
	m.in(t, tick, `SELECT howdah.change_tick(true)`) // holds its locks
	reader, err := m.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback(context.WithoutCancel(t.Context()))
	if _, _, err := m.log.WithTx(reader).Page(t.Context(), changes.Position{}, 10, changes.Filter{}); err != nil {
		t.Fatal(err)
	}
	w := m.begin(t)
	m.in(t, w, `SET LOCAL lock_timeout = '1ms'`) // whoever waits for a lock at all fails
	m.in(t, w, `INSERT INTO chk.a VALUES (2, 1)`)
	m.in(t, w, `UPDATE chk.a SET v = 2`)
	m.in(t, w, `DELETE FROM chk.a WHERE id = 2`)
	m.commit(t, tick)
	if at := m.sync(t); at.Commit != 1 {
		t.Errorf("Sync() = %s, want 1", at)
	}
	m.commit(t, w)
	if at := m.sync(t); at.Commit != 2 {
		t.Errorf("Sync() = %s, want 2", at)
	}
}

// Origin and meta end with the transaction and with a savepoint (F8).
func TestF8OriginEndsWithSavepoint(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	tx := m.begin(t)
	mark := func(tx pgx.Tx, origin string, meta any) {
		if err := m.log.WithTx(tx).Mark(t.Context(), origin, meta); err != nil {
			t.Fatal(err)
		}
	}
	mark(tx, "outer", map[string]int{"a": 1})
	m.in(t, tx, `INSERT INTO chk.a VALUES (1, 1)`)
	savepoint, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mark(savepoint, "inner", nil)
	m.in(t, savepoint, `INSERT INTO chk.a VALUES (2, 1)`)
	if err := savepoint.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.in(t, tx, `INSERT INTO chk.a VALUES (3, 1)`)
	m.commit(t, tx)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (4, 1)`) // perhaps over the same connection
	all, _ := readAll(t, m.log, changes.Position{}, 100, changes.Filter{})
	var got []string
	for _, c := range all {
		got = append(got, c.Origin+string(c.Meta))
	}
	if want := `outer{"a":1} outer{"a":1} `; strings.Join(got, " ") != want {
		t.Errorf("origins and metas %q, want %q", strings.Join(got, " "), want)
	}
	// Set raw, what is too long must not fail the write.
	raw := m.begin(t)
	m.in(t, raw, `SELECT set_config('howdah.origin', repeat('ö', 300), true), set_config('howdah.meta', repeat('x', 9000), true)`)
	m.in(t, raw, `INSERT INTO chk.a VALUES (5, 1)`)
	m.in(t, raw, `SELECT set_config('howdah.origin', '', true), set_config('howdah.meta', 'no JSON', true)`)
	m.in(t, raw, `INSERT INTO chk.a VALUES (6, 1)`)
	m.commit(t, raw)
	all, _ = readAll(t, m.log, changes.Position{Commit: 2}, 100, changes.Filter{})
	if len(all) != 2 || all[0].Origin != strings.Repeat("ö", 200) || all[0].Meta != nil || all[1].Origin != "" || string(all[1].Meta) != `"no JSON"` {
		t.Errorf("set raw: %+v", all)
	}
}

// humble returns a connection of a role that may write chk.a, and nothing else.
func humble(t *testing.T, m *auditedLog) (string, *pgx.Conn) {
	t.Helper()
	var role string
	if err := m.pool.QueryRow(t.Context(), `SELECT 'writer_' || current_database()`).Scan(&role); err != nil {
		t.Fatal(err)
	}
	exec(t, m.pool, `CREATE ROLE `+role+` LOGIN PASSWORD 'w'`)
	exec(t, m.pool, `GRANT USAGE ON SCHEMA chk, truth TO `+role+`; GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON chk.a TO `+role+`; GRANT INSERT ON truth.fact TO `+role)
	t.Cleanup(func() {
		if _, err := m.pool.Exec(context.WithoutCancel(t.Context()), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), pgtest.As(t, m.url, role, "w"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	return role, conn
}

// denied gives a bare error of the server its kind.
func denied(err error) error { return pg.Wrap("test", err) }
