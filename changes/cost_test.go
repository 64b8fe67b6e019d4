package changes_test

import (
	"cmp"
	"context"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

var (
	leafScan  = regexp.MustCompile(`Scan (?:using (\S+) )?on (change_\d) .*\(actual rows=[\d.]+ loops=(\d+)\)`)
	leafIndex = regexp.MustCompile(`^change_\d_xid_id_idx$`)
)

// probes is how often leaves were looked into, by their index alone.
func probes(t *testing.T, plan string) (n int) {
	t.Helper()
	for _, m := range leafScan.FindAllStringSubmatch(plan, -1) {
		if !leafIndex.MatchString(m[1]) {
			t.Errorf("not by the leaf's index: %s in\n%s", m[0], plan)
		}
		loops, err := strconv.Atoi(m[3])
		if err != nil {
			t.Fatal(err)
		}
		n += loops
	}
	return n
}

// pagePlan returns the plan of the statement that reads a page.
func pagePlan(t *testing.T, e *pgtest.Explainer) string {
	t.Helper()
	for plan := range strings.SplitSeq(e.Plan(), "\nLimit ") {
		if strings.Contains(plan, "change_commit") {
			return plan
		}
	}
	t.Fatal("no plan of a page")
	return ""
}

// What a page and a tick read must not grow with the log.
func TestCostInALargeLog(t *testing.T) {
	t.Parallel()
	singles, large := int64(pgtest.Size(12_000, 4000)), int64(pgtest.Size(200_000, 20_000))
	m := newAudited(t)
	exec(t, m.pool, `CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint LANGUAGE sql VOLATILE
		RETURN (pg_current_xact_id()::text::bigint % 8)::smallint`)
	exec(t, m.pool, `DO $$ BEGIN
		FOR i IN 1..`+strconv.FormatInt(singles, 10)+` LOOP
			INSERT INTO howdah.change (slot, op, schema_name, table_name, key, new)
			VALUES (howdah.change_slot(), 'i', 'chk', 'load', jsonb_build_object('id', i), jsonb_build_object('id', i, 'filler', repeat('x', 50)));
			COMMIT;
		END LOOP;
	END $$`)
	exec(t, m.pool, loadSQL, large)
	if at := m.sync(t); at.Commit != singles+1 {
		t.Fatalf("Sync() = %s, want %d", at, singles+1)
	}
	exec(t, m.pool, `ANALYZE howdah.change, howdah.change_commit, howdah.change_tick`)

	e := pgtest.Explain(t, m.pool)
	l := m.log.WithTx(e)
	page, _, err := l.Page(t.Context(), changes.Position{Commit: singles / 2}, 1000, changes.Filter{})
	if err != nil || len(page) != 1000 {
		t.Fatalf("%d changes, %v", len(page), err)
	}
	plan := pagePlan(t, e)
	if n := probes(t, plan); n < 1000 || n > 1010 || !strings.Contains(plan, "change_commit_pk") {
		t.Errorf("a page of 1,000 transactions looks into leaves %d times, want once each:\n%s", n, plan)
	}
	if n := buffers(t, plan); n > 10_000 {
		t.Errorf("a page of 1,000 transactions touches %d pages:\n%s", n, plan)
	}

	var id int64
	if err := m.pool.QueryRow(t.Context(), `SELECT max(id) - 1500 FROM howdah.change`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	for _, inside := range []int64{id - large/2, id} {
		page, next, err := l.Page(t.Context(), changes.Position{Commit: singles + 1, ID: inside}, 1000, changes.Filter{})
		if err != nil || len(page) != 1000 || page[0].Position.ID != inside+1 || next != page[999].Position {
			t.Fatalf("%d changes, %v", len(page), err)
		}
		plan := pagePlan(t, e)
		if n := probes(t, plan); n != 1 {
			t.Errorf("a page inside a transaction looks into leaves %d times:\n%s", n, plan)
		}
		if n := buffers(t, plan); n > 1000 {
			t.Errorf("a page inside a transaction of %d changes touches %d pages:\n%s", large, n, plan)
		}
	}

	// Some are in doubt, as on a busy server: each is looked up, nothing is scanned,
	// though one of them has made 200,000 changes.
	exec(t, m.pool, `UPDATE howdah.change_tick SET snap = format('%s:%s:', x, x)::pg_snapshot FROM (SELECT pg_snapshot_xmax(snap)::text::bigint - 300 AS x FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) p
		WHERE tick = (SELECT max(tick) FROM howdah.change_tick)`)

	// A tick: its statements stand in the function, so the server counts.
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	conn, err := pgx.Connect(t.Context(), m.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	m.in(t, tx, `SELECT howdah.change_tick(true)`)
	var sequential, fetched int
	if err := tx.QueryRow(t.Context(), `SELECT sum(seq_scan), sum(idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE schemaname = 'howdah' AND relname ~ '^change_[0-7]$'`).
		Scan(&sequential, &fetched); err != nil || sequential != 0 || fetched > 350 { // one of each in doubt, and the planner looks at the ends of each index
		t.Errorf("a tick over one transaction: %d sequential scans, %d rows fetched, %v", sequential, fetched, err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The least of some: autovacuum makes the server read its catalogs anew.
	idle := m.ticked(t)
	for range 4 {
		if plan := m.ticked(t); buffers(t, plan) < buffers(t, idle) {
			idle = plan
		}
	}
	if n := buffers(t, idle); n > 700 { // a few for each of those that other tests leave in doubt, of which it bears 15
		t.Errorf("an idle tick touches %d pages:\n%s", n, idle)
	}
}

// To tell how far behind a consumer is must not take as long as to read all that it has not
// come to.
func TestBehindCostsLittle(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a SELECT g, 1 FROM generate_series(1, 5000) g`)
	for i := range 50 {
		exec(t, m.pool, `UPDATE chk.a SET v = 2 WHERE id = $1`, i+1)
	}
	m.sync(t)
	m.consumerAt(t, "c", changes.Position{})
	for _, statistics := range []bool{false, true} {
		if statistics {
			exec(t, m.pool, `ANALYZE howdah.change, howdah.change_commit`)
		}
		for name, ask := range map[string]func(*changes.Log) error{
			"Consumers": func(l *changes.Log) error { _, err := l.Consumers(t.Context()); return err },
			"Vitals":    func(l *changes.Log) error { _, err := l.Vitals(t.Context()); return err },
		} {
			tx, err := pgtest.Pool(t, m.url).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.WithoutCancel(t.Context()))
			var before, after int
			const sum = `
				SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)
				FROM pg_stat_xact_user_tables
				WHERE schemaname = 'howdah' AND relname ~ '^change_([0-7]|commit)$'`
			err = tx.QueryRow(t.Context(), sum).Scan(&before)
			err = cmp.Or(err, ask(m.log.WithTx(tx)))
			if err = cmp.Or(err, tx.QueryRow(t.Context(), sum).Scan(&after)); err != nil {
				t.Fatal(err)
			}
			if read := after - before; read < 1 || read > 20 {
				t.Errorf("%s reads %d rows of the log; with statistics: %t", name, read, statistics)
			}
		}
	}
}

// Checkpoints that are no more, but that nobody can take away, are not walked through.
func TestCheckpointsBehindAnOldSnapshot(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	m.consumerAt(t, "c", changes.Position{})
	old, err := m.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Rollback(context.WithoutCancel(t.Context()))
	m.in(t, old, `SELECT count(*) FROM howdah.change_checkpoint`)
	exec(t, m.pool, `DO $$ BEGIN
		FOR i IN 1..3000 LOOP
			PERFORM howdah.change_move('c', 0, i, i, 0, 0, '', NULL, 1, 0);
			COMMIT;
		END LOOP;
	END $$`)
	exec(t, m.pool, `VACUUM (ANALYZE) howdah.change_checkpoint`)
	conn, err := m.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, sql := range []string{`SELECT seq FROM howdah.change_place('c', 0)`, `SELECT howdah.change_move('c', 0, 3001, 3001, 0, 0, '', NULL, 1, 0)`} {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		m.in(t, tx, `SET LOCAL enable_indexscan = off`) // statistics of few rows on many pages speak against it, too
		// The least of some: the server reads its catalogs the first time, and anew when others
		// have changed them.
		var least string
		for range 5 {
			m.in(t, tx, `SAVEPOINT before`)
			rows, _ := tx.Query(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) `+sql)
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			m.in(t, tx, `ROLLBACK TO before`)
			if plan := strings.Join(lines, "\n"); least == "" || buffers(t, plan) < buffers(t, least) {
				least = plan
			}
		}
		if n := buffers(t, least); n > 20 {
			t.Errorf("%s touches %d pages:\n%s", sql, n, least)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Nor by who asks how a consumer stands.
	for name, do := range map[string]func(*changes.Log) error{
		"Wait":     func(l *changes.Log) error { return l.Wait(t.Context(), "c", changes.Position{Commit: 3000}) },
		"Consumer": func(l *changes.Log) error { _, err := l.Consumer(t.Context(), "c"); return err },
		"Vitals":   func(l *changes.Log) error { _, err := l.Vitals(t.Context()); return err },
	} {
		t.Run(name, func(t *testing.T) {
			e := pgtest.Explain(t, pgtest.Pool(t, m.url))
			if _, err := e.Tx.Exec(t.Context(), `SET LOCAL enable_indexscan = off`); err != nil {
				t.Fatal(err)
			}
			// The best of some, as above.
			var bad string
			for range 5 {
				if err := do(m.log.WithTx(e)); err != nil {
					t.Error(err)
				}
				bad = ""
				for plan := range strings.SplitSeq(e.Plan(), "\n\n") {
					if strings.Contains(plan, "change_place") && buffers(t, plan) > 50 || strings.Contains(plan, "on change_checkpoint") {
						bad = plan
					}
				}
				if bad == "" {
					return
				}
			}
			t.Errorf("it touches %d pages:\n%s", buffers(t, bad), bad)
		})
	}
}

// What told of changes that are gone is deleted part by part, and no part looks at what
// those before it deleted: here they are still in the index, as beside an old snapshot.
func TestForgettingBeginsWhereItEnded(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	const most = 50_000
	exec(t, m.pool, `INSERT INTO howdah.change_commit (n, slot, xid) SELECT g, 0, g::text::xid8 FROM generate_series(1, 130000) g`)
	exec(t, m.pool, `INSERT INTO howdah.change_tick (tick, n, snap, next, seq, timeline, at)
		SELECT g, g, snap, next, seq, timeline, now() - interval '3 days' FROM generate_series(1, 130000) g, howdah.change_tick WHERE tick = 0`)
	exec(t, m.pool, `UPDATE howdah.change_state SET floor = 120000`)
	e := pgtest.Explain(t, m.pool)
	commit, tick := int64(-1), int64(-1)
	for part := 1; part <= 4; part++ {
		var err error
		if commit, tick, err = changes.Forget(t.Context(), e, commit, tick); err != nil {
			t.Fatal(err)
		}
		if c, k := min(int64(part*most), 120_000), min(int64(part*most)-1, 119_999); commit != c || tick != k {
			t.Fatalf("part %d goes up to commit %d and tick %d, want %d and %d", part, commit, tick, c, k)
		}
		for plan := range strings.SplitSeq(e.Plan(), "\n\n") {
			if !strings.Contains(plan, "change_") {
				continue // a setting
			}
			if n := buffers(t, plan); strings.Contains(plan, "Seq Scan on change_commit") || strings.Contains(plan, "Seq Scan on change_tick") ||
				strings.Contains(plan, "JIT") || strings.Contains(plan, "Delete on") && n > 3*most || !strings.Contains(plan, "Delete on") && n > 50 {
				t.Errorf("part %d touches %d pages:\n%s", part, n, plan)
			}
		}
	}
	for table, want := range map[string]string{"change_commit": "10000 120001", "change_tick": "10001 120000"} {
		var got string
		n := map[string]string{"change_commit": "n", "change_tick": "tick"}[table]
		if err := e.Tx.QueryRow(t.Context(), `SELECT concat(count(*), ' ', min(`+n+`)) FROM howdah.`+table).Scan(&got); err != nil || got != want {
			t.Errorf("%s has %s, %v, want %s", table, got, err, want)
		}
	}
}

// A page of what is parked, and one of it that is tried again, are found by an index,
// without a look at how much there is.
func TestCostOfParked(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	m.consumerAt(t, "c", changes.Position{})
	exec(t, m.pool, `INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head)
		SELECT 'c', 0, i, i, i, 'message.x', false, json_build_object('position', i::text || '.' || i, 'op', 'message', 'schema', 'message', 'table', 'x', 'at', now()), true
		FROM generate_series(1, 5000) i`)
	exec(t, m.pool, `ANALYZE howdah.change_parked`)
	for name, do := range map[string]func(*changes.Log) (int, error){
		"Parked": func(l *changes.Log) (int, error) {
			found, err := l.Parked(t.Context(), "c", changes.Position{Commit: 2000}, 10)
			return len(found), err
		},
		"Retry": func(l *changes.Log) (int, error) {
			n, err := l.Retry(t.Context(), "c", changes.Position{Commit: 4000, ID: 4000}, changes.Position{Commit: 1, ID: 1})
			return int(n) * 5, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := pgtest.Explain(t, pgtest.Pool(t, m.url))
			least, plan := math.MaxInt, "" // of some: the server reads its catalogs the first time
			for range 5 {
				if n, err := do(m.log.WithTx(e)); n != 10 || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
				n, plans := 0, e.Plan()
				for one := range strings.SplitSeq(plans, "\n\n") {
					if strings.Contains(one, "change_") { // not a setting
						n += buffers(t, one)
					}
				}
				if n < least {
					least, plan = n, plans
				}
			}
			if least > 100 {
				t.Errorf("it touches %d pages:\n%s", least, plan)
			}
		})
	}
}
