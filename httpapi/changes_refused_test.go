package httpapi_test

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// kept is all that the log holds but the numbers that readers give, and every trigger.
func (s *server) kept() (text string) {
	s.t.Helper()
	if err := s.db.Pool.QueryRow(within(s.t), `
		SELECT concat_ws(E'\n', (
			SELECT string_agg(query_to_xml('SELECT * FROM howdah.' || relname, true, true, '')::text, '' ORDER BY relname)
			FROM pg_class
			WHERE relnamespace = 'howdah'::regnamespace AND relkind = 'r' AND relname LIKE 'change\_%' AND relname NOT IN ('change_tick', 'change_commit')), (
			SELECT string_agg(pg_get_triggerdef(oid) || tgenabled::text, E'\n' ORDER BY oid)
			FROM pg_trigger
			WHERE NOT tgisinternal))`).Scan(&text); err != nil {
		s.t.Fatal(err)
	}
	return text
}

// What is wrong with a request about changes is told with the place in the request
// where it is wrong, and nothing is written.
func TestChangesRefused(t *testing.T) {
	t.Parallel()
	s := withConsumer(t)
	s.sql(`
		CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
		CREATE TABLE nokey (v int);
		CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id);
		CREATE TABLE own (id int PRIMARY KEY);
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER own AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION f();
		CREATE SCHEMA "a.b"; CREATE TABLE "a.b".c (id int PRIMARY KEY);
		CREATE SCHEMA a; CREATE TABLE a."b.c" (id int PRIMARY KEY);
		CREATE VIEW view AS SELECT 1 AS id;
		CREATE FOREIGN DATA WRAPPER nowhere;
		CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
		CREATE FOREIGN TABLE far (id int) SERVER nowhere`)
	if r := s.do("PUT", "/v1/changes/consumers/kept", strings.NewReader(`{"sink":{"notify":true}}`), "Content-Type: application/json"); r.StatusCode != 200 {
		t.Fatal(r.body)
	}
	before := s.kept()
	const (
		feed     = "/v1/changes"
		captures = "/v1/changes/captures"
		billing  = "/v1/changes/consumers/billing"
		messages = "/v1/changes/messages"
		save     = "/v1/changes/consumers/c"
	)
	type refusal struct {
		method, path, body, header string
		status                     int    // 0 for 400
		what, location             string // of the detail, of the field
	}
	var all []refusal
	get := func(path, what, location string) { all = append(all, refusal{"GET", path, "", "", 0, what, location}) }
	put := func(path, body, what, location string) {
		all = append(all, refusal{"PUT", path, body, "", 0, what, location})
	}
	post := func(path, body, what, location string) {
		all = append(all, refusal{"POST", path, body, "", 0, what, location})
	}

	// Positions.
	for _, p := range []string{"x", "-1", "1.", "1.2.3", "01", "1.0", "9223372036854775808", "1.9223372036854775808", "%00"} {
		get(feed+"?after="+p, "after: ", "query.after")
		get(feed+"/stream?after="+p, "after: ", "query.after")
		get(billing+"/parked?after="+p, "after: ", "query.after")
		if p == "%00" {
			continue
		}
		all = append(all, refusal{"GET", feed + "/stream?after=1", "", "Last-Event-ID: " + p, 0, "Last-Event-ID: ", "header.Last-Event-ID"})
		post(billing+"/wait", `{"position":"`+p+`"}`, "position: ", "body.position")
		post(billing+"/seek", `{"to":"`+p+`"}`, "to: ", "body.to")
		post(billing+"/parked/retry", `{"positions":["1.2","`+p+`"]}`, "positions[1]: ", "body.positions[1]")
		post(billing+"/parked/skip", `{"positions":["`+p+`"]}`, "positions[0]: ", "body.positions[0]")
		post(billing+"/parked/skip", `{"positions":["`+p+`"],"all":true}`, "positions: ", "body.positions")
		put(save, `{"from":"`+p+`","sink":{"notify":true}}`, "from: ", "body.from")
	}

	for _, body := range []string{`{}`, `{"positions":null}`, `{"all":false}`} { // as clients say what they leave out
		post(billing+"/parked/skip", body, `positions: want some, or "all": true`, "body.positions")
	}

	// What is to be read.
	for _, limit := range []string{"0", "-1", "1001", "x", "9223372036854775808"} {
		get(feed+"?limit="+limit, "limit", "query.limit")
		get(billing+"/parked?limit="+limit, "limit", "query.limit")
	}
	for _, path := range []string{feed, feed + "/stream"} {
		get(path+"?table=users", `table: "users" has no schema`, "query.table")
		get(path+"?table=public.users,public.u*", "table: ", "query.table")
		get(path+"?table=public.users:upsert", "table: ", "query.table")
		get(path+"?op=upsert", "op", "query.op[0]")
		get(path+"?match=[1]", "match: ", "query.match")
		get(path+"?match=%7B%22a%22:%22%5Cu0000%22%7D", "match: ", "query.match")
	}

	// Captures.
	for table, what := range map[string]string{
		"public/nothing": "does not exist", "public/view": "is no table", "public/far": "is no table", "howdah/change": "of PostgreSQL or of howdah",
		"pg_catalog/pg_class": "of PostgreSQL or of howdah", "public/a%00": "NUL", "a%FF/users": "UTF-8",
	} {
		put(captures+"/"+table, `{}`, what, "path.table")
	}
	for path, location := range map[string]string{"a.b/c": "path.schema", "public/*": "path.table", "a.b/%2A": "path.schema"} { // other tables, or all
		put(captures+"/"+path, `{}`, "want ", location)
		all = append(all, refusal{"DELETE", captures + "/" + path, "", "", 0, "want ", location})
	}
	for _, c := range []struct{ table, body, what, location string }{
		{"late", `{}`, "DEFERRABLE", "body.key"},
		{"users", `{"key":["no"]}`, "is no column", "body.key"},
		{"users", `{"columns":["no"]}`, "is no column", "body.columns"},
		{"users", `{"columns":["a\u0000"]}`, "NUL", "body.columns"},
		{"users", `{"except":["no"]}`, "is no column", "body.except"},
		{"users", `{"except":["id"]}`, "column of the key", "body.except"},
		{"users", `{"ops":[]}`, "ops: ", "body.ops"},
		{"users", `{"ops":["read"]}`, "expected value to be one of", "body.ops[0]"},
		{"users", `{"payload":"some"}`, "expected value to be one of", "body.payload"},
		{"users", `{"wake":"never"}`, "expected value to be one of", "body.wake"},
		{"users", `{"max_bytes":-1}`, "expected number", "body.max_bytes"},
		{"users", `{"max_bytes":1073741824}`, "max_bytes: ", "body.max_bytes"},
		{"users", `{"when":"NEW.id > 1"}`, "unexpected property", "body.when"}, // SQL
		{"users", `{"bulk":true,"payload":"diff"}`, "with payload diff", "body.bulk"},
		{"users", `{"bulk":true,"columns":["name"]}`, "with columns", "body.bulk"},
		{"users", `{"bulk":true,"except":["name"]}`, "with except", "body.bulk"},
		{"users", `{"bulk":true,"always":true}`, "with always", "body.bulk"},
		{"parts", `{"bulk":true}`, "partitions", "body.bulk"},
		{"parts", `{"ops":["update"]}`, "moves between partitions", "body.ops"},
		{"own", `{"bulk":true}`, `trigger "own"`, "body.bulk"},
	} {
		put(captures+"/public/"+c.table, c.body, c.what, c.location)
	}
	post(captures+"/plan", `{"captures":[{"table":"users"}]}`, "want schema.table", "body.captures[0].table")
	post(captures+"/plan", `{"captures":[{"table":"public.users"},{"table":"public.users","columns":["no"]}]}`, "is no column", "body.captures[1].columns")
	post(captures+"/plan", `{"captures":[{"table":"public.users"},{"table":"public.users"}]}`, "there twice", "body.captures[1].table")
	post(captures+"/plan", `{"captures":[{"table":"public.*"},{"table":"no.*"}]}`, "", "body.captures[0].key") // late has none to go by
	post(captures+"/plan", `{"captures":[{"table":"public.own"},{"table":"no.*"}]}`, "no such schema", "body.captures[1].table")

	// Messages.
	for _, topic := range []string{"", "A", "a b", "ö", "a/b", `a\u0000`, strings.Repeat("a", 101)} {
		post(messages, `{"topic":"`+topic+`","payload":1}`, "topic: ", "body.topic")
	}
	post(messages, `{"topic":"a"}`, "payload", "body")
	post(messages, `{"topic":"a","payload":"\u0000"}`, "payload: a NUL", "body.payload")
	post(messages, `{"topic":"a","payload":"\ud800"}`, "half a surrogate pair", "body")
	post(messages, `{"topic":"a","payload":{}`, "unexpected end of JSON", "body")
	post(messages, `{"topic":"a","payload":"`+strings.Repeat("x", 1<<20)+`"}`, "payload: ", "body.payload")

	// Consumers.
	notify := func(rest string) string { return `{"sink":{"notify":true}` + rest + `}` }
	webhook := func(rest string) string { return `{"sink":{"webhook":{` + rest + `}}}` }
	for _, name := range []string{"C", "-c", strings.Repeat("c", 41), "a%20b", "%C3%B6", "c%00", "c%FF"} {
		put("/v1/changes/consumers/"+name, notify(""), "name: ", "path.name")
	}
	for name, what := range map[string]string{"c%00": "name: a NUL byte at byte 1", "c%FF": "name: invalid UTF-8 at byte 1"} {
		consumer := "/v1/changes/consumers/" + name
		get(consumer, what, "path.name")
		get(consumer+"/parked", what, "path.name")
		all = append(all, refusal{"DELETE", consumer, "", "", 0, what, "path.name"})
		for verb, body := range map[string]string{
			"pause": `{}`, "resume": `{}`, "seek": `{"to":"start"}`, "reshard": `{"shards":2}`, "backfill": `{"tables":["public.users"]}`,
			"wait": `{"position":"0"}`, "parked/retry": `{}`, "parked/skip": `{"all":true}`,
		} {
			post(consumer+"/"+verb, body, what, "path.name")
		}
	}
	put(save, notify(`,"shards":0`), "shards", "body.shards")
	put(save, notify(`,"shards":65`), "shards", "body.shards")
	put(save, notify(`,"batch":0`), "batch", "body.batch")
	put(save, notify(`,"batch":10001`), "batch", "body.batch")
	put(save, notify(`,"tables":["*","users"]`), "has no schema", "body.tables[1]")
	put(save, notify(`,"tables":["*","*"]`), "handler already", "body.tables")
	put(save, notify(`,"backfill":["public.nokey"]`), "is not captured", "body.backfill")
	put(save, notify(`,"backfill":["a\u0000"]`), "NUL", "body.backfill")
	put(save, `{"sink":{}}`, "sink: 0 kinds", "body.sink")
	put(save, `{"sink":{"sql":"SELECT 1"}}`, "unexpected property", "body.sink.sql") // SQL, too
	put(save, `{"sink":{"notify":true,"webhook":{"url":"https://example.com"}}}`, "sink: 2 kinds", "body.sink")
	put(save, webhook(`"url":"ftp://example.com"`), "want one such as", "body.sink.webhook.url")
	put(save, webhook(`"url":"http://127.0.0.1/hook"`), "127.0.0.1", "body.sink.webhook.url")
	put(save, webhook(`"url":"https://example.com","secrets":["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G","kurz"]`), "4 bytes", "body.sink.webhook.secrets[1]")
	put(save, webhook(`"url":"https://example.com","timeout":"soon"`), "want a duration", "body.sink.webhook.timeout")
	put(save, webhook(`"url":"https://example.com","timeout":"0s"`), "more than nothing", "body.sink.webhook.timeout")
	put(save, webhook(`"url":"https://example.com","timeout":"-1s"`), "more than 0", "body.sink.webhook.timeout")
	put(save, webhook(`"url":"https://example.com","timeout":"9999h"`), "at most", "body.sink.webhook.timeout")
	post(billing+"/pause", `{"reason":"a\u0000"}`, "reason: a NUL", "body.reason")
	post(billing+"/reshard", `{"shards":0}`, "shards", "body.shards")
	post(billing+"/backfill", `{}`, "are missing", "body.tables")
	post(billing+"/backfill", `{"tables":["public.nowhere"]}`, "is not captured", "body.tables")
	post(billing+"/backfill", `{"tables":["a\u0000"]}`, "NUL", "body.tables")
	post(billing+"/backfill", `{"tables":["public.nowhere"],"end":true}`, "is not captured", "body.tables")
	post(billing+"/backfill", `{"tables":["a\u0000"],"end":true}`, "NUL", "body.tables")
	for _, timeout := range []string{"0s", "-1s", "61s", "soon"} {
		post(billing+"/wait", `{"timeout":"`+timeout+`"}`, "timeout: ", "body.timeout")
	}
	all = append(all,
		refusal{"PUT", billing, notify(""), "", 409, `"billing" is run by a program of its own`, ""},
		refusal{"PUT", save, notify(`,"from":"99"`), "", 409, "ahead of the feed", ""},
		refusal{"POST", billing + "/seek", `{"to":"99"}`, "", 409, "ahead of the feed", ""},
		refusal{"GET", feed + "?after=99", "", "", 409, "ahead of the feed", ""},
		refusal{"GET", feed + "/stream?after=99", "", "", 409, "ahead of the feed", ""},
		refusal{"GET", "/v1/changes/consumers/nobody", "", "", 404, "no such consumer", ""},
	)
	for _, c := range all {
		headers := []string{"Content-Type: application/json"}
		if c.header != "" {
			headers = append(headers, c.header)
		}
		var body io.Reader
		if c.body != "" {
			body = strings.NewReader(c.body)
		}
		var locations []string
		if c.location != "" {
			locations = []string{c.location}
		}
		wantProblem(t, s.do(c.method, c.path, body, headers...), cmp.Or(c.status, 400), c.what, locations...)
		if t.Failed() {
			t.Logf("it was %s %s %.200s", c.method, c.path, c.body)
		}
	}
	if after := s.kept(); after != before {
		t.Errorf("what was refused has been written\nbefore: %s\nafter: %s", before, after)
	}
	if strings.Contains(s.log.String(), "level=ERROR") {
		t.Errorf("bad input is no error of ours: %s", s.log)
	}
}

