package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestLeases(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	wantJSON(t, s.post(someItems, `{"items":["a","b","c"]}`), `{"added":3,"skipped":0}`)
	r := s.post("/v1/checklists/l/claim", `{"count":2,"lease":"5m","worker":"w1"}`)
	var claim struct {
		Lease string
		Items []struct {
			Item     string
			Attempts int
		}
	}
	if err := json.Unmarshal([]byte(r.body), &claim); err != nil || len(claim.Items) != 2 || claim.Items[0].Item != "a" || claim.Items[0].Attempts != 1 {
		t.Fatalf("claim: %s, %v", r.body, err)
	}
	wantJSON(t, still(s.get("/v1/checklists/l/progress")), `{"total":3,"left":3,"leased":2,"dead":0,"done":0,"failed":0,"rate":0,"eta_seconds":null,"paused":false}`)

	lease := "/v1/checklists/l/leases/" + claim.Lease
	wantJSON(t, s.post(lease+"/extend", `{"lease":"10m"}`), `{"extended":2}`)
	wantJSON(t, s.post(lease+"/done", `{"items":[]}`), `{"done":0}`)
	wantJSON(t, s.post(lease+"/fail", `{"items":[{"item":"b","error":"404","retry_in":"-1s"}]}`), `{"failed":1}`)
	wantProblem(t, s.post(lease+"/done", `{"items":["a","b"]}`), 409, "lost 1 of 2")
	wantProblem(t, s.post(lease+"/done", `{}`), 409, "nothing is left")
	wantProblem(t, s.post("/v1/checklists/other/leases/"+claim.Lease+"/release", `{}`), 409, "nothing is left")
	wantProblem(t, s.post("/v1/checklists/l/leases/x/done", `{}`), 400, "no token of a claim", "path.token")
	wantProblem(t, s.post("/v1/checklists/l/claim", `{"count":1,"lease":"soon"}`), 400, "want a duration", "body.lease")
	wantProblem(t, s.post("/v1/checklists/l/claim", `{"count":1,"lease":"25h"}`), 400, "want 1s to 24h", "body.lease")
	wantProblem(t, s.post("/v1/checklists/l/claim", `{"count":10001,"lease":"1m"}`), 400, "10000", "body.count")

	wantJSON(t, s.post("/v1/checklists/l/kill", `{"items":["c"],"reason":"gone"}`), `{"killed":1}`)
	wantJSON(t, s.post("/v1/checklists/l/claim", `{"count":1,"lease":"1m"}`), `{"paused":false,"items":[]}`)
	wantJSON(t, s.post("/v1/checklists/l/redrive", `{"error":"gone"}`), `{"redriven":1}`)
	wantJSON(t, s.post("/v1/checklists/l/redrive", `{}`), `{"redriven":1}`)
	wantJSON(t, still(s.get("/v1/checklists/l/progress")), `{"total":3,"left":2,"leased":0,"dead":0,"done":1,"failed":1,"rate":0,"eta_seconds":null,"paused":false}`)
}

// What a program has printed may be no text: a failure does not fail. A name is one.
func TestAFailureDoesNotFail(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	wantJSON(t, s.post(someItems, `{"items":["a","b","c"]}`), `{"added":3,"skipped":0}`)
	var claim struct{ Lease string }
	if err := json.Unmarshal([]byte(s.post("/v1/checklists/l/claim", `{"count":3,"lease":"5m"}`).body), &claim); err != nil {
		t.Fatal(err)
	}
	fail := "/v1/checklists/l/leases/" + claim.Lease + "/fail"
	wantJSON(t, s.post(fail, "{\"items\":[{\"item\":\"a\",\"error\":\"no \xff text\"},{\"item\":\"b\",\"error\":\"half a \\udcff pair\\u0000\"}]}"), `{"failed":2}`)
	for _, tc := range []struct{ item, want string }{{"a", "no \ufffd text"}, {"b", "half a \ufffd pair\ufffd"}} {
		var got struct{ Error string }
		r := s.get("/v1/checklists/l/items/" + tc.item)
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || got.Error != tc.want {
			t.Errorf("%s: %s, want the error %q", tc.item, r.body, tc.want)
		}
	}
	wantProblem(t, s.post(fail, "{\"items\":[{\"item\":\"c\xff\"}]}"), 400, "invalid UTF-8", "body")
	wantProblem(t, s.post(fail, `{"items":[{"item":"c\udcff"}]}`), 400, "half a surrogate pair", "body")
	wantProblem(t, s.post(fail, `{"items":[{"item":"c","why":"x"}]}`), 400, "unexpected property", "body.items[0].why")
	wantProblem(t, s.post(fail, `null`), 400, "null; want an object", "body")
	wantJSON(t, s.post(fail, `{"items":[{"item":"c"}]}`), `{"failed":1}`)
}

