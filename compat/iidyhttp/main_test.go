package iidyhttp_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/internal/pgtest/services"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// server is the whole server, on a database of the test's own.
type server struct {
	*httptest.Server
	t  testing.TB
	db *howdah.Client
}

// serve starts a server; url "" makes a database.
func serve(t testing.TB, url string, cfg httpapi.Config) *server {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	db := services.Open(t, url, cfg.Log)
	s := &server{httptest.NewServer(httpapi.New(db, cfg)), t, db}
	t.Cleanup(s.Close)
	s.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	t.Cleanup(cancel)
	return ctx
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
		req.Header.Set(name, value)
	}
	res, err := s.Client().Do(req)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	var text bytes.Buffer
	_, err = text.ReadFrom(res.Body)
	return response{res, text.String()}, err
}

func (s *server) get(path string) response { s.t.Helper(); return s.do("GET", path, nil) }

func (s *server) post(path, body string) response {
	s.t.Helper()
	return s.do("POST", path, strings.NewReader(body))
}

const isJSON = "Content-Type: application/json"

// want compares an answer; JSON or text is told by its body.
func want(t testing.TB, r response, status int, body string) {
	t.Helper()
	if r.StatusCode != status || r.body != body {
		t.Errorf("%s %s = %d %.300q, want %d %q", r.Request.Method, r.Request.URL, r.StatusCode, r.body, status, body)
	}
	form := "text/plain; charset=utf-8"
	if strings.HasPrefix(r.body, "{") {
		form = "application/json; charset=utf-8"
	}
	if got := r.Header.Get("Content-Type"); got != form {
		t.Errorf("%s %s: Content-Type %q, want %q", r.Request.Method, r.Request.URL, got, form)
	}
	if got := r.Header.Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("%s %s: X-Content-Type-Options %q", r.Request.Method, r.Request.URL, got)
	}
}

// wantPart is want where the text need only hold some words.
func wantPart(t testing.TB, r response, status int, part string) {
	t.Helper()
	if !strings.Contains(r.body, part) {
		t.Errorf("%s %s = %d %.300q, want %q in it", r.Request.Method, r.Request.URL, r.StatusCode, r.body, part)
	}
	want(t, r, status, r.body)
}

// items are the names on a list, past the API.
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
