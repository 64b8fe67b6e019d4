package logical_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/changes/logical"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// fixture is a database whose schema shop is published, and another whose log is filled.
type fixture struct {
	source, target *pgxpool.Pool
	sourceURL      string
	log            *changes.Log
	slot           string
}

func newFixture(t *testing.T, setup string) *fixture {
	t.Helper()
	f := &fixture{sourceURL: pgtest.Database(t)}
	f.source = pgtest.Pool(t, f.sourceURL)
	f.into(t, pgtest.Database(t))
	exec(t, f.source, `CREATE SCHEMA shop;`+setup)
	f.slot = f.source.Config().ConnConfig.Database // a name that no other test has
	t.Cleanup(func() { f.dropSlot(t) })
	return f
}

// dropSlot drops the slot of the source, if it has one. The server may not have noticed
// yet that nobody reads it any more.
func (f *fixture) dropSlot(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), pgtest.Patience)
	defer cancel()
	pgtest.Until(t, "the slot is free", func() bool {
		_, err := f.source.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Code == "55006" {
			return false
		}
		if err != nil {
			t.Error(err)
		}
		return true
	})
}

// into puts the log into the database of url.
func (f *fixture) into(t *testing.T, url string) {
	t.Helper()
	f.target = pgtest.Pool(t, url)
	f.log = migrated(t, f.target)
}

