package changes_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
)

// freeze is a tracer that stops whoever has carried out a statement that has a text in
// it, as a process is stopped, or its machine.
type freeze struct {
	text    string
	is      atomic.Bool // so
	reached chan struct{}
	thaw    chan struct{}
}

func (f *freeze) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, f, data.SQL)
}

func (f *freeze) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if sql, _ := ctx.Value(f).(string); data.Err != nil || !strings.Contains(sql, f.text) {
		return
	}
	if f.is.CompareAndSwap(false, true) {
		close(f.reached)
		<-f.thaw
	}
}

// Who is stopped in the middle of something is not waited for: PostgreSQL ends his
// transaction.
func TestNobodyWaitsForWhoIsStopped(t *testing.T) {
	t.Parallel()
	for name, is := range map[string]struct {
		after   string // the statement after which he is stopped
		options string // of his connections
		does    func(ctx context.Context, l *changes.Log) error
		others  func(ctx context.Context, m *auditedLog) error
	}{
		"Tend": {"LOCK TABLE ONLY", "", func(ctx context.Context, l *changes.Log) error { return l.Tend(ctx) },
			func(ctx context.Context, m *auditedLog) error {
				if _, err := m.pool.Exec(ctx, `INSERT INTO chk.a VALUES (2, 1)`); err != nil { // else a tick has nothing to look at
					return err
				}
				_, err := m.log.Sync(ctx)
				return err
			}},
		"Sync": {"howdah.change_tick", "default_transaction_isolation=serializable", func(ctx context.Context, l *changes.Log) error { _, err := l.Sync(ctx); return err },
			func(ctx context.Context, m *auditedLog) error { _, err := m.log.Sync(ctx); return err }},
		"Skip": {"FOR UPDATE", "", func(ctx context.Context, l *changes.Log) error { _, err := l.Skip(ctx, "c"); return err },
			func(ctx context.Context, m *auditedLog) error { return m.log.Pause(ctx, "c", "") }},
		"Seek": {"FOR SHARE", "", func(ctx context.Context, l *changes.Log) error { return l.Seek(ctx, "c", "now") },
			func(ctx context.Context, m *auditedLog) error { return m.log.Retain(ctx, time.Hour, time.Hour) }},
		"Apply": {"CREATE TRIGGER", "", func(ctx context.Context, l *changes.Log) error {
			_, err := l.Apply(ctx, []changes.Capture{{Table: "public.late"}}, false)
			return err
		}, func(ctx context.Context, m *auditedLog) error {
			_, err := m.pool.Exec(ctx, `INSERT INTO late VALUES (1)`)
			return err
		}},
		"Release": {"DROP TRIGGER", "", func(ctx context.Context, l *changes.Log) error { _, err := l.Release(ctx, "chk.a"); return err },
			func(ctx context.Context, m *auditedLog) error {
				_, err := m.pool.Exec(ctx, `INSERT INTO chk.a VALUES (2, 1)`)
				return err
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newAudited(t)
			exec(t, m.pool, `CREATE TABLE late (id int PRIMARY KEY); INSERT INTO chk.a VALUES (1, 1)`)
			m.consumerAt(t, "c", changes.Position{})
			if name == "Tend" {
				m.consumerAt(t, "c", m.sync(t))
				m.age(t)
			}
			cfg, err := pgxpool.ParseConfig(m.pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			stopped := &freeze{text: is.after, reached: make(chan struct{}), thaw: make(chan struct{})}
			cfg.ConnConfig.Tracer = stopped
			if name, value, ok := strings.Cut(is.options, "="); ok {
				cfg.ConnConfig.RuntimeParams[name] = value
			}
			pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			l := changes.New(pool, changes.Config{})
			l.Impatient(500 * time.Millisecond)

			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for !stopped.is.Load() && ctx.Err() == nil { // on a slow machine it may be ended before it gets there
					is.does(ctx, l) // what becomes of it is not the question
				}
			}()
			select {
			case <-stopped.reached:
			case <-done:
				t.Fatalf("it never came to %s", is.after)
			}
			if err := is.others(ctx, m); err != nil {
				t.Errorf("beside one who is stopped: %v", err)
			}
			close(stopped.thaw)
			<-done
		})
	}
}

