package changes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest/golden"
)

// shop is a table that is captured, and what its feed hands to sinks.
type shop struct {
	log  *changes.Log
	pool *pgxpool.Pool
	at   changes.Position
}

func newShop(t testing.TB) *shop {
	t.Helper()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, note text)`)
	capture(t, l, changes.Capture{Table: "shop.*", Payload: changes.PayloadFull})
	return &shop{log: l, pool: pool}
}

// write runs SQL and returns the changes it made.
func (s *shop) write(t testing.TB, sql string, args ...any) (cs []changes.Change) {
	t.Helper()
	exec(t, s.pool, sql, args...)
	cs, s.at = readAll(t, s.log, s.at, 1000, changes.Filter{})
	return cs
}

// hand gives changes to h as a consumer does.
func (s *shop) hand(ctx context.Context, h changes.Handler, cs []changes.Change) error {
	return pgx.BeginFunc(context.WithoutCancel(ctx), s.pool, func(tx pgx.Tx) error {
		return h(changes.InBilling(ctx), tx, cs)
	})
}

func (s *shop) mustHand(t testing.TB, h changes.Handler, cs []changes.Change) {
	t.Helper()
	if err := s.hand(t.Context(), h, cs); err != nil {
		t.Fatal(err)
	}
}

// sinkVectors are the known answers of sinks.
type sinkVectors struct {
	WebhookSignature []struct {
		Secret, ID, Timestamp, Body, Signature string
		Secrets                                []string
	} `json:"webhook_signature"`
	CloudEvent []struct {
		Database string
		Change   changes.Change
		Event    json.RawMessage
	}
	Notify []struct {
		Change  changes.Change
		Channel *string
		Payload map[string]json.RawMessage
	}
}

func readSinkVectors(t *testing.T) (v sinkVectors) {
	t.Helper()
	readGolden(t, "vectors.json", &v)
	if len(v.WebhookSignature)*len(v.CloudEvent)*len(v.Notify) == 0 {
		t.Fatalf("vectors: %+v", v)
	}
	return v
}

func TestCloudEventVectors(t *testing.T) {
	t.Parallel()
	for _, v := range readSinkVectors(t).CloudEvent {
		got := jsonOf(t, changes.CloudEventOf(v.Database, v.Change))
		if !golden.SameJSON(v.Event, json.RawMessage(got)) {
			t.Errorf("got %s\nwant %s", got, v.Event)
		}
	}
}

func TestCloudEvents(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	exec(t, s.pool, `CREATE TABLE shop."a/b" (k text, n numeric, j jsonb, PRIMARY KEY (k, n, j)); CREATE TABLE shop.none (v int)`)
	capture(t, s.log, changes.Capture{Table: "shop.*", Payload: changes.PayloadFull})
	cs := s.write(t, `
		INSERT INTO shop."a/b" VALUES (E'x,"\t<é', 1.50, '[1, {"a": null}]');
		INSERT INTO shop.none VALUES (1)`)
	var database string
	if err := s.pool.QueryRow(t.Context(), `SELECT current_database()`).Scan(&database); err != nil {
		t.Fatal(err)
	}
	s.mustHand(t, func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		events, err := changes.CloudEvents(ctx, tx, cs)
		if err != nil {
			return err
		}
		got, want := events[0], changes.CloudEvent{
			SpecVersion: "1.0", ID: cs[0].Position.String(), Source: "/howdah/" + database, Type: "howdah.change.insert",
			Subject:         `shop.a/b/[1,{"a":null}],x,"%09<é,1.50`, // jsonb puts j first
			Time:            cs[0].At,
			DataContentType: "application/json", PartitionKey: `{"j":[1,{"a":null}],"k":"x,\"\t<é","n":1.50}`, Data: cs[0],
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if events[1].Subject != "shop.none" || events[1].PartitionKey != "" {
			t.Errorf("without a key: %+v", events[1])
		}
		return nil
	}, cs)
	if got := changes.CloudEventOf(`a b/ü`, cs[0]).Source; got != "/howdah/a%20b%2F%C3%BC" {
		t.Errorf("source %s", got)
	}
}

