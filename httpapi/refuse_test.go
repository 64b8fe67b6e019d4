package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

const someItems = "/v1/checklists/l/items"

// Every body that is wrong is answered with where it is wrong, and nothing is
// written.
func TestBadBodies(t *testing.T) {
	t.Parallel()
	const limit = 1 << 16
	s := serve(t, "", httpapi.Config{MaxBody: limit})
	for name, tc := range map[string]struct {
		body      string
		status    int
		what      string
		locations []string
	}{
		"empty":                {"", 400, "body is required", nil},
		"blank":                {" \n", 400, "unexpected end of JSON", []string{"body"}},
		"over the limit":       {`{"items":["` + strings.Repeat("x", limit) + `"]}`, 413, "the body is over 65536 bytes", nil},
		"broken":               {`{"items":["a"`, 400, "unexpected end of JSON", []string{"body"}},
		"no JSON":              {`items=a`, 400, "invalid character 'i'", []string{"body"}},
		"trailing garbage":     {`{"items":["a"]} x`, 400, "invalid character 'x'", []string{"body"}},
		"two values":           {`{"items":["a"]}{"items":["b"]}`, 400, "invalid character '{'", []string{"body"}},
		"null":                 {`null`, 400, "null; want an object", []string{"body"}},
		"a number":             {`5`, 400, "expected object", []string{"body"}},
		"an array":             {`["a"]`, 400, "expected object", []string{"body"}},
		"a string":             {`"a"`, 400, "expected object", []string{"body"}},
		"nothing in it":        {`{}`, 400, "expected required property items", []string{"body"}},
		"unknown field":        {`{"items":["a"],"itemz":["b"]}`, 400, "unexpected property", []string{"body.itemz"}},
		"schema":               {`{"items":["a"],"$schema":"x"}`, 400, "unexpected property", []string{"body.$schema"}},
		"items null":           {`{"items":null}`, 400, "expected array", []string{"body.items"}},
		"items a string":       {`{"items":"a"}`, 400, "expected array", []string{"body.items"}},
		"an item null":         {`{"items":["a",null]}`, 400, "expected string", []string{"body.items[1]"}},
		"items of other types": {`{"items":[1,"a",{},true]}`, 400, "expected string", []string{"body.items[0]", "body.items[2]", "body.items[3]"}},
		"NUL":                  {`{"items":["a","b\u0000"]}`, 400, "a NUL byte at byte 1", []string{"body.items[1]"}},
		"NUL in the only one":  {`{"items":["\u0000"]}`, 400, "a NUL byte at byte 0", []string{"body.items[0]"}},
		"raw NUL":              {"{\"items\":[\"a\x00\"]}", 400, "invalid character", []string{"body"}},
		"invalid UTF-8":        {"{\"items\":[\"\xff\"]}", 400, "invalid UTF-8 at byte 11", []string{"body"}},
		"invalid UTF-8 key":    {"{\"items\":[\"a\"],\"\xff\":1}", 400, "invalid UTF-8", []string{"body"}},
		"high surrogate":       {`{"items":["\ud800"]}`, 400, `half a surrogate pair at byte 11: \ud800`, []string{"body"}},
		"low surrogate":        {`{"items":["x\uDC00y"]}`, 400, `half a surrogate pair at byte 12: \uDC00`, []string{"body"}},
		"over the index limit": {`{"items":["a","` + strings.Repeat("x", 2600) + `"]}`, 400, "items[1]: 2,601 bytes; list and item together may have 2,600", []string{"body.items[1]"}},
	} {
		wantProblem(t, s.post(someItems, tc.body), tc.status, tc.what, tc.locations...)
		if strings.HasPrefix(name, "over the index") { // such an item can be there, and has to go
			continue
		}
		for _, verb := range []string{"increment", "delete"} {
			wantProblem(t, s.post("/v1/checklists/l/"+verb, tc.body), tc.status, tc.what, tc.locations...)
		}
	}
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}

	whole := `{"items":["` + strings.Repeat("x", 2000) + `"]}`
	whole += strings.Repeat(" ", limit-len(whole))
	wantJSON(t, s.post(someItems, whole), `{"added":1,"skipped":0}`) // exactly the limit
	wantProblem(t, s.post(someItems, whole+" "), 413, "the body is over 65536 bytes")
	chunked := s.do("POST", someItems, io.MultiReader(strings.NewReader(whole), strings.NewReader(" ")), "Content-Type: application/json")
	wantProblem(t, chunked, 413, "the body is over 65536 bytes")
	if strings.Contains(s.log.String(), "level=ERROR") {
		t.Errorf("bad input is no error of ours: %s", s.log)
	}
}

