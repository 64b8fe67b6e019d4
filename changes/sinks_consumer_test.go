package changes_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/howdah-db/howdah/changes"
)

// A receiver that is gone pauses its consumer, which goes on where it was.
func TestConsumerWithAWebhook(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2)`)
	var gone atomic.Bool
	gone.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if gone.Load() {
			w.WriteHeader(http.StatusGone)
		}
	})
	start(t, url, changes.ConsumerConfig{Name: "hook", From: "start"}, func(c *changes.Consumer) { c.Handle("*", changes.Webhook(r.config())) })
	eventually(t, "it is paused", func() bool { return registered(l, "hook") && status(t, l, "hook").State == "paused" })
	if s := status(t, l, "hook"); !strings.Contains(s.Reason, "410 Gone") || s.Parked != 0 {
		t.Errorf("%+v", s)
	}
	r.received()
	gone.Store(false)
	if err := l.Resume(t.Context(), "hook"); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "hook")
	var ids []string
	for _, p := range r.received() {
		ids = append(ids, p.Get("webhook-id"))
	}
	var want []string
	for _, position := range positions(t, l, changes.Filter{}) {
		want = append(want, strings.ReplaceAll(position, ".", "-"))
	}
	if strings.Join(ids, " ") != strings.Join(want, " ") {
		t.Errorf("posted %q, want %q", ids, want)
	}
}

// A command hears the name of the consumer that runs it.
func TestConsumerWithACommand(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	file := filepath.Join(t.TempDir(), "out")
	start(t, url, changes.ConsumerConfig{Name: "index", From: "start"}, func(c *changes.Consumer) {
		c.Handle("*", changes.Exec("sh", "-c", `test "$HOWDAH_CONSUMER" = index && cat > "$0"`, file))
	})
	handled(t, l, "index")
	if s := status(t, l, "index"); s.Parked != 0 {
		t.Errorf("%+v", s)
	}
}
