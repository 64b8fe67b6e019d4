package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

const (
	someEvents = "/v1/counters/events"
	someDay    = "/v1/counters/keys/orders?from=2025-05-06T00:00:00Z&to=2025-05-06T00:00:00Z&granularity=1d"
)

// event is a line that counts something of orders.
func event(values string, more ...string) string {
	return `{"key":"orders","at":1746522900,"values":` + values + strings.Join(more, "") + `}`
}

func (s *server) stream(body string, headers ...string) response {
	s.t.Helper()
	return s.do("POST", someEvents, strings.NewReader(body), append(headers, "Content-Type: application/x-ndjson")...)
}

// Many requests at once share transactions, whatever their shape, and each counts once.
func TestManyCount(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	background(t, s)
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			wantJSON(t, s.post("/v1/counters/keys/orders/track", `{"at":1746522900,"values":{"n":1,"revenue":0.10}}`), `{"applied":1}`)
			if r := s.post("/api/v1/metrics", `{"key":"orders","at":"2025-05-06T09:15:00Z","values":{"trifle":1}}`); r.StatusCode != 201 {
				t.Errorf("a track in Trifle's JSON: %s %s", r.Status, r.body)
			}
			if i%4 == 0 {
				wantProblem(t, s.post("/v1/counters/keys/note/track", `{"values":{"n":"x"}}`), 400, "want a number", "body.values.n")
			}
		})
	}
	all.Wait()
	wantJSON(t, s.get(someDay), `{"at":["2025-05-06T00:00:00Z"],"values":[{"n":32,"revenue":3.2,"trifle":32}]}`)
	if got := s.db.Writers.Counters.Stats(); got.Written != 64 {
		t.Errorf("%+v", got)
	}
}

// An array is counted in one transaction, all or none.
func TestEventsArray(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{MaxBody: 1 << 20})
	background(t, s)
	wantJSON(t, s.post(someEvents, "["+event(`{"n":1}`)+","+event(`{"n":{"$max":9}}`)+","+event(`{"state":"up"}`, `,"op":"assert","id":"a"`)+"]"), `{"applied":3}`)
	wantJSON(t, s.post(someEvents, "["+event(`{"state":"up"}`, `,"op":"assert","id":"a"`)+"]"), `{"applied":0}`)
	wantProblem(t, s.post(someEvents, "["+event(`{"n":1}`)+","+event(`{"n":1}`, `,"id":"a"`)+"]"), 409, `"a": the ID was used for something else`)
	wantJSON(t, s.post(someEvents, "[]"), `{"applied":0}`)
	for body, want := range map[string][2]string{
		"[" + event(`{"n":1}`) + "," + event(`{"n":"x"}`) + "]":         {"want a number", "body[1].values.n"},
		"[" + event(`{"n":1}`) + "," + event(`{"state":1}`) + "]":       {"which is no number", "body[1].values.state"},
		"[" + event(`{"n":1}`) + "," + event(`{"n":1}`, `,"x":1`) + "]": {"want an object with key, at, values", "body[1]"},
		"[" + event(`{"n":1}`, `,"op":"inc"`) + "]":                     {"want track or assert", "body[0].op"},
		`[{"values":{}}]`:         {"empty", "body[0].key"},
		`[1]`:                     {"a number; want an object", "body[0]"},
		`[{"key":1}]`:             {"a number; want a string", "body[0].key"},
		`{"key":"k"}`:             {"want an array of events", "body"},
		`null`:                    {"want an array of events", "body"},
		`[{"key":"k","at":true}]`: {"want RFC 3339", "body[0].at"},
	} {
		wantProblem(t, s.post(someEvents, body), 400, want[0], want[1])
	}
	wantProblem(t, s.post(someEvents, "["+strings.Repeat("{},", 10_000)+"{}]"), 413, "10001 events; an array may have 10000")
	wantProblem(t, s.post(someEvents, "["+strings.Repeat(" ", 1<<20)+"]"), 413, "the array is over 1048576 bytes")
	wantProblem(t, s.do("POST", someEvents, strings.NewReader("x"), "Content-Type: text/csv"), 415, "want application/json or application/x-ndjson")
	wantJSON(t, s.get(someDay), `{"at":["2025-05-06T00:00:00Z"],"values":[{"n":9,"state":"up"}]}`)
}