// An answer about a body in which everything is wrong is no longer than one.
func TestEverythingWrong(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	r := s.post(someItems, `{"items":[1`+strings.Repeat(",1", 50_000)+`]}`)
	if r.StatusCode != 400 || len(r.body) > 10_000 || !strings.Contains(r.body, "and 49981 more") {
		t.Errorf("%s, %d bytes: %.200s", r.Status, len(r.body), r.body)
	}
}

func TestBadQueries(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for query, tc := range map[string]struct {
		what      string
		locations []string
	}{
		"limit=-1":                      {"", []string{"query.limit"}},
		"limit=0":                       {"", []string{"query.limit"}},
		"limit=abc":                     {"invalid integer", []string{"query.limit"}},
		"limit=1e3":                     {"invalid integer", []string{"query.limit"}},
		"limit=10001":                   {"", []string{"query.limit"}},
		"limit=1000000000000":           {"", []string{"query.limit"}},
		"limit=99999999999999999999999": {"", []string{"query.limit"}},
		"limit=":                        {"empty", []string{"query.limit"}},
		"limit=1&limit=2":               {"more than once", []string{"query.limit"}},
		"after=a&after=b":               {"more than once", []string{"query.after"}},
		"after=%00":                     {"a NUL byte at byte 0", []string{"query.after"}},
		"after=x%ff":                    {"invalid UTF-8 at byte 1", []string{"query.after"}},
		"after=%zz":                     {"invalid URL escape", []string{"query"}},
		"after=a;limit=1":               {"semicolon", []string{"query"}},
		"count=5":                       {"unknown query parameter", []string{"query.count"}},
		"Limit=5":                       {"unknown query parameter", []string{"query.Limit"}},
		"after=a&limit=1&offset=1":      {"unknown query parameter", []string{"query.offset"}},
	} {
		for _, path := range []string{"/v1/checklists", someItems} {
			wantProblem(t, s.get(path+"?"+query), 400, tc.what, tc.locations...)
		}
	}
	wantProblem(t, s.get("/v1/checklists/l/export?format=xml"), 400, "expected value to be one of", "query.format")
	wantProblem(t, s.get("/healthz?x=1"), 400, "unknown query parameter", "query.x")
	wantProblem(t, s.do("POST", someItems+"?x=1", strings.NewReader(`{"items":["a"]}`)), 400, "unknown query parameter", "query.x")
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
}

func TestBadPaths(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for _, tc := range []struct {
		list, item, what string
	}{
		{"%00", "", "a NUL byte at byte 0"},
		{"a%FF", "", "invalid UTF-8 at byte 1"},
		{"%ED%A0%80", "", "invalid UTF-8 at byte 0"}, // a surrogate, written as UTF-8 must not
	} {
		wantProblem(t, s.get("/v1/checklists/"+tc.list+"/items"), 400, tc.what, "path.list")
		wantProblem(t, s.get("/v1/checklists/"+tc.list+"/export"), 400, tc.what, "path.list")
		wantProblem(t, s.get("/v1/checklists/l/items/"+tc.list), 400, tc.what, "path.item")
		for _, verb := range []string{"items", "increment", "delete"} {
			wantProblem(t, s.post("/v1/checklists/"+tc.list+"/"+verb, `{"items":["a"]}`), 400, tc.what, "path.list")
		}
		wantProblem(t, s.do("POST", "/v1/checklists/"+tc.list+"/import", strings.NewReader("a"), "Content-Type: text/plain"), 400, tc.what, "path.list")
	}
	wantProblem(t, s.post("/v1/checklists/"+strings.Repeat("x", 2601)+"/items", `{"items":["a"]}`), 400, "2,602 bytes", "body.items[0]")
	for _, path := range []string{
		"/v1", "/v1/", "/v1/checklists/", "/v1/checklists/l/", "/v1/checklists/l/items/", "/v1/checklists//items",
		"/v1/checklists/a//items", "/v1/checklists/a/../b/items", "/v1/checklists/l/items/a/b", "/v2/checklists", "/V1/checklists", "/favicon.ico",
		"//v1/checklists", "/v1/./checklists", "/docs/", "/openapi.yaml", "/schemas/Item", "/%2E%2E/v1/checklists",
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			r := s.do(method, path, nil)
			if location := r.Header.Get("Location"); location != "" {
				t.Errorf("%s %s leads to %s", method, path, location)
			}
			if method != "DELETE" {
				wantProblem(t, r, 404, "nothing is served at "+path)
			}
		}
	}
}

