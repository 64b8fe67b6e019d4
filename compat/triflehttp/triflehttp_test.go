package triflehttp_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/httpapi"
)

// plain reads JSON for comparing: numbers by their value, lists of paths in order.
func plain(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return simplify("", v)
}

func simplify(name string, v any) any {
	switch v := v.(type) {
	case json.Number:
		n, _ := new(big.Rat).SetString(string(v))
		return n.RatString()
	case []any:
		for i := range v {
			v[i] = simplify("", v[i])
		}
		if strings.HasSuffix(name, "_paths") {
			slices.SortFunc(v, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		}
	case map[string]any:
		for name := range v {
			v[name] = simplify(name, v[name])
		}
	}
	return v
}

func want(t testing.TB, r response, status int, body string) {
	t.Helper()
	if diff := cmp.Diff(plain(t, body), plain(t, r.body)); r.StatusCode != status || diff != "" {
		t.Errorf("%s %s = %d, want %d: %s", r.Request.Method, r.Request.URL, r.StatusCode, status, diff)
	}
	if form := r.Header.Get("Content-Type"); form != "application/json; charset=utf-8" {
		t.Errorf("%s %s: Content-Type %q", r.Request.Method, r.Request.URL, form)
	}
}

// refused is want of a refusal without a body of its own, and of the header's reason.
func refused(t testing.TB, r response, status int, body, reason string) {
	t.Helper()
	want(t, r, status, `{"errors":{"detail":"`+body+`"}}`)
	if got := r.Header.Get("X-Howdah-Detail"); !strings.Contains(got, reason) {
		t.Errorf("%s %s: %q, want %q in it", r.Request.Method, r.Request.URL, got, reason)
	}
}

// What the original answered, with its table, is what is answered here, whether bodies
// are packed or not.
func TestAnswersAreTheOriginals(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/http.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Cases []struct {
			Request struct {
				Method, Path string
				Body         json.RawMessage
			}
			Status   int
			Response json.RawMessage
		}
	}
	if err := json.Unmarshal(text, &golden); err != nil || len(golden.Cases) < 11 {
		t.Fatalf("%d cases, %v", len(golden.Cases), err)
	}
	s := serve(t, httpapi.Config{})
	for _, c := range golden.Cases {
		want(t, s.do(c.Request.Method, c.Request.Path, strings.NewReader(string(c.Request.Body)), "X-Trifle-Source-Id: 7"), c.Status, string(c.Response))
		if c.Request.Method == "POST" {
			want(t, s.post(c.Request.Path, packed(string(c.Request.Body)), "Content-Encoding: gzip"), c.Status, string(c.Response))
		}
	}
	want(t, s.do("GET", "/api/v1/metrics?key=http::post&from=2025-05-06T09:00:00Z&to=2025-05-06T09:59:00Z&granularity=1h", nil), 200,
		`{"data":{"at":["2025-05-06T09:00:00Z"],"values":[{"count":2,"duration":0.84,"country":{"US":2}}]}}`) // plain, and packed
}

