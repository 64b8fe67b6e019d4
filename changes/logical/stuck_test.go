package logical_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes/logical"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// freeze is a tracer that stops whoever has written changes for the first time, as a
// process is stopped, or its machine.
type freeze struct {
	is      atomic.Bool // so
	reached chan struct{}
	thaw    chan struct{}
}

func (f *freeze) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (f *freeze) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (f *freeze) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (f *freeze) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (f *freeze) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	if strings.Contains(data.SQL, "INSERT INTO howdah.change ") && f.is.CompareAndSwap(false, true) {
		close(f.reached)
		<-f.thaw
	}
}

// impatient runs a pump into db that waits for nothing for longer than d, as start does.
func (f *fixture) impatient(t *testing.T, db *pgxpool.Pool, cfg logical.Config, d time.Duration) (stop func()) {
	t.Helper()
	p, err := logical.New(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Impatient(d)
	return f.run(t, p)
}

// A pump that was stopped in the middle of a large transaction is not waited for: another
// writes it, whole and once.
func TestPumpStoppedInTheMiddle(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	through, err := pgxpool.ParseConfig(f.target.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	stopped := &freeze{reached: make(chan struct{}), thaw: make(chan struct{})}
	through.ConnConfig.Tracer = stopped
	pool, err := pgxpool.NewWithConfig(t.Context(), through)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	from := pgtest.NewProxy(t, f.sourceURL)
	cfg := f.config()
	cfg.Source = from.URL()
	first := f.impatient(t, pool, cfg, 500*time.Millisecond)
	thaw := sync.OnceFunc(func() { close(stopped.thaw) })
	t.Cleanup(thaw) // before it is waited for
	exec(t, f.source, `INSERT INTO shop.t SELECT g, '' FROM generate_series(1, 2500) g`)
	pgtest.Receive(t, stopped.reached, "a part of it being written")
	from.Cut() // as the source does once nobody answers: the slot is free
	second := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t VALUES (9999, 'the end')`)
	all := feed(t, f.log, "the end")
	thaw()
	first()
	second()
	if len(all) != 2500 {
		t.Fatalf("%d changes, want 2500", len(all))
	}
	for _, c := range all {
		if c.XID != all[0].XID {
			t.Fatalf("%s: a transaction in pieces", c.Position)
		}
	}
}

// Nor is one that was stopped while it sent something, which is not idle.
func TestPumpStoppedWhileItSends(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	f.start(t, f.target, f.config())()
	conn, err := pgx.Connect(t.Context(), f.target.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), `BEGIN; UPDATE howdah.change_pump SET lsn = lsn`); err != nil {
		t.Fatal(err)
	}
	conn.PgConn().Frontend().SendParse(&pgproto3.Parse{Query: `SELECT 1`})
	if err := conn.PgConn().Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	pgtest.UntilSQL(t, f.target, "the server waits for the rest", `
		SELECT true
		FROM pg_stat_activity
		WHERE pid = $1 AND state = 'active' AND wait_event = 'ClientRead'`, conn.PgConn().PID())
	stop := f.impatient(t, f.target, f.config(), 100*time.Millisecond)
	exec(t, f.source, `INSERT INTO shop.t VALUES (1, 'the end')`)
	feed(t, f.log, "the end")
	stop()
}

// A connection that leads nowhere any more, and of which nobody is told, is given up, and
// another is taken: both databases are well.
func TestPumpConnectionThatHangs(t *testing.T) {
	t.Parallel()
	for name, on := range map[string]struct{ source, log string }{
		"to the source":           {source: "pg_logical_emit_message"},
		"that the source is at":   {source: "START_REPLICATION"},
		"to the log":              {log: "INSERT INTO howdah.change "},
		"when it is flushed":      {log: "SET confirmed"},
		"before anything is read": {source: "pg_control_system"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
			f.publish(t)
			from, to := pgtest.NewProxy(t, f.sourceURL), pgtest.NewProxy(t, f.target.Config().ConnString())
			cfg := f.config()
			cfg.Source = from.URL()
			hangs := to
			if on.source != "" {
				hangs = from
			}
			hangs.HangOn([]byte(on.source + on.log))
			pool := pgtest.Pool(t, to.URL())
			t.Cleanup(to.Cut) // or the pool waits for it to be closed
			stop := f.impatient(t, pool, cfg, 300*time.Millisecond)
			exec(t, f.source, `INSERT INTO shop.t VALUES (1, 'first')`)
			feed(t, f.log, "first")
			eventually(t, "a connection hangs", hangs.Hung)
			exec(t, f.source, `INSERT INTO shop.t VALUES (2, 'the end')`)
			if all := feed(t, f.log, "the end"); len(all) != 1 {
				t.Errorf("%d changes before the last, want 1", len(all))
			}
			stop()
		})
	}
}

// A stream that says nothing any more, not even that the source is there, is given up, too.
func TestPumpStreamThatHangs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	from := pgtest.NewProxy(t, f.sourceURL)
	said := make(chan string, 1000)
	cfg := f.config()
	cfg.Source, cfg.Log = from.URL(), slog.New(slog.NewTextHandler(lines(said), nil))
	from.HangOn([]byte("d\x00\x00\x00\x26r")) // how far the pump has come
	stop := f.impatient(t, f.target, cfg, 100*time.Millisecond)
	for line := ""; !strings.Contains(line, "says nothing"); {
		line = pgtest.Receive(t, said, "the stream to be given up")
	}
	from.Cut() // as the source does once nobody answers: the slot is free
	exec(t, f.source, `INSERT INTO shop.t VALUES (1, 'the end')`)
	feed(t, f.log, "the end")
	stop()
}

// lines is a Writer that hands over what is written.
type lines chan string

func (l lines) Write(p []byte) (int, error) { l <- string(p); return len(p), nil }

// A message whose topic Log.Emit would refuse has been committed: it is left out, which is
// said, once.
func TestPumpOfATopicThatCannotBe(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	var logged bytes.Buffer
	cfg := f.config()
	cfg.Log = slog.New(slog.NewTextHandler(&logged, nil))
	stop := f.start(t, f.target, cfg)
	exec(t, f.source, `
		SELECT pg_logical_emit_message(true, 'howdah.message.Orders', '1'), pg_logical_emit_message(true, 'howdah.message.', '2'),
			pg_logical_emit_message(true, 'howdah.message.orders', '3')`)
	exec(t, f.source, `INSERT INTO shop.t VALUES (1, 'the end')`)
	all := feed(t, f.log, "the end")
	stop()
	if len(all) != 1 || all[0].Table != "orders" {
		t.Errorf("%d changes, want the message of a topic that can be", len(all))
	}
	if n := strings.Count(logged.String(), "topic="); n != 1 || !strings.Contains(logged.String(), "topic=Orders") {
		t.Errorf("said %d times: %s", n, logged.String())
	}
}
