package httpapi_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
)

// figures are what /metrics tells, by name and labels.
func (s *server) figures() map[string]float64 {
	s.t.Helper()
	r := s.get("/metrics")
	if r.StatusCode != 200 {
		s.t.Fatalf("%s %s", r.Status, r.body)
	}
	all := map[string]float64{}
	for line := range strings.Lines(r.body) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n := strings.LastIndex(line, "} "); n >= 0 {
			name, text = line[:n+1], strings.TrimSpace(line[n+2:])
		}
		if v, err := strconv.ParseFloat(text, 64); err == nil && name != "#" {
			all[name] = v
		}
	}
	return all
}

// Every figure of the feed and its consumers is there, and follows what happens.
func TestMetricsOfChanges(t *testing.T) {
	t.Parallel()
	s := withConsumer(t) // three changes, two of them parked, and dead
	background(t, s)
	put := func(name, sink string) {
		t.Helper()
		body := `{"tables":["public.users"],"from":"start","sink":` + sink + `}`
		if r := s.do("PUT", "/v1/changes/consumers/"+name, strings.NewReader(body), "Content-Type: application/json"); r.StatusCode != 200 {
			t.Fatal(r.body)
		}
	}
	put("told", `{"notify":true}`)
	put("away", `{"webhook":{"url":"http://127.0.0.1:9/","allow_private":true}}`)
	const consumer = `{consumer="billing",shard="0"}`
	s.sql(`UPDATE howdah.change_checkpoint SET handled = 1, failed = 7 WHERE consumer = 'billing'`) // as a program of its own does
	for name, want := range map[string]float64{
		"howdah_changes_head":                                                                      1,
		"howdah_changes_floor":                                                                     0,
		"howdah_changes_doorbell_ok":                                                               1,
		"howdah_changes_lag_commits" + consumer:                                                    1,
		"howdah_changes_lag_seconds" + consumer:                                                    0,
		"howdah_changes_parked" + consumer:                                                         2,
		"howdah_changes_dead" + consumer:                                                           2,
		"howdah_changes_stalled" + consumer:                                                        0,
		"howdah_changes_handled_total" + consumer:                                                  1,
		"howdah_changes_failed_total" + consumer:                                                   7,
		`howdah_changes_handled_total{consumer="told",shard="0"}`:                                  3,
		`howdah_changes_failed_total{consumer="told",shard="0"}`:                                   0,
		`howdah_changes_handled_total{consumer="away",shard="0"}`:                                  0,
		`howdah_http_request_seconds_count{route="PUT /v1/changes/consumers/{name}",status="200"}`: 2,
	} {
		eventually(t, name+" is there", func() bool {
			got, ok := s.figures()[name]
			return ok && got == want
		})
	}

	was := s.figures()
	tx, err := s.db.Pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(within(t), `INSERT INTO users SELECT g, repeat('x', 1000) FROM generate_series(10, 1000) g`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the oldest transaction is told of", func() bool { return s.figures()["howdah_changes_oldest_transaction_seconds"] > 0 })
	if err := tx.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	s.sql(`UPDATE howdah.change_parked SET dead = false, next_at = 'infinity'`)
	s.sql(`UPDATE howdah.change_checkpoint SET failures = 3 WHERE consumer = 'billing'`)
	for _, name := range []string{
		"howdah_changes_head", "howdah_changes_ticks_total", "howdah_changes_tick_seconds_sum", "howdah_changes_tick_seconds_count", "howdah_changes_log_bytes",
		"howdah_changes_lag_commits" + consumer, "howdah_changes_lag_seconds" + consumer, "howdah_changes_stalled" + consumer,
		`howdah_changes_handled_total{consumer="told",shard="0"}`, `howdah_changes_lag_seconds{consumer="away",shard="0"}`,
	} {
		eventually(t, name+" grows", func() bool { return s.figures()[name] > was[name] })
	}
	eventually(t, "the failures grow", func() bool { return s.figures()[`howdah_changes_failed_total{consumer="away",shard="0"}`] > 1 })
	if got := s.figures()["howdah_changes_dead"+consumer]; got != 0 {
		t.Errorf("dead = %v, want 0", got)
	}
	s.sql(`UPDATE howdah.change_state SET floor = 1`)
	if got := s.figures()["howdah_changes_floor"]; got != 1 {
		t.Errorf("floor = %v, want 1", got)
	}

	// A consumer that is gone has no figures.
	wantJSON(t, s.do("DELETE", "/v1/changes/consumers/away", nil), `{"forgotten":true}`)
	eventually(t, "it is gone", func() bool {
		return !strings.Contains(s.get("/metrics").body, `consumer="away"`)
	})
}

// While the database is away, what the process knows is told all the same.
func TestMetricsWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	s.db.Pool.Close()
	got := s.figures()
	if ok, is := got["howdah_changes_doorbell_ok"]; !is || ok != 0 {
		t.Errorf("doorbell_ok = %v, %v, want 0", ok, is)
	}
	for _, name := range []string{"howdah_changes_ticks_total", "howdah_pool_waits_total", "go_goroutines"} {
		if _, is := got[name]; !is {
			t.Errorf("there is no %s", name)
		}
	}
	if _, is := got["howdah_changes_head"]; is {
		t.Error("the head is told, which nobody knows")
	}
}