func migrated(t *testing.T, pool *pgxpool.Pool) *changes.Log {
	t.Helper()
	l := changes.New(pool, changes.Config{})
	if err := migrate.Up(t.Context(), pool.Config().ConnConfig, slog.New(slog.DiscardHandler), l.Migrations()); err != nil {
		t.Fatal(err)
	}
	return l
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (f *fixture) config() logical.Config {
	return logical.Config{Source: f.sourceURL, Slot: f.slot, Unbounded: true, Log: slog.New(slog.DiscardHandler)}
}

// publish publishes all tables, howdah's own among them.
func (f *fixture) publish(t *testing.T) {
	t.Helper()
	exec(t, f.source, `CREATE PUBLICATION howdah FOR ALL TABLES`)
}

// start runs a pump; its slot is there when start returns. stop ends it.
func (f *fixture) start(t *testing.T, db *pgxpool.Pool, cfg logical.Config) (stop func()) {
	t.Helper()
	p, err := logical.New(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f.run(t, p)
}

// run is start of p.
func (f *fixture) run(t *testing.T, p *logical.Pump) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := pgtest.Receive(t, done, "the end of Run"); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	eventually(t, "the pump has its place", func() bool {
		var there bool
		if err := f.target.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM howdah.change_pump WHERE slot = $1)`, f.slot).Scan(&there); err != nil {
			t.Fatal(err)
		}
		return there
	})
	return stop
}

var eventually = pgtest.Until

// feed reads the feed up to the change that has this note, which it leaves out.
func feed(t *testing.T, l *changes.Log, note string) (all []changes.Change) {
	t.Helper()
	var at changes.Position
	eventually(t, "the feed has "+note, func() bool {
		for {
			page, next, err := l.Page(t.Context(), at, changes.MaxPage, changes.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range page {
				if strings.Contains(string(c.New), note) {
					return true
				}
				all = append(all, c)
			}
			if next == at {
				return false
			}
			at = next
		}
	})
	return all
}

// said is what a change says, without what is the log's own.
func said(t *testing.T, c changes.Change) string {
	t.Helper()
	c.Position, c.XID, c.At = changes.Position{}, "", time.Time{}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What a pump tells of rows is what triggers tell of them, value for value.
func TestPumpSaysWhatTriggersSay(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `
		CREATE TYPE shop.mood AS ENUM ('sad', 'so "so"');
		CREATE DOMAIN shop.positive AS numeric CHECK (VALUE > 0);
		CREATE DOMAIN shop.more AS shop.positive;
		CREATE TABLE shop.all (
			id int, "a ""b" text, PRIMARY KEY (id, "a ""b"), b bool, i2 smallint, i8 bigint, f4 real, f8 double precision, n numeric, c "char", name name, o oid,
			j json, jb jsonb, by bytea, u uuid, d date, t time, tz timetz, ts timestamp, tstz timestamptz, iv interval, m shop.mood, dom shop.more,
			ia int[], ta text[], ja jsonb[], ma shop.mood[], da shop.more[], tsa timestamptz[], ba bool[], bx box[], r int4range, p point, rc regclass, rt regtype);
		CREATE TYPE public.kind AS ENUM ();
		CREATE TABLE shop.nokey (v int);
		ALTER TABLE shop.all REPLICA IDENTITY FULL; ALTER TABLE shop.nokey REPLICA IDENTITY FULL`)
	triggers := migrated(t, f.source)
	if _, err := triggers.Apply(t.Context(), []changes.Capture{{Table: "shop.*", Payload: changes.PayloadFull}}, false); err != nil {
		t.Fatal(err)
	}
	f.publish(t)
	stop := f.start(t, f.target, f.config())
	for _, sql := range []string{
		`INSERT INTO shop.all VALUES (1, E'x\t<&>"é\\', true, -1, 9223372036854775807, 1.5, 'NaN', 1.50, 'x', 'n', 42,
			'{"a": [1, 2.00], "b":null}', '{"z": 1e3, "a": "<"}', '\x00ff', '00000000-0000-0000-0000-000000000001',
			'2026-01-02', '03:04:05.678', '03:04:05+02', '2026-01-02 03:04:05.6', '2026-01-02 03:04:05.678+05:30', '1 year 2 days 03:00', 'so "so"', 3.0,
			'{1,NULL,-3}', E'{"a,b","c\\"d","e\\\\\\\\f",NULL,"NULL",""}', ARRAY['{"k": [1]}', 'null']::jsonb[], '{sad,"so \"so\""}', '{1.0,2}', '{"2026-01-02 03:04:05+00",infinity}', '{t,f}',
			'{(1,1),(0,0);(2,2),(0,0)}', '[1,5)', '(1,2)')`,
		`INSERT INTO shop.all (id, "a ""b", f4, f8, n, d, ts, tstz, ia, ta) VALUES (2, '', '-Infinity', 1e300, 'NaN', 'infinity', '0044-03-15 00:00 BC', '0044-03-15 00:00Z BC', '{{1,2},{3,4}}', '{}')`,
		`INSERT INTO shop.all (id, "a ""b", ia, tstz, f8, rc, rt) VALUES (3, 'c', '[0:1]={7,8}', '-infinity', 1e-7, 'shop.all', 'public.kind')`,
		`UPDATE shop.all SET b = NOT b, n = n + 0.001 WHERE id = 1`,
		`UPDATE shop.all SET id = 10 WHERE id = 2`,
		`BEGIN; INSERT INTO shop.nokey SELECT generate_series(1, 5); UPDATE shop.nokey SET v = v + 10; SAVEPOINT s; DELETE FROM shop.nokey; ROLLBACK TO s; DELETE FROM shop.nokey WHERE v = 11; COMMIT`,
		`BEGIN; INSERT INTO shop.nokey VALUES (99); ROLLBACK`,
		`DELETE FROM shop.all WHERE id = 3`,
		`TRUNCATE shop.nokey`,
		`INSERT INTO shop.all (id, "a ""b") VALUES (0, 'the end')`,
	} {
		exec(t, f.source, sql)
	}
	got, want := feed(t, f.log, "the end"), feed(t, triggers, "the end")
	stop()
	if len(got) != len(want) {
		t.Fatalf("%d changes, want %d", len(got), len(want))
	}
	for i := range want {
		if diff := cmp.Diff(said(t, want[i]), said(t, got[i])); diff != "" {
			t.Errorf("change %d: %s", i, diff)
		}
		if got[i].At.Before(want[i].At) || got[i].At.Sub(want[i].At) > time.Minute {
			t.Errorf("change %d: at %s, want %s", i, got[i].At, want[i].At)
		}
	}
}

// What the WAL does not have is not made up.
func TestPumpOfDefaultIdentity(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text, large text)`)
	f.publish(t)
	stop := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t SELECT 1, 'a', string_agg(md5(g::text), '') FROM generate_series(1, 300) g`)
	exec(t, f.source, `UPDATE shop.t SET note = 'b'`)
	exec(t, f.source, `UPDATE shop.t SET id = 2`)
	exec(t, f.source, `UPDATE shop.t SET large = 'small'`)
	exec(t, f.source, `DELETE FROM shop.t`)
	exec(t, f.source, `INSERT INTO shop.t SELECT 3, '', string_agg(md5(g::text), '') FROM generate_series(1, 40000) g`)
	exec(t, f.source, `INSERT INTO shop.t VALUES (4, 'the end')`)
	all := feed(t, f.log, "the end")
	stop()
	var got []string
	for _, c := range all {
		if len(c.New) > 5000 {
			c.New = json.RawMessage(`"large"`)
		}
		got = append(got, said(t, c))
	}
	const head = `"schema":"shop","table":"t","key":{"id":`
	want := []string{
		`{"position":"0","op":"insert",` + head + `1},"new":"large","at":"0001-01-01T00:00:00Z","last":true}`,
		`{"position":"0","op":"update",` + head + `1},"new":{"id":1,"note":"b"},"at":"0001-01-01T00:00:00Z","missing":["large"],"last":true}`,
		`{"position":"0","op":"delete",` + head + `1},"at":"0001-01-01T00:00:00Z"}`,
		`{"position":"0","op":"insert",` + head + `2},"new":{"id":2,"note":"b"},"at":"0001-01-01T00:00:00Z","missing":["large"],"last":true}`,
		`{"position":"0","op":"update",` + head + `2},"new":{"id":2,"note":"b","large":"small"},"at":"0001-01-01T00:00:00Z","last":true}`,
		`{"position":"0","op":"delete",` + head + `2},"at":"0001-01-01T00:00:00Z","last":true}`,
		`{"position":"0","op":"insert",` + head + `3},"at":"0001-01-01T00:00:00Z","trimmed":true,"last":true}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// What a replication origin brought bears its name, and what others wrote does not.
