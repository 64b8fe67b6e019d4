package httpapi_test

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/httpapi"
)

// running does what a server does in the background, until the test ends.
func (s *server) running(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- s.db.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// ofChanges are the figures of /metrics whose names begin with howdah_changes_.
func (s *server) ofChanges(t *testing.T) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for _, m := range regexp.MustCompile(`(?m)^howdah_changes_(\S+) (\S+)$`).FindAllStringSubmatch(s.get("/metrics").body, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		all[m[1]] = v
	}
	return all
}

// Every figure is there, and moves.
func TestMetricsOfChanges(t *testing.T) {
	t.Parallel()
	s := withUsers(t, httpapi.Config{})
	sink := changes.Sink{SQL: `SELECT 1 / (($1::jsonb -> 'new' ->> 'id')::int - 3)`} // cannot handle 3
	if err := s.db.Changes.Save(t.Context(), changes.ConsumerConfig{Name: "c", From: "start"}, []string{"public.users"}, sink); err != nil {
		t.Fatal(err)
	}
	s.running(t)
	s.sql(`INSERT INTO users VALUES (1, 'Ada')`)
	s.sql(`INSERT INTO users VALUES (3, 'Edsger')`)
	s.sql(`INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head, dead) VALUES ('c', 0, 1, 1, 1, 'public.users', false, '{}', true, true)`)
	tx, err := s.db.Pool.Begin(t.Context()) // the oldest
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	missing := []string{
		"head", "ticks_total", "tick_seconds_count", "tick_seconds_sum", "log_bytes", "oldest_transaction_seconds", "doorbell_ok",
		`handled_total{consumer="c"}`, `failed_total{consumer="c"}`,
		`parked{consumer="c"}`, `dead{consumer="c"}`,
	}
	defer func() {
		if t.Failed() {
			t.Errorf("still nothing: %q", missing)
		}
	}()
	eventually(t, "all have moved", func() bool {
		now := s.ofChanges(t)
		missing = slices.DeleteFunc(missing, func(name string) bool { return now[name] > 0 })
		return len(missing) == 0
	})
	if err := s.db.Changes.Pause(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	s.sql(`INSERT INTO users VALUES (4, 'Barbara')`)
	missing = []string{`lag_commits{consumer="c"}`, `lag_seconds{consumer="c"}`}
	eventually(t, "it is behind", func() bool {
		s.get("/v1/changes/position")
		now := s.ofChanges(t)
		missing = slices.DeleteFunc(missing, func(name string) bool { return now[name] > 0 })
		return len(missing) == 0
	})
	s.sql(`UPDATE howdah.change_state SET floor = 7`)
	eventually(t, "the floor is told, and that nothing stalls", func() bool {
		now := s.ofChanges(t)
		_, ok := now[`stalled{consumer="c"}`]
		return now["floor"] == 7 && ok
	})
}
