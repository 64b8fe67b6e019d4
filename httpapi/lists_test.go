package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/httpapi"
)

func TestItemsWithWhatTheySay(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const list = "/v1/checklists/l"
	wantJSON(t, s.post(someItems, `{"items":["a",{"item":"b","payload":{"x":1},"priority":2},{"item":"b"},{"item":"c","due":"2999-01-02T03:04:05.678+01:00"}],"overwrite":false}`),
		`{"added":3,"skipped":1}`)
	const c = `{"item":"c","attempts":0,"state":"waiting","due":"2999-01-02T02:04:05.678Z"}`
	wantJSON(t, s.get(someItems), `{"items":[{"item":"a","attempts":0},{"item":"b","attempts":0,"priority":2,"payload":{"x":1}},`+c+`]}`)
	wantJSON(t, s.post(someItems, `{"items":[{"item":"b","payload":{"x": 1},"priority":2},{"item":"a","payload":null},{"item":"c"},"d"],"overwrite":true}`),
		`{"added":1,"changed":0,"skipped":3}`)
	wantJSON(t, s.post(someItems, `{"items":[{"item":"b","payload":"now","priority":-5},"a"],"overwrite":true}`), `{"added":0,"changed":1,"skipped":1}`)
	wantJSON(t, s.get(someItems+"/b"), `{"item":"b","attempts":0,"priority":-5,"payload":"now"}`)
	wantJSON(t, s.post(someItems, `{"items":[],"overwrite":true}`), `{"added":0,"changed":0,"skipped":0}`)
	// The first of all, where it says so.
	wantJSON(t, s.post(someItems, `{"items":[{"item":"z","priority":5}]}`), `{"added":1,"skipped":0}`)
	if r := s.post(list+"/claim", `{"count":1,"lease":"1m"}`); !strings.Contains(r.body, `"items":[{"item":"z"`) {
		t.Errorf("claim: %s", r.body)
	}
	wantJSON(t, s.get(someItems+"?state=waiting"), `{"items":[`+c+`]}`)
}