func TestPumpTellsOrigins(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	stop := f.start(t, f.target, f.config())
	conn, err := f.source.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, sql := range []string{
		`SELECT pg_replication_origin_create($1)`, `SELECT pg_replication_origin_session_setup($1)`,
		`INSERT INTO shop.t VALUES (1, $1)`,
		`SELECT pg_replication_origin_session_reset() WHERE $1 <> ''`, `SELECT pg_replication_origin_drop($1)`,
		`INSERT INTO shop.t VALUES (2, $1)`, `INSERT INTO shop.t VALUES (3, 'the end' || left($1, 0))`,
	} {
		if _, err := conn.Exec(t.Context(), sql, f.slot); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	all := feed(t, f.log, "the end")
	stop()
	if len(all) != 2 || all[0].Origin != f.slot || all[1].Origin != "" {
		t.Errorf("%+v", all)
	}
}

// What a transaction says of itself goes with the changes that follow, and messages are
// in their places; what a savepoint took back was not said.
func TestPumpTellsMarksAndMessages(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	stop := f.start(t, f.target, f.config())
	exec(t, f.source, `
		BEGIN;
		INSERT INTO shop.t VALUES (1, 'a');
		SELECT pg_logical_emit_message(true, 'howdah.origin', 'crm'), pg_logical_emit_message(true, 'howdah.meta', '{"user": 7}');
		INSERT INTO shop.t VALUES (2, 'b');
		SAVEPOINT s;
		SELECT pg_logical_emit_message(true, 'howdah.origin', 'nobody');
		ROLLBACK TO s;
		SELECT pg_logical_emit_message(true, 'howdah.message.orders.shipped', '{"id": 1}'), pg_logical_emit_message(false, 'howdah.origin', 'outside'),
			pg_logical_emit_message(true, 'howdah.message.bad', '{"id": 1e999999}'), pg_logical_emit_message(true, 'howdah.meta', repeat('x', 9000));
		COMMIT;
		INSERT INTO shop.t VALUES (3, 'c');
		SELECT pg_logical_emit_message(true, 'howdah.message.alone', '7')`)
	exec(t, f.source, `INSERT INTO shop.t VALUES (4, 'the end')`)
	var got []string
	for _, c := range feed(t, f.log, "the end") {
		got = append(got, fmt.Sprint(c.Table, " ", string(c.New), " ", c.Origin, " ", string(c.Meta)))
	}
	stop()
	want := []string{`t {"id":1,"note":"a"}  `, `t {"id":2,"note":"b"} crm {"user":7}`, `orders.shipped {"id":1} crm {"user":7}`,
		`bad "{\"id\": 1e999999}" crm {"user":7}`, `t {"id":3,"note":"c"}  `, `alone 7  `}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A database may pump into itself: its own log is not logged.
func TestPumpIntoItself(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.into(t, f.sourceURL)
	f.publish(t)
	stop := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t VALUES (1, 'a')`)
	exec(t, f.source, `INSERT INTO shop.t VALUES (2, 'the end')`)
	if all := feed(t, f.log, "the end"); len(all) != 1 || string(all[0].Key) != `{"id":1}` {
		t.Errorf("%d changes", len(all))
	}
	stop()
	var n int
	if err := f.target.QueryRow(t.Context(), `SELECT count(*) FROM howdah.change`).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows in the log, %v, want 2", n, err)
	}
}
