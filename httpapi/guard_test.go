package httpapi_test

import (
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest/services"
)

// A name that an attacker points at this machine (DNS rebinding) is not its name.
func TestHost(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{LoopbackOnly: true})
	for host, ok := range map[string]bool{
		"localhost": true, "LOCALHOST:8080": true, "localhost.": true, "app.localhost:1": true,
		"127.0.0.1": true, "127.0.0.1:8080": true, "127.1.2.3": true, "[::1]": true, "[::1]:8080": true,
		"example.com": false, "example.com:8080": false, "localhost.example.com": false, "notlocalhost": false,
		"127.0.0.1.example.com": false, "192.168.0.1": false, "0.0.0.0": false, "[::]:8080": false, "[fe80::1]": false, "10.0.0.1:8080": false,
	} {
		for _, path := range []string{"/v1/checklists", "/", "/docs", "/healthz", "/nothing"} {
			r := s.do("GET", path, nil, "Host: "+host)
			if !ok {
				wantProblem(t, r, 403, fmt.Sprintf("host %q is not this machine", host))
			} else if r.StatusCode == 403 {
				t.Errorf("Host %s: %s %s", host, r.Status, r.body)
			}
		}
	}
	open := serve(t, "", httpapi.Config{})
	wantJSON(t, open.do("GET", "/v1/checklists", nil, "Host: example.com"), `{"lists":[]}`)
}

// Another web site that the user's browser visits changes nothing here, be it by
// a form or by a script.
func TestCrossSite(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	own := "Origin: " + s.URL
	for _, tc := range []struct {
		headers []string
		ok      bool
	}{
		{nil, true}, // no browser
		{[]string{"Sec-Fetch-Site: same-origin"}, true},
		{[]string{"Sec-Fetch-Site: none"}, true},
		{[]string{own}, true},
		{[]string{"Sec-Fetch-Site: cross-site"}, false},
		{[]string{"Sec-Fetch-Site: same-site"}, false},
		{[]string{"Origin: https://example.com"}, false},
		{[]string{"Origin: null"}, false},
		{[]string{"Sec-Fetch-Site: cross-site", own}, false},
	} {
		for _, verb := range []string{"items", "increment", "delete"} {
			r := s.do("POST", "/v1/checklists/l/"+verb, strings.NewReader(`{"items":["a"]}`), append(tc.headers, "Content-Type: application/json")...)
			if tc.ok && r.StatusCode != 200 {
				t.Errorf("%s %q: %s %s", verb, tc.headers, r.Status, r.body)
			} else if !tc.ok {
				wantProblem(t, r, 403, "a request from another web site")
			}
		}
		r := s.importTo("l", "text/plain", strings.NewReader("b"), tc.headers...)
		if tc.ok != (r.StatusCode == 200) {
			t.Errorf("import %q: %s", tc.headers, r.Status)
		}
		if r := s.do("GET", someItems, nil, tc.headers...); r.StatusCode != 200 {
			t.Errorf("GET %q: %s", tc.headers, r.Status)
		} else if got := r.Header.Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("GET %q lets %s read it", tc.headers, got)
		}
	}
	if got := s.items("l"); len(got) != 1 || got[0] != "b" { // the last allowed delete took a
		t.Errorf("items = %q", got)
	}
}

// A client that reads nothing is let go, and with it what it was to read.
func TestStandingReader(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Impatient(httpapi.Config{}, 200*time.Millisecond))
	s.sql(`SELECT howdah.change_emit('a', to_jsonb(repeat('x', 262144))) FROM generate_series(1, 48)`)
	s.get("/v1/changes/position")
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(1 << 14); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v1/changes?limit=48 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	eventually(t, "the server has let it go", func() bool {
		return strings.Contains(s.get("/metrics").body, `howdah_http_request_seconds_count{route="GET /v1/changes"`)
	})
	if text := s.log.String(); strings.Contains(text, "superfluous") || strings.Contains(text, "panic") {
		t.Errorf("log: %s", text)
	}
}

// A client that is slow and reads is waited for anew for each part of an answer, however
// long that is.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	api := httpapi.New(services.Open(t, "", slog.Default()), httpapi.Config{})
	for path, least := range map[string]int{"/openapi.json": 100 << 10, "/v1/checklists": 1, "/nothing": 1} {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		api.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Body.Len() < least {
			t.Errorf("%s: %d bytes, want %d", path, w.Body.Len(), least)
		}
		if w.late > 0 || !w.set {
			t.Errorf("%s: %d writes without a time of their own; for what is left: %v", path, w.late, w.set)
		}
	}
}

// deadlines notes what is written without a deadline that was set for it.
type deadlines struct {
	*httptest.ResponseRecorder
	set  bool
	late int
}

func (w *deadlines) SetWriteDeadline(time.Time) error {
	w.set = true
	return nil
}

func (w *deadlines) Write(b []byte) (int, error) {
	if !w.set || len(b) > 64<<10 {
		w.late++
	}
	w.set = false
	return w.ResponseRecorder.Write(b)
}