// Rows of a backfill share a position and have ids of their own, always the same.
func TestCloudEventOfARead(t *testing.T) {
	t.Parallel()
	read := func(table, key string) string {
		e := changes.CloudEventOf("d", changes.Change{Position: changes.Position{Commit: 1042}, Op: changes.Read, Schema: "a", Table: table, Key: json.RawMessage(key)})
		if e.WebhookID() != strings.Replace(e.ID, ".", "-", 1) || len(e.ID) != len("1042.")+16 {
			t.Errorf("id %s, of the webhook %s", e.ID, e.WebhookID())
		}
		return e.ID
	}
	ids := []string{read("t", `{"id":1}`), read("t", `{"id":2}`), read("u", `{"id":1}`), read("t", `{"id": 1}`)}
	if ids[3] != ids[0] || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 3 {
		t.Errorf("%q", ids)
	}
}

// full is a writer that has room for so many bytes, then fails.
type full struct {
	bytes.Buffer
	room    int
	flushes int
	fail    error
}

func (f *full) Write(b []byte) (int, error) {
	n := min(len(b), f.room)
	f.room -= n
	f.Buffer.Write(b[:n])
	if n < len(b) {
		return n, errors.New("no space")
	}
	return n, nil
}

func (f *full) Flush() error { f.flushes++; return f.fail }

func TestLines(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, '<a & b>'), (2, E'two\nlines'), (3, '')`)
	var want string
	for _, c := range cs {
		want += plainJSON(t, c) + "\n"
	}
	if strings.Count(want, "\n") != 3 || !strings.Contains(want, "<a & b>") {
		t.Fatalf("the changes are %s", want)
	}
	out := &full{room: 1 << 20}
	s.mustHand(t, changes.Lines(out), cs)
	if out.String() != want || out.flushes != 1 {
		t.Errorf("%d flushes, got %s\nwant %s", out.flushes, out, want)
	}
	out.fail = errors.New("cannot flush")
	if err := s.hand(t.Context(), changes.Lines(out), cs); !errors.Is(err, out.fail) {
		t.Errorf("flush fails: %v", err)
	}
}

// Wherever an output is cut off, what it takes later makes whole lines of it.
func TestLinesAreWhole(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, 'a'), (2, 'b')`)
	line := len(plainJSON(t, cs[0])) + 1
	for room := range line + 3 {
		out := &full{room: room}
		h := changes.Lines(out)
		for _, more := range []int{0, 5, 1 << 20} { // it fails thrice, perhaps
			err := s.hand(t.Context(), h, cs)
			if err == nil || errors.Is(err, fault.Unavailable) {
				t.Fatalf("room for %d bytes: %v", room, err)
			}
			out.room += more
		}
		s.mustHand(t, h, cs)
		var last []string
		for text := range strings.Lines(out.String()) {
			if !json.Valid([]byte(text)) || !strings.HasSuffix(text, "\n") {
				t.Fatalf("room for %d bytes: no line: %q", room, text)
			}
			last = append(last, text)
		}
		if got := strings.Join(last[len(last)-2:], ""); got != plainJSON(t, cs[0])+"\n"+plainJSON(t, cs[1])+"\n" {
			t.Errorf("room for %d bytes: ends with %s", room, got)
		}
	}
}

