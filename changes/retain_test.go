package changes_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// age makes what is in the log two days older, and puts it into the leaf that is the
// farthest from being written to.
func (m *auditedLog) age(t *testing.T) {
	t.Helper()
	m.pass(t)
	exec(t, m.pool, `UPDATE howdah.change_tick SET at = at - interval '2 days'`)
	exec(t, m.pool, `UPDATE howdah.change_commit SET slot = (howdah.change_slot() + 4) % 8`)
	exec(t, m.pool, `UPDATE howdah.change SET slot = (howdah.change_slot() + 4) % 8`)
}

// pass ticks until no transaction is open that is older than what is in the log: one in
// any database of the server keeps what is younger from being let go.
func (m *auditedLog) pass(t *testing.T) {
	t.Helper()
	m.sync(t)
	eventually(t, "no transaction is open that is older than what is in the log", func() bool {
		if m.number(t, `
			SELECT count(*)
			FROM howdah.change
			WHERE xid >= (SELECT pg_snapshot_xmin(snap) FROM howdah.change_tick ORDER BY tick DESC LIMIT 1)`) == 0 {
			return true
		}
		exec(t, m.pool, `SELECT nextval('howdah.change_id')`)
		m.sync(t)
		return false
	})
}

func (m *auditedLog) tend(t *testing.T) {
	t.Helper()
	if err := m.log.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// consumerAt makes a consumer that has come to a place.
func (m *auditedLog) consumerAt(t *testing.T, name string, at changes.Position) {
	t.Helper()
	exec(t, m.pool, `INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ($1, 1, '{*}') ON CONFLICT DO NOTHING`, name)
	exec(t, m.pool, `DELETE FROM howdah.change_checkpoint WHERE consumer = $1`, name)
	exec(t, m.pool, `INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id) VALUES ($1, 0, 1, $2, $3)`, name, at.Commit, at.ID)
}

// number returns what a query of one number does.
func (m *auditedLog) number(t *testing.T, sql string, args ...any) (n int64) {
	t.Helper()
	if err := m.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (m *auditedLog) logged(t *testing.T) int64 {
	t.Helper()
	return m.number(t, `SELECT count(*) FROM howdah.change`)
}

func TestTendKeepsWhatIsYoung(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.sync(t)
	exec(t, m.pool, `UPDATE howdah.change_commit SET slot = (howdah.change_slot() + 4) % 8`)
	exec(t, m.pool, `UPDATE howdah.change SET slot = (howdah.change_slot() + 4) % 8`)
	m.tend(t)
	if all, _ := readAll(t, m.log, changes.Position{}, 10, changes.Filter{}); len(all) != 1 {
		t.Errorf("%d changes are left, want 1", len(all))
	}
}

// Where nobody reads, nobody numbers; what is not numbered is never old, and the log
// would only grow.
func TestTendNumbersWhatNobodyReads(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.tend(t)
	if n := m.number(t, `SELECT max(n) FROM howdah.change_tick`); n != 1 {
		t.Errorf("the last number is %d, want 1", n)
	}
}

func TestTendEmptiesWhatIsOld(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	for i := range 5 {
		exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, i)
	}
	m.age(t)
	leaf := m.number(t, `SELECT DISTINCT tableoid::bigint FROM howdah.change`)
	old := m.sync(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (7, 1)`)
	m.sync(t)
	m.tend(t)
	// A DELETE would leave what it deletes for VACUUM, and cost as much as the log is long.
	if n := m.number(t, `SELECT pg_relation_size($1::bigint::oid)`, leaf); n != 0 {
		t.Errorf("the leaf that was emptied has %d bytes", n)
	}
	if n := m.logged(t); n != 1 {
		t.Errorf("%d changes are left, want the young one", n)
	}
	if _, _, err := m.log.Page(t.Context(), changes.Position{}, 10, changes.Filter{}); !errors.Is(err, changes.ErrExpired) {
		t.Errorf("Page from the start: %v, want ErrExpired", err)
	}
	start, err := m.log.Start(t.Context())
	if err != nil || start != old {
		t.Errorf("Start() = %s, %v, want %s", start, err, old)
	}
	if all, _ := readAll(t, m.log, start, 10, changes.Filter{}); len(all) != 1 {
		t.Errorf("%d changes follow the start, want 1", len(all))
	}
	if at, err := m.log.At(t.Context(), time.Now().Add(-72*time.Hour)); err != nil || at != old {
		t.Errorf("At(before) = %s, %v, want %s", at, err, old)
	}
	if n := m.number(t, `SELECT count(*) FROM howdah.change_commit`); n != 1 {
		t.Errorf("%d commits are left, want 1", n)
	}
	if n := m.number(t, `SELECT count(*) FROM howdah.change_tick WHERE n < $1`, old.Commit); n != 0 {
		t.Errorf("%d ticks from before the floor are left", n)
	}
}

// A leaf of eight that is written to for a sixth of the retention has changes that are
// old enough, all of them, only while it is the next to be written to.
func TestTendEmptiesTheNextLeaf(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.age(t)
	exec(t, m.pool, `UPDATE howdah.change_commit SET slot = (howdah.change_slot() + 1) % 8`)
	exec(t, m.pool, `UPDATE howdah.change SET slot = (howdah.change_slot() + 1) % 8`)
	m.tend(t)
	if n := m.logged(t); n != 0 {
		t.Errorf("%d changes are left", n)
	}
}

func TestC8ConsumerHoldsTheLog(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	for i := range 5 {
		exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, i)
	}
	m.age(t)
	all, _ := readAll(t, m.log, changes.Position{}, 10, changes.Filter{})
	m.consumerAt(t, "fast", m.sync(t))
	for _, place := range []changes.Position{{}, {Commit: 2}, all[3].Position} {
		m.consumerAt(t, "slow", place)
		m.tend(t)
		if _, _, err := m.log.Page(t.Context(), place, 10, changes.Filter{}); err != nil {
			t.Fatalf("the log does not have what follows %s, where a consumer is: %v", place, err)
		}
	}
	exec(t, m.pool, `UPDATE howdah.change_consumer SET state = 'paused' WHERE name = 'slow'`)
	m.tend(t)
	if n := m.logged(t); n != 5 {
		t.Errorf("%d changes are left beside a paused consumer, want 5", n)
	}
	m.consumerAt(t, "slow", m.sync(t))
	m.tend(t)
	if n := m.logged(t); n != 0 {
		t.Errorf("%d changes are left, and nobody needs them", n)
	}
}

func TestC8ConsumerExpires(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	if err := m.log.Retain(t.Context(), time.Hour, 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.age(t)
	m.consumerAt(t, "slow", changes.Position{})
	m.consumerAt(t, "there", m.sync(t))
	m.tend(t)
	var state, reason string
	for name, want := range map[string]string{"slow": "expired", "there": "running"} {
		if err := m.pool.QueryRow(t.Context(), `SELECT state, reason FROM howdah.change_consumer WHERE name = $1`, name).Scan(&state, &reason); err != nil || state != want {
			t.Errorf("%s is %s (%s), %v, want %s", name, state, reason, err, want)
		}
	}
	if n := m.logged(t); n != 0 {
		t.Errorf("%d changes are held for an expired consumer", n)
	}
}

// A consumer that is moved while the log is tended has not been behind since.
func TestTendSeesWhoWasJustMoved(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	if err := m.log.Retain(t.Context(), time.Hour, 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.age(t)
	m.consumerAt(t, "slow", changes.Position{})
	tended := make(chan error, 1)
	err := pgx.BeginFunc(t.Context(), m.pool, func(tx pgx.Tx) error { // as Seek does
		for _, sql := range []string{
			`SELECT FROM howdah.change_state FOR SHARE`,
			`UPDATE howdah.change_consumer SET reason = ''`,
			`UPDATE howdah.change_checkpoint SET seq = seq + 1, n = (SELECT max(n) FROM howdah.change_commit)`,
		} {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				return err
			}
		}
		go func() { tended <- m.log.Tend(t.Context()) }()
		eventually(t, "it waits for the one that moves", func() bool {
			return m.number(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
		})
		return nil
	})
	if err := errors.Join(err, pgtest.Receive(t, tended, "the end of Tend")); err != nil {
		t.Fatal(err)
	}
	if s, err := m.log.Consumer(t.Context(), "slow"); err != nil || s.State != "running" {
		t.Errorf("it is %s (%s), %v, want running", s.State, s.Reason, err)
	}
}

// A log at rest under which numbers are taken and given up: nothing is numbered any
// more, but ticks are written. What is left in it goes when its time has come.
func TestTendEmptiesALogAtRest(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.age(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`) // in the leaf that is written to
	m.pass(t)
	exec(t, m.pool, `UPDATE howdah.change_tick SET at = at - interval '2 days'`)
	m.tend(t)
	if n := m.logged(t); n != 1 {
		t.Fatalf("%d changes are left, want the one in the leaf that is written to", n)
	}
	exec(t, m.pool, `SELECT nextval('howdah.change_id')`)
	m.sync(t)
	m.tend(t)
	exec(t, m.pool, `UPDATE howdah.change SET slot = (howdah.change_slot() + 4) % 8`)
	m.tend(t)
	if n := m.logged(t); n != 0 {
		t.Errorf("%d changes are left, want none", n)
	}
}

// A leaf that somebody has written to and not committed is left for the next time,
// and nobody waits.
func TestTendWaitsForNobody(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.age(t)
	tx, err := m.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `INSERT INTO howdah.change (slot, op, schema_name, table_name) VALUES ((howdah.change_slot() + 4) % 8, 'i', 'chk', 'a')`); err != nil {
		t.Fatal(err)
	}
	m.tend(t)
	if n := m.logged(t); n != 1 {
		t.Errorf("%d changes are left, want 1", n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.tend(t)
	if all, _ := readAll(t, m.log, changes.Position{}, 10, changes.Filter{}); len(all) != 2 {
		t.Errorf("%d changes are left, want the late one and what shares its leaf", len(all))
	}
}

// TRUNCATE shows itself to old snapshots: they are told, too.
func TestF9OldSnapshotIsTold(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.age(t)
	tx, err := m.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	var one int
	if err := tx.QueryRow(t.Context(), `SELECT 1`).Scan(&one); err != nil { // takes the snapshot, and no lock
		t.Fatal(err)
	}
	m.tend(t)
	if page, _, err := m.log.WithTx(tx).Page(t.Context(), changes.Position{}, 10, changes.Filter{}); !errors.Is(err, changes.ErrExpired) {
		t.Errorf("Page in an old snapshot = %v, %v, want ErrExpired", page, err)
	}
}

// Retention all the time, beside writers and a follower that is never far behind: it
// misses nothing and is never told that anything is gone.
func TestC8RetentionUnderLoad(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 400
	m := newAudited(t)
	exec(t, m.pool, `UPDATE howdah.change_state SET retention = '500 milliseconds'`)
	exec(t, m.pool, `CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint LANGUAGE sql VOLATILE
		RETURN ((extract(epoch FROM clock_timestamp()) * 10)::bigint % 8)::smallint`)
	m.consumerAt(t, "follower", changes.Position{})
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	background.Go(func() {
		for ctx.Err() == nil {
			if err := m.log.Tend(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("Tend: %v", err)
			}
		}
	})
	group, writing := errgroup.WithContext(ctx)
	for w := range writers {
		group.Go(func() error {
			for i := range each {
				if _, err := m.pool.Exec(writing, `INSERT INTO chk.a VALUES ($1, 1)`, w*each+i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	seen := map[string]bool{}
	for at := (changes.Position{}); len(seen) < writers*each; {
		page, next, err := m.log.Page(ctx, at, 100, changes.Filter{})
		if err != nil {
			t.Fatalf("Page(%s): %v", at, err)
		}
		for _, c := range page {
			seen[string(c.Key)] = true
		}
		at = next
		if _, err := m.pool.Exec(ctx, `INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id)
			SELECT 'follower', 0, max(seq) + 1, $1, $2 FROM howdah.change_checkpoint WHERE consumer = 'follower'`, at.Commit, at.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for m.logged(t) > 0 { // all leaves go when their time has come
		exec(t, m.pool, `SELECT nextval('howdah.change_id')`)
		at := m.sync(t)
		exec(t, m.pool, `UPDATE howdah.change_checkpoint SET n = $1, id = 0`, at.Commit)
	}
}

func TestRetain(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	for _, c := range []struct {
		keep, hold time.Duration
		field      string
	}{
		{time.Second, 0, "retention"}, {-time.Hour, 0, "retention"}, {48 * time.Hour, time.Hour, "hold"}, {0, time.Hour, "hold"},
	} {
		if err := l.Retain(t.Context(), c.keep, c.hold); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("Retain(%s, %s) = %v, want Invalid %s", c.keep, c.hold, err, c.field)
		}
	}
	if r, err := l.Retention(t.Context()); err != nil || r != (changes.Retention{Keep: 24 * time.Hour, Hold: 7 * 24 * time.Hour}) {
		t.Errorf("Retention() = %v, %v, want the defaults", r, err)
	}
	group, ctx := errgroup.WithContext(t.Context())
	for range 4 { // at once
		group.Go(func() error { return l.Retain(ctx, time.Minute, 0) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Retention(t.Context()); err != nil || r != (changes.Retention{Keep: time.Minute, Hold: 7 * 24 * time.Hour}) {
		t.Errorf("Retention() = %v, %v", r, err)
	}
	for _, keep := range []time.Duration{time.Minute, 6 * time.Second, 15 * time.Second, 24 * time.Hour} {
		if err := l.Retain(t.Context(), keep, 0); err != nil {
			t.Fatal(err)
		}
		var body string
		if err := pool.QueryRow(t.Context(), `SELECT pg_get_functiondef('howdah.change_slot'::regproc)`).Scan(&body); err != nil || !strings.Contains(body, fmt.Sprintf("/ %d)", int(changes.Leaf(keep).Seconds()))) {
			t.Errorf("of a retention of %v a leaf takes the changes of %v: %s, %v", keep, changes.Leaf(keep), body, err)
		}
	}
}

func TestTendNotInATransaction(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		for name, err := range map[string]error{"Tend": l.WithTx(tx).Tend(t.Context()), "Rebase": l.WithTx(tx).Rebase(t.Context(), true)} {
			if !errors.Is(err, changes.ErrInTx) {
				return fmt.Errorf("%s: %v, want ErrInTx", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A leaf may be emptied from when all in it is old until shortly before it is written to
// again: a Keeper comes by in between, however short the retention.
func TestKeeperMissesNoLeaf(t *testing.T) {
	t.Parallel()
	kept := []time.Duration{6500 * time.Millisecond, 8 * time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour, 1000 * time.Hour}
	for keep := 6 * time.Second; keep < 3*time.Minute; keep += time.Second {
		kept = append(kept, keep)
	}
	for _, keep := range kept {
		// From when the last change of a leaf is old until the leaf is nearly the next, of eight.
		window := 7*changes.Leaf(keep) - keep - changes.Soon(keep)
		if pause := changes.Between(keep); pause > window/2 || pause > time.Minute || pause < 100*time.Millisecond {
			t.Errorf("with a retention of %v it tends every %v, and a leaf may be emptied for %v", keep, pause, window)
		}
	}
}
