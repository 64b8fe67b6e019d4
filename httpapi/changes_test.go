package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/httpapi"
)

// withUsers is a server with a captured table.
func withUsers(t *testing.T, cfg httpapi.Config) *server {
	t.Helper()
	s := serve(t, "", cfg)
	s.sql(`CREATE TABLE users (id int PRIMARY KEY, name text)`)
	if r := s.do("PUT", "/v1/changes/captures/public/users", strings.NewReader(`{"payload":"full"}`), "Content-Type: application/json"); r.StatusCode != 200 {
		t.Fatal(r.body)
	}
	return s
}

func (s *server) sql(sql string) {
	s.t.Helper()
	if _, err := s.db.Pool.Exec(within(s.t), sql); err != nil {
		s.t.Fatal(err)
	}
}

// What a service of howdah captures for itself is shown to who asks for it, and neither
// ended nor changed.
func TestCapturesOfAService(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{})
	s.sql(`UPDATE howdah.change_spec SET owner = 'documents'`)
	if r := s.get("/v1/changes/captures"); r.StatusCode != 200 || strings.Contains(r.body, "public.users") {
		t.Errorf("%s %s, want none", r.Status, r.body)
	}
	if r := s.get("/v1/changes/captures?all=true"); r.StatusCode != 200 || !strings.Contains(r.body, `"table":"public.users"`) || !strings.Contains(r.body, `"owner":"documents"`) {
		t.Errorf("%s %s, want users with its owner", r.Status, r.body)
	}
	for _, r := range []response{
		s.do("DELETE", "/v1/changes/captures/public/users", nil),
		s.do("PUT", "/v1/changes/captures/public/users", strings.NewReader(`{"payload":"diff"}`), "Content-Type: application/json"),
		s.post("/v1/changes/captures/plan", `{"captures":[{"table":"public.users","payload":"diff"}]}`),
	} {
		if r.StatusCode != 409 || !strings.Contains(r.body, "captured for the service documents") {
			t.Errorf("%s %s, want 409 with the service's name", r.Status, r.body)
		}
	}
}

func TestChangesPageByPage(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{})
	s.sql(`INSERT INTO users VALUES (1, 'Ada'), (2, 'Grace')`)
	s.sql(`DELETE FROM users WHERE id = 2`)
	var all []string
	after := "start"
	for range 10 {
		r := s.get("/v1/changes?limit=2&after=" + after)
		var page struct {
			Changes    []struct{ Position, Op string }
			Next, Head string
		}
		if err := json.Unmarshal([]byte(r.body), &page); err != nil {
			t.Fatalf("%s: %v", r.body, err)
		}
		if page.Head != "2" {
			t.Errorf("after %s: head %q, want 2", after, page.Head)
		}
		for _, c := range page.Changes {
			all = append(all, c.Position+" "+c.Op)
		}
		if page.Next == after {
			break
		}
		after = page.Next
	}
	if got, want := strings.Join(all, ", "), "1.1 insert, 1.2 insert, 2.3 delete"; got != want {
		t.Errorf("read %s, want %s", got, want)
	}
	if r := s.get(`/v1/changes?op=delete&table=public.users&match={"name":"Grace"}`); strings.Count(r.body, `"position"`) != 1 {
		t.Errorf("filtered: %s", r.body)
	}
	wantJSON(t, s.get("/v1/changes/position"), `{"position":"2"}`)
	if r := s.post("/v1/changes/messages", `{"topic":"users.counted","payload":{"n":1}}`); r.StatusCode != 201 || r.body != `{"topic":"users.counted"}`+"\n" {
		t.Errorf("a message: %s %s", r.Status, r.body)
	}
	if r := s.get(`/v1/changes?after=2&table=message.users.counted`); !strings.Contains(r.body, `"new":{"n":1}`) || !strings.Contains(r.body, `"next":"3","head":"3"`) {
		t.Errorf("the message: %s", r.body)
	}
}