func TestEvents(t *testing.T) {
	t.Parallel()
	s := serve(t, httpapi.Config{Version: "1.2.3"})
	const created, at = `{"data":{"created":"ok"}}`, `"at":"2030-01-02T03:04:05Z"`
	const read = "/api/v1/metrics?from=2030-01-02T00:00:00Z&to=2030-01-02T00:00:00Z&granularity=1d"
	want(t, s.post("/api/v1/metrics", `{"key":"http",`+at+`,"values":{"n":12345678901234567890.5}}`), 201, created)
	want(t, s.post("/api/v1/metrics", `{"operation":"track","untracked":true,"key":"http",`+at+`,"values":{"n":0.25}}`), 201, created)
	want(t, s.post("/api/v1/metrics", `{"operation":"assert","key":"http",`+at+`,"values":{"state":{"$max":"up"}}}`), 201, created)
	want(t, s.do("GET", read+"&key=http", nil), 200, `{"data":{"at":["2030-01-02T00:00:00Z"],"values":[{"n":12345678901234567890.75,"state":{"$max":"up"}}]}}`)
	want(t, s.do("GET", read, nil), 200, `{"data":{"at":["2030-01-02T00:00:00Z"],"values":[{"count":3,"keys":{"http":2,"__untracked__":1}}]}}`)
	want(t, s.do("GET", "/api/v1/source", nil), 200, `{"data":{"api_version":"v1","server_version":"1.2.3","id":"public.trifle_stats","type":"postgres","display_name":"public.trifle_stats",
		"default_timeframe":"7d","default_granularity":"1h","available_granularities":["1m","1h","1d","1w","1mo","1q","1y"],"time_zone":"UTC"}}`)

	// What cannot be read is a bad request, and what cannot be done is told.
	for body, reason := range map[string]string{
		``:                                  "unexpected end of JSON input",
		`null`:                              "want an object",
		`[]`:                                "cannot unmarshal array",
		`{"key":"http","values":{"n":1}}`:   "at: ''; want RFC 3339",
		`{"key":"http","at":1,"values":{}}`: "at",
		`{` + at + `,"values":{"n":1}}`:     "key: missing or empty",
		`{"key":"http",` + at + `}`:         "JSON",
		`{"key":"http",` + at + `,"values":null}`:                                   "values: missing",
		`{"key":"http",` + at + `,"values":[1]}`:                                    "want an object",
		`{"key":"http",` + at + `,"values":{"n":1,"n":2}}`:                          "second time",
		`{"key":"http",` + at + `,"operation":"beam","values":{}}`:                  "operation: 'beam'; want track or assert",
		`{"key":"\ud800",` + at + `,"values":{}}`:                                   "body",
		"{\"key\":\"\xff\"," + at + `,"values":{}}`:                                 "body",
		`{"key":"http","at":"2030-01-02T03:04:05","values":{}}`:                     "want RFC 3339",
		strings.Repeat(`{"key":`, 20_000) + `1` + strings.Repeat("}", 20_000) + ` `: "body",
	} {
		refused(t, s.post("/api/v1/metrics", body), 400, "Bad request", reason)
	}
	for body, reason := range map[string]string{
		`{"key":"http",` + at + `,"values":{"n":{"$max":"x"}}}`:                                                       "values.n.$max: ",
		`{"key":"http",` + at + `,"values":{"state":{"$max":1}}}`:                                                     "which is no number",
		`{"key":"http",` + at + `,"values":{"":1}}`:                                                                   "an empty name",
		`{"key":"` + strings.Repeat("k", 300) + `",` + at + `,"values":{"n":1}}`:                                      "at most 255",
		`{"key":"http","at":"0000-01-02T03:04:05Z","values":{"n":1}}`:                                                 "want 1 to 9999",
		`{"key":"http",` + at + `,"operation":"assert","values":{"a":1,"a.b":2,"n":` + strings.Repeat("9", 99) + `}}`: "which is a leaf of the same call",
	} {
		r := s.post("/api/v1/metrics", body)
		if r.StatusCode != 422 || !strings.Contains(r.body, `"status":"error"`) || !strings.Contains(r.body, reason) {
			t.Errorf("%.100s = %d %s, want %q", body, r.StatusCode, r.body, reason)
		}
	}
	want(t, s.do("GET", read+"&key=http", nil), 200, `{"data":{"at":["2030-01-02T00:00:00Z"],"values":[{"n":12345678901234567890.75,"state":{"$max":"up"}}]}}`)
}