// Of a stream what is wrong is told, line by line, and the rest is counted.
func TestEventsStream(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{MaxBody: 1 << 10})
	for _, runs := range []bool{false, true} { // each by itself, and together
		if runs {
			background(t, s)
		}
		day := strings.Replace(someDay, "orders", fmt.Sprint("orders", runs), 1)
		lines := []string{
			"\ufeff" + event(`{"n":1}`), "", event(`{"n":1}`, fmt.Sprintf(`,"id":"%t"`, runs)) + "\r", event(`{"n":1}`, fmt.Sprintf(`,"id":"%t"`, runs)),
			event(`{"state":"up"}`, `,"op":"assert"`), event(`{"state":1}`), "{", event(`{"n":"x"}`), event(`{"n":1}`) + "x",
			event(`{"note":"` + strings.Repeat("x", 1<<20) + `"}`), event(`{"n":1}`),
		}
		for range 2500 {
			lines = append(lines, event(`{"n":0.001}`))
		}
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		io.WriteString(w, strings.ReplaceAll(strings.Join(lines, "\n"), "orders", fmt.Sprint("orders", runs)))
		w.Close()
		r := s.do("POST", someEvents, &zipped, "Content-Type: application/x-ndjson", "Content-Encoding: gzip")
		var got struct {
			Applied, Duplicates, Failed int
			Errors                      []httpapi.BadLine
		}
		if err := json.Unmarshal([]byte(r.body), &got); r.StatusCode != 200 || err != nil || got.Applied != 2504 || got.Duplicates != 1 || got.Failed != 5 || len(got.Errors) != 5 {
			t.Fatalf("%s %s %v", r.Status, r.body, err)
		}
		told := fmt.Sprintf("%+v", got.Errors)
		for _, want := range []string{"[{Line:6 Field:values.state Detail:", "no number} {Line:7 Field: Detail:want an object with key", "{Line:8 Field:values.n Detail:the text \"x\"; want a number}",
			"{Line:9 Field: Detail:more than one object}", "{Line:10 Field: Detail:over 1048576 bytes}"} {
			if !strings.Contains(told, want) {
				t.Errorf("%s, want %s", told, want)
			}
		}
		wantJSON(t, s.get(day), `{"at":["2025-05-06T00:00:00Z"],"values":[{"n":5.5,"state":"up"}]}`)
	}
	if got := s.db.Writers.Counters.Stats().Flushes; got != 3 {
		t.Errorf("%d transactions, want one for each 1,000 lines", got)
	}
	// An ID is that of the first line that could be counted.
	wantJSON(t, s.stream(event(`{"state":"up"}`, `,"op":"assert"`)), `{"applied":1,"duplicates":0,"failed":0}`)
	wantJSON(t, s.stream(event(`{"state":1}`, `,"id":"b"`)+"\n"+event(`{"n":2}`, `,"id":"b"`)+"\n"+event(`{"n":2}`, `,"id":"b"`)+"\n"+event(`{"n":3}`, `,"id":"b"`)),
		`{"applied":1,"duplicates":1,"failed":2,"errors":[`+
			`{"line":1,"field":"values.state","detail":"orders::1m::1746522900 holds \"up\", which is no number"},`+
			`{"line":4,"field":"id","detail":"the ID was used for something else: conflict"}]}`)
	wantJSON(t, s.stream(""), `{"applied":0,"duplicates":0,"failed":0}`)
	var bad strings.Builder
	for range 150 {
		bad.WriteString("x\n")
	}
	if r := s.stream(bad.String()); !strings.Contains(r.body, `"failed":150`) || strings.Count(r.body, `"line":`) != 100 {
		t.Errorf("%s", r.body)
	}
}

