package changes_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// half is a log of table t with 20 rows, of which consumer "fill" has been handed seven
// in each of its shards when it was paused.
func half(t *testing.T, shards int) *auditedLog {
	t.Helper()
	m := newAudited(t)
	effects(t, m.pool)
	exec(t, m.pool, `CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL); INSERT INTO t SELECT g, 100 - g FROM generate_series(1, 40) g;
		CREATE TABLE u (id int PRIMARY KEY)`)
	capture(t, m.log, changes.Capture{Table: "public.t"}, changes.Capture{Table: "public.u"})
	cfg := filling("public.t", "public.u")
	cfg.Shards = shards
	cfg.Batch = cfg.Chunk
	r := start(t, m.pool.Config().ConnString(), cfg, on(func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		if _, err := tx.Exec(ctx, `UPDATE howdah.change_consumer SET state = 'paused'`); err != nil {
			return err
		}
		return effect("fill")(ctx, tx, cs)
	}))
	eventually(t, "it has read some", func() bool { return m.number(t, `SELECT count(*) FROM effects`) > 0 })
	r.stop()
	return m
}

// goOn runs the consumer again until it is paused by itself, and returns why.
func goOn(t *testing.T, m *auditedLog, shards int) string {
	t.Helper()
	if err := m.log.Resume(t.Context(), "fill"); err != nil {
		t.Fatal(err)
	}
	cfg := filling("public.t", "public.u")
	cfg.Shards = shards
	r := start(t, m.pool.Config().ConnString(), cfg, on(effect("fill")))
	defer r.stop()
	eventually(t, "it is paused", func() bool { return status(t, m.log, "fill").State == "paused" })
	return status(t, m.log, "fill").Reason
}

// Where a table is read by is part of how far it was read: under another key nobody can
// tell what is left, and the consumer says so, once and for all.
func TestBackfillOfAChangedKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		shards int
		sql    string
		key    []string // of the capture
	}{
		"another primary key":      {1, `ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (other)`, []string{"id"}},
		"one of two columns":       {1, `ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (other, id)`, []string{"id"}},
		"another type":             {1, `ALTER TABLE t ALTER id TYPE text`, nil},
		"another key of a capture": {2, ``, []string{"other"}},
		"another table": {1, `ALTER TABLE t RENAME TO old; CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL);
			INSERT INTO t SELECT * FROM old ORDER BY 1 DESC`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := half(t, c.shards)
			if c.sql != "" {
				exec(t, m.pool, c.sql)
			}
			if c.key != nil || strings.Contains(c.sql, "RENAME") {
				capture(t, m.log, changes.Capture{Table: "public.t", Key: c.key})
			}
			before := m.number(t, `SELECT count(*) FROM effects`)
			for range 2 { // to resume it changes nothing
				reason := goOn(t, m, c.shards)
				for _, want := range []string{"public.t", "id", "howdah changes backfill fill public.t", "--end", "howdah changes resume fill"} {
					if !strings.Contains(reason, want) {
						t.Errorf("%q does not say %s", reason, want)
					}
				}
			}
			if n := m.number(t, `SELECT count(*) FROM effects`); n != before {
				t.Errorf("%d rows were handed over all the same", n-before)
			}
			if err := m.log.Backfill(t.Context(), "fill", "public.t"); err != nil {
				t.Fatal(err)
			}
			exec(t, m.pool, `TRUNCATE effects`)
			if err := m.log.Resume(t.Context(), "fill"); err != nil {
				t.Fatal(err)
			}
			cfg := filling()
			cfg.Shards = c.shards
			start(t, m.pool.Config().ConnString(), cfg, on(effect("fill")))
			filled(t, m, "fill")
			if n := m.number(t, `SELECT count(DISTINCT key) FROM effects`); n != 40 {
				t.Errorf("%d rows were handed over anew, want 40", n)
			}
			if n := m.number(t, `SELECT count(*) FROM effects`); n != 40 {
				t.Errorf("%d were, counting repeats", n)
			}
		})
	}
}

