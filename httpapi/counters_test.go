package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
)

func TestCounters(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const orders = "/v1/counters/keys/orders%3A%3Aeu%2F1"
	const day = orders + "?from=2025-05-06T00:00:00Z&to=1746489600&granularity=1d"
	wantJSON(t, s.get(day), `{"at":["2025-05-06T00:00:00Z"],"values":[{}]}`)
	wantJSON(t, s.post(orders+"/track", `{"at":"2025-05-06T09:15:00Z","values":{"count":1,"revenue":12.50,"big":123456789012345678901234567890.1,"peak":{"$max":7}}}`), `{"applied":1}`)
	wantJSON(t, s.post(orders+"/track", `{"at":1746522900.5,"values":{"count":1,"peak":{"$max":5}},"id":"one","untracked":true}`), `{"applied":1}`)
	wantJSON(t, s.post(orders+"/track", `{"values":{"count":1.0,"peak":{"$max":5}},"id":"one","untracked":true}`), `{"applied":0}`)
	wantProblem(t, s.post(orders+"/track", `{"at":1746522900,"values":{"count":2},"id":"one"}`), 409, `"one": the ID was used for something else`)
	wantJSON(t, s.post(orders+"/assert", `{"at":1746522900,"values":{"state":{"note":"open"}}}`), `{"applied":1}`)
	r := s.get(day)
	if want := `{"at":["2025-05-06T00:00:00Z"],"values":[{"big":123456789012345678901234567890.1,"count":2,"peak":7,"revenue":12.5,"state":{"note":"open"}}]}`; strings.TrimSpace(r.body) != want {
		t.Errorf("%s, want %s", r.body, want) // to the last digit
	}
	wantJSON(t, s.get("/v1/counters/keys/__system__key__?from=1746489600&to=1746489600&granularity=1d"),
		`{"at":["2025-05-06T00:00:00Z"],"values":[{"count":3,"keys":{"__untracked__":1,"orders::eu/1":2}}]}`)
	wantJSON(t, s.get(orders+"?from=2025-05-06T00:00:00Z&to=2025-05-06T12:00:00Z&granularity=6h&skip_blanks=true"), `{"at":[],"values":[]}`)
	wantJSON(t, s.get(orders+"?from=2025-05-07T00:00:00Z&to=2025-05-06T12:00:00Z&granularity=1h"), `{"at":[],"values":[]}`) // D12
	wantJSON(t, s.post(orders+"/track", `{}`), `{"applied":1}`)
	wantJSON(t, s.post(orders+"/track", `{"at":-0.5,"values":{"before":1}}`), `{"applied":1}`) // 1970
	wantJSON(t, s.get(orders+"?from=-1&to=-0.5&granularity=1d"), `{"at":["1969-12-31T00:00:00Z"],"values":[{"before":1}]}`)

	wantProblem(t, s.post(orders+"/track", `{"at":1746522900,"values":{"state":{"note":1}}}`), 400, "which is no number", "body.values.state.note")
	wantProblem(t, s.post(orders+"/track", `{"at":"noon","values":{}}`), 400, "want RFC 3339", "body.at")
	wantProblem(t, s.post(orders+"/track", `{"values":{"n":"x"}}`), 400, "want a number", "body.values.n")
	wantProblem(t, s.post("/v1/counters/keys/"+strings.Repeat("x", 250)+"/track", `{"values":{"n":1}}`), 400, "at most 255", "path.key")
	wantProblem(t, s.get(orders+"?from=x&to=1&granularity=1h"), 400, "want RFC 3339", "query.from")
	wantProblem(t, s.get(orders+"?from=1&to=1&granularity=1x"), 400, "s m h d w mo q y", "query.granularity")
	wantProblem(t, s.get(orders+"?from=2025-05-06T00:00:00Z&to=2025-05-08T00:00:00Z&granularity=1s"), 400, "172801 points", "query.granularity")
	wantProblem(t, s.get(orders+"?from=1&to=9999999999&granularity=1s"), 400, "some 9999999999 points", "query.granularity")
}

func TestCounterRows(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	wantJSON(t, s.post("/v1/counters/rows/get", `{"keys":[["test","now"]]}`), `{"values":[{}]}`)
	wantJSON(t, s.post("/v1/counters/rows/inc", `{"keys":[["test","now"]],"values":{"count":1,"account":{"count":0.10}}}`), `{"values":{"account.count":0.1,"count":1}}`)
	wantJSON(t, s.post("/v1/counters/rows/set", `{"keys":[["test","now"],["test","then"]],"values":{"note":["a",null]}}`), `{"values":{"note":["a",null]}}`)
	wantJSON(t, s.post("/v1/counters/rows/get", `{"keys":[["test::then"],["test","now"]]}`), `{"values":[{"note":["a",null]},{"account":{"count":0.1},"count":1,"note":["a",null]}]}`)
	wantProblem(t, s.post("/v1/counters/rows/inc", `{"keys":[["test","now"]],"values":{"note":1}}`), 400, "test::now holds [\"a\", null], which is no number", "body.values.note")
	wantProblem(t, s.post("/v1/counters/rows/inc", `{"keys":[[""]],"values":{"note":1}}`), 400, "empty", "body.keys[0]")
	wantProblem(t, s.post("/v1/counters/rows/set", `{"keys":[["a"]],"values":[1]}`), 400, "want an object", "body.values")
	wantJSON(t, s.post("/v1/counters/rows/get", `{"keys":[]}`), `{"values":[]}`)
	wantProblem(t, s.post("/v1/counters/rows/inc", `{"keys":[],"values":{"note":1}}`), 400, "", "body.keys")
	wantProblem(t, s.post("/v1/counters/rows/set", `{"keys":[],"values":{"note":1}}`), 400, "", "body.keys")

	const worker = "/v1/counters/keys/worker/beam"
	wantProblem(t, s.get(worker), 404, "no such beam")
	wantJSON(t, s.do(http.MethodPut, worker, strings.NewReader(`{"at":1754355723,"values":{"ok":true}}`), "Content-Type: application/json"), `{"beamed":true}`)
	wantJSON(t, s.get(worker), `{"at":"2025-08-05T01:02:03Z","values":{"ok":true}}`)
	wantJSON(t, s.get("/v1/counters/settings"), `{"table":"public.trifle_stats","mode":"full","time_zone":"UTC","week_start":"monday","separator":"::","paths":"raw","granularities":["1m","1h","1d","1w","1mo","1q","1y"],"system":"deferred","striped":[],"slots":16,"recorded":false}`)
	wantJSON(t, s.get("/v1/counters/doctor"), `{"findings":[]}`)
}