// A position that is gone, in a lost history or never reached is told before a stream
// begins, in a way that programs can tell apart, and within it.
func TestPositionsAreTold(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{})
	background(t, s)
	for i := range 3 {
		s.sql(fmt.Sprintf(`INSERT INTO users VALUES (%d, 'Ada')`, i))
	}
	const at = "/v1/changes"
	wantJSON(t, s.get(at+"/position"), `{"position":"3"}`)

	// A new era: 4 to its first number was never this history's.
	s.sql(`UPDATE howdah.change_tick SET timeline = '0000BEEF' WHERE tick = (SELECT max(tick) FROM howdah.change_tick)`)
	s.sql(`INSERT INTO users VALUES (4, 'Grace')`)
	wantJSON(t, s.get(at+"/position"), `{"position":"1000000000000"}`)
	told := func(position string, status int, kind string) {
		t.Helper()
		for _, ask := range [][]string{{at + "?after=" + position}, {at + "/stream?after=" + position}, {at + "/stream", "Last-Event-ID: " + position}} {
			if p := wantProblem(t, s.do("GET", ask[0], nil, ask[1:]...), status, "the position "); p.Type != "urn:howdah:"+kind {
				t.Errorf("%s: type %s, want %s", ask, p.Type, kind)
			}
		}
	}
	told("4", 409, "position-ahead")
	told("1000000000001", 409, "position-ahead")

	// A stream whose next page is gone says so as its last event.
	request, err := http.NewRequestWithContext(within(t), "GET", s.URL+at+"/stream?after=3", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	event, last := "", ""
	for lines := bufio.NewScanner(stream.Body); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = name
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			last = data
			if event == "insert" {
				s.sql(`UPDATE howdah.change_state SET floor = 1000000000005`)
				s.sql(`INSERT INTO users VALUES (5, 'Edsger')`)
			}
		}
	}
	if event != "expired" || !strings.Contains(last, `"type":"urn:howdah:position-expired"`) {
		t.Errorf("the last event is %s: %s", event, last)
	}
	told("2", 404, "position-expired")
	told("1000000000000", 404, "position-expired")
}

