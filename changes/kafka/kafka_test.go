package kafka_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/changes/kafka"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// fixture is a captured table and a Kafka cluster with topics.
type fixture struct {
	log     *changes.Log
	pool    *pgxpool.Pool
	at      changes.Position
	cluster *kfake.Cluster
}

func newFixture(t *testing.T, topics ...string) *fixture {
	t.Helper()
	f := &fixture{pool: pgtest.Pool(t, pgtest.Database(t))}
	f.log = changes.New(f.pool, changes.Config{})
	if err := migrate.Up(t.Context(), f.pool.Config().ConnConfig, slog.New(slog.DiscardHandler), f.log.Migrations()); err != nil {
		t.Fatal(err)
	}
	f.exec(t, `CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, note text); CREATE TABLE shop."a b*" (v int)`)
	if _, err := f.log.Apply(t.Context(), []changes.Capture{{Table: "shop.*"}}, false); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.cluster, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, topics...)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.cluster.Close)
	return f
}

func (f *fixture) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(f.cluster.ListenAddrs()...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
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

// produced are the first n records of topics.
func (f *fixture) produced(t *testing.T, n int, topics ...string) (all []*kgo.Record) {
	t.Helper()
	client := f.client(t, kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	for len(all) < n {
		fetched := client.PollFetches(ctx)
		if err := fetched.Err(); err != nil {
			t.Fatalf("%d of %d records: %v", len(all), n, err)
		}
		all = append(all, fetched.Records()...)
	}
	return all
}

func TestSink(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "howdah.shop.orders", "howdah.shop.a_b_", "howdah.message.orders.shipped")
	cs := f.write(t, `INSERT INTO shop.orders VALUES (1, '<a>'), (2, 'b'); UPDATE shop.orders SET note = 'c' WHERE id = 1;
		INSERT INTO shop."a b*" VALUES (1); TRUNCATE shop.orders; SELECT howdah.change_emit('orders.shipped', '{}')`)
	if err := f.hand(t.Context(), kafka.Sink(f.client(t), kafka.Config{}), cs); err != nil {
		t.Fatal(err)
	}
	got := map[string]*kgo.Record{} // by position
	all := f.produced(t, len(cs), "howdah.shop.orders", "howdah.shop.a_b_", "howdah.message.orders.shipped")
	for _, r := range all {
		var c changes.Change
		if err := json.Unmarshal(r.Value, &c); err != nil {
			t.Fatal(err)
		}
		got[c.Position.String()] = r
	}
	topics := []string{"howdah.shop.orders", "howdah.shop.orders", "howdah.shop.orders", "howdah.shop.a_b_", "howdah.shop.orders", "howdah.message.orders.shipped"}
	for i, c := range cs {
		r := got[c.Position.String()]
		if r == nil {
			t.Fatalf("%s is missing", c.Position)
		}
		var value changes.Change
		if err := json.Unmarshal(r.Value, &value); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, value); diff != "" {
			t.Error(diff)
		}
		if r.Topic != topics[i] || string(r.Key) != string(c.Key) || (r.Key == nil) != (c.Key == nil) || !r.Timestamp.Equal(c.At.Truncate(time.Millisecond)) {
			t.Errorf("%s: topic %s, key %q, at %s", c.Position, r.Topic, r.Key, r.Timestamp)
		}
	}
	headers := map[string]string{}
	for _, h := range got[cs[0].Position.String()].Headers {
		headers[h.Key] = string(h.Value)
	}
	at, err := cs[0].At.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"content-type": "application/json", "ce_specversion": "1.0", "ce_id": cs[0].Position.String(), "ce_source": "/howdah/" + f.pool.Config().ConnConfig.Database,
		"ce_type": "howdah.change.insert", "ce_subject": "shop.orders/1", "ce_time": string(at), "ce_partitionkey": `{"id":1}`,
	}
	if diff := cmp.Diff(want, headers); diff != "" {
		t.Error(diff)
	}
	if value := string(got[cs[0].Position.String()].Value); !strings.Contains(value, "<a>") || strings.HasSuffix(value, "\n") {
		t.Errorf("value %q", value)
	}
	partitions := map[string]int32{}
	for _, r := range all {
		if p, ok := partitions[string(r.Key)]; ok && r.Key != nil && p != r.Partition {
			t.Errorf("key %s in partitions %d and %d", r.Key, p, r.Partition)
		}
		partitions[string(r.Key)] = r.Partition
	}
}

// Many changes go at once, and those of a key in their order.
func TestSinkOfMany(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "all")
	cs := f.write(t, `INSERT INTO shop.orders SELECT g, '' FROM generate_series(1, 400) g;
		UPDATE shop.orders SET note = note || 'x'; UPDATE shop.orders SET note = note || 'y' WHERE id < 100`)
	if err := f.hand(t.Context(), kafka.Sink(f.client(t), kafka.Config{Topic: "all"}), cs); err != nil {
		t.Fatal(err)
	}
	last := map[string]changes.Position{}
	for _, r := range f.produced(t, len(cs), "all") {
		var c changes.Change
		if err := json.Unmarshal(r.Value, &c); err != nil {
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

// A change that cannot be produced holds up those of its key.
func TestSinkFailure(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "all")
	cs := f.write(t, `INSERT INTO shop.orders VALUES (1, ''); UPDATE shop.orders SET note = (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 100) g);
		UPDATE shop.orders SET note = 'short'`)
	small := f.client(t, kgo.ProducerBatchMaxBytes(2048), kgo.ProducerBatchCompression(kgo.NoCompression()))
	err := f.hand(t.Context(), kafka.Sink(small, kafka.Config{Topic: "all"}), cs)
	if !errors.Is(err, kerr.MessageTooLarge) || !strings.HasPrefix(err.Error(), "changes/kafka: "+cs[1].Position.String()+": all: ") || errors.Is(err, fault.Unavailable) {
		t.Errorf("too large: %v", err)
	}
	f.produced(t, 1, "all")
	if err := f.hand(t.Context(), kafka.Sink(small, kafka.Config{Topic: "all"}), cs[2:]); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	var got []string
	for _, r := range f.produced(t, 2, "all") {
		var c changes.Change
		if err := json.Unmarshal(r.Value, &c); err != nil {
			t.Fatal(err)
		}
		got = append(got, c.Position.String())
	}
	if want := []string{cs[0].Position.String(), cs[2].Position.String()}; !cmp.Equal(got, want) {
		t.Errorf("produced %q, want %q", got, want)
	}

	one := f.client(t, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	if err := f.hand(t.Context(), kafka.Sink(one, kafka.Config{Topic: "all"}), cs); !errors.Is(err, fault.Invalid) {
		t.Errorf("acks of the leader alone: %v", err)
	}
}

// Brokers that take a record and say nothing.
func TestSinkBlackHole(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "all")
	arrived, over := make(chan struct{}, 10), make(chan struct{})
	f.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.cluster.KeepControl()
		select {
		case arrived <- struct{}{}:
		default:
		}
		f.cluster.SleepControl(func() { <-over })
		return nil, nil, false
	})
	cs := f.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	err := f.hand(t.Context(), kafka.Sink(f.client(t), kafka.Config{Topic: "all", Timeout: 50 * time.Millisecond}), cs)
	if err == nil || !strings.HasSuffix(err.Error(), "no acks within 50ms") {
		t.Errorf("timeout: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.hand(ctx, kafka.Sink(f.client(t), kafka.Config{Topic: "all"}), cs) }()
	pgtest.Receive(t, arrived, "the request")
	cancel()
	if err := pgtest.Receive(t, done, "the end of the handler"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	close(over)
}