func TestBadItems(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for _, tc := range []struct{ item, what, location string }{
		{`null`, "expected string, or object with item", "body.items[1]"},
		{`["b"]`, "expected string, or object with item", "body.items[1]"},
		{`{}`, "with item, which is missing", "body.items[1]"},
		{`{"item":null}`, "with item, which is missing", "body.items[1]"},
		{`{"item":5}`, "expected string, or object with item", "body.items[1]"},
		{`{"item":"b","attempts":5}`, `unknown field "attempts"`, "body.items[1]"},
		{`{"item":"b","priority":"high"}`, "priority", "body.items[1]"},
		{`{"item":"b","priority":1.5}`, "priority", "body.items[1]"},
		{`{"item":"b","priority":6}`, "6; want -5 to 5", "body.items[1].priority"},
		{`{"item":"b","priority":-70000}`, "-70000; want -5 to 5", "body.items[1].priority"},
		{`{"item":"b","due":"infinity"}`, "cannot parse", "body.items[1]"},
		{`{"item":"b","due":"tomorrow"}`, "cannot parse", "body.items[1]"},
		{`{"item":"b","payload":"\u0000"}`, `\u0000 in a string`, "body.items[1].payload"},
		{`{"item":"b","payload":"` + strings.Repeat("x", 1<<20) + `"}`, "want at most 1,048,576", "body.items[1].payload"},
		{`{"item":"b\u0000","priority":1}`, "a NUL byte at byte 1", "body.items[1]"},
	} {
		for _, more := range []string{``, `,"overwrite":true`} {
			wantProblem(t, s.post(someItems, `{"items":["a",`+tc.item+`]`+more+`}`), 400, tc.what, tc.location)
		}
	}
	wantProblem(t, s.post(someItems, `{"items":["a"],"overwrite":"yes"}`), 400, "expected boolean", "body.overwrite")
	wantProblem(t, s.post(someItems, `{"items":["a",{"item":"b","payload":{"x":}}]}`), 400, "invalid character", "body")
	if got := s.items("l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
}

func TestListsAreSetRenamedAndDropped(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const list = "/v1/checklists/l"
	patch := func(body string) response {
		return s.do("PATCH", list, strings.NewReader(body), "Content-Type: application/json")
	}
	wantProblem(t, s.get(list), 404, "no such list")
	wantProblem(t, s.do("DELETE", list, nil), 404, "no such list")
	wantProblem(t, s.post(list+"/rename", `{"to":"m"}`), 404, "no such list")
	wantJSON(t, s.post(someItems, `{"items":["a","b"]}`), `{"added":2,"skipped":0}`)
	const usual = `{"paused":false,"max_attempts":10,"backoff":"10s","backoff_max":"1h0m0s","keep_done":false,"max_leased":0,"rate":0}`
	const progress = `{"total":2,"left":2,"leased":0,"dead":0,"done":0,"failed":0,"rate":0,"eta_seconds":null,"paused":false}`
	wantJSON(t, s.get(list), `{"list":"l","settings":`+usual+`,"progress":`+progress+`}`)
	wantJSON(t, patch(`{}`), usual)
	wantJSON(t, patch(`{"paused":true}`), strings.Replace(usual, `"paused":false`, `"paused":true`, 1))
	wantJSON(t, s.post(list+"/claim", `{"count":1,"lease":"1m"}`), `{"paused":true,"items":[]}`)
	const set = `{"paused":false,"max_attempts":0,"backoff":"0s","backoff_max":"1m30s","keep_done":true,"max_leased":7,"rate":1.5}`
	wantJSON(t, patch(`{"paused":false,"max_attempts":0,"backoff":"0s","backoff_max":"90s","keep_done":true,"max_leased":7,"rate":1.5}`), set)
	for body, location := range map[string]string{
		`{"pause":true}`:        "body.pause",
		`{"paused":"yes"}`:      "body.paused",
		`{"max_attempts":-1}`:   "body.max_attempts",
		`{"max_attempts":1.5}`:  "body.max_attempts",
		`{"backoff":30}`:        "body.backoff",
		`{"backoff":"30"}`:      "body.backoff",
		`{"backoff":"2m"}`:      "body.backoff_max",
		`{"backoff_max":"-1s"}`: "body.backoff_max",
		`{"rate":-1}`:           "body.rate",
		`{"max_leased":-1}`:     "body.max_leased",
	} {
		wantProblem(t, patch(body), 400, "", location)
	}
	wantProblem(t, patch(``), 400, "body is required")
	wantJSON(t, s.get(list), `{"list":"l","settings":`+set+`,"progress":`+progress+`}`)

	wantJSON(t, s.post("/v1/checklists/m/items", `{"items":["c"]}`), `{"added":1,"skipped":0}`)
	wantProblem(t, s.post(list+"/rename", `{"to":"m"}`), 409, "a list of this name has items")
	wantProblem(t, s.post(list+"/rename", `{"to":"l"}`), 400, "the list has this name", "body.to")
	wantProblem(t, s.post(list+"/rename", `{"to":"\u0000"}`), 400, "a NUL byte", "body.to")
	wantProblem(t, s.post(list+"/rename", `{}`), 400, "expected required property to", "body")
	wantJSON(t, s.post(list+"/rename", `{"to":"n"}`), `{"renamed":2}`)
	wantProblem(t, s.get(list), 404, "no such list")
	wantJSON(t, s.get("/v1/checklists/n"), `{"list":"n","settings":`+set+`,"progress":`+progress+`}`)
	wantJSON(t, s.do("DELETE", "/v1/checklists/n", nil), `{"deleted":2}`)
	if r := s.get("/v1/checklists"); strings.Count(r.body, `"list":`) != 1 || !strings.Contains(r.body, `"list":"m"`) {
		t.Errorf("lists: %s", r.body)
	}
	if r := s.post("/v1/checklists/m/recount", `{}`); r.StatusCode != 200 || !strings.Contains(r.body, `"left":1,`) {
		t.Errorf("recount: %s %s", r.Status, r.body)
	}
}

func TestFindAndRedriveSome(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const list = "/v1/checklists/l"
	wantJSON(t, s.post(someItems, `{"items":["a","b","c","d"]}`), `{"added":4,"skipped":0}`)
	wantJSON(t, s.post(list+"/kill", `{"items":["a","b","c"],"reason":"503 from origin"}`), `{"killed":3}`)
	dead := func(name string) string {
		return fmt.Sprintf(`{"item":%q,"attempts":0,"state":"dead","error":"503 from origin"}`, name)
	}
	for _, query := range []string{"?state=dead", "?error=503", "?state=dead&error=503&limit=3"} {
		wantJSON(t, s.get(someItems+query), `{"items":[`+dead("a")+`,`+dead("b")+`,`+dead("c")+`]}`)
	}
	wantJSON(t, s.get(someItems+"?state=dead&limit=2"), `{"items":[`+dead("a")+`,`+dead("b")+`],"next":"b"}`)
	wantJSON(t, s.get(someItems+"?state=dead&limit=2&after=b"), `{"items":[`+dead("c")+`]}`)
	wantJSON(t, s.get(someItems+"?state=ready"), `{"items":[{"item":"d","attempts":0}]}`)
	wantJSON(t, s.get(someItems+"?state=done"), `{"items":[]}`)
	wantProblem(t, s.get(someItems+"?state=gone"), 400, "expected value to be one of", "query.state")
	wantProblem(t, s.get(someItems+"?error=%00"), 400, "a NUL byte", "query.error")
	wantJSON(t, s.post(list+"/redrive", `{"items":[]}`), `{"redriven":0}`)
	wantJSON(t, s.post(list+"/redrive", `{"items":["b","d","none"]}`), `{"redriven":1}`)
	wantJSON(t, s.post(list+"/redrive", `{"items":["a","b"],"error":"404"}`), `{"redriven":0}`)
	wantJSON(t, s.post(list+"/redrive", `{"state":"done"}`), `{"redriven":0}`)
	wantProblem(t, s.post(list+"/redrive", `{"items":["a","\u0000"]}`), 400, "a NUL byte", "body.items[1]")
	wantJSON(t, s.post(list+"/redrive", `{}`), `{"redriven":2}`)
}

func TestWatchAList(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const list = "/v1/checklists/l"
	wantJSON(t, s.post(someItems, `{"items":["a","b"]}`), `{"added":2,"skipped":0}`)
	if first := s.events(t, list+"/watch", 1)[0]; !strings.HasPrefix(first, "event: snapshot\ndata: {\"total\":2,\"left\":2,") {
		t.Errorf("first event: %s", first)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // until it has been seen
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				s.post(someItems, fmt.Sprintf(`{"items":["more-%d"]}`, i))
			}
		}
	}()
	all := s.events(t, list+"/watch", 3)
	close(stop)
	<-stopped
	for i, want := range []string{"event: snapshot\n", "event: progress\n", "event: progress\n"} {
		if !strings.HasPrefix(all[i], want) {
			t.Errorf("event %d: %s, want %s", i, all[i], want)
		}
	}
	wantProblem(t, s.get("/v1/checklists/%00/watch"), 400, "a NUL byte", "path.list")
	if _, err := s.db.Pool.Exec(t.Context(), `ALTER TABLE howdah.checklist_count RENAME TO gone`); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, s.get(list+"/watch"), 503, "does not exist")
}