// A table that others have locked is told with who they are, and nothing is changed; a
// log that takes no more fails what is written, and says so.
func TestChangesFaults(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{})
	tx, err := s.db.Pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(within(t))
	if _, err := tx.Exec(within(t), `INSERT INTO users VALUES (1, 'Ada')`); err != nil {
		t.Fatal(err)
	}
	impatient := serve(t, s.db.Pool.Config().ConnString()+"&lock_timeout=20", httpapi.Config{})
	before := s.kept()
	locked := fmt.Sprintf("locked by process %d", tx.Conn().PgConn().PID())
	for _, r := range []response{
		impatient.do("PUT", "/v1/changes/captures/public/users", strings.NewReader(`{"payload":"diff"}`), "Content-Type: application/json"),
		impatient.do("DELETE", "/v1/changes/captures/public/users", nil),
	} {
		if p := wantProblem(t, r, 503, locked); r.Header.Get("Retry-After") == "" || p.Type != "urn:howdah:unavailable" {
			t.Errorf("Retry-After %q, %s", r.Header.Get("Retry-After"), p.Type)
		}
	}
	if after := s.kept(); after != before {
		t.Errorf("before: %s\nafter: %s", before, after)
	}
	if err := tx.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}

	s.sql(`
		CREATE FUNCTION full_() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
		CREATE TRIGGER full_ BEFORE INSERT ON howdah.change FOR EACH ROW EXECUTE FUNCTION full_()`)
	wantProblem(t, s.post("/v1/changes/messages", `{"topic":"a","payload":1}`), 503, "No space left on device")
	if _, err := s.db.Pool.Exec(within(t), `INSERT INTO users VALUES (2, 'Grace')`); err == nil {
		t.Error("a write that could not be logged went through")
	}
	s.sql(`DROP FUNCTION full_() CASCADE`)
	wantJSON(t, s.get("/v1/changes/position"), `{"position":"0"}`)
}