// S11: those of TRUNCATE, too, and whatever kind of table they are of.
func TestChangesTriggers(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	s.sql(`CREATE TABLE users (id int PRIMARY KEY); CREATE VIEW seen AS SELECT * FROM users;
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER seen INSTEAD OF INSERT OR UPDATE ON seen FOR EACH ROW EXECUTE FUNCTION f()`)
	if r := s.do("PUT", "/v1/changes/captures/public/users", strings.NewReader(`{"ops":["truncate"]}`), "Content-Type: application/json"); r.StatusCode != 200 {
		t.Fatal(r.body)
	}
	var all struct{ Triggers []map[string]string }
	if err := json.Unmarshal([]byte(s.get("/v1/changes/triggers").body), &all); err != nil {
		t.Fatal(err)
	}
	public := slices.DeleteFunc(all.Triggers, func(tr map[string]string) bool { return !strings.HasPrefix(tr["table_name"], "public.") }) // other services have some
	want := []map[string]string{
		{"table_name": "public.seen", "trigger_name": "seen", "events": "insert,update", "enabled": "yes", "whose": "public.f"},
		{"table_name": "public.users", "trigger_name": "!howdah_truncate", "events": "truncate", "enabled": "yes", "whose": "howdah"},
	}
	if diff := cmp.Diff(want, public); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// events reads a stream until it has seen n events, each as its lines.
func (s *server) events(t *testing.T, path string, n int, headers ...string) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	response, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got := response.Header.Get("Content-Type"); got != "text/event-stream" || response.StatusCode != 200 {
		t.Fatalf("%s: %s %s", path, response.Status, got)
	}
	var all []string
	event := ""
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for len(all) < n && lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, ":"):
		case line == "":
			if strings.Contains(event, "data: ") {
				all = append(all, event)
			}
			event = ""
		default:
			event += line + "\n"
		}
	}
	if len(all) < n {
		t.Fatalf("the stream ended after %q: %v", all, lines.Err())
	}
	return all
}

func TestChangesStreamAndResume(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{})
	background(t, s)
	s.sql(`INSERT INTO users VALUES (1, 'Ada')`)
	first := s.events(t, "/v1/changes/stream?after=start", 1)[0]
	if !strings.HasPrefix(first, "id: 1.1\nevent: insert\ndata: {\"position\":\"1.1\",\"op\":\"insert\"") {
		t.Errorf("first event: %s", first)
	}
	for i := range 3 {
		s.sql(`UPDATE users SET name = name || '` + string(rune('a'+i)) + `'`)
	}
	rest := s.events(t, "/v1/changes/stream?after=start&op=update", 3, "Last-Event-ID: 1.1")
	for i, want := range []string{"id: 2.2\nevent: update\n", "id: 3.3\nevent: update\n", "id: 4.4\nevent: update\n"} {
		if !strings.HasPrefix(rest[i], want) {
			t.Errorf("event %d: %s", i, rest[i])
		}
	}
}

// A stream on which nothing happens says again and again that it is alive, in comments,
// which are no events, and goes on with what happens then.
func TestQuietStreamIsKeptAlive(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Lively(httpapi.Config{}, 10*time.Millisecond))
	background(t, s)
	request, err := http.NewRequestWithContext(within(t), "GET", s.URL+"/v1/changes/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	quiet, told := 0, ""
	for lines := bufio.NewScanner(response.Body); told == "" && lines.Scan(); {
		switch line := lines.Text(); {
		case line == ": ":
			if quiet++; quiet == 3 {
				s.sql(`INSERT INTO users VALUES (1, 'Ada')`)
			}
		case strings.HasPrefix(line, "event: "):
			told = line
		case line != "" && line != "id: 0" && line != "id: 1.1":
			t.Errorf("a line %q", line)
		}
	}
	if quiet < 3 || told != "event: insert" {
		t.Errorf("%d signs of life, then %q", quiet, told)
	}
}

func TestStreamsEndWithTheServer(t *testing.T) {
	t.Parallel()
	ending := make(chan struct{})
	close(ending)
	s := withUsers(t, httpapi.Config{Ending: ending})
	if got := s.events(t, "/v1/changes/stream", 1)[0]; got != "event: bye\ndata: {}\n" {
		t.Errorf("last event: %q", got)
	}
}

// HEAD of a stream answers as GET would begin, and ends: the connection is free for the
// next request.
func TestHeadOfAStream(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{})
	s.post("/v1/checklists/l/items", `{"items":["a"]}`)
	transport := s.client.Transport.(*http.Transport).Clone()
	transport.MaxConnsPerHost = 1
	defer transport.CloseIdleConnections()
	s.client.Transport = transport
	for _, path := range []string{"/v1/changes/stream", "/v1/checklists/l/watch", "/v1/counters/keys/k/watch?granularity=1h"} {
		if r := s.do("HEAD", path, nil); r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("HEAD %s: %s %v", path, r.Status, r.Header)
		}
		s.get("/healthz")
	}
	if r := s.do("HEAD", "/v1/changes/stream?after=9", nil); r.StatusCode != 409 {
		t.Errorf("HEAD behind the end: %s", r.Status)
	}
}
