package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func (s *server) importTo(list, contentType string, body io.Reader, headers ...string) response {
	s.t.Helper()
	return s.do("POST", "/v1/checklists/"+list+"/import", body, append(headers, "Content-Type: "+contentType)...)
}

func pack(t testing.TB, text string) []byte {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

func TestImport(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for list, tc := range map[string]struct {
		contentType, body, answer string
		items                     []string
	}{
		"text":    {"text/plain", "b\r\n\na\nb\n c ", `{"added":3,"skipped":1}`, []string{" c ", "a", "b"}},
		"charset": {"text/plain; charset=utf-8", "ä", `{"added":1,"skipped":0}`, []string{"ä"}},
		"nul":     {"application/x-nul", "a\nb\x00\x00c", `{"added":3,"skipped":0}`, []string{"", "a\nb", "c"}},
		"ndjson":  {"application/x-ndjson", "{\"item\":\"a\\nb\",\"attempts\":7}\n\n{\"item\":\"\\ud83d\\ude00\"}", `{"added":2,"skipped":0}`, []string{"a\nb", "😀"}},
		"csv":     {"text/csv", "size,item\r\n1,\"a\nb\"\r\n2,c", `{"added":2,"skipped":0}`, []string{"a\nb", "c"}},
		"nothing": {"text/plain", "", `{"added":0,"skipped":0}`, []string{}},
	} {
		wantJSON(t, s.importTo(list, tc.contentType, strings.NewReader(tc.body)), tc.answer)
		wantJSON(t, s.importTo(list+" packed", tc.contentType, bytes.NewReader(pack(t, tc.body)), "Content-Encoding: gzip"), tc.answer)
		for _, name := range []string{list, list + " packed"} {
			if diff := cmp.Diff(tc.items, s.items(name)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
	}
}

// A stream is as long as it likes: neither the limit of bodies nor their time
// is for it.
func TestImportIsLongerThanABody(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{MaxBody: 1000})
	names := func(yield func(int) string) string {
		var b strings.Builder
		for i := range 2000 {
			b.WriteString(yield(i))
		}
		return b.String()
	}
	text := names(func(i int) string { return fmt.Sprintf("%04d\n", i) })
	wantJSON(t, s.importTo("l", "text/plain", strings.NewReader(text)), `{"added":2000,"skipped":0}`)
	unknownLength := io.MultiReader(strings.NewReader(text))
	wantJSON(t, s.importTo("l", "text/plain", unknownLength), `{"added":0,"skipped":2000}`)
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	long := strings.Repeat("x", 2600)
	for name, tc := range map[string]struct {
		contentType, body string
		status            int
		what              string
		locations         []string
	}{
		"no type":          {"", "a", 415, `Content-Type ""; want one of application/x-ndjson, application/x-nul, text/csv, text/plain`, nil},
		"a form":           {"application/x-www-form-urlencoded", "a", 415, "want one of", nil},
		"JSON":             {"application/json", `{"items":["a"]}`, 415, "want one of", nil},
		"NUL in a line":    {"text/plain", "a\n\nb\x00\nc", 400, "line 3: a NUL byte at byte 1", []string{"line 3"}},
		"invalid UTF-8":    {"text/plain", "a\nb\nc\xff", 400, "line 3: invalid UTF-8 at byte 1", []string{"line 3"}},
		"too long":         {"text/plain", "a\n" + long, 400, "item 2: 2,601 bytes", []string{"item 2"}},
		"no object":        {"application/x-ndjson", "{\"item\":\"a\"}\n{\"item\":", 400, "line 2: no JSON", []string{"line 2"}},
		"another object":   {"application/x-ndjson", "{\"item\":\"a\"}\n{\"name\":\"b\"}", 400, `line 2: the object has no "item"`, []string{"line 2"}},
		"half a surrogate": {"application/x-ndjson", "{\"item\":\"\\ud800\"}", 400, "line 1: item: half a surrogate pair", []string{"line 1"}},
		"NUL in JSON":      {"application/x-ndjson", "{\"item\":\"\\u0000\"}", 400, "line 1: a NUL byte", []string{"line 1"}},
		"no column item":   {"text/csv", "name\na\n", 400, "line 1: the header has no column item", []string{"line 1"}},
		"a ragged row":     {"text/csv", "item,size\na,1\nb\n", 400, "line 3: fields: 1; the header has 2", []string{"line 3"}},
		"an open quote":    {"text/csv", "item\n\"a\n", 400, "line 2: column 4: extraneous or missing", []string{"line 2"}},
		"no number":        {"application/x-ndjson", `{"item":"a","priority":"high"}`, 400, "line 1: priority: a string; want a whole number", []string{"line 1"}},
		"too high":         {"application/x-ndjson", `{"item":"a","priority":6}`, 400, "line 1: priority 6; want -5 to 5", []string{"line 1"}},
		"never due":        {"application/x-ndjson", `{"item":"a","due":"infinity"}`, 400, `line 1: due: "infinity"; want a time`, []string{"line 1"}},
		"NUL in a payload": {"application/x-ndjson", `{"item":"a","payload":"\u0000"}`, 400, `line 1: payload: \u0000 in a string; PostgreSQL cannot store it`, []string{"line 1"}},
		"a large payload":  {"application/x-ndjson", `{"item":"a","payload":"` + strings.Repeat("x", 1<<20) + `"}`, 400, "line 1: payload: 1,048,578 bytes; want at most 1,048,576", []string{"line 1"}},
		"a picture":        {"text/plain", "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", 400, "source: binary data; want text in UTF-8", []string{"source"}},
		"an endless line":  {"text/plain", strings.Repeat("x", 1<<20+1), 400, "line 1: over 1,048,576 bytes", []string{"line 1"}},
	} {
		var headers []string
		r := s.importTo("l", tc.contentType, strings.NewReader(tc.body), headers...)
		wantProblem(t, r, tc.status, tc.what, tc.locations...)
		if tc.status == 400 {
			r = s.importTo("l", tc.contentType, bytes.NewReader(pack(t, tc.body)), "Content-Encoding: gzip")
			wantProblem(t, r, tc.status, tc.what, tc.locations...)
		}
		if got := s.items("l"); len(got) > 0 {
			t.Fatalf("%s: written: %q", name, got)
		}
	}
	whole := pack(t, strings.Repeat("a name\n", 100))
	for name, body := range map[string][]byte{
		"not packed":  []byte("a\nb\n"),
		"cut":         whole[:len(whole)-9],
		"checksum":    append(bytes.Clone(whole[:len(whole)-8]), 1, 2, 3, 4, 5, 6, 7, 8),
		"and garbage": append(bytes.Clone(whole), "garbage"...),
	} {
		wantProblem(t, s.importTo("l", "text/plain", bytes.NewReader(body), "Content-Encoding: gzip"), 400, "body: the stream broke off", "body")
		if got := s.items("l"); len(got) > 0 {
			t.Fatalf("%s: written: %q", name, got)
		}
	}
	// A bomb is read a line at a time, and no further than the first bad one.
	bomb := pack(t, strings.Repeat("\x00", 50<<20))
	wantProblem(t, s.importTo("l", "text/plain", bytes.NewReader(bomb), "Content-Encoding: gzip"), 400, "line 1: over 1,048,576 bytes", "line 1")
	if strings.Contains(s.log.String(), "level=ERROR") {
		t.Errorf("bad input is no error of ours: %s", s.log)
	}
}

// An import that broke off is gone on with under its id, and refused where it is
// another; items and all that belongs to them arrive.
func TestImportGoesOn(t *testing.T) {
	t.Parallel()
	const chunk = 250_000
	s := serve(t, "", httpapi.Config{})
	var names strings.Builder
	for i := range chunk {
		fmt.Fprintf(&names, "%06d\n", i)
	}
	first := names.String()
	r := s.do("POST", "/v1/checklists/l/import?id=urls", strings.NewReader(first+"one\n\xff\n"), "Content-Type: text/plain")
	wantProblem(t, r, 400, "line 250,002: invalid UTF-8", "line 250,002")
	if _, err := s.db.Checklists.Delete(t.Context(), "l", "000000", "000001"); err != nil {
		t.Fatal(err)
	}
	p := wantProblem(t, s.do("POST", "/v1/checklists/l/import?id=urls", strings.NewReader("one\n"), "Content-Type: text/plain"), 409, "import it again from the start")
	if p.Type != "urn:howdah:source-changed" {
		t.Errorf("type %q", p.Type)
	}
	r = s.do("POST", "/v1/checklists/l/import?id=urls&skip_bad=true", strings.NewReader(first+"one\n\xff\ntwo"), "Content-Type: text/plain")
	wantJSON(t, r, `{"added":2,"skipped":0,"resumed":250000,"bad":1,"errors":[{"location":"line 250,002","message":"invalid UTF-8 at byte 0"}]}`)
	if n := len(s.items("l")); n != chunk {
		t.Errorf("%d items, want %d", n, chunk)
	}
	r = s.do("POST", "/v1/checklists/l/import?id=urls&again=true", strings.NewReader("000000\n"), "Content-Type: text/plain")
	wantJSON(t, r, `{"added":1,"skipped":0}`)
}

func TestExportByState(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	in := `{"item":"a","payload":{"n":[1]},"priority":5}` + "\n" + `{"item":"b","due":"2999-01-02T03:04:05.6Z"}` + "\n" + `{"item":"c"}` + "\n"
	wantJSON(t, s.importTo("l", "application/x-ndjson", strings.NewReader(in)), `{"added":3,"skipped":0}`)
	if _, err := s.db.Checklists.Kill(t.Context(), "l", "gone", "c"); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"format=csv":               "item,priority,due,payload\na,5,,\"{\"\"n\"\":[1]}\"\nb,,2999-01-02T03:04:05.6Z,\nc,,,\n",
		"format=text&state=left":   "a\nb\n",
		"format=text&state=ready":  "a\n",
		"format=text&state=leased": "",
		"state=waiting":            `{"item":"b","attempts":0,"state":"waiting","due":"2999-01-02T03:04:05.6Z"}` + "\n",
		"format=csv&state=dead":    "item,priority,due,payload\nc,,,\n",
		"format=nul&state=done":    "",
	} {
		if r := s.get("/v1/checklists/l/export?" + query); r.StatusCode != 200 || r.body != want {
			t.Errorf("%s: %s %q, want %q", query, r.Status, r.body, want)
		}
	}
	wantProblem(t, s.get("/v1/checklists/l/export?state=lost"), 400, "query.state", "query.state")
}

// The answer to a stream that is refused does not wait for the rest of it.
func TestImportAnswersEarly(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	r, w := io.Pipe()
	defer w.Close()
	go io.WriteString(w, "a\n\xff\n")
	wantProblem(t, s.importTo("l", "text/plain", r), 400, "line 2: invalid UTF-8", "line 2")
}

// A client that goes away leaves whole chunks, and no half of a name.
func TestImportOfAClientThatGoesAway(t *testing.T) {
	t.Parallel()
	const chunk = 250_000
	s := serve(t, "", httpapi.Config{})
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var names strings.Builder
	for i := range chunk {
		fmt.Fprintf(&names, "%06d\n", i)
	}
	fmt.Fprintf(conn, "POST /v1/checklists/l/import HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 100000000\r\n\r\n%s", names.String())
	if _, err := io.WriteString(conn, "one more\nand a ha"); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		if err := s.db.Pool.QueryRow(within(t), `SELECT count(*) FROM iidy.lists`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the first chunk is there", func() bool { return count() > 0 })
	conn.Close()
	eventually(t, "the import has ended", func() bool { return s.db.Pool.Stat().AcquiredConns() == 0 })
	if got := count(); got != chunk {
		t.Errorf("%d items, want %d", got, chunk)
	}
	if strings.Contains(s.log.String(), "level=ERROR") {
		t.Errorf("a client that goes away is no error: %s", s.log)
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	names := []string{"a", "b c", "ä😀", `"\`, "<&>"}
	for i := range 2500 { // more than two of the pages it is read in
		names = append(names, fmt.Sprintf("%05d", i))
	}
	slices.Sort(names)
	if _, err := s.db.Checklists.Insert(t.Context(), "l", names...); err != nil {
		t.Fatal(err)
	}
	for format, media := range map[string]string{"text": "text/plain", "nul": "application/x-nul", "csv": "text/csv", "jsonl": "application/x-ndjson"} {
		r := s.get("/v1/checklists/l/export?format=" + format)
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != media {
			t.Errorf("%s: %s, %s", format, r.Status, r.Header.Get("Content-Type"))
		}
		wantJSON(t, s.importTo(format, media, strings.NewReader(r.body)), fmt.Sprintf(`{"added":%d,"skipped":0}`, len(names)))
		if diff := cmp.Diff(names, s.items(format)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", format, diff)
		}
	}
	if r := s.get("/v1/checklists/l/export"); r.Header.Get("Content-Type") != "application/x-ndjson" || !strings.HasPrefix(r.body, `{"item":`) {
		t.Errorf("without a format: %s %.100s", r.Header.Get("Content-Type"), r.body)
	}
	if r := s.get("/v1/checklists/none/export"); r.StatusCode != 200 || r.body != "" {
		t.Errorf("of no list: %s %q", r.Status, r.body)
	}
	// What has no line of its own cuts a stream of lines.
	wantJSON(t, s.post("/v1/checklists/odd/items", `{"items":["a\nb"]}`), `{"added":1,"skipped":0}`)
	if r, err := s.try("GET", "/v1/checklists/odd/export?format=text", nil); err == nil {
		t.Errorf("a name with a line break as text: %s %q", r.Status, r.body)
	}
	if r := s.get("/v1/checklists/odd/export?format=nul"); r.body != "a\nb\x00" {
		t.Errorf("a name with a line break between NULs: %q", r.body)
	}
}

// Half an export does not look like a whole one.
func TestExportThatFailsOnTheWayIsCut(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	s := serve(t, url, httpapi.Config{})
	// Long enough to fill what the network holds, so that it is still being
	// written when its database goes.
	var names []string
	for i := range 20_000 {
		names = append(names, fmt.Sprintf("%06d%s", i, strings.Repeat("x", 1000)))
	}
	if _, err := s.db.Checklists.Insert(t.Context(), "l", names...); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(within(t), "GET", s.URL+"/v1/checklists/l/export", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	other := pgtest.Pool(t, url)
	if _, err := other.Exec(within(t), `ALTER TABLE iidy.lists RENAME TO gone`); err != nil {
		t.Fatal(err)
	}
	terminate(t, other)
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d bytes more and %v, want the connection cut", n, err)
	}
	eventually(t, "it is logged", func() bool { return strings.Contains(s.log.String(), "stream cut") })
}

// terminate kills the other connections to the database of pool.
func terminate(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(within(t), `
		SELECT pg_terminate_backend(pid, 10000)
		FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
}