// Nothing of the table has been read: how it is to be read is as it is now.
func TestBackfillOfAKeyChangedBefore(t *testing.T) {
	t.Parallel()
	m := half(t, 1)
	exec(t, m.pool, `ALTER TABLE u RENAME id TO number; INSERT INTO u VALUES (1), (2)`)
	if err := m.log.Resume(t.Context(), "fill"); err != nil {
		t.Fatal(err)
	}
	start(t, m.pool.Config().ConnString(), filling(), on(effect("fill")))
	filled(t, m, "fill")
	handled(t, m.log, "fill")
	if n := m.number(t, `SELECT count(DISTINCT key) FROM effects WHERE key ->> 'number' IS NOT NULL`); n != 2 { // and not the key that it was
		t.Errorf("%d rows with the key as it is now, want 2", n)
	}
	if n := m.number(t, `SELECT count(*) FROM effects WHERE key ? 'id'`); n != 40 {
		t.Errorf("%d rows of t, want 40", n)
	}
}

// A consumer goes on without the rows of a table that is gone, and reads the others.
func TestBackfillWithoutATable(t *testing.T) {
	t.Parallel()
	m := half(t, 1)
	exec(t, m.pool, `INSERT INTO u VALUES (1)`)
	exec(t, m.pool, `DROP TABLE t`)
	if reason := goOn(t, m, 1); !strings.Contains(reason, "public.t") || !strings.Contains(reason, "--end") {
		t.Errorf("%q", reason)
	}
	if err := m.log.EndBackfill(t.Context(), "fill", "public.t"); err != nil {
		t.Fatal(err)
	}
	if got := status(t, m.log, "fill").Backfill; len(got) != 1 || got[0] != "public.u" {
		t.Errorf("left to read: %q", got)
	}
	if err := m.log.Resume(t.Context(), "fill"); err != nil {
		t.Fatal(err)
	}
	r := start(t, m.pool.Config().ConnString(), filling(), on(effect("fill")))
	filled(t, m, "fill")
	handled(t, m.log, "fill")
	r.stop()
	if n := m.number(t, `SELECT count(*) FROM effects WHERE position NOT LIKE '%.%' AND NOT key ? 'other'`); n == 0 {
		t.Error("the other table was not read")
	}

	// To end it again is well, and of a table that it has read; not of one that is none.
	for table, want := range map[string]string{"public.u": "", "chk.a": "", "public.t": "public.t", "public.uu": "public.uu", "public.u\x00": "NUL"} {
		err := m.log.EndBackfill(t.Context(), "fill", table)
		if want == "" && err != nil || want != "" && (!errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "tables: ") || !strings.Contains(err.Error(), want)) {
			t.Errorf("EndBackfill of %q: %v", table, err)
		}
	}

	// A running one can be told to read a table, and to leave it.
	if err := m.log.Backfill(t.Context(), "fill", "public.u", "public.u"); err != nil {
		t.Fatal(err)
	}
	if err := m.log.EndBackfill(t.Context(), "fill"); err != nil {
		t.Fatal(err)
	}
	if got := status(t, m.log, "fill"); got.Backfill == nil || len(got.Backfill) != 0 || got.State != "running" {
		t.Errorf("%+v", got)
	}
}

func TestBackfillRefusedLater(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	c := changes.NewConsumer(m.pool, nil, changes.ConsumerConfig{Name: "c"})
	c.Handle("chk.*:insert", effect("c"))
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, m.pool, `CREATE TABLE chk.loose (id int)`)
	for _, tables := range [][]string{nil, {"chk.loose"}, {"chk.nowhere"}, {"chk.a"}} { // for the last there is no handler
		if err := m.log.Backfill(t.Context(), "c", tables...); !errors.Is(err, fault.Invalid) {
			t.Errorf("Backfill of %q: %v, want Invalid", tables, err)
		}
	}
	for name, want := range map[string]error{"nobody": changes.ErrNoConsumer, "c": fault.Conflict} {
		exec(t, m.pool, `UPDATE howdah.change_consumer SET state = 'expired'`)
		if err := m.log.EndBackfill(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("EndBackfill of %s: %v, want %v", name, err, want)
		}
	}
	exec(t, m.pool, `UPDATE howdah.change_consumer SET state = 'running', next_shards = 2, stop_at = 5`)
	if err := m.log.EndBackfill(t.Context(), "c"); !errors.Is(err, fault.Conflict) {
		t.Errorf("EndBackfill while the shards change: %v, want Conflict", err)
	}
}