// What came of a stream that breaks off is counted, and told.
func TestEventsStreamBreaksOff(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	io.WriteString(w, event(`{"n":1}`)+"\n"+event(`{"n":1}`)+"\n")
	w.Flush()
	io.WriteString(w, event(`{"n":1}`))
	r := s.do("POST", someEvents, &zipped, "Content-Type: application/x-ndjson", "Content-Encoding: gzip")
	wantProblem(t, r, 400, "the stream broke off: unexpected EOF; of 2 lines before that: applied 2, duplicates 0, failed 0", "body")
	wantJSON(t, s.get(someDay), `{"at":["2025-05-06T00:00:00Z"],"values":[{"n":2}]}`)
}

// A request with an Idempotency-Key is counted once, and no other may have that key.
func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	background(t, s)
	const orders = "/v1/counters/keys/orders/track"
	once := func(key, path, body string) response {
		t.Helper()
		media := "application/json"
		if !strings.HasPrefix(body, "[") && path == someEvents {
			media = "application/x-ndjson"
		}
		return s.do("POST", path, strings.NewReader(body), "Content-Type: "+media, "Idempotency-Key: "+key)
	}
	body := `{"at":1746522900,"values":{"n":1}}`
	wantJSON(t, once("a", orders, body), `{"applied":1}`)
	wantJSON(t, once("a", orders, body), `{"applied":0}`)
	for path, body := range map[string]string{
		orders:                            `{"at":1746522900,"values":{"n":2}}`,
		"/v1/counters/keys/orders/assert": body, "/v1/counters/keys/other/track": body, someEvents: "[" + event(`{"n":1}`) + "]",
	} {
		if p := wantProblem(t, once("a", path, body), 422, `the Idempotency-Key was used for another request`, "header.Idempotency-Key"); p.Type != "urn:howdah:idempotency-key-reused" {
			t.Errorf("type %s", p.Type)
		}
	}
	wantProblem(t, once("b", orders, `{"values":{"n":1},"id":"b"}`), 400, "want one of them", "body.id")
	array := "[" + event(`{"n":10}`) + "," + event(`{"n":10}`) + "]"
	wantJSON(t, once("c", someEvents, array), `{"applied":2}`)
	wantJSON(t, once("c", someEvents, array), `{"applied":0}`)
	wantProblem(t, once("c", someEvents, "["+event(`{"n":10}`)+"]"), 422, "was used for another request", "header.Idempotency-Key")
	// Of a stream each line is counted once: one that broke off is sent again.
	wantJSON(t, once("d", someEvents, event(`{"n":100}`)+"\n"), `{"applied":1,"duplicates":0,"failed":0}`)
	r := once("d", someEvents, event(`{"n":100}`)+"\n"+event(`{"n":100}`)+"\n")
	wantJSON(t, r, `{"applied":1,"duplicates":1,"failed":0}`)
	r = once("d", someEvents, event(`{"n":101}`)+"\n")
	if !strings.Contains(r.body, `"failed":1`) || !strings.Contains(r.body, "was used for something else") {
		t.Errorf("%s", r.body)
	}
	wantJSON(t, s.get(someDay), `{"at":["2025-05-06T00:00:00Z"],"values":[{"n":221}]}`)
}

// While the database is away whoever counts is told so, in time.
func TestDatabaseAwayFromCounters(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	s := serve(t, proxy.URL(), httpapi.Config{})
	background(t, s)
	wantJSON(t, s.get(someDay), `{"at":["2025-05-06T00:00:00Z"],"values":[{}]}`) // it has looked at the table
	proxy.Refuse(true)
	proxy.Cut()
	wantProblem(t, s.post("/v1/counters/keys/orders/track", `{"values":{"n":1}}`), 503, "the database is away; try again")
	wantProblem(t, s.stream(event(`{"n":1}`)), 503, "the database is away; try again")
	proxy.Refuse(false)
	wantJSON(t, s.post(someEvents, "["+event(`{"n":1}`)+"]"), `{"applied":1}`)
	wantJSON(t, s.get(someDay), `{"at":["2025-05-06T00:00:00Z"],"values":[{"n":1}]}`)
}