// The server stops sending to a client that does not read, and ends the stream; the
// client goes on behind the last that it has, and misses nothing.
func TestSlowClientResumes(t *testing.T) {
	t.Parallel()
	const messages = 48 // of 256 KiB: more than lies between the two of them
	s := serve(t, "", httpapi.Impatient(httpapi.Config{}, 200*time.Millisecond))
	background(t, s)
	s.sql(`SELECT howdah.change_emit('a', to_jsonb(repeat('x', 262144))) FROM generate_series(1, ` + fmt.Sprint(messages) + `)`)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(1 << 14); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v1/changes/stream?after=start HTTP/1.0\r\nHost: localhost\r\n\r\n")
	eventually(t, "the server has let it go", func() bool {
		return strings.Contains(s.get("/metrics").body, `howdah_http_request_seconds_count{route="GET /v1/changes/stream"`)
	})
	conn.SetDeadline(time.Now().Add(pgtest.Patience))
	text, _ := io.ReadAll(conn) // what was on the way, and then a reset perhaps
	events := strings.Split(string(text), "\n\n")
	var ids []string
	for _, e := range events[:len(events)-1] { // the last is cut off
		if id, rest, _ := strings.Cut(e, "\n"); strings.HasPrefix(rest, "event: message") {
			ids = append(ids, strings.TrimPrefix(id, "id: "))
		}
	}
	if len(ids) == 0 || len(ids) == messages {
		t.Fatalf("%d of %d came through", len(ids), messages)
	}
	// Where a server is as patient as servers are: on a busy machine we are slow, too.
	patient := serve(t, s.db.Pool.Config().ConnString(), httpapi.Config{})
	background(t, patient)
	for _, e := range patient.events(t, "/v1/changes/stream", messages-len(ids), "Last-Event-ID: "+ids[len(ids)-1]) {
		id, _, _ := strings.Cut(e, "\n")
		ids = append(ids, strings.TrimPrefix(id, "id: "))
	}
	for i, id := range ids {
		if want := fmt.Sprintf("1.%d", i+1); id != want {
			t.Fatalf("event %d is %s, want %s", i, id, want)
		}
	}
}