// C5: an instance that was stopped, or whose network is gone, in the middle of being sent
// something or of sending, is not idle: PostgreSQL would wait for it for ever.
func TestC5InstanceThatIsStuck(t *testing.T) {
	t.Parallel()
	for event, stick := range map[string]func(*testing.T, *pgx.Conn){
		"ClientWrite": func(t *testing.T, conn *pgx.Conn) {
			conn.PgConn().Exec(t.Context(), `SELECT repeat('x', 1000000) FROM generate_series(1, 100)`)
		},
		"ClientRead": func(t *testing.T, conn *pgx.Conn) {
			conn.PgConn().Frontend().SendParse(&pgproto3.Parse{Query: `SELECT 1`})
			if err := conn.PgConn().Frontend().Flush(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			url, l, pool := consumed(t)
			exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.WithoutCancel(t.Context()))
			if _, err := conn.Exec(t.Context(), `BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('howdah.consumer c 0', 0))`); err != nil {
				t.Fatal(err)
			}
			stick(t, conn)
			eventually(t, "the server waits for the instance", func() (is bool) {
				if err := pool.QueryRow(t.Context(), `
					SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid = $1 AND state = 'active' AND wait_event = $2)`,
					conn.PgConn().PID(), event).Scan(&is); err != nil {
					t.Fatal(err)
				}
				return is
			})
			start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Timeout: time.Second}, func(c *changes.Consumer) {
				c.Hurry()
				c.Grace(500 * time.Millisecond)
				c.Handle("*", effect("c"))
			})
			handled(t, l, "c")
		})
	}
}

// Who pauses a consumer in a transaction of his own, and leaves that open, holds up nobody.
func TestPausedInATransactionThatStaysOpen(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('c', 1, '{*}')`)
	exec(t, pool, `INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id) VALUES ('c', 0, 1, 0, 0)`)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if err := l.WithTx(tx).Pause(t.Context(), "c", "for a while"); err != nil {
		t.Fatal(err)
	}
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Hurry()
		c.Seen(10 * time.Millisecond)
		c.Handle("*", effect("c"))
	})
	for i := range 3 { // nobody else numbers what commits
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, i)
		eventually(t, "it is handled", func() bool { return len(effectsOf(t, pool, "c")) == i+1 })
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is paused", func() bool { return status(t, l, "c").State == "paused" })
}

// A consumer that nobody runs is not said to be running.
func TestStatusAway(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "*")
	exec(t, pool, `UPDATE howdah.change_consumer SET seen_at = '2026-01-02 03:04:05.6Z'`)
	if s := status(t, l, "c"); s.State != "away" || s.Reason != "nothing was heard of it since 2026-01-02 03:04:05+00" {
		t.Errorf("nobody runs it: %+v", s)
	}
	for do, want := range map[string]string{"paused": "paused", "expired": "expired"} {
		exec(t, pool, `UPDATE howdah.change_consumer SET state = $1`, do)
		if s := status(t, l, "c"); s.State != want {
			t.Errorf("%s, and nobody runs it: %+v", do, s)
		}
	}
	exec(t, pool, `UPDATE howdah.change_consumer SET state = 'running', sink = NULL`)
	start(t, url, changes.ConsumerConfig{Name: "c"}, func(c *changes.Consumer) { c.Handle("*", effect("c")) })
	eventually(t, "it runs", func() bool { s := status(t, l, "c"); return s.State == "running" && s.Reason == "" })
}

// Who listens and does not read fills the queue of NOTIFY, and once it is full nobody can
// commit what notifies.
func TestDoctorFindsWhoDoesNotReadNotifications(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for _, sql := range []string{`LISTEN a`, `BEGIN`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 { // pages of the queue
		exec(t, pool, `SELECT pg_notify('a', $1 || repeat('x', 7000))`, strconv.Itoa(i))
	}
	if found := codes(t, l); slices.Contains(found, "notify-queue notifications") {
		t.Errorf("of a queue with room: %q", found)
	}
	l.Full(0)
	if found := codes(t, l); !slices.Contains(found, "notify-queue notifications") {
		t.Errorf("of one that is full: %q", found)
	}
}
