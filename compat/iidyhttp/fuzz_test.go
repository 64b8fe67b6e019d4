package iidyhttp_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
)

// fuzzBody sends a body to each of the three routes that read one: it is taken or
// refused, and what was added is what is then deleted.
func fuzzBody(f *testing.F, seeds []string, form string, counts func(verb string) string) {
	for _, seed := range seeds {
		f.Add(seed)
	}
	s := serve(f, "", httpapi.Config{})
	f.Fuzz(func(t *testing.T, body string) {
		s := &server{s.Server, t, s.db}
		send := func(method, path, verb string, ok int) (n int64) {
			r := s.do(method, path, strings.NewReader(body), "Content-Type: "+form)
			switch r.StatusCode {
			case ok:
				if _, err := fmt.Sscanf(r.body, counts(verb), &n); err != nil {
					t.Fatalf("%s %s = %q: %v", method, path, r.body, err)
				}
			case 400, 409:
				n = -1
			default:
				t.Fatalf("%s %s of %q = %d %q", method, path, body, r.StatusCode, r.body)
			}
			return n
		}
		added := send("POST", batch, "added", 201)
		incremented := send("POST", "/iidy/v1/increment/batch/lists/l", "incremented", 200)
		deleted := send("DELETE", batch, "deleted", 200)
		if added >= 0 && (incremented != added || deleted != added) || added < 0 && deleted > 0 {
			t.Errorf("%q: added %d, incremented %d, deleted %d", body, added, incremented, deleted)
		}
	})
}

func FuzzText(f *testing.F) {
	fuzzBody(f, []string{"", "a\nb\n", " a\r\n\n\x00", "a\na", "\xff", "\u0085x\n\u2028"}, "text/plain", func(verb string) string {
		return strings.ToUpper(verb) + " %d\n"
	})
}

func FuzzJSON(f *testing.F) {
	fuzzBody(f, []string{"", "null", "{}", `{"items":["a","b"]}`, `{"items":[null]}`, `{"items":["\ud800","\u0000"]}`, `{"ITEMS":["a"],"items":["a","a"]}`}, "application/json", func(verb string) string {
		return `{"` + verb + `":%d}` + "\n"
	})
}

// Whatever the path and the query, the answer is no fault of the server's.
func FuzzPath(f *testing.F) {
	for _, method := range []string{"GET", "POST", "DELETE", "PUT"} {
		for _, target := range []string{"lists/l/a", "increment/batch/lists/l", "batch/lists/%00?count=5", "batch/lists/l?count=2&after_id=%ff", "lists/%2F/%ff?action=increment", "lists//.."} {
			f.Add(method, target)
		}
	}
	s := serve(f, "", httpapi.Config{})
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI("/iidy/v1/" + target)
		if err != nil || strings.ContainsAny(target, " \r\n") {
			return // net/http refuses it
		}
		r := httptest.NewRequest(http.MethodGet, "/", strings.NewReader("x"))
		r.Method, r.URL = method, u
		w := httptest.NewRecorder()
		s.Config.Handler.ServeHTTP(w, r.WithContext(within(t)))
		if w.Code >= 500 || w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Location") != "" {
			t.Errorf("%s %s = %d %q %v", method, target, w.Code, w.Body, w.Header())
		}
	})
}
