package triflehttp_test

import (
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
)

// sent hands a request to the server without a network, and wants an answer in
// Trifle's form that is no fault of the server's.
func sent(t *testing.T, s *server, method, target, body string, headers ...string) int {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return 0 // net/http refuses it
	}
	r := httptest.NewRequest(method, "/", strings.NewReader(body)).WithContext(within(t))
	r.URL = u
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	s.Config.Handler.ServeHTTP(w, r)
	var answer struct{ Data, Errors map[string]any }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); w.Code >= 500 || err != nil || (answer.Data == nil) == (answer.Errors == nil) || (w.Code < 300) != (answer.Data != nil) {
		t.Errorf("%s %s of %q = %d %q", method, target, body, w.Code, w.Body)
	}
	return w.Code
}

func FuzzEvent(f *testing.F) {
	for _, body := range []string{
		``, `null`, `{}`, `[]`, `{"key":"a","at":"2030-01-02T03:04:05Z","values":{"n":1}}`, `{"key":"a","at":"2030-01-02T03:04:05+14:00","values":{"a":{"b":[1e100,{"c":null}]}},"operation":"assert"}`,
		`{"key":"\u0000","at":"9999-12-31T23:59:59.999999999Z","values":{"\u0000":"\u0000"},"untracked":true}`, `{"key":"a","at":"0000-01-01T00:00:00Z","values":{"":0}}`,
		`{"key":"a","at":"2030-01-02T03:04:05Z","values":{"n":1e999999999}}`, "{\"key\":\"\xff\"}",
	} {
		f.Add(body)
	}
	s := serve(f, httpapi.Config{})
	f.Fuzz(func(t *testing.T, body string) {
		plain := sent(t, s, "POST", "/api/v1/metrics", body)
		again := sent(t, s, "POST", "/api/v1/metrics", packed(body), "Content-Encoding: gzip")
		if plain != again {
			t.Errorf("%q: %d, and packed %d", body, plain, again)
		}
		if code := sent(t, s, "POST", "/api/v1/metrics", body, "Content-Encoding: gzip"); code < 400 && !strings.HasPrefix(body, "\x1f\x8b") {
			t.Errorf("%q is no gzip, and is %d", body, code)
		}
	})
}

func FuzzQuestion(f *testing.F) {
	for _, more := range []string{
		`"mode":"aggregate","value_path":"count","aggregator":"sum"`, `"mode":"timeline","value_path":"*","slices":2`, `"mode":"category","value_path":"a..b.*.*","slices":-1`,
		`"mode":"category","value_path":"\\*.\\","slices":1e3`, `"key":null,"mode":"category","value_path":"."`, `"slices":99999999999999999999`, `"key":""`, `"granularity":"1s"`, `"to":"9999-01-01T00:00:00Z"`,
	} {
		f.Add(more)
	}
	s := serve(f, httpapi.Config{})
	f.Fuzz(func(t *testing.T, more string) {
		sent(t, s, "POST", "/api/v1/metrics/query", `{"key":"orders","from":"2025-05-05T00:00:00Z","to":"2025-05-10T00:00:00Z","granularity":"1d",`+more+`}`)
	})
}

func FuzzSeries(f *testing.F) {
	for _, query := range []string{
		"key=orders&from=2025-05-05T00:00:00Z&to=2025-05-10T00:00:00Z&granularity=1d", "key=%00&from=2025-05-05T00:00:00Z&to=2025-05-05T00:00:00Z&granularity=1d",
		"key=%ff&from=2025-05-05T00:00:00Z&to=2025-05-05T00:00:00Z&granularity=1d", "from=1&to=&granularity=", "a=;&%", "key=a&key=b", "from=9999-12-31T23:59:59Z&to=9999-12-31T23:59:59Z&granularity=999999y&key=a",
	} {
		f.Add(query)
	}
	s := serve(f, httpapi.Config{})
	f.Fuzz(func(t *testing.T, query string) {
		sent(t, s, "GET", "/api/v1/metrics?"+query, "")
	})
}
