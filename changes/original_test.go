package changes_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What was wrong with the way of the talk; a test for each of its numbers in DESIGN.md.

// S1, S7, S10: the payload is JSON, a delete is one and has its id, and the name
// of a table says which schema's it is.
func TestS1S7S10TriggerLogs(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.users (id int PRIMARY KEY); CREATE TABLE b.users (x text, y int, PRIMARY KEY (y, x))`)
	capture(t, l, changes.Capture{Table: "a.users"}, changes.Capture{Table: "b.users"})
	exec(t, pool, `INSERT INTO a.users VALUES (7); INSERT INTO b.users VALUES ('"', 1); DELETE FROM a.users; UPDATE b.users SET x = 'z'; TRUNCATE a.users`)
	rows, _ := pool.Query(t.Context(), `
		SELECT id, payload, schema, klass_name, created_at, updated_at, pg_typeof(id)::text
		FROM howdah.database_trigger_logs
		ORDER BY id`)
	var id int64
	var payload, schema, name, kind string
	var created, updated time.Time
	var got []string
	if _, err := pgx.ForEachRow(rows, []any{&id, &payload, &schema, &name, &created, &updated, &kind}, func() error {
		if name != "users" || !created.Equal(updated) || kind != "bigint" {
			t.Errorf("%d: %s %s %s %s", id, name, created, updated, kind)
		}
		got = append(got, schema+" "+string(compactJSON(t, payload)))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`a {"operation":"INSERT","record_id":7,"klass_name":"users","crud_method":"create_or_update"}`,
		`b {"operation":"INSERT","record_id":{"x":"\"","y":1},"klass_name":"users","crud_method":"create_or_update"}`,
		`a {"operation":"DELETE","record_id":7,"klass_name":"users","crud_method":"delete"}`,
		`b {"operation":"DELETE","record_id":{"x":"\"","y":1},"klass_name":"users","crud_method":"delete"}`,
		`b {"operation":"INSERT","record_id":{"x":"z","y":1},"klass_name":"users","crud_method":"create_or_update"}`,
		`a {"operation":"TRUNCATE","klass_name":"users"}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func compactJSON(t *testing.T, text string) json.RawMessage {
	t.Helper()
	if !json.Valid([]byte(text)) {
		t.Errorf("no JSON: %s", text)
	}
	return json.RawMessage(strings.NewReplacer(`": `, `":`, `, "`, `,"`).Replace(text))
}

// S2: any type of key, and none.
func TestS2AnyKey(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA chk;
		CREATE TABLE chk.uuids (id uuid PRIMARY KEY); CREATE TABLE chk.texts (id text PRIMARY KEY); CREATE TABLE chk.none (v int);
		CREATE TABLE chk.bytes (b bytea, n numeric, d timestamptz, PRIMARY KEY (d, b, n)); CREATE TABLE chk.empty ()`)
	capture(t, l, changes.Capture{Table: "chk.uuids"}, changes.Capture{Table: "chk.texts"}, changes.Capture{Table: "chk.none"}, changes.Capture{Table: "chk.bytes"}, changes.Capture{Table: "chk.empty"})
	exec(t, pool, `INSERT INTO chk.uuids VALUES ('00000000-0000-0000-0000-000000000001'); INSERT INTO chk.texts VALUES (''), (repeat('k', 2000));
		INSERT INTO chk.none VALUES (NULL); INSERT INTO chk.bytes VALUES ('\x00', 1.50, '2026-01-01Z'); INSERT INTO chk.empty DEFAULT VALUES; DELETE FROM chk.empty`)
	all, _ := readAll(t, l, changes.Position{}, 100, changes.Filter{})
	if len(all) != 7 || string(all[0].Key) != `{"id":"00000000-0000-0000-0000-000000000001"}` || string(all[1].Key) != `{"id":""}` ||
		all[3].Key != nil || !strings.Contains(string(all[4].Key), `"n":1.50`) || string(all[5].New) != `{}` {
		t.Errorf("%d changes: %s", len(all), jsonOf(t, all))
	}
}

// S3: what happened while nobody listened, and between two looks, is there.
func TestS3NobodyListens(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	first, at := readAll(t, m.log, changes.Position{}, 10, changes.Filter{})
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	again, _ := readAll(t, changes.New(m.pool, changes.Config{}), at, 10, changes.Filter{})
	if len(first) != 1 || len(again) != 1 || string(again[0].Key) != `{"id":2}` {
		t.Errorf("%d, then %s", len(first), jsonOf(t, again))
	}
}

// S4, S6: a row of any size passes, and an update and a delete say what it was.
func TestS4S6LargeRow(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA chk; CREATE TABLE chk.t (id int PRIMARY KEY, v text)`)
	capture(t, l, changes.Capture{Table: "chk.t", Payload: changes.PayloadFull})
	exec(t, pool, `INSERT INTO chk.t VALUES (1, repeat('x', 8000)); UPDATE chk.t SET v = repeat('y', 400000); UPDATE chk.t SET v = repeat('z', 900000); DELETE FROM chk.t`)
	all, _ := readAll(t, l, changes.Position{}, 10, changes.Filter{})
	if len(all) != 4 || len(all[1].Old) < 8000 || len(all[1].New) < 400_000 || all[1].Trimmed || !all[2].Trimmed || all[2].Old != nil || all[2].New != nil ||
		string(all[2].Key) != `{"id":1}` || len(all[3].Old) < 900_000 {
		t.Errorf("%d changes", len(all))
	}
}