func TestWrongMethods(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for path, allow := range map[string]string{
		"/v1/checklists":             "GET, HEAD",
		someItems:                    "GET, HEAD, POST",
		someItems + "/%2F":           "GET, HEAD",
		"/v1/checklists/l/increment": "POST",
		"/v1/checklists/l/export":    "GET, HEAD",
		"/healthz":                   "GET, HEAD",
		"/docs":                      "GET, HEAD",
		"/":                          "GET, HEAD",
	} {
		for _, method := range []string{"DELETE", "PUT", "OPTIONS", "BREW"} {
			r := s.do(method, path, nil)
			p := wantProblem(t, r, 405, path+" is not for "+method+"; allowed: "+allow)
			if got := r.Header.Get("Allow"); got != allow || p.Type != "urn:howdah:method-not-allowed" {
				t.Errorf("%s %s: Allow %q, want %q; type %s", method, path, got, allow, p.Type)
			}
		}
	}
}

func TestContentTypes(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	send := func(contentType string) response {
		return s.do("POST", someItems, strings.NewReader(`{"items":["a"]}`), "Content-Type: "+contentType)
	}
	for _, wrong := range []string{"text/plain", "application/x-www-form-urlencoded", "application/xml", "application/cbor", "; +"} {
		wantProblem(t, send(wrong), 415, "unknown content type", "body")
	}
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
	for _, right := range []string{"application/json", "application/json; charset=utf-8", "application/vnd.x+json"} {
		if r := send(right); r.StatusCode != 200 {
			t.Errorf("%s: %s %s", right, r.Status, r.body)
		}
	}
}

// Only streams are unpacked.
func TestContentEncodings(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	io.WriteString(z, `{"items":["a"]}`)
	z.Close()
	for _, encoding := range []string{"gzip", "br", "gzip, gzip"} {
		r := s.do("POST", someItems, bytes.NewReader(packed.Bytes()), "Content-Type: application/json", "Content-Encoding: "+encoding)
		wantProblem(t, r, 415, fmt.Sprintf("Content-Encoding %q; send it with identity", encoding))
	}
	r := s.do("POST", "/v1/checklists/l/import", bytes.NewReader(packed.Bytes()), "Content-Type: text/plain", "Content-Encoding: br")
	wantProblem(t, r, 415, `Content-Encoding "br"; send it with gzip`)
	if got := r.Header.Get("Accept-Encoding"); got != "gzip" {
		t.Errorf("Accept-Encoding %q", got)
	}
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
}

// Bodies that do not arrive as HTTP says are their sender's fault.
func TestBrokenTransfers(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{BodyTimeout: 200 * time.Millisecond})
	const head = "POST /v1/checklists/l/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: %s\r\n"
	for name, tc := range map[string]struct {
		verb, contentType, rest string
		status                  int
		what                    string
	}{
		"never ends":        {"items", "application/json", "Content-Length: 100\r\n\r\n{\"items\":", 408, "timeout"},
		"malformed chunk":   {"items", "application/json", "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400, "cannot read request body"},
		"malformed, stream": {"import", "text/plain", "Transfer-Encoding: chunked\r\n\r\n4\r\none\n\r\nzz\r\n", 400, "body: the stream broke off"},
	} {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(pgtest.Patience))
		fmt.Fprintf(conn, head+"%s", tc.verb, tc.contentType, tc.rest)
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if text := string(answer); !strings.HasPrefix(text, fmt.Sprintf("HTTP/1.1 %d %s", tc.status, http.StatusText(tc.status))) || !strings.Contains(text, tc.what) {
			t.Errorf("%s: %s", name, text)
		}
	}
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
}

// What programs go by is in the documents.
func TestTypesAreDescribed(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range httpapi.Types() {
		if !strings.Contains(string(text), "| `"+name+"` |") {
			t.Errorf("docs/http.md has no line of %s", name)
		}
	}
}
