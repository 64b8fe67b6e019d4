package httpapi_test

import (
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
)

func TestCounterMetrics(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const keys, span = "/v1/counters/keys/", "?from=2025-05-06T00:00:00Z&to=2025-05-07T00:00:00Z"
	lines := func(path, body string) response {
		t.Helper()
		return s.do("POST", path, strings.NewReader(body), "Content-Type: application/x-ndjson")
	}
	wantJSON(t, s.get("/v1/counters/keys"), `{"items":[]}`)
	wantJSON(t, s.post("/v1/counters/keys/orders%2F1/track", `{"at":"2025-05-06T09:15:00Z","values":{"count":1},"untracked":true}`), `{"applied":1}`)
	wantJSON(t, s.post("/v1/counters/keys/orders%2F2/track", `{"at":"2025-05-06T09:15:00Z","values":{"count":1}}`), `{"applied":1}`)
	r := s.get("/v1/counters/keys?limit=1&after=__system__key__")
	if !strings.Contains(r.body, `{"key":"orders/1","granularities":[{"name":"1m","first":"2025-05-06T09:15:00Z","last":"2025-05-06T09:15:00Z"},{"name":"1h",`) || !strings.Contains(r.body, `"next":"orders/1"`) {
		t.Errorf("a page: %s", r.body)
	}
	if r := s.get("/v1/counters/keys?limit=1&after=orders/1"); !strings.Contains(r.body, `"key":"orders/2"`) || strings.Contains(r.body, `"next"`) {
		t.Errorf("the last page: %s", r.body)
	}
	wantProblem(t, s.get("/v1/counters/keys?after=%00"), 400, "NUL", "query.after")

	wantJSON(t, s.post(keys+"orders%2F2/rename", `{"to":"sales"}`), `{"rows":7}`)
	wantProblem(t, s.post(keys+"orders%2F1/rename", `{"to":"sales"}`), 409, "there is such a metric")
	wantProblem(t, s.post(keys+"sales/rename", `{"to":""}`), 400, "empty", "body.to")

	wantJSON(t, s.get(keys+"sales/verify"+span+"&granularity=1d"), `{"differences":[],"more":false}`)
	wantJSON(t, s.post("/v1/counters/rows/inc", `{"keys":[["sales::1d::1746489600"]],"values":{"count":2,"x":1}}`), `{"values":{"count":2,"x":1}}`)
	wantJSON(t, s.get(keys+"sales/verify"+span+"&granularity=1d&fine=1m"),
		`{"differences":[{"at":"2025-05-06T00:00:00Z","path":"count","coarse":3,"fine":1},{"at":"2025-05-06T00:00:00Z","path":"x","coarse":1,"fine":null}],"more":false}`)
	wantProblem(t, s.get(keys+"sales/verify"+span+"&granularity=1h&fine=1d"), 400, "need not lie", "query.fine")
	wantJSON(t, s.post(keys+"sales/rebuild", `{"granularity":"1d","from":"2025-05-06T00:00:00Z","to":1746489600}`), `{"rows":1}`)
	wantJSON(t, s.get(keys+"sales/verify"+span+"&granularity=1d"), `{"differences":[],"more":false}`)
	wantProblem(t, s.post(keys+"sales/rebuild", `{"granularity":"1s","from":1,"to":1}`), 400, "nothing is counted of which 1s", "body.granularity")
	wantProblem(t, s.post(keys+"sales/rebuild", `{"granularity":"1d","from":"noon","to":1}`), 400, "want RFC 3339", "body.from")

	wantJSON(t, lines(keys+"sales/replace"+span, `{"at":"2025-05-06T10:00:00Z","values":{"count":5,"ms":{"$stat":3}}}`+"\n"), `{"applied":1}`)
	wantJSON(t, s.get(keys+"sales"+span+"&granularity=1y"), `{"at":["2025-01-01T00:00:00Z"],"values":[{"count":5,"ms":{"count":1,"max":3,"min":3,"square":9,"sum":3}}]}`)
	wantProblem(t, lines(keys+"sales/replace"+span, `{"at":"2025-05-08T10:00:00Z","values":{"count":5}}`), 400, "is not before to", "events[0].at")
	wantProblem(t, lines(keys+"sales/replace"+span, "\n{"), 400, "line 2", "line 2")
	wantProblem(t, lines(keys+"sales/replace?from=1&to=2", ""), 400, "is not the start of a bucket of 1m", "query.from")
	wantProblem(t, s.post(keys+"sales/replace"+span, "{}"), 415, "want application/x-ndjson")

	exported := s.get("/v1/counters/export?prefix=sales").body
	if !strings.HasPrefix(exported, `{"key":"sales","granularity":"1d","at":"2025-05-06T00:00:00Z","values":{"count":5,`) || strings.Count(exported, "\n") != 7 {
		t.Errorf("exported: %s", exported)
	}
	wantProblem(t, s.get("/v1/counters/export?prefix=%00"), 400, "NUL", "query.prefix")
	wantJSON(t, s.do("DELETE", keys+"sales"+span+"&granularity=1h,1d", nil), `{"rows":2}`)
	wantJSON(t, s.do("DELETE", keys+"sales", nil), `{"rows":5}`)
	wantProblem(t, s.do("DELETE", keys+"sales?granularity=1h,1x", nil), 400, "s m h d w mo q y", "query.granularity")
	wantJSON(t, lines("/v1/counters/rows/import", exported), `{"rows":7,"refused":0}`)
	wantJSON(t, lines("/v1/counters/rows/import", exported+"{}\n"+`{"key":"k","granularity":"1x","at":1,"values":{}}`),
		`{"rows":7,"refused":2,"errors":[{"location":"line 8","message":"row: without key or values"},{"location":"rows[8].granularity","message":"\"1x\"; want a number from 1 to 999999 and a unit: s m h d w mo q y"}]}`)
	if again := s.get("/v1/counters/export?prefix=sales").body; again != exported {
		t.Errorf("exported again: %s", again)
	}
	wantProblem(t, s.post("/v1/counters/rows/import", "{}"), 415, "want application/x-ndjson")
}