// S5: two writers of captured tables commit side by side: neither queues for a
// lock of the whole database that a NOTIFY in each would take.
func TestS5OneRinger(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	for range 100 {
		a, b := m.begin(t), m.begin(t)
		m.in(t, a, `INSERT INTO chk.a VALUES (1, 1)`)
		m.in(t, b, `INSERT INTO chk.a VALUES (2, 1)`)
		ringers := m.number(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1752135525
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		second := func(tx pgx.Tx) (n int64) {
			if err := tx.QueryRow(t.Context(), `SELECT date_part('epoch', now())::bigint`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		together := second(a) == second(b)
		m.commit(t, b)
		m.commit(t, a)
		if together {
			if ringers != 1 {
				t.Errorf("%d transactions ring the doorbell, want 1", ringers)
			}
			return
		}
		exec(t, m.pool, `TRUNCATE chk.a`)
	}
	t.Error("a hundred times two transactions began in different seconds")
}

// listens returns a connection that listens.
func (m *auditedLog) listens(t *testing.T, sql string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), m.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Whoever writes and stays open mutes nobody.
func TestBellBesideAnOpenWriter(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	conn := m.listens(t, `LISTEN howdah_changes`)
	m.in(t, m.begin(t), `INSERT INTO chk.a VALUES (0, 1)`)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	written := make(chan error)
	go func() {
		defer close(written)
		for i := 1; ctx.Err() == nil; i++ { // through the second in which the other began
			if _, err := m.pool.Exec(ctx, `INSERT INTO chk.a VALUES ($1, 1)`, i); err != nil && ctx.Err() == nil {
				written <- err
				return
			}
		}
	}()
	if _, err := conn.WaitForNotification(ctx); err != nil {
		t.Errorf("nobody rings beside an open writer: %v", err)
	}
	cancel()
	if err := pgtest.Receive(t, written, "the end of the writer"); err != nil {
		t.Error(err)
	}
}

// S5: the doorbell is heard, and says nothing.
func TestS5Doorbell(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	conn := m.listens(t, `LISTEN howdah_changes; LISTEN howdah_feed`)
	exec(t, m.pool, `INSERT INTO chk.a SELECT g, 1 FROM generate_series(1, 100) g`)
	m.sync(t)
	m.sync(t) // nothing new: rings nobody
	exec(t, m.pool, `SELECT pg_notify('howdah_feed', 'end')`)
	var heard []string
	for len(heard) == 0 || heard[len(heard)-1] != "howdah_feed end" {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		n, err := conn.WaitForNotification(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		heard = append(heard, strings.TrimSpace(n.Channel+" "+n.Payload))
	}
	if got := strings.Join(heard, ", "); got != "howdah_changes, howdah_feed, howdah_feed end" {
		t.Errorf("heard %s", got)
	}
}

// S8: nothing has to be disabled to tell one's own changes from others'.
func TestS8OriginInsteadOfDisabling(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	mine := m.begin(t)
	if err := m.log.WithTx(mine).Mark(t.Context(), "crm", nil); err != nil {
		t.Fatal(err)
	}
	m.in(t, mine, `INSERT INTO chk.a VALUES (1, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`) // others write meanwhile, and are seen
	m.commit(t, mine)
	all, _ := readAll(t, m.log, changes.Position{}, 10, changes.Filter{})
	if len(all) != 2 || all[0].Origin != "crm" || all[1].Origin != "" {
		t.Errorf("%s", jsonOf(t, all))
	}
}

// S9: an error of a handler ends nothing and is tried again; a slow one holds up no other
// consumer, and no other shard.
func TestS9ErrorsAndSlowHandlers(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a SELECT g, g FROM generate_series(1, 20) g`)
	var others int // that are not on the shard of id 1
	if err := pool.QueryRow(t.Context(), `
		SELECT count(*) FILTER (WHERE shard <> first)
		FROM (
			SELECT shard, first_value(shard) OVER (ORDER BY id) AS first
			FROM (SELECT id, abs(howdah.change_lane('public', 'a', jsonb_build_object('id', id)) % 2) AS shard FROM a) s) f`).Scan(&others); err != nil || others == 0 {
		t.Fatal(others, err)
	}
	failures := 0
	p := startPatient(t, url, changes.ConsumerConfig{Name: "failing"}, func(c changes.Change) error {
		if string(c.Key) == `{"id":3}` && failures < 2 {
			failures++
			return errors.New("not yet")
		}
		return nil
	})
	stuck, goOn := make(chan struct{}, 2), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	slow := start(t, url, changes.ConsumerConfig{Name: "slow", From: "start", Shards: 2, Batch: 1, Timeout: patience}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
			if string(c.Key) == `{"id":1}` {
				select {
				case stuck <- struct{}{}:
				default:
				}
				select {
				case <-goOn:
				case <-ctx.Done():
				}
			}
			return effect("slow")(ctx, tx, []changes.Change{c})
		}))
	})
	defer slow.stop()
	defer release()
	pgtest.Receive(t, stuck, "the slow handler")
	handled(t, l, "failing") // beside the slow one
	third := positions(t, l, changes.Filter{})[2]
	if n := p.called(third); n < 3 || len(effectsOf(t, pool, "failing")) != 20 {
		t.Errorf("the change that failed twice was tried %d times, and %d were handled", n, len(effectsOf(t, pool, "failing")))
	}
	eventually(t, "the other shard is at its end", func() bool { return len(effectsOf(t, pool, "slow")) == others })
	release()
	handled(t, l, "slow")
	if got := len(effectsOf(t, pool, "slow")); got != 20 {
		t.Errorf("the slow one has handled %d, want 20", got)
	}
}
