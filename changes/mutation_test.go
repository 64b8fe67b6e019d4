package changes_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A test of the tests: each mistake that the tick avoids is put into it, and the
// checker of the chaos test must see it. Each script makes the mistake show at
// once instead of once in a while; the tick as it is passes all of them.

// halt is put before the statement that numbers, or after it: the tick waits
// there for whoever holds the lock.
const (
	halt       = "\tPERFORM pg_advisory_xact_lock(9, 9);\n"
	numbering  = "\tWITH fresh AS ("
	afterwards = "\tIF found_ = 0 THEN\n"
	sequence   = "\tSELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO seq FROM howdah.change_id;\n"
	toBeRead   = "\tSELECT * INTO STRICT prev FROM howdah.change_tick ORDER BY tick DESC LIMIT 1;\n"
	toBeLocked = "\tIF wait THEN\n"

	toBeExported = "\tIF export THEN"
)

// Not in parallel with others, whose transactions hide some of the mistakes: the tick looks
// again where it has many in doubt, and what is the youngest must be so in the whole server.
func TestMutations(t *testing.T) {
	for _, m := range []struct {
		fault  string
		edits  []string // old, new; …
		script func(*testing.T, *auditedLog) error
	}{
		{"the first id decides", []string{"max(e.id) AS last", "min(e.id) AS last", "ORDER BY l.id DESC", "ORDER BY l.id", "max(last) OVER", "min(last) OVER"}, overtaking},
		{"order by xid", []string{"ORDER BY last)", "ORDER BY xid)"}, overtaking},
		{"order by id", []string{"max(last) OVER (PARTITION BY xid) AS last", "last"}, twoLeaves},
		{"order by id, backwards", []string{"ORDER BY last)", "ORDER BY last DESC)"}, overtaking},
		{"skip next", []string{"generate_series(pg_snapshot_xmax(prev.snap)::text::bigint, prev.next::text::bigint - 1)", "generate_series(1, 0)"}, youngerThanAnyFinished},
		{"next is xmax", []string{"e.xid >= prev.next", "e.xid >= pg_snapshot_xmax(prev.snap)"}, youngerThanAnyFinished},
		{"nobody in doubt", []string{"SELECT pg_snapshot_xip(prev.snap) AS x", "SELECT pg_snapshot_xip(prev.snap) AS x WHERE false"}, latecomer},
		{"read before lock", []string{toBeRead, "", toBeLocked, toBeRead + toBeLocked}, twoTickers},
		{"lock and read in one", []string{"\t\tPERFORM pg_advisory_xact_lock(1752135524, 1);\n", "\t\tSELECT k.* INTO prev FROM pg_advisory_xact_lock(1752135524, 1), howdah.change_tick k ORDER BY tick DESC LIMIT 1;\n", toBeRead, "\tIF NOT wait THEN\n\t" + toBeRead + "\tEND IF;\n"}, twoTickers},
		{"two commits", []string{afterwards, halt + afterwards, "head, snap, pg_current_xact_id()", "head, pg_current_snapshot(), pg_current_xact_id()"}, commitsMeanwhile},
		{"late snapshot", []string{numbering, halt + numbering, "pg_visible_in_snapshot(e.xid, snap)", "pg_visible_in_snapshot(e.xid, pg_current_snapshot())", "pg_snapshot_xmax(snap) AND", "pg_snapshot_xmax(pg_current_snapshot()) AND"}, commitsMeanwhile},
		{"late export", []string{toBeExported, halt + toBeExported, toBeRead, toBeRead + "\tsnap := pg_current_snapshot();\n", "SELECT pg_current_snapshot(), set_config('howdah.snapshot', pg_export_snapshot(), true) INTO snap, line;", "PERFORM set_config('howdah.snapshot', pg_export_snapshot(), true);"}, commitsBeforeTheExport},
		{"late sequence", []string{afterwards, halt + afterwards, afterwards, sequence + afterwards}, beginsMeanwhile},
	} {
		t.Run(m.fault, func(t *testing.T) {
			t.Parallel()
			broken, err := playEdited(t, m.script, m.edits)
			if len(broken) == 0 && err == nil {
				t.Error("nobody noticed")
			}
			t.Log(broken, err)

			// The halts alone are no mistake.
			var halts []string
			for i := 0; i < len(m.edits); i += 2 {
				if strings.HasPrefix(m.edits[i+1], halt) {
					halts = append(halts, m.edits[i], m.edits[i+1])
				}
			}
			if halts == nil {
				return // the traps' own tests play the script
			}
			broken, err = playEdited(t, m.script, halts)
			if err != nil {
				t.Errorf("the tick as it is: %v", err)
			}
			report(t, broken)
		})
	}
}

