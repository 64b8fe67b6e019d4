package triflehttp_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
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

// serve starts a server on the tables of the original.
func serve(t testing.TB, cfg httpapi.Config) *server {
	t.Helper()
	url := pgtest.Database(t)
	tables, err := os.ReadFile("../../counters/testdata/compat/tables.sql")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pgtest.Pool(t, url).Exec(within(t), string(tables)); err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	db := services.Open(t, url, cfg.Log)
	s := &server{httptest.NewServer(httpapi.New(db, cfg)), t, db}
	t.Cleanup(s.Close)
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
	req, err := http.NewRequestWithContext(within(s.t), method, s.URL+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
	}
	res, err := s.Client().Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return response{res, string(text)}
}

func (s *server) post(path, body string, headers ...string) response {
	s.t.Helper()
	return s.do("POST", path, strings.NewReader(body), append(headers, "Content-Type: application/json")...)
}

func packed(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.String()
}
