package httpapi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
)

// transaction is the body of a request with operations.
func transaction(operations ...string) string {
	return fmt.Sprintf(`{"operations":[%s]}`, strings.Join(operations, ","))
}

func TestTransact(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	wantJSON(t, s.post("/v1/transact", transaction(
		`{"service":"checklists","op":"insert","list":"l","items":["a",{"item":"b","priority":2}]}`,
		`{"service":"checklists","op":"delete","list":"l","items":["a"]}`,
		`{"service":"counters","op":"track","key":"orders","at":"2025-05-06T09:15:00Z","values":{"count":1}}`,
		`{"service":"changes","op":"emit","topic":"t","payload":{"x":1}}`,
		`{"service":"checklists","op":"set","list":"l","max_attempts":3}`,
	)), `{"results":[{"added":2,"skipped":0},{"deleted":1},{"applied":1},{"topic":"t"},{"paused":false,"max_attempts":3,"backoff":"10s","backoff_max":"1h0m0s","keep_done":false,"max_leased":0,"rate":0}]}`)
	const count = "/v1/counters/keys/orders?from=2025-05-06T00:00:00Z&to=2025-05-06T00:00:00Z&granularity=1d"
	one := `{"at":["2025-05-06T00:00:00Z"],"values":[{"count":1}]}`
	wantJSON(t, s.get(count), one)

	// What fails takes the others with it, says which it was, and where.
	track := `{"service":"counters","op":"track","key":"orders","at":"2025-05-06T09:15:00Z","values":{"count":1}}`
	token := "0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e"
	for _, tc := range []struct {
		operation string
		status    int
		detail    string
		locations []string
	}{
		{`{"service":"checklists","op":"done","list":"l","token":"` + token + `","items":["b"]}`, 409, "operations[1]: checklists: done: lost 1 of 1", nil},
		{`{"service":"checklists","op":"done","list":"l","token":"x"}`, 400, "no token of a claim", []string{"body.operations[1].token"}},
		{`{"service":"checklists","op":"done","list":"l"}`, 400, "missing", []string{"body.operations[1].token"}},
		{`{"service":"checklists","op":"insert","list":"l","items":["c","d\u0000"]}`, 400, "NUL", []string{"body.operations[1].items[1]"}},
		{`{"service":"checklists","op":"insert","list":"l","items":[{"item":"x","priority":6}]}`, 400, "operations[1]", []string{"body.operations[1].items[0].priority"}},
		{`{"service":"checklists","op":"insert","list":"l","itmes":["x"]}`, 400, "operations[1]", []string{"body.operations[1]", "body.operations[1].itmes"}},
		{`{"service":"checklists","op":"insert","list":null,"items":["x"]}`, 400, "want a text", []string{"body.operations[1].list"}},
		{`{"service":"checklists","op":"claim","list":"l"}`, 400, "want one of changes.emit", []string{"body.operations[1].op"}},
		{`{"service":"counters","op":"track","key":"","values":{"count":1}}`, 400, "operations[1]", []string{"body.operations[1].key"}},
		{`{"service":1,"op":"track"}`, 400, "expected string", []string{"body.operations[1].service"}},
	} {
		r := s.post("/v1/transact", transaction(track, tc.operation))
		wantProblem(t, r, tc.status, tc.detail, tc.locations...)
		if strings.Contains(r.body, `"held"`) {
			t.Errorf("%s tells what was done, but nothing was: %s", tc.operation, r.body)
		}
		wantJSON(t, s.get(count), one)
	}
	wantProblem(t, s.post("/v1/transact", `{"operations":[]}`), 400, "", "body.operations")
	wantProblem(t, s.post("/v1/transact", `{"operations":[{"op":"insert"}]}`), 400, "service", "body.operations[0]")
	wantJSON(t, s.get("/v1/checklists/l/items"), `{"items":[{"item":"b","attempts":0,"priority":2}]}`)
}
