package httpapi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
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