func TestReads(t *testing.T) {
	t.Parallel()
	s := serve(t, httpapi.Config{})
	const day = "&from=2025-05-06T00:00:00Z&to=2025-05-06T00:00:00Z&granularity=1d"
	for query, reason := range map[string]string{
		"key=":          "key: empty",
		"key=orders":    "from: ''; want RFC 3339",
		"key=%zz" + day: "query: invalid URL escape",
		"key=a;b" + day: "query: invalid semicolon",
		"key=orders&from=2025-05-06T00:00:00Z&to=2025-05-06T00:00:00Z":                "granularity: ''",
		"key=orders&from=2025-05-06T00:00:00Z&to=2025-05-06T00:00:00Z&granularity=0d": "granularity: '0d'",
	} {
		refused(t, s.do("GET", "/api/v1/metrics?"+query, nil), 400, "Bad request", reason)
	}
	want(t, s.do("GET", "/api/v1/metrics?key=orders&from=2025-05-07T00:00:00Z&to=2025-05-06T00:00:00Z&granularity=1d", nil), 200, `{"data":{"at":[],"values":[]}}`)
	for _, query := range []string{"from=0002-01-01T00:00:00Z&to=9999-01-01T00:00:00Z&granularity=1s", "from=2025-01-01T00:00:00Z&to=2025-05-06T00:00:00Z&granularity=1m"} {
		if r := s.do("GET", "/api/v1/metrics?key=orders&"+query, nil); r.StatusCode != 422 || !strings.Contains(r.body, "coarser granularity") {
			t.Errorf("%s = %d %s", query, r.StatusCode, r.body)
		}
	}
	if r := s.do("HEAD", "/api/v1/metrics?key=orders"+day, nil); r.StatusCode != 200 || r.body != "" {
		t.Errorf("HEAD = %d %q", r.StatusCode, r.body)
	}
	refused(t, s.do("GET", "/api/v1/other", nil), 404, "Not Found", "")
	refused(t, s.do("GET", "/api/v1/metrics/", nil), 404, "Not Found", "")
	r := s.do("GET", "/api/v1/metrics/query", nil)
	if refused(t, r, 405, "Method Not Allowed", ""); r.Header.Get("Allow") != "POST" {
		t.Errorf("Allow %q", r.Header.Get("Allow"))
	}
}

