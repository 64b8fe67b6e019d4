package httpapi_test

import (
	"encoding/json"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
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
	wantJSON(t, s.get("/v1/checklists/l/progress"), `{"total":3,"left":3,"leased":2,"dead":0,"done":0,"failed":0,"rate":0,"eta_seconds":null,"paused":false}`)

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
	wantJSON(t, s.get("/v1/checklists/l/progress"), `{"total":3,"left":2,"leased":0,"dead":0,"done":1,"failed":1,"rate":0,"eta_seconds":null,"paused":false}`)
}
