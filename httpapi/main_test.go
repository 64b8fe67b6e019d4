package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/internal/pgtest/services"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// server is the API on a database of the test's own.
type server struct {
	*httptest.Server
	t      testing.TB
	db     *howdah.Client
	log    *lines
	client *http.Client
}

// serve starts a server; url "" makes a database.
func serve(t testing.TB, url string, cfg httpapi.Config) *server {
	t.Helper()
	return serveHandler(t, url, cfg, httpapi.New)
}

func serveHandler(t testing.TB, url string, cfg httpapi.Config, handler func(*howdah.Client, httpapi.Config) http.Handler) *server {
	t.Helper()
	s := &server{t: t, log: &lines{}}
	cfg.Log = slog.New(slog.NewTextHandler(s.log, nil))
	s.db = services.Open(t, url, cfg.Log)
	s.Server = httptest.NewUnstartedServer(handler(s.db, cfg))
	s.Config.ErrorLog = slog.NewLogLogger(cfg.Log.Handler(), slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's log:\n%s", s.log)
		}
	})
	s.client = s.Client()
	s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s
}

// within bounds a step of a test.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// lines is what a server logged.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// response is an answer that was read to its end.
type response struct {
	*http.Response
	body string
}

// do sends a request; headers are "Name: value".
func (s *server) do(method, path string, body io.Reader, headers ...string) response {
	s.t.Helper()
	r, err := s.try(method, path, body, headers...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (s *server) try(method, path string, body io.Reader, headers ...string) (response, error) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(within(s.t), method, s.URL+path, body)
	if err != nil {
		return response{}, err
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return response{res, string(text)}, err
}

func (s *server) get(path string) response { s.t.Helper(); return s.do("GET", path, nil) }

func (s *server) post(path, body string) response {
	s.t.Helper()
	return s.do("POST", path, strings.NewReader(body), "Content-Type: application/json")
}

// items asks the store, past the API, for the names on a list.
func (s *server) items(list string) []string {
	s.t.Helper()
	names := []string{}
	for item, err := range s.db.Checklists.All(within(s.t), list) {
		if err != nil {
			s.t.Fatal(err)
		}
		names = append(names, item.Name)
	}
	return names
}

// still is an answer as it is until the minute in which something was done has
// passed, which the test may see.
func still(r response) response {
	r.body = moving.ReplaceAllString(r.body, `"rate":0,"eta_seconds":null`)
	return r
}

var moving = regexp.MustCompile(`"rate":[0-9.e+-]+,"eta_seconds":(null|[0-9]+)`)

// wantJSON compares an answer, status 200, with the JSON text want.
func wantJSON(t testing.TB, r response, want string) {
	t.Helper()
	if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %s = %s %s %s", r.Request.Method, r.Request.URL, r.Status, r.Header.Get("Content-Type"), r.body)
		return
	}
	if diff := cmp.Diff(parse(t, want), parse(t, r.body)); diff != "" {
		t.Errorf("%s %s (-want +got):\n%s", r.Request.Method, r.Request.URL, diff)
	}
}

func parse(t testing.TB, text string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// wantProblem checks that an answer is a problem of a status whose fields are
// at locations, and that its text says what.
func wantProblem(t testing.TB, r response, status int, what string, locations ...string) httpapi.Problem {
	t.Helper()
	var p httpapi.Problem
	if r.StatusCode != status || r.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s %s = %s %s %s, want a problem with %d", r.Request.Method, r.Request.URL, r.Status, r.Header.Get("Content-Type"), r.body, status)
		return p
	}
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Errorf("%v in %s", err, r.body)
	}
	if kind, ok := strings.CutPrefix(p.Type, "urn:howdah:"); !ok || kind == "" || p.Title == "" || p.Status != status {
		t.Errorf("%s %s: type %q, title %q, status %d", r.Request.Method, r.Request.URL, p.Type, p.Title, p.Status)
	}
	if !strings.Contains(p.Detail, what) {
		t.Errorf("%s %s: detail %q, want %q in it", r.Request.Method, r.Request.URL, p.Detail, what)
	}
	var got []string
	for _, field := range p.Errors {
		got = append(got, field.Location)
	}
	if diff := cmp.Diff(locations, got); diff != "" {
		t.Errorf("%s %s: locations (-want +got):\n%s", r.Request.Method, r.Request.URL, diff)
	}
	return p
}

var eventually = pgtest.Until
