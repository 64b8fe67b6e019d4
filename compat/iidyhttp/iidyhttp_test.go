package iidyhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/compat/iidyhttp"
	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

const (
	one   = "/iidy/v1/lists/l/a.txt"
	batch = "/iidy/v1/batch/lists/l"
)

// gathersLess gathers less than the default where its tests have less to add.
var gathersLess = httpapi.Config{MaxBody: int64(pgtest.Size(0, 1<<20))}

func TestWhatIsThereIsNotAddedAgain(t *testing.T) {
	t.Parallel()
	s := serve(t, "", gathersLess)
	want(t, s.post(one, ""), 201, "ADDED 1\n")
	want(t, s.post(one, ""), 409, `Error trying to add list item: "a.txt" is on the list already`+"\n")
	want(t, s.do("POST", one, nil, isJSON), 409, `{"error":"Error trying to add list item: \"a.txt\" is on the list already"}`+"\n")
	for name, tc := range map[string]struct{ body, first string }{
		"on the list":       {"new\na.txt\nnewer\n", `"a.txt"`},
		"twice":             {"x\ny\nx\n", `"x"`},
		"odd":               {"(a), b)\n(a), b)", `"(a), b)"`},
		"many":              {strings.Repeat("long enough\n", 1000), `"long enough"`},
		"more than gathers": {"q\nq\n" + lines(pgtest.Size(300_000, 40_000)), `"q"`},
	} {
		r := s.post(batch, tc.body)
		want(t, r, 409, "Error trying to add list items: "+tc.first+" is on the list already, or comes twice; nothing was added\n")
		if got := s.items("l"); !slices.Equal(got, []string{"a.txt"}) {
			t.Fatalf("%s: added %d items", name, len(got)-1)
		}
	}
	want(t, s.do("POST", batch, strings.NewReader(`{"items":["b","",""]}`), isJSON), 409,
		`{"error":"Error trying to add list items: \"\" is on the list already, or comes twice; nothing was added"}`+"\n")
}

func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "item %07d of a stream\n", i)
	}
	return b.String()
}

// A stream longer than is gathered, too, is all or nothing.
func TestAnAddOfAnyLength(t *testing.T) {
	t.Parallel()
	s := serve(t, "", gathersLess)
	n := pgtest.Size(400_000, 40_000)
	want(t, s.post(batch, lines(n)), 201, fmt.Sprintf("ADDED %d\n", n))
	p, err := s.db.Checklists.Progress(within(t), "l")
	if err != nil || p.Left != int64(n) {
		t.Errorf("Progress = %+v, %v", p, err)
	}
	wantPart(t, s.post("/iidy/v1/batch/lists/other", lines(n)+"a\x00b\n"), 400, fmt.Sprintf("items[%d]: a NUL byte", n))
	if got := s.items("other"); len(got) > 0 {
		t.Errorf("%d of a refused stream are there", len(got))
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	lists := checklists.New(pool, checklists.Config{})
	if err := migrate.Up(within(t), pool.Config().ConnConfig, slog.New(slog.DiscardHandler), lists.Migrations()); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, Server: httptest.NewServer(iidyhttp.New(pool, lists, iidyhttp.Config{
		MaxBody: 1000, MaxStream: 10_000,
		Explain: func(_ context.Context, op string, err error) (int, http.Header, string) {
			return 599, nil, op + ": " + err.Error()
		},
	}))}
	t.Cleanup(s.Close)
	long, longer := strings.Repeat("x\n", 600), lines(500)
	for _, tc := range []struct {
		method, body, form, text string
		status                   int
	}{
		{"POST", long, "text/plain", `"x" is on the list already`, 409}, // read to its end
		{"POST", longer, "text/plain", "The body is over 10000 bytes.", 413},
		{"POST", `{"items":["` + long + `"]}`, "application/json", "The body is over 1000 bytes.", 413},
		{"DELETE", long, "text/plain", "The body is over 1000 bytes.", 413},
	} {
		wantPart(t, s.do(tc.method, batch, strings.NewReader(tc.body), "Content-Type: "+tc.form), tc.status, tc.text)
		unknown := struct{ io.Reader }{strings.NewReader(tc.body)} // its length is not told before
		wantPart(t, s.do(tc.method, batch, unknown, "Content-Type: "+tc.form), tc.status, tc.text)
	}
	wantPart(t, s.post("/iidy/v1/increment/batch/lists/l", "a\x00b"), 599, "Error trying to increment list items: iidy-increment: checklists: increment: item: a NUL byte")
}