// What a backfill read and could not hand over does not come again with the feed: who
// moves the consumer back does not lose it, nor what waits behind a TRUNCATE that does.
func TestC4SeekKeepsRowsThatAreParked(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	effects(t, m.pool)
	exec(t, m.pool, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 5)`) // and no changes of them
	capture(t, m.log, changes.Capture{Table: "public.t"})
	exec(t, m.pool, `INSERT INTO chk.a VALUES (9, 9)`) // something to move back before
	cfg := filling("public.t")
	cfg.From = "start"
	start(t, m.pool.Config().ConnString(), cfg, on(func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		for _, c := range cs {
			if string(c.Key) == `{"id":3}` {
				if _, err := tx.Exec(ctx, `SELECT 1 / count(*) FROM public.effects WHERE consumer = 'cure'`); err != nil {
					return err
				}
			}
		}
		return effect("fill")(ctx, tx, cs)
	}))
	filled(t, m, "fill")
	eventually(t, "a row is parked", func() bool { return status(t, m.log, "fill").Parked == 1 })
	exec(t, m.pool, `INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head, next_at)
		OVERRIDING SYSTEM VALUE SELECT consumer, shard, n, 1, 0, relation, true, '{"op":"truncate"}', true, '9000-01-01' FROM howdah.change_parked`)
	exec(t, m.pool, `UPDATE howdah.change_parked SET head = false WHERE NOT everything`)
	if err := m.log.Seek(t.Context(), "fill", "start"); err != nil {
		t.Fatal(err)
	}
	if got := parked(t, m.log, "fill"); len(got) != 1 || got[0].Change.Op != changes.Read || got[0].Waits {
		t.Fatalf("parked %+v, want the row, and that it waits for nobody", got)
	}
	exec(t, m.pool, `INSERT INTO effects (consumer) VALUES ('cure')`)
	eventually(t, "it is handled", func() bool {
		return m.number(t, `SELECT count(*) FROM effects WHERE key = '{"id": 3}'`) == 1
	})
}

// A shard that finds its place gone, or a table, stops the consumer only where it still
// is: a person may be moving it just then.
func TestSeekWhileAShardExpires(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	entered, leave := make(chan bool, 9), make(chan bool)
	start(t, url, changes.ConsumerConfig{Name: "c"}, on(func(context.Context, pgx.Tx, []changes.Change) error {
		entered <- true
		<-leave
		return nil
	}))
	eventually(t, "it is there", func() bool { return registered(l, "c") })
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	pgtest.Receive(t, entered, "the handler is called")
	exec(t, pool, `INSERT INTO a VALUES (2, 2)`)
	end, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `UPDATE howdah.change_state SET floor = $1`, end.Commit)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `SELECT FROM howdah.change_consumer FOR UPDATE`); err != nil { // as Seek does first
		t.Fatal(err)
	}
	close(leave)
	eventually(t, "the shard would expire it", func() bool {
		var waits bool
		err := pool.QueryRow(t.Context(), `SELECT EXISTS (
			SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%change_consumer%' AND query NOT LIKE '%seen_at%')`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		return waits
	})
	if err := l.WithTx(tx).Seek(t.Context(), "c", fmt.Sprint(end)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "c")
	if s := status(t, l, "c"); s.State != "running" {
		t.Errorf("%s: %s", s.State, s.Reason)
	}
}

// A handler that leaves a transaction in which nothing can be written has failed on its
// change; the others go on.
func TestHandlerThatLeavesNothingToWriteTo(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2), (3, 3)`)
	startPatient(t, url, changes.ConsumerConfig{Name: "good"}, badKey(""))
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, on(func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		for _, c := range cs {
			if string(c.Key) == `{"id":2}` {
				_, err := tx.Exec(ctx, `SET TRANSACTION READ ONLY`)
				return err
			}
		}
		return effect("c")(ctx, tx, cs)
	}))
	eventually(t, "it is parked and the others are handled", func() bool {
		return registered(l, "c") && status(t, l, "c").Parked == 1 && len(effectsOf(t, pool, "c")) == 2
	})
	if got := parked(t, l, "c"); len(got) != 1 || !strings.Contains(got[0].Error, "read-only") {
		t.Errorf("parked %+v", got)
	}
}