func TestQueries(t *testing.T) {
	t.Parallel()
	s := serve(t, httpapi.Config{})
	ask := func(more string) response {
		return s.post("/api/v1/metrics/query", `{"key":"orders","from":"2025-05-05T00:00:00Z","to":"2025-05-10T00:00:00Z","granularity":"1d",`+more+`}`)
	}
	for more, text := range map[string]string{
		`"value_path":"count"`:               "Mode must be provided",
		`"mode":"plot","value_path":"count"`: "Unknown mode: plot",
		`"mode":"timeline"`:                  "Value path must be provided.",
		`"mode":"aggregate","value_path":"count","aggregator":"stddev"`:                                                                  "Unknown aggregator: stddev (options: max, mean, min, sum).",
		`"mode":"timeline","value_path":"count","slices":0`:                                                                              "Slices must be a whole number",
		`"mode":"timeline","value_path":"count","slices":1.5`:                                                                            "Slices must be a whole number",
		`"mode":"timeline","value_path":"count","slices":7`:                                                                              "7 of 6 points",
		`"mode":"aggregate","value_path":"state","aggregator":"sum"`:                                                                     "Unknown path(s): state", // what is below it has no one sum
		`"mode":"aggregate","value_path":"*.nope","aggregator":"sum"`:                                                                    "Unknown path(s): *.nope",
		`"mode":"category","value_path":"count","to":"2025-05-04T00:00:00Z"`:                                                             "Unknown path(s): count",
		`"mode":"category","value_path":"` + strings.Repeat("a.", 500) + `"`:                                                             "Unknown path(s): a.",
		`"mode":"category","value_path":"count","granularity":"1s","to":"2025-05-05T23:00:00Z","key":"` + strings.Repeat("k", 300) + `"`: "at most 255",
	} {
		r := ask(more)
		if r.StatusCode != 422 || !strings.Contains(r.body, `"status":"error"`) || !strings.Contains(r.body, text) {
			t.Errorf("%s = %d %s, want %q", more, r.StatusCode, r.body, text)
		}
	}
	part := func(r response, name string) string {
		t.Helper()
		var body struct{ Data map[string]json.RawMessage }
		if err := json.Unmarshal([]byte(r.body), &body); err != nil || r.StatusCode != 200 {
			t.Fatalf("%d %s: %v", r.StatusCode, r.body, err)
		}
		return string(body.Data[name])
	}
	for _, c := range []struct{ more, member, want string }{
		{`"mode":"aggregate","value_path":"currency.*.revenue","aggregator":"sum"`, "value", "21480.65"},
		{`"mode":"aggregate","value_path":"currency.*.revenue","aggregator":"sum"`, "matched_paths", `["currency.EUR.revenue","currency.JPY.revenue","currency.USD.revenue"]`},
		{`"mode":"aggregate","value_path":"revenue","aggregator":"max","slices":2`, "values", "[19501.95,590.96]"},
		{`"mode":"aggregate","value_path":"state.paid","aggregator":"min","slices":6`, "values", "[3,150,3,null,null,2]"},
		{`"mode":"category","value_path":"state.failed","slices":2`, "result", `[{"state.failed":146},{"state.failed":10}]`},
		{`"mode":"timeline","value_path":"count","slices":6`, "result", `{"count":[[{"at":"2025-05-05T00:00:00Z","value":11}],[{"at":"2025-05-06T00:00:00Z","value":440}],[{"at":"2025-05-07T00:00:00Z","value":9}],[{"at":"2025-05-08T00:00:00Z","value":6}],[{"at":"2025-05-09T00:00:00Z","value":4}],[{"at":"2025-05-10T00:00:00Z","value":12}]]}`},
	} {
		if got := part(ask(c.more), c.member); cmp.Diff(plain(t, c.want), plain(t, got)) != "" {
			t.Errorf("%s: %s = %s, want %s", c.more, c.member, got, c.want)
		}
	}
	r := s.post("/api/v1/metrics/query", `{"from":"2025-05-05T00:00:00Z","to":"2025-05-10T00:00:00+00:00","granularity":"1d","mode":"aggregate","value_path":"count","aggregator":"sum"}`)
	if got := part(r, "metric_key"); got != `"__system__key__"` {
		t.Errorf("no key is that of %s", got)
	}
	refused(t, s.post("/api/v1/metrics/query", `{"mode":"timeline"}`), 400, "Bad request", "from: ''")
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := serve(t, httpapi.Config{MaxBody: 1000})
	large := fmt.Sprintf(`{"key":"http","at":"2030-01-02T03:04:05Z","values":{"%s":1}}`, strings.Repeat("x", 100_000))
	const why = "too large"
	refused(t, s.post("/api/v1/metrics", large), 413, "Request Entity Too Large", why)
	refused(t, s.post("/api/v1/metrics", packed(large), "Content-Encoding: gzip"), 413, "Request Entity Too Large", why) // some 200 bytes
	refused(t, s.post("/api/v1/metrics", large[:900], "Content-Encoding: gzip"), 400, "Bad request", "gzip: invalid header")
	refused(t, s.post("/api/v1/metrics", packed(`{"key":"http"}`)[:20], "Content-Encoding: gzip"), 400, "Bad request", "unexpected EOF")
	refused(t, s.post("/api/v1/metrics", "{}", "Content-Encoding: br"), 415, "Unsupported Media Type", "want gzip, or none")
}

// A database that is away is told without its address, and when to come back.
func TestTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	s := serve(t, httpapi.Config{})
	s.db.Close()
	r := s.post("/api/v1/metrics", `{"key":"http","at":"2030-01-02T03:04:05Z","values":{"n":1}}`)
	if r.StatusCode < 500 || !strings.HasPrefix(r.body, `{"errors":{"detail":"`) || strings.Contains(r.body, "postgres") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}
