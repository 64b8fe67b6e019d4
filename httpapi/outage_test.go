package httpapi_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// While the database is away everything that needs it says so, and when; it
// recovers by itself.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	s := serve(t, proxy.URL(), httpapi.Config{})
	wantJSON(t, s.get("/readyz"), `{"status":"ready","notifications":"connecting"}`)
	wantJSON(t, s.post(someItems, `{"items":["a"]}`), `{"added":1,"skipped":0}`)

	began := time.Now()
	proxy.Refuse(true)
	proxy.Cut()
	// All at once: each waits a few seconds for the database to come back. On new
	// connections: what is written to one before its end is noticed may have been
	// done, which is another answer.
	s.db.Pool.Reset()
	awayAll(t, s, []string{
		"GET /readyz", "GET /v1/checklists", "GET " + someItems, "GET " + someItems + "/a", "GET /v1/checklists/l/export",
		"POST " + someItems, "POST /v1/checklists/l/increment", "POST /v1/checklists/l/delete", "POST /v1/checklists/l/import", "POST /v1/transact",
	})
	wantJSON(t, s.get("/healthz"), `{"status":"ok"}`)
	wantProblem(t, s.post(someItems, `{}`), 400, "required property items", "body")
	// Said once, and again where all this took longer than it is silent.
	log, most := s.log.String(), 1+int(time.Since(began)/(10*time.Second))
	if n := strings.Count(log, "requests are refused"); n < 1 || n > most || strings.Contains(log, "level=ERROR") {
		t.Errorf("log: %s", log)
	}

	proxy.Refuse(false)
	eventually(t, "it is ready again", func() bool { return s.get("/readyz").StatusCode == 200 })
	wantJSON(t, s.get(someItems), `{"items":[{"item":"a","attempts":0}]}`)
}

// awayAll sends requests at once and wants to be told that the database is away.
func awayAll(t *testing.T, s *server, lines []string) {
	t.Helper()
	var wait sync.WaitGroup
	for _, line := range lines {
		method, path, _ := strings.Cut(line, " ")
		contentType := "Content-Type: application/json"
		if strings.HasSuffix(path, "/import") {
			contentType = "Content-Type: text/plain"
		}
		body := `{"items":["b"]}`
		if path == "/v1/transact" {
			body = transaction(`{"service":"checklists","op":"insert","list":"l","items":["b"]}`)
		}
		wait.Go(func() {
			r, err := s.try(method, path, strings.NewReader(body), contentType)
			if err != nil {
				t.Errorf("%s: %v", line, err)
				return
			}
			p := wantProblem(t, r, 503, "the database is away; try again")
			if got := r.Header.Get("Retry-After"); got != "1" || p.Type != "urn:howdah:unavailable" {
				t.Errorf("%s: Retry-After %q, type %s", line, got, p.Type)
			}
			if strings.Contains(r.body, "operations[") { // of none of them it is the fault
				t.Errorf("%s: %s", line, r.body)
			}
			if strings.Contains(r.body, "127.0.0.1") || strings.Contains(r.body, "user=") {
				t.Errorf("%s tells strangers where the database is: %s", line, r.body)
			}
		})
	}
	wait.Wait()
}

// A backend that is killed takes the answer of its request with it; a second
// attempt gets another.
func TestBackendsKilled(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	s := serve(t, url, httpapi.Config{})
	other := pgtest.Pool(t, url)
	for range 5 {
		wantJSON(t, s.get(someItems), `{"items":[]}`)
		terminate(t, other)
		if r := s.get(someItems); r.StatusCode != 200 {
			wantProblem(t, r, 503, "the database is away")
			wantJSON(t, s.get(someItems), `{"items":[]}`)
		}
	}
}

func TestNotMigrated(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	if _, err := s.db.Pool.Exec(within(t), `DROP SCHEMA iidy CASCADE`); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, s.get(someItems), 503, "has this database been migrated? (howdah migrate)")
	wantProblem(t, s.importTo("l", "text/plain", strings.NewReader("a")), 503, "has this database been migrated?")
}

func TestReadOnlyServer(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	wantJSON(t, s.post(someItems, `{"items":["a"]}`), `{"added":1,"skipped":0}`)
	// As on a standby: everything may be read.
	if _, err := s.db.Pool.Exec(within(t), `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`); err != nil {
		t.Fatal(err)
	}
	s.db.Pool.Reset()
	wantProblem(t, s.post(someItems, `{"items":["b"]}`), 503, "this server is read-only (a standby?): point the URL at the primary")
	wantJSON(t, s.get(someItems), `{"items":[{"item":"a","attempts":0}]}`)
}

// What goes wrong in a handler, and what the client and the log are told of it.
func TestFailures(t *testing.T) {
	t.Parallel()
	const secret = "the cause"
	for name, tc := range map[string]struct {
		handle func(context.Context) error
		status int
		what   string
		log    string
	}{
		"panic":       {func(context.Context) error { panic(secret) }, 500, "the server's log says more", "level=ERROR msg=panic path=/test panic=\"the cause\""},
		"nil":         {func(context.Context) error { var p *int; _ = *p; return nil }, 500, "the server's log says more", "nil pointer dereference"},
		"no kind":     {func(context.Context) error { return errors.New(secret) }, 500, "the server's log says more", `level=ERROR msg="request failed" operation=test error="the cause"`},
		"denied":      {func(context.Context) error { return fault.Denied }, 403, "permission denied", ""},
		"conflict":    {func(context.Context) error { return fault.Conflict }, 409, "conflict", ""},
		"exhausted":   {func(context.Context) error { return fault.Exhausted }, 413, "limit exceeded", ""},
		"out of time": {func(context.Context) error { return context.DeadlineExceeded }, 503, "deadline exceeded", "level=WARN"},
	} {
		s := serveHandler(t, "", httpapi.Config{}, func(c *howdah.Client, cfg httpapi.Config) http.Handler {
			return httpapi.NewWith(c, cfg, tc.handle)
		})
		r := s.get("/test")
		wantProblem(t, r, tc.status, tc.what)
		if strings.Contains(r.body, secret) || strings.Contains(r.body, "goroutine") {
			t.Errorf("%s: told with its cause: %s", name, r.body)
		}
		if log := s.log.String(); tc.log == "" && strings.Contains(log, "level=ERROR") || !strings.Contains(log, tc.log) {
			t.Errorf("%s: log %q, want %q in it", name, log, tc.log)
		}
	}
}

// A panic in the middle of an answer cuts it: what was sent must not look whole.
func TestPanicInAStream(t *testing.T) {
	t.Parallel()
	s := serveHandler(t, "", httpapi.Config{}, func(c *howdah.Client, cfg httpapi.Config) http.Handler {
		return httpapi.NewWith(c, cfg, func(context.Context) error { return errors.New("the cause") })
	})
	r, err := s.try("GET", "/test/stream", nil)
	if err == nil || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v, want it cut", r.body, err)
	}
	if !strings.Contains(s.log.String(), "the cause") {
		t.Errorf("log: %s", s.log)
	}
}