// Shards of a consumer share an output.
func TestLinesOfMany(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders SELECT g, repeat('x', 100) FROM generate_series(1, 50) g`)
	out := &full{room: 1 << 20}
	h := changes.Lines(out)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for _, c := range cs {
				if err := s.hand(t.Context(), h, []changes.Change{c}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	n := 0
	for text := range strings.Lines(out.String()) {
		if n++; !json.Valid([]byte(text)) {
			t.Fatalf("no line: %q", text)
		}
	}
	if n != 200 {
		t.Errorf("%d lines, want 200", n)
	}
}

func plainJSON(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

func TestNotifyVectors(t *testing.T) {
	t.Parallel()
	for _, v := range readSinkVectors(t).Notify {
		payload, channel := changes.Notice(v.Change)
		if v.Channel == nil {
			if channel != "" {
				t.Errorf("%s on %s", payload, channel)
			}
			continue
		}
		var got map[string]json.RawMessage
		if err := json.Unmarshal(payload, &got); err != nil || channel != *v.Channel {
			t.Errorf("%s on %q, %v", payload, channel, err)
		}
		for name, want := range v.Payload {
			if !golden.SameJSON(want, got[name]) {
				t.Errorf("%s = %s, want %s", name, got[name], want)
			}
		}
	}
}

// counted counts the statements of a transaction.
type counted struct {
	pgx.Tx
	n int
}

func (c *counted) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	c.n++
	return c.Tx.Exec(ctx, sql, args...)
}

// S1, S2, S4, S7, S10: the payload is JSON, whatever the key is, and never too long.
func TestS1S4Notify(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	exec(t, s.pool, `CREATE TABLE shop.parts (x text, y int, PRIMARY KEY (x, y)); CREATE TABLE shop.none (v int)`)
	capture(t, s.log, changes.Capture{Table: "shop.*", Payload: changes.PayloadFull})
	listener, err := pgx.ConnectConfig(t.Context(), s.pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close(context.WithoutCancel(t.Context()))
	if _, err := listener.Exec(t.Context(), `LISTEN create_or_update_record; LISTEN delete_record`); err != nil {
		t.Fatal(err)
	}

	cs := s.write(t, `
		INSERT INTO shop.orders VALUES (1, 'a "quoted" é');
		UPDATE shop.orders SET note = repeat('x', 9000);
		DELETE FROM shop.orders;
		INSERT INTO shop.parts VALUES ('it''s', 7), (repeat('long', 2500), 1);
		INSERT INTO shop.none VALUES (5);
		TRUNCATE shop.none;
		SELECT howdah.change_emit('topic', '{}')`)
	statements := &counted{}
	s.mustHand(t, func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		statements.Tx = tx
		return changes.Notify()(ctx, statements, cs)
	}, cs)
	if statements.n != 1 {
		t.Errorf("%d statements for a batch, want 1", statements.n)
	}
	exec(t, s.pool, `SELECT pg_notify('delete_record', 'end')`)

	var got []string
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for len(got) == 0 || got[len(got)-1] != "delete_record end" {
		n, err := listener.WaitForNotification(ctx)
		if err != nil {
			t.Fatalf("heard %q, and then %v", got, err)
		}
		got = append(got, n.Channel+" "+n.Payload)
	}
	id := func(i int) int64 { return cs[i].Position.ID }
	want := []string{
		fmt.Sprintf(`create_or_update_record {"klass_name":"orders","crud_method":"create_or_update","record_id":1,"database_trigger_log_id":%d,"schema":"shop","record":{"id":1,"note":"a \"quoted\" é"}}`, id(0)),
		fmt.Sprintf(`create_or_update_record {"klass_name":"orders","crud_method":"create_or_update","record_id":1,"database_trigger_log_id":%d,"schema":"shop"}`, id(1)),
		fmt.Sprintf(`delete_record {"klass_name":"orders","crud_method":"delete","record_id":1,"database_trigger_log_id":%d,"schema":"shop"}`, id(2)),
		fmt.Sprintf(`create_or_update_record {"klass_name":"parts","crud_method":"create_or_update","record_id":{"x":"it's","y":7},"database_trigger_log_id":%d,"schema":"shop","record":{"x":"it's","y":7}}`, id(3)),
		fmt.Sprintf(`create_or_update_record {"klass_name":"parts","crud_method":"create_or_update","database_trigger_log_id":%d,"schema":"shop"}`, id(4)),
		fmt.Sprintf(`create_or_update_record {"klass_name":"none","crud_method":"create_or_update","database_trigger_log_id":%d,"schema":"shop","record":{"v":5}}`, id(5)),
		`delete_record end`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// S4: the longest payload that PostgreSQL takes is sent whole, a byte more is not.
func TestS4NotifyAtTheLimit(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	short, _ := changes.Notice(s.write(t, `INSERT INTO shop.orders VALUES (1, '')`)[0])
	room := 7999 - len(short)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (2, repeat('x', $1)), (3, repeat('x', $1 + 1)), (4, repeat('ü', $1 / 2 + 1))`, room)
	listener, err := pgx.ConnectConfig(t.Context(), s.pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close(context.WithoutCancel(t.Context()))
	if _, err := listener.Exec(t.Context(), `LISTEN create_or_update_record`); err != nil {
		t.Fatal(err)
	}
	s.mustHand(t, changes.Notify(), cs)
	for _, whole := range []bool{true, false, false} {
		n, err := listener.WaitForNotification(t.Context())
		if err != nil || (len(n.Payload) == 7999) != whole || strings.Contains(n.Payload, "record\":{") != whole {
			t.Errorf("%v: %d bytes, whole %v: %.200s", err, len(n.Payload), whole, n.Payload)
		}
	}
}
