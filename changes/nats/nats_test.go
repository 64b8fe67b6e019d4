package nats_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	natsserver "github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/changes/nats"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// fixture is a captured table and a NATS server with a stream of everything.
type fixture struct {
	log    *changes.Log
	pool   *pgxpool.Pool
	at     changes.Position
	server *natsserver.Server
	js     jetstream.JetStream
	stream jetstream.Stream
}

func newFixture(t *testing.T, subjects ...string) *fixture {
	t.Helper()
	f := &fixture{pool: pgtest.Pool(t, pgtest.Database(t))}
	f.log = changes.New(f.pool, changes.Config{})
	f.exec(t, `CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, note text); CREATE TABLE shop."a.b *>" (v int)`)
	f.install(t)

	var err error
	f.server, err = natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	f.server.Start()
	t.Cleanup(func() { f.server.Shutdown(); f.server.WaitForShutdown() })
	if !f.server.ReadyForConnections(time.Minute) {
		t.Fatal("the NATS server does not start")
	}
	conn, err := natsgo.Connect(f.server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if f.js, err = jetstream.New(conn); err != nil {
		t.Fatal(err)
	}
	if f.stream, err = f.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "all", Subjects: subjects, Storage: jetstream.MemoryStorage, MaxMsgSize: 4096}); err != nil {
		t.Fatal(err)
	}
	return f
}

