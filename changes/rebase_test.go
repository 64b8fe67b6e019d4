package changes_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
)

func TestRebase(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	old := m.sync(t)
	m.consumerAt(t, "c", old)
	exec(t, m.pool, `UPDATE howdah.change_state SET system = 1`)
	exec(t, m.pool, `UPDATE howdah.change_tick SET snap = '900000000000:900000000000:', next = '900000000001'`) // a dump of an older cluster
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	if err := m.log.Rebase(t.Context(), true); !errors.Is(err, fault.Conflict) {
		t.Errorf("Rebase(keep) where ids run backwards: %v, want Conflict", err)
	}
	if err := m.log.Rebase(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	for _, p := range []changes.Position{{}, old} {
		if _, _, err := m.log.Page(t.Context(), p, 10, changes.Filter{}); !errors.Is(err, changes.ErrExpired) {
			t.Errorf("Page(%s): %v, want ErrExpired", p, err)
		}
	}
	start, err := m.log.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exec(t, m.pool, `INSERT INTO chk.a VALUES (3, 1)`)
	all, end := readAll(t, m.log, start, 10, changes.Filter{})
	if len(all) != 1 || string(all[0].Key) != `{"id":3}` || end.Commit != 1_000_000_000_000 {
		t.Errorf("after the rebase %v, at %s", all, end)
	}
	if n := m.number(t, `SELECT count(*) FROM howdah.change_consumer WHERE state = 'expired'`); n != 1 {
		t.Errorf("%d expired consumers, want 1", n)
	}
}

// elsewhere makes the log one that came from another cluster.
func (m *auditedLog) elsewhere(t *testing.T) {
	t.Helper()
	exec(t, m.pool, `UPDATE howdah.change_state SET system = 1`)
}

// A log that is at home is not emptied, whatever was meant.
func TestRebaseOfALogAtHome(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	at := m.sync(t)
	m.consumerAt(t, "c", changes.Position{})
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	for range 2 { // nor one that goes on after pg_upgrade
		if err := m.log.Rebase(t.Context(), false); !errors.Is(err, fault.Conflict) || !strings.Contains(fmt.Sprint(err), "howdah changes retention") {
			t.Errorf("Rebase: %v, want Conflict", err)
		}
		if all, end := readAll(t, m.log, changes.Position{}, 10, changes.Filter{}); len(all) != 2 || end.Commit != at.Commit+1 {
			t.Errorf("%d changes are left, up to %s", len(all), end)
		}
		if s := status(t, m.log, "c"); s.State == "expired" {
			t.Errorf("%+v", s)
		}
		m.elsewhere(t)
		if err := m.log.Rebase(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
}

// Who has written and not committed is in the way, and named.
func TestRebaseBesideAWriter(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	m.elsewhere(t)
	writer := m.begin(t)
	m.in(t, writer, `INSERT INTO chk.a VALUES (1, 1)`)
	err := m.log.Rebase(t.Context(), false)
	if want := fmt.Sprintf("locked by process %d (SELECT", writer.Conn().PgConn().PID()); !errors.Is(err, fault.Unavailable) || !strings.Contains(fmt.Sprint(err), want) {
		t.Errorf("Rebase: %v, want %q", err, want)
	}
	m.commit(t, writer)
	if err := m.log.Rebase(t.Context(), false); err != nil {
		t.Error(err)
	}
}

func TestRebaseKeeping(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	old := m.sync(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	exec(t, m.pool, `UPDATE howdah.change_state SET system = 1`)
	exec(t, m.pool, `UPDATE howdah.change_tick SET timeline = '00000009', next = pg_current_xact_id()`) // whose row it is now
	if err := m.log.Rebase(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	all, end := readAll(t, m.log, old, 10, changes.Filter{})
	if len(all) != 1 || string(all[0].Key) != `{"id":2}` || end.Commit != old.Commit+1 {
		t.Errorf("after the rebase %v, at %s", all, end)
	}
}

// Between the last look and a rebase that keeps the log lies whatever else happened in the
// cluster. The next look must not have to ask of each of those transactions.
func TestRebaseKeepingLongAfterTheLastLook(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	first, second := m.begin(t), m.begin(t)
	m.in(t, first, `INSERT INTO chk.a VALUES (1, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	at := m.sync(t)
	m.in(t, second, `INSERT INTO chk.a VALUES (3, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (4, 1)`)
	exec(t, m.pool, `DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`)
	if err := m.log.Rebase(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if n := m.number(t, `
		SELECT cardinality(ARRAY(SELECT pg_snapshot_xip(snap))) + next::text::bigint - pg_snapshot_xmax(snap)::text::bigint
		FROM howdah.change_tick
		ORDER BY tick DESC
		LIMIT 1`); n > 1000 {
		t.Errorf("%d transactions are in doubt", n)
	}
	for i, then := range []func(){func() {}, func() { m.commit(t, second) }, func() { m.commit(t, first) }} {
		then()
		if next := m.sync(t); next.Commit != at.Commit+int64(i)+1 {
			t.Errorf("the feed ends at %s, want %d more than %s", next, i+1, at)
		}
	}
}

// A log that was restored from a dump is none to go on with, though everything else
// looks the same, as in the cluster that it came from.
func TestRebaseKeepsNothingThatWasRestored(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"rows that one transaction wrote": `
			CREATE TEMP TABLE dump AS TABLE howdah.change_tick; TRUNCATE howdah.change_tick;
			INSERT INTO howdah.change_tick TABLE dump`,
		"a table with another number": `UPDATE howdah.change_state SET ticks = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newAudited(t)
			exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
			old := m.sync(t)
			exec(t, m.pool, sql)
			if err := m.log.Rebase(t.Context(), true); !errors.Is(err, fault.Conflict) || !strings.Contains(fmt.Sprint(err), "dump") {
				t.Errorf("Rebase(keep) of a dump: %v, want Conflict", err)
			}
			if err := m.log.Rebase(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if at := m.sync(t); at.Commit <= old.Commit {
				t.Errorf("the feed goes on at %s", at)
			}
			for range 2 { // and as it is now it can be kept, again and again
				if err := m.log.Rebase(t.Context(), true); err != nil {
					t.Errorf("Rebase(keep) of what is here: %v", err)
				}
			}
		})
	}
}

// Consumers that a rebase expired are behind by what they missed in the old log and by
// what is in the new one, and not by the numbers between.
func TestLagAfterARebase(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.consumerAt(t, "c", m.sync(t))
	m.consumerAt(t, "d", changes.Position{})
	lags := func(c, d int64) {
		t.Helper()
		m.sync(t)
		if got := status(t, m.log, "c").Lag; got != c {
			t.Errorf("the lag of one is %d, want %d", got, c)
		}
		v, err := m.log.Vitals(t.Context())
		if err != nil || len(v.Shards) != 2 || v.Shards[0].Lag != c || v.Shards[1].Lag != d {
			t.Errorf("Vitals %+v, %v, want the lags %d and %d", v.Shards, err, c, d)
		}
	}
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (3, 1)`)
	lags(2, 3)
	for range 2 {
		m.elsewhere(t)
		if err := m.log.Rebase(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		lags(2, 3)
	}
	for _, p := range []string{"start", "now"} {
		if err := m.log.Seek(t.Context(), "d", p); err != nil {
			t.Fatal(err)
		}
	}
	lags(2, 0)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (4, 1)`)
	lags(3, 1)
	if findings, err := m.log.Doctor(t.Context()); err != nil || strings.Contains(fmt.Sprint(findings), "{era ") {
		t.Errorf("a rebase is told as a failover: %v, %v", findings, err)
	}
	m.failover(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (5, 1)`)
	lags(4, 2)
}

// F9: a history that went on elsewhere from just where a rebase left off, at the end of
// an era that has not begun, has given the numbers of that era: whoever read them there is
// told, though the log is rebased again and nothing was numbered between.
func TestF9RebaseWhereAnEraHasNotBegun(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]bool{"emptied": false, "kept after a failover": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newAudited(t)
			exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
			m.elsewhere(t)
			if err := m.log.Rebase(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			edge := m.sync(t)
			if edge.Commit%1_000_000_000_000 != 999_999_999_999 {
				t.Fatalf("a rebase left off at %s", edge)
			}
			lost := changes.Position{Commit: edge.Commit + 1} // as the other history has numbered it
			m.failover(t)
			exec(t, m.pool, `UPDATE howdah.change_tick SET next = pg_current_xact_id()`) // whose row it is now, as after a failover
			if !keep {
				m.elsewhere(t)
			}
			if err := m.log.Rebase(t.Context(), keep); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, i+2)
				m.sync(t)
			}
			if page, _, err := m.log.Page(t.Context(), lost, 10, changes.Filter{}); !errors.Is(err, changes.ErrAhead) && !errors.Is(err, changes.ErrExpired) {
				t.Errorf("Page(%s), of a lost history: %d changes, %v; want an error", lost, len(page), err)
			}
			from, err := m.log.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if all, _ := readAll(t, m.log, from, 10, changes.Filter{}); len(all) != 3 {
				t.Errorf("%d changes follow %s, want 3", len(all), from)
			}
		})
	}
}