func TestCounts(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const n = 25_000 // several of the store's pages
	want(t, s.post(batch, lines(n)), 201, fmt.Sprintf("ADDED %d\n", n))
	for count, tc := range map[string]struct {
		status int
		body   string
	}{
		"":                     {400, "Query arg not found: count\n"},
		"abc":                  {400, `For query arg count, abc is not a number: strconv.Atoi: parsing "abc": invalid syntax` + "\n"},
		"1.5":                  {400, `For query arg count, 1.5 is not a number: strconv.Atoi: parsing "1.5": invalid syntax` + "\n"},
		"-1":                   {400, "For query arg count, -1 is not from 0 to 1000000\n"},
		"1000001":              {400, "For query arg count, 1000001 is not from 0 to 1000000\n"},
		"1000000000000":        {400, "For query arg count, 1000000000000 is not from 0 to 1000000\n"},
		"99999999999999999999": {400, "For query arg count, 99999999999999999999 is not from 0 to 1000000\n"},
		"0":                    {200, ""},
		"1":                    {200, "item 0000000 of a stream 0\n"},
	} {
		want(t, s.get(batch+"?count="+count), tc.status, tc.body)
	}
	want(t, s.get(batch), 400, "Query arg not found: count\n")
	for _, count := range []int{10_000, 10_001, 24_999, 25_000, 25_001, 1_000_000} {
		r := s.get(fmt.Sprintf("%s?count=%d", batch, count))
		last := fmt.Sprintf("item %07d of a stream", min(count, n)-1)
		if got := strings.Count(r.body, "\n"); got != min(count, n) || r.Header.Get("X-IIDY-Last-Item") != last {
			t.Errorf("count %d: %d lines, last %q, want %q", count, got, r.Header.Get("X-IIDY-Last-Item"), last)
		}
	}
}