// install makes the log, and has it capture.
func (f *fixture) install(t *testing.T) {
	t.Helper()
	f.at = changes.Position{}
	if err := migrate.Up(t.Context(), f.pool.Config().ConnConfig, slog.New(slog.DiscardHandler), f.log.Migrations()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.log.Apply(t.Context(), []changes.Capture{{Table: "shop.*"}}, false); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := f.pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// write runs SQL and returns the changes it made.
func (f *fixture) write(t *testing.T, sql string) (cs []changes.Change) {
	t.Helper()
	f.exec(t, sql)
	var err error
	if cs, f.at, err = f.log.Page(t.Context(), f.at, changes.MaxPage, changes.Filter{}); err != nil {
		t.Fatal(err)
	}
	return cs
}

// hand gives changes to h as a consumer does.
func (f *fixture) hand(ctx context.Context, h changes.Handler, cs []changes.Change) error {
	return pgx.BeginFunc(context.WithoutCancel(ctx), f.pool, func(tx pgx.Tx) error { return h(ctx, tx, cs) })
}

// published is all that the stream holds.
func (f *fixture) published(t *testing.T) (all []*jetstream.RawStreamMsg) {
	t.Helper()
	info, err := f.stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= info.State.LastSeq; n++ {
		msg, err := f.stream.GetMsg(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, msg)
	}
	return all
}

func TestSink(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "events.howdah.>")
	h := nats.Sink(f.js, nats.Config{Prefix: "events.howdah"})
	cs := f.write(t, `INSERT INTO shop.orders VALUES (1, '<a>'), (2, 'b'); UPDATE shop.orders SET note = 'c' WHERE id = 1;
		INSERT INTO shop."a.b *>" VALUES (1); TRUNCATE shop.orders; SELECT howdah.change_emit('orders.shipped', '{}')`)
	for range 2 { // a repeat is dropped
		if err := f.hand(t.Context(), h, cs); err != nil {
			t.Fatal(err)
		}
	}
	var subjects []string
	all := f.published(t)
	for i, msg := range all {
		subjects = append(subjects, msg.Subject)
		var got changes.Change
		if err := json.Unmarshal(msg.Data, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(cs[i], got); diff != "" {
			t.Error(diff)
		}
		if got, want := msg.Header.Get("Nats-Msg-Id"), "events.howdah/"+f.pool.Config().ConnConfig.Database+"/"+cs[i].Position.String()+fmt.Sprintf("/%d", cs[i].At.UnixMicro()); got != want {
			t.Errorf("Nats-Msg-Id %s, want %s", got, want)
		}
	}
	if !strings.Contains(string(all[0].Data), "<a>") {
		t.Errorf("data %s", all[0].Data)
	}
	want := []string{
		"events.howdah.shop.orders.insert", "events.howdah.shop.orders.insert", "events.howdah.shop.orders.update",
		"events.howdah.shop.a%2Eb%20%2A%3E.insert", "events.howdah.shop.orders.truncate", "events.howdah.message.orders%2Eshipped.message",
	}
	if diff := cmp.Diff(want, subjects); diff != "" {
		t.Error(diff)
	}
}

// A log that was made anew begins at the positions of the old one, which the stream has
// seen: its changes are others all the same.
func TestSinkOfALogMadeAnew(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "howdah.>")
	h := nats.Sink(f.js, nats.Config{})
	for n := range 2 {
		if n > 0 {
			if err := f.log.Uninstall(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.install(t)
		}
		cs := f.write(t, fmt.Sprintf(`INSERT INTO shop.orders VALUES (%d, '')`, n))
		if got := cs[0].Position.String(); got != "1.1" {
			t.Fatalf("position %s, want 1.1, that of the old one", got)
		}
		for range 2 { // and a repeat is one
			if err := f.hand(t.Context(), h, cs); err != nil {
				t.Fatal(err)
			}
		}
	}
	if all := f.published(t); len(all) != 2 {
		t.Errorf("%d messages, want 2", len(all))
	}
}

// Many changes go at once, and those of a key in their order.
func TestSinkOfMany(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "howdah.>")
	cs := f.write(t, `INSERT INTO shop.orders SELECT g, '' FROM generate_series(1, 400) g;
		UPDATE shop.orders SET note = note || 'x'; UPDATE shop.orders SET note = note || 'y' WHERE id < 100`)
	if err := f.hand(t.Context(), nats.Sink(f.js, nats.Config{}), cs); err != nil {
		t.Fatal(err)
	}
	last := map[string]changes.Position{}
	for _, msg := range f.published(t) {
		var c changes.Change
		if err := json.Unmarshal(msg.Data, &c); err != nil {
			t.Fatal(err)
		}
		if c.Position.Compare(last[string(c.Key)]) <= 0 {
			t.Errorf("%s follows %s", c.Position, last[string(c.Key)])
		}
		last[string(c.Key)] = c.Position
	}
	if len(last) != 400 {
		t.Errorf("%d keys", len(last))
	}
}

// A change that cannot be published holds up those of its key: sent again, they are
// in order.
func TestSinkFailure(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "howdah.shop.>")
	h := nats.Sink(f.js, nats.Config{})
	cs := f.write(t, `INSERT INTO shop.orders VALUES (1, ''); UPDATE shop.orders SET note = repeat('x', 5000); UPDATE shop.orders SET note = 'short'`)
	err := f.hand(t.Context(), h, cs)
	if !errors.As(err, new(*jetstream.APIError)) || !strings.HasPrefix(err.Error(), "changes/nats: "+cs[1].Position.String()+": howdah.shop.orders.update: ") || errors.Is(err, fault.Unavailable) {
		t.Errorf("too large: %v", err)
	}
	if all := f.published(t); len(all) != 1 {
		t.Errorf("%d messages, want the one before", len(all))
	}

	err = f.hand(t.Context(), h, f.write(t, `SELECT howdah.change_emit('nobody', '{}')`))
	if !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("no stream: %v", err)
	}
	if err := f.hand(t.Context(), nats.Sink(f.js, nats.Config{Prefix: "a..b"}), cs); !errors.Is(err, fault.Invalid) {
		t.Errorf("prefix: %v", err)
	}
}

// A subscriber that takes the stream's place and acknowledges nothing.
func TestSinkBlackHole(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "other.>")
	arrived := make(chan struct{}, 10)
	if _, err := f.js.Conn().Subscribe("howdah.>", func(*natsgo.Msg) { arrived <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	cs := f.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	err := f.hand(t.Context(), nats.Sink(f.js, nats.Config{Timeout: 50 * time.Millisecond}), cs)
	if err == nil || !strings.HasSuffix(err.Error(), "no ack within 50ms") {
		t.Errorf("timeout: %v", err)
	}
	pgtest.Receive(t, arrived, "the message")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.hand(ctx, nats.Sink(f.js, nats.Config{}), cs) }()
	pgtest.Receive(t, arrived, "the message")
	cancel()
	if err := pgtest.Receive(t, done, "the end of the handler"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