func TestWatchEndsWithTheServer(t *testing.T) {
	t.Parallel()
	ending := make(chan struct{})
	close(ending)
	s := serve(t, "", httpapi.Config{Ending: ending})
	for _, e := range s.events(t, "/v1/checklists/l/watch", 1) {
		if !strings.HasPrefix(e, "event: bye\n") && !strings.HasPrefix(e, "event: snapshot\n") {
			t.Errorf("event %s", e)
		}
	}
}

// Lists of any name can be set, renamed, watched and dropped, and their items be
// looked for, ticked off and sent round again.
func TestListsOfAllNames(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for _, name := range []string{"/", "a/b", "//", "%", "%2F", "line\nline", "😀", ".", "..", "../x", "a?b#c", strings.Repeat("é", 650)} {
		list, to := "/v1/checklists/"+escape(name), name+"!"
		quoted, err := json.Marshal(to)
		if err != nil {
			t.Fatal(err)
		}
		wantJSON(t, s.post(list+"/items", `{"items":[{"item":"a","priority":1},".","..","../x"]}`), `{"added":4,"skipped":0}`)
		if r := s.do("PATCH", list, strings.NewReader(`{"max_attempts":3}`), "Content-Type: application/json"); r.StatusCode != 200 {
			t.Errorf("PATCH %s: %s %s", list, r.Status, r.body)
		}
		if r := s.get(list); r.StatusCode != 200 || !strings.Contains(r.body, `"max_attempts":3`) {
			t.Errorf("GET %s: %s %s", list, r.Status, r.body)
		}
		if e := s.events(t, list+"/watch", 1)[0]; !strings.Contains(e, `"total":4,`) {
			t.Errorf("watch %s: %s", list, e)
		}
		wantJSON(t, s.post(list+"/kill", `{"items":[".",".."]}`), `{"killed":2}`)
		wantJSON(t, s.post(list+"/redrive", `{"items":["."]}`), `{"redriven":1}`)
		wantJSON(t, s.get(list+"/items?state=dead"), `{"items":[{"item":"..","attempts":0,"state":"dead"}]}`)
		for _, item := range []string{".", "..", "../x"} {
			if r := s.get(list + "/items/" + escape(item)); r.StatusCode != 200 {
				t.Errorf("item %q of %s: %s %s", item, list, r.Status, r.body)
			}
		}
		wantJSON(t, s.post(list+"/rename", `{"to":`+string(quoted)+`}`), `{"renamed":4}`)
		if got := s.items(to); len(got) != 4 {
			t.Errorf("items of %q: %q", to, got)
		}
		wantJSON(t, s.do(http.MethodDelete, "/v1/checklists/"+escape(to), nil), `{"deleted":4}`)
	}
	lists, err := s.db.Checklists.Lists(t.Context(), nil, 10)
	if err != nil || len(lists) > 0 {
		t.Errorf("left: %+v, %v", lists, err)
	}
}

