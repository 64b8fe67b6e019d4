package httpapi_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/httpapi"
)

// withConsumer is a server with a captured table and a consumer of it, which stands at
// the start of the feed and for which two changes of three are parked.
func withConsumer(t *testing.T) *server {
	t.Helper()
	s := withUsers(t, httpapi.Config{})
	s.sql(`INSERT INTO users VALUES (1, 'Ada'), (2, 'Grace'), (3, 'Edsger')`)
	s.sql(`SELECT howdah.change_tick(true)`)
	s.sql(`INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('billing', 1, '{public.users}')`)
	s.sql(`INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id) VALUES ('billing', 0, 1, 1, 3)`)
	s.sql(`
		INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head, attempts, error, dead)
		SELECT 'billing', 0, 1, id, howdah.change_lane(schema_name, table_name, key), 'public.users', false,
			json_build_object('position', '1.' || id, 'op', 'insert', 'schema', schema_name, 'table', table_name, 'key', key, 'new', new, 'at', at), true, 20, 'no such customer', true
		FROM howdah.change
		WHERE id > 1`)
	return s
}

func TestConsumersOverHTTP(t *testing.T) {
	t.Parallel()
	s := withConsumer(t)
	const at = "/v1/changes/consumers/billing"
	status := func(r response) (state, reason, position string, parked int) {
		t.Helper()
		var got struct {
			State, Reason, Position string
			Parked                  int
		}
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.StatusCode != 200 {
			t.Fatalf("%s %s: %v", r.Status, r.body, err)
		}
		return got.State, got.Reason, got.Position, got.Parked
	}
	if r := s.get("/v1/changes/consumers"); strings.Count(r.body, `"name":"billing"`) != 1 {
		t.Error(r.body)
	}
	if state, _, position, parked := status(s.get(at)); state != "running" || position != "1.3" || parked != 2 {
		t.Errorf("%s at %s, %d parked", state, position, parked)
	}

	r := s.get(at + "/parked")
	if strings.Count(r.body, `"error":"no such customer","dead":true`) != 2 || !strings.Contains(r.body, `{"change":{"position":"1.2","op":"insert"`) {
		t.Error(r.body)
	}
	if r := s.get(at + "/parked?after=1.2&limit=1"); strings.Count(r.body, `"change"`) != 1 || !strings.Contains(r.body, `"1.3"`) {
		t.Error(r.body)
	}
	wantProblem(t, s.get(at+"/parked?limit=1001"), 400, "number <= 1000", "query.limit")
	wantProblem(t, s.post(at+"/wait", `{"position":"1"}`), 409, "could not be handled and is parked")
	wantJSON(t, s.post(at+"/parked/retry", `{"positions":["1.3","7.7"]}`), `{"count":1}`)
	wantJSON(t, s.post(at+"/parked/retry", ``), `{"count":2}`) // none named is all, in a body or without
	wantJSON(t, s.post(at+"/parked/skip", `{"positions":["1.2"]}`), `{"count":1}`)
	wantProblem(t, s.post(at+"/parked/skip", `{"positions":["x"]}`), 400, `positions[0]: "x"; want one such as`, "body.positions[0]")
	wantJSON(t, s.post(at+"/parked/retry", `{"positions":[]}`), `{"count":0}`) // none is not all
	wantJSON(t, s.post(at+"/parked/skip", `{"positions":[]}`), `{"count":0}`)
	wantJSON(t, s.post(at+"/parked/skip", `{"positions":null,"all":true}`), `{"count":1}`)
	wantJSON(t, s.get(at+"/parked"), `{"parked":[]}`)

	wantJSON(t, s.post(at+"/wait", `{"position":"1.3"}`), `{"position":"1.3"}`)
	wantProblem(t, s.post(at+"/wait", `{"timeout":"20ms"}`), 503, "billing has not handled all up to 1 yet") // nobody runs it
	wantProblem(t, s.post(at+"/wait", `{"timeout":"2m"}`), 400, "up to 1m", "body.timeout")
	wantProblem(t, s.post(at+"/wait", `{"position":"x"}`), 400, "want start, now", "body.position")

	if state, reason, _, _ := status(s.post(at+"/pause", `{"reason":"prices"}`)); state != "paused" || reason != "prices" {
		t.Errorf("%s: %s", state, reason)
	}
	if state, reason, _, _ := status(s.post(at+"/resume", ``)); state != "running" || reason != "" {
		t.Errorf("%s: %s", state, reason)
	}
	if _, _, position, _ := status(s.post(at+"/seek", `{"to":"start"}`)); position != "0" {
		t.Errorf("at %s", position)
	}
	wantProblem(t, s.post(at+"/seek", `{"to":"99"}`), 409, "ahead of the feed")
	wantProblem(t, s.post(at+"/seek", `{"to":"yesterday"}`), 400, "want start, now", "body.to")
	if r := s.post(at+"/reshard", `{"shards":4}`); !strings.Contains(r.body, `"shards":4,`) {
		t.Error(r.body)
	}
	wantProblem(t, s.post(at+"/reshard", `{"shards":65}`), 400, "number <= 64", "body.shards")
	s.sql(`UPDATE howdah.change_consumer SET state = 'expired'`)
	wantProblem(t, s.post(at+"/resume", `{}`), 409, "seek")
	wantJSON(t, s.do("DELETE", at, nil), `{"forgotten":true}`)

	for _, path := range []string{"/pause", "/resume", "/seek", "/reshard", "/backfill", "/wait", "/parked/retry", "/parked/skip"} {
		body := map[string]string{"/seek": `{"to":"now"}`, "/reshard": `{"shards":2}`, "/backfill": `{"end":true}`, "/parked/skip": `{"all":true}`}[path]
		if body == "" {
			body = `{}`
		}
		wantProblem(t, s.post(at+path, body), 404, "there is no such consumer")
	}
	wantProblem(t, s.get(at), 404, "there is no such consumer")
	wantProblem(t, s.get(at+"/parked"), 404, "there is no such consumer")
	wantProblem(t, s.do("DELETE", at, nil), 404, "there is no such consumer")
	wantJSON(t, s.get("/v1/changes/consumers"), `{"consumers":[]}`)

	// Patterns are read as everywhere: an operation belongs to the one before.
	saved := s.do("PUT", at, strings.NewReader(`{"tables":["public.users:insert","update","public.orders"],"sink":{"notify":true}}`), "Content-Type: application/json")
	if !strings.Contains(saved.body, `"patterns":["public.orders","public.users:insert,update"]`) {
		t.Error(saved.body)
	}
}

// Whoever waits in vain for a handler is told so, and what to do.
func TestForgottenBehindAHandler(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{Timeout: 2 * time.Second})
	s.sql(`INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('billing', 1, '{public.users}')`)
	s.sql(`INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id) VALUES ('billing', 0, 1, 0, 0)`)
	handling, err := s.db.Pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer handling.Rollback(within(t))
	if _, err := handling.Exec(within(t), `SELECT pg_advisory_xact_lock(hashtextextended('howdah.consumer billing 0', 0))`); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, s.do("DELETE", "/v1/changes/consumers/billing", nil), 503, "waited for what billing is handling, in vain: pause it")
	if err := handling.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Changes.Forget(within(t), "billing"); err != nil {
		t.Error(err)
	}
}