// Nothing is set aside by count: a page of a list that has less takes no more.
// Alone, because it looks at the memory of the process.
func TestCountTakesNoMemory(t *testing.T) {
	s := serve(t, "", httpapi.Config{})
	taken := func(count string) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 100 {
			s.get("/iidy/v1/batch/lists/none?count=" + count)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	few := taken("10")
	for _, count := range []string{"1000000", "1000000000000", "99999999999999999999", "-1"} {
		if got := taken(count); got > 100*(256<<10)+2*few { // room for a thousand items, whatever the count
			t.Errorf("100 times count=%s took %d bytes, count=10 %d", count, got, few)
		}
	}
}

func TestHeaderOfTheLastItem(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for item, header := range map[string]string{
		"plain": "plain", "日本": "日本", "a b": "a b", "a\nb": "", "\x01": "", "tab\t.": "", "\u0085": "", " a": "", "a ": "", "": "",
	} {
		list := fmt.Sprintf("l%x", item)
		if _, err := s.db.Checklists.Insert(within(t), list, item); err != nil {
			t.Fatal(err)
		}
		r := s.get("/iidy/v1/batch/lists/" + list + "?count=5")
		want(t, r, 200, item+" 0\n")
		if got := r.Header.Values("X-IIDY-Last-Item"); strings.Join(got, "|") != header {
			t.Errorf("%q: %q, want %q", item, got, header)
		}
	}
}

func TestPathsAndForms(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for _, name := range []string{"a/b", "/", "%2F", "ä😀", "a b+c?d#e", ".", "..", "//", "\n", "batch", "lists", "increment"} {
		path := "/iidy/v1/lists/" + strings.ReplaceAll(url.PathEscape(name), ".", "%2E") + "/" + strings.ReplaceAll(url.PathEscape(name), ".", "%2E")
		want(t, s.post(path, ""), 201, "ADDED 1\n")
		want(t, s.post(path+"?action=increment", ""), 200, "INCREMENTED 1\n")
		want(t, s.get(path), 200, "1\n")
		if got := s.items(name); !slices.Equal(got, []string{name}) {
			t.Errorf("%q: %q", name, got)
		}
		want(t, s.do("DELETE", path, nil), 200, "DELETED 1\n")
	}
	for _, path := range []string{"/iidy/v1/", "/iidy/v1/lists", "/iidy/v1/lists/l", "/iidy/v1/lists/l/", "/iidy/v1/lists//a", "/iidy/v1/batch/lists/",
		"/iidy/v1/batch/lists/l/a", "/iidy/v1/batch/increment/lists/l", "/iidy/v1/lists/l/a/", "/iidy/v1/x/lists/l/a"} {
		want(t, s.get(path), 404, "404 page not found\n")
	}
	want(t, s.do("GET", "/iidy/v1/lists/l/", nil, isJSON), 404, `{"error":"404 page not found"}`+"\n")
	want(t, s.post(one+"?action=decrement", ""), 400, "Unknown action: decrement\n")
	want(t, s.post(batch+"?action=x", "a"), 400, "Unknown action: x\n")
	wantPart(t, s.get(batch+"?count=1;after_id=x"), 400, "Cannot read the query")
	wantPart(t, s.post("/iidy/v1/lists/a%00b/c", ""), 400, "list: a NUL byte")
	wantPart(t, s.post("/iidy/v1/lists/l/"+strings.Repeat("x", 5000), ""), 400, "item: 5001 bytes; list and item together may have 2600")
	r := s.do("GET", "/iidy/v1/increment/lists/l/a", nil)
	if want(t, r, 405, "Method Not Allowed\n"); r.Header.Get("Allow") != "POST" {
		t.Errorf("Allow %q", r.Header.Get("Allow"))
	}
	for form, json := range map[string]bool{
		"application/json": true, "APPLICATION/JSON": true, "application/json; charset=utf-8": true, "application/json;": true, "application/json; x": true,
		"text/plain": false, "application/jsonl": false, "": false, ";;": false,
	} {
		expected := "INCREMENTED 0\n"
		if json {
			expected = `{"incremented":0}` + "\n"
		}
		want(t, s.do("POST", "/iidy/v1/increment/lists/l/none", nil, "Content-Type: "+form), 200, expected)
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for i, tc := range []struct {
		body string
		json bool
		want []string
	}{
		{"", false, nil},
		{" \r\n\t\n", false, nil},
		{" a \n b \n\n \nc\r\nd\r\r\ne ", false, []string{" b ", "a ", "c", "d\r", "e"}},
		{"\u00a0x\u00a0", false, []string{"x"}},
		{"{}", true, nil},
		{`{"items":null}`, true, nil},
		{` {"items":[]} `, true, nil},
		{`{"items":["","a\nb"," c "],"more":1}`, true, []string{"", " c ", "a\nb"}},
	} {
		list := fmt.Sprint("l", i)
		headers, added := []string{}, fmt.Sprintf("ADDED %d\n", len(tc.want))
		if tc.json {
			headers, added = []string{isJSON}, fmt.Sprintf("{\"added\":%d}\n", len(tc.want))
		}
		want(t, s.do("POST", "/iidy/v1/batch/lists/"+list, strings.NewReader(tc.body), headers...), 201, added)
		if got := s.items(list); !slices.Equal(got, tc.want) {
			t.Errorf("%q: %q, want %q", tc.body, got, tc.want)
		}
	}
	for body, what := range map[string]string{
		"": "unexpected end", "null": "null; want an object", "[]": "cannot unmarshal", `"a"`: "cannot unmarshal", `{"items":["a"]} x`: "after top-level value",
		`{"items":"a"}`: "cannot unmarshal", `{"items":[1]}`: "cannot unmarshal", `{"items":["a",null]}`: "items[1] is null", "{\"items\":[\"\xff\"]}": "invalid UTF-8",
		`{"items":["\ud800"]}`: "half a surrogate pair", `{"items":["a\u0000"]}`: "items[0]: a NUL byte",
	} {
		wantPart(t, s.do("POST", batch, strings.NewReader(body), isJSON), 400, what)
	}
	for body, what := range map[string]string{
		"a\n\xff": "items[1]: invalid UTF-8", strings.Repeat("x", 2_000_000): "line 1 is over", "a\n" + strings.Repeat("x", 3000): "items[1]: 3001 bytes",
	} {
		wantPart(t, s.post(batch, body), 400, what)
	}
	wantPart(t, s.do("POST", batch, strings.NewReader("a"), "Content-Encoding: gzip"), 415, "Content-Encoding")
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("of what was refused %q were added", got)
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	want(t, s.post(batch, "a.txt\nb.txt"), 201, "ADDED 2\n")
	for path, status := range map[string]int{one: 200, batch + "?count=1": 200, "/iidy/v1/lists/l/none": 404} {
		r := s.do("HEAD", path, nil)
		if want(t, r, status, ""); strings.Contains(path, "count") && r.Header.Get("X-IIDY-Last-Item") != "a.txt" {
			t.Errorf("last item %q", r.Header.Get("X-IIDY-Last-Item"))
		}
	}
}

// Bodies that do not arrive as HTTP says are their sender's fault, and nothing of
// them is added.
func TestBrokenTransfers(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{BodyTimeout: 200 * time.Millisecond})
	for name, tc := range map[string]struct{ rest, status string }{
		"never ends":      {"Content-Length: 100\r\n\r\na\nb\nc", "408 Request Timeout"},
		"malformed chunk": {"Transfer-Encoding: chunked\r\n\r\n4\r\na\nb\n\r\nzz\r\n", "400 Bad Request"},
	} {
		for _, method := range []string{"POST", "DELETE"} {
			conn, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(pgtest.Patience))
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, batch, tc.rest)
			answer, err := io.ReadAll(conn) // the server closes it
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+tc.status) {
				t.Errorf("%s of a body that is %s: %s, %v", method, name, answer, err)
			}
		}
	}
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("added %q", got)
	}
}