// auditedLog is a database with table chk.a, which the truth watches too. Its tick
// may have been edited.
type auditedLog struct {
	log  *changes.Log
	pool *pgxpool.Pool
	url  string
}

// newAudited returns one that nobody has edited yet; table chk.a is captured.
func newAudited(t *testing.T) *auditedLog {
	t.Helper()
	m := &auditedLog{url: migrated.Database(t)}
	m.log, m.pool = logOf(t, m.url)
	exec(t, m.pool, truthSQL)
	audited(t, m.pool, "a", "v int")
	capture(t, m.log, changes.Capture{Table: "chk.a", Payload: changes.PayloadFull})
	return m
}

// playEdited plays script against a tick with edits and checks the feed.
func playEdited(t *testing.T, script func(*testing.T, *auditedLog) error, edits []string) ([]string, error) {
	t.Helper()
	m := newAudited(t)
	exec(t, m.pool, edited(t, m.pool, edits))
	if err := script(t, m); err != nil {
		return nil, err
	}
	if _, err := m.log.Sync(t.Context()); err != nil {
		return nil, err
	}
	feed, _ := readAll(t, m.log, changes.Position{}, 100, changes.Filter{})
	return violations(feed, truth(t, m.pool), nil), nil
}

// edited returns the tick with each edit made once.
func edited(t *testing.T, pool *pgxpool.Pool, edits []string) (sql string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT pg_get_functiondef('howdah.change_tick'::regproc)`).Scan(&sql); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(edits); i += 2 {
		if strings.Count(sql, edits[i]) == 0 {
			t.Fatalf("the tick does not contain %q", edits[i])
		}
		sql = strings.ReplaceAll(sql, edits[i], edits[i+1])
	}
	return sql
}

// begin opens a transaction of its own, with a transaction id.
func (m *auditedLog) begin(t *testing.T) pgx.Tx {
	t.Helper()
	tx, err := m.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.WithoutCancel(t.Context())) }) // of one that a failure left open
	m.in(t, tx, `SELECT pg_current_xact_id()`)
	return tx
}

func (m *auditedLog) in(t *testing.T, tx pgx.Tx, sql string, args ...any) {
	t.Helper()
	if _, err := tx.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (m *auditedLog) commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// overtaking: A is older and changes something first, B changes the row, A
// changes it again; one tick sees both.
func overtaking(t *testing.T, m *auditedLog) error {
	a := m.begin(t)
	m.in(t, a, `INSERT INTO chk.a VALUES (1, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	m.in(t, a, `UPDATE chk.a SET v = 2 WHERE id = 2`)
	m.commit(t, a)
	return nil
}

// twoLeaves: one transaction's changes lie in two leaves.
func twoLeaves(t *testing.T, m *auditedLog) error {
	exec(t, m.pool, `CREATE SEQUENCE chk.leaf; GRANT ALL ON chk.leaf TO PUBLIC`)
	exec(t, m.pool, `CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint LANGUAGE sql VOLATILE RETURN (nextval('chk.leaf') % 8)::smallint`)
	exec(t, m.pool, `INSERT INTO chk.a SELECT g, 0 FROM generate_series(1, 12) g`)
	return nil
}

// latecomer: open at one tick, committed at the next, older than others that
// have finished.
func latecomer(t *testing.T, m *auditedLog) error {
	a := m.begin(t)
	m.in(t, a, `INSERT INTO chk.a VALUES (1, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	if _, err := m.log.Sync(t.Context()); err != nil {
		return err
	}
	m.commit(t, a)
	return nil
}

// youngerThanAnyFinished: open at a tick, and no younger one has finished. On a
// server with other tests that is luck: tried until it is so.
func youngerThanAnyFinished(t *testing.T, m *auditedLog) error {
	for i := range 100 {
		a := m.begin(t)
		m.in(t, a, `INSERT INTO chk.a VALUES ($1, 1)`, i)
		if _, err := m.log.Sync(t.Context()); err != nil {
			return err
		}
		var youngest bool
		if err := a.QueryRow(t.Context(), `SELECT pg_snapshot_xmax(snap) <= pg_current_xact_id() FROM howdah.change_tick ORDER BY tick DESC LIMIT 1`).Scan(&youngest); err != nil {
			return err
		}
		m.commit(t, a)
		if youngest {
			break
		}
	}
	return nil
}

// twoTickers: the second waits for the lock of the first, which numbers a
// transaction.
func twoTickers(t *testing.T, m *auditedLog) error {
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	first, err := m.pool.Begin(t.Context())
	if err != nil {
		return err
	}
	defer first.Rollback(context.WithoutCancel(t.Context()))
	m.in(t, first, `SELECT howdah.change_tick(true)`)
	second := make(chan error, 1)
	go func() {
		_, err := m.log.Sync(t.Context())
		second <- err
	}()
	if err := waiting(t.Context(), m.pool, 1752135524); err != nil {
		return errors.Join(err, first.Rollback(t.Context()), pgtest.Receive(t, second, "the end of the second"))
	}
	m.commit(t, first)
	return pgtest.Receive(t, second, "the end of the second")
}

// commitsMeanwhile: a transaction commits while the tick halts.
func commitsMeanwhile(t *testing.T, m *auditedLog) error {
	holder := m.begin(t)
	m.in(t, holder, `SELECT pg_advisory_xact_lock(9, 9)`)
	a := m.begin(t)
	m.in(t, a, `INSERT INTO chk.a VALUES (1, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`) // so that a is not beyond the snapshot
	ticked := make(chan error, 1)
	go func() {
		_, err := m.log.Sync(t.Context())
		ticked <- err
	}()
	if err := waiting(t.Context(), m.pool, 9); err != nil {
		return errors.Join(err, holder.Rollback(t.Context()), pgtest.Receive(t, ticked, "the end of the tick"))
	}
	m.commit(t, a)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (3, 1)`)
	m.commit(t, holder)
	return pgtest.Receive(t, ticked, "the end of the tick")
}

// commitsBeforeTheExport: a transaction commits while the tick of a snapshot halts. What
// the snapshot shows must not come again after it.
func commitsBeforeTheExport(t *testing.T, m *auditedLog) error {
	holder := m.begin(t)
	m.in(t, holder, `SELECT pg_advisory_xact_lock(9, 9)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	var at changes.Position
	var shown []string
	read := make(chan error, 1)
	go func() {
		read <- m.log.Snapshot(t.Context(), func(tx pgx.Tx, p changes.Position) (err error) {
			at = p
			rows, _ := tx.Query(t.Context(), `SELECT format('{"id":%s}', id) FROM chk.a`)
			shown, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
	}()
	if err := waiting(t.Context(), m.pool, 9); err != nil {
		return errors.Join(err, holder.Rollback(t.Context()), pgtest.Receive(t, read, "the end of Snapshot"))
	}
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	m.commit(t, holder)
	if err := pgtest.Receive(t, read, "the end of Snapshot"); err != nil {
		return err
	}
	if _, err := m.log.Sync(t.Context()); err != nil {
		return err
	}
	after, _ := readAll(t, m.log, at, 10, changes.Filter{})
	for _, c := range after {
		if slices.Contains(shown, string(c.Key)) {
			return fmt.Errorf("the snapshot at %s shows %s, which was inserted at %s", at, c.Key, c.Position)
		}
	}
	return nil
}

// beginsMeanwhile: a transaction begins, and makes the last change there is, while
// the tick halts. Tried until it has few others in doubt: of many it looks again.
func beginsMeanwhile(t *testing.T, m *auditedLog) error {
	for i := range 100 {
		if err := m.beginsMeanwhile(t, 2*i); err != nil {
			return err
		}
		if m.number(t, `
			SELECT (SELECT count(*) FROM pg_snapshot_xip(snap)) + next::text::bigint - pg_snapshot_xmax(snap)::text::bigint
			FROM howdah.change_tick
			ORDER BY tick DESC
			LIMIT 1`) < 16 {
			break
		}
	}
	return nil
}

func (m *auditedLog) beginsMeanwhile(t *testing.T, id int) error {
	holder := m.begin(t)
	m.in(t, holder, `SELECT pg_advisory_xact_lock(9, 9)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, id)
	ticked := make(chan error, 1)
	go func() {
		_, err := m.log.Sync(t.Context())
		ticked <- err
	}()
	if err := waiting(t.Context(), m.pool, 9); err != nil {
		return errors.Join(err, holder.Rollback(t.Context()), pgtest.Receive(t, ticked, "the end of the tick"))
	}
	a := m.begin(t)
	m.in(t, a, `INSERT INTO chk.a VALUES ($1, 1)`, id+1)
	m.commit(t, holder)
	if err := pgtest.Receive(t, ticked, "the end of the tick"); err != nil {
		return err
	}
	m.commit(t, a)
	return nil
}

// waiting returns once somebody in this database waits for an advisory lock of
// class.
func waiting(ctx context.Context, pool *pgxpool.Pool, class int) error {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		var found bool
		if err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks
			WHERE locktype = 'advisory' AND NOT granted AND classid = $1::bigint::oid
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`, class).Scan(&found); err != nil || found {
			return err
		}
	}
	return fmt.Errorf("nobody waits for lock %d", class)
}