// A claim that waits answers when there is something, and at the latest when its
// time is over, whatever the time for a body to arrive; or at once, when the server
// stops.
func TestAClaimThatWaits(t *testing.T) {
	t.Parallel()
	ending := make(chan struct{})
	s := serve(t, "", httpapi.Config{Ending: ending, BodyTimeout: 50 * time.Millisecond, Timeout: 30 * time.Second})
	hearing, deaf := context.WithCancel(context.Background())
	var hub sync.WaitGroup
	hub.Go(func() { s.db.Run(hearing) })
	defer hub.Wait()
	defer deaf()

	const nothing = `{"paused":false,"items":[]}`
	wantJSON(t, s.post("/v1/checklists/l/claim", `{"count":1,"lease":"1m","wait":"200ms"}`), nothing)
	answer := make(chan response, 1)
	claim := func(wait string) {
		go func() { answer <- s.post("/v1/checklists/l/claim", `{"count":1,"lease":"1m","wait":"`+wait+`"}`) }()
	}
	claim("1m")
	wantJSON(t, s.post(someItems, `{"items":["a"]}`), `{"added":1,"skipped":0}`)
	answered := func() response { t.Helper(); return pgtest.Receive(t, answer, "the answer to a claim") }
	if r := answered(); !strings.Contains(r.body, `"items":[{"item":"a","attempts":1}]`) {
		t.Error(r.body)
	}
	claim("1m")
	close(ending)
	wantJSON(t, answered(), nothing)
	claim("1m") // that came while the server was about to stop
	wantJSON(t, answered(), nothing)
	wantJSON(t, s.post("/v1/checklists/l/claim", `{"count":1,"lease":"1m"}`), nothing)
	s.sql(`INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('idle', 1, '{*}')`)
	wantProblem(t, s.post("/v1/changes/consumers/idle/wait", `{"position":"5","timeout":"1m"}`), 503, "idle has not handled all")
	for wait, what := range map[string]string{"soon": "want a duration", "61s": "want 0s to 1m", "-1s": "want 0s to 1m"} {
		wantProblem(t, s.post("/v1/checklists/l/claim", `{"count":1,"lease":"1m","wait":"`+wait+`"}`), 400, what, "body.wait")
	}
}

// Who asks for more than the lease still holds is told how many it held.
func TestALostLeaseSaysWhatItHeld(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for i, tc := range []struct{ verb, body, held string }{
		{"done", `{"items":["a","x"]}`, `"held":1`},
		{"fail", `{"items":[{"item":"a"},{"item":"x"},{"item":"y"}]}`, `"held":1`},
		{"release", `{"items":["x"]}`, `"held":0`},
		{"release", `{"items":["a","b","x"]}`, `"held":2`},
	} {
		list := fmt.Sprint("/v1/checklists/", i)
		wantJSON(t, s.post(list+"/items", `{"items":["a","b"]}`), `{"added":2,"skipped":0}`)
		var claim struct{ Lease string }
		if r := s.post(list+"/claim", `{"count":2,"lease":"1m"}`); json.Unmarshal([]byte(r.body), &claim) != nil {
			t.Fatal(r.body)
		}
		r := s.post(list+"/leases/"+claim.Lease+"/"+tc.verb, tc.body)
		wantProblem(t, r, 409, "lost")
		if !strings.Contains(r.body, tc.held) {
			t.Errorf("%s %s: %s, want %s", tc.verb, tc.body, r.body, tc.held)
		}
	}
}