// Where a list keeps what is done, that is off the list all the same.
func TestKeptItemsAreOffTheList(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	if err := s.db.Checklists.Set(within(t), "l", checklists.Settings{KeepDone: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		want(t, s.post(one, ""), 201, "ADDED 1\n")
		want(t, s.do("DELETE", one, nil), 200, "DELETED 1\n")
		want(t, s.get(one), 404, "Not found.\n")
		want(t, s.post(batch, "a.txt"), 201, "ADDED 1\n")
		want(t, s.do("DELETE", batch, strings.NewReader("a.txt")), 200, "DELETED 1\n")
	}
}

// The server's guards stand before these routes too.
func TestGuards(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{LoopbackOnly: true})
	for _, headers := range [][]string{{"Origin: https://example.com"}, {"Sec-Fetch-Site: cross-site"}} {
		for _, method := range []string{"POST", "DELETE"} {
			wantPart(t, s.do(method, batch, strings.NewReader("a"), headers...), 403, "a request from another web site")
		}
	}
	req, err := http.NewRequestWithContext(within(t), "GET", s.URL+one, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "example.com"
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.Body.Close(); res.StatusCode != 403 || res.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("Host example.com: %s", res.Status)
	}
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("added %q", got)
	}
}

// Adds that overlap are each all or nothing, and none is told anything else.
func TestOverlappingAdds(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	bodies := []string{"a\nb\nc", "c\nb\na", "b\nc\nd", "d\nc\nb"}
	for round := range 20 {
		var group errgroup.Group
		statuses := make([]int, len(bodies))
		for i, body := range bodies {
			group.Go(func() error {
				r, err := s.try("POST", batch, strings.NewReader(body))
				if err == nil && r.StatusCode != 201 && r.StatusCode != 409 {
					err = errors.New(r.Status + r.body)
				}
				if err == nil {
					statuses[i] = r.StatusCode
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		added := 0
		for _, status := range statuses {
			if status == 201 {
				added++
			}
		}
		if got := s.items("l"); added != 1 || len(got) != 3 {
			t.Fatalf("round %d: %d adds went through, %q is there", round, added, got)
		}
		s.do("DELETE", batch, strings.NewReader("a\nb\nc\nd"))
	}
}

// While the database is away, or goes away in the middle of a page, that is said:
// no page is empty or short for it.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	s := serve(t, proxy.URL(), httpapi.Config{})
	want(t, s.post(batch, lines(30_000)), 201, "ADDED 30000\n")
	away := func(r response) {
		t.Helper()
		wantPart(t, r, 503, "Error trying to ")
		if r.Header.Get("X-IIDY-Last-Item") != "" {
			t.Errorf("%s: with a last item", r.Request.URL)
		}
	}
	proxy.CutOn([]byte("item 0009999")) // asking for the second of the store's pages
	away(s.get(batch + "?count=30000"))
	proxy.CutOnAnswer([]byte("item 0005")) // in the middle of the first
	away(s.get(batch + "?count=30000"))
	proxy.CutOnAnswer([]byte("item 0029"))
	away(s.do("GET", batch+"?count=30000", nil, isJSON))
	want(t, s.get(batch+"?count=1"), 200, "item 0000000 of a stream 0\n")

	proxy.CutOn([]byte("INTO")) // the answer to an add is lost: nobody knows
	wantPart(t, s.post("/iidy/v1/lists/unknown/a", ""), 503, "look before you repeat it")
	proxy.Refuse(true)
	proxy.Cut()
	var group errgroup.Group // each waits a few seconds for the database to come back
	for _, line := range []string{"GET " + one, "GET " + batch + "?count=5", "POST " + one, "DELETE " + one, "POST /iidy/v1/increment/lists/l/a",
		"POST " + batch, "DELETE " + batch, "POST /iidy/v1/increment/batch/lists/l"} {
		method, path, _ := strings.Cut(line, " ")
		group.Go(func() error {
			r, err := s.try(method, path, strings.NewReader("x\ny"))
			if err != nil {
				return err
			}
			away(r)
			if strings.Contains(r.body, "127.0.0.1") {
				t.Errorf("%s tells where the database is: %s", line, r.body)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	proxy.Refuse(false)
	want(t, s.get(batch+"?count=1"), 200, "item 0000000 of a stream 0\n")
}