// On a plain table lists have names only, and what needs columns says so.
func TestListsOfAPlainTable(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	if _, err := s.db.Pool.Exec(t.Context(), `DROP TABLE iidy.lists; CREATE TABLE iidy.lists (list text NOT NULL, item text NOT NULL,
		attempts integer NOT NULL DEFAULT 0, CONSTRAINT list_pk PRIMARY KEY (list, item))`); err != nil {
		t.Fatal(err)
	}
	wantJSON(t, s.post(someItems, `{"items":["a",{"item":"b"}]}`), `{"added":2,"skipped":0}`)
	wantJSON(t, s.get("/v1/checklists"), `{"lists":[{"list":"l"}]}`)
	const why = "has no columns for this"
	wantProblem(t, s.post(someItems, `{"items":[{"item":"c","priority":1}]}`), 409, why)
	wantProblem(t, s.post(someItems, `{"items":["c"],"overwrite":true}`), 409, why)
	wantProblem(t, s.get("/v1/checklists/l"), 409, why)
	wantProblem(t, s.get("/v1/checklists/l/watch"), 409, why)
	wantProblem(t, s.get(someItems+"?state=ready"), 409, why)
	wantProblem(t, s.post("/v1/checklists/l/recount", `{}`), 409, why)
	wantJSON(t, s.post("/v1/checklists/l/rename", `{"to":"m"}`), `{"renamed":2}`)
	wantJSON(t, s.do("DELETE", "/v1/checklists/m", nil), `{"deleted":2}`)
	wantProblem(t, s.do("DELETE", "/v1/checklists/m", nil), 404, "no such list")
}
