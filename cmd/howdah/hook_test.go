package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// receiver is the other end of a webhook.
type receiver struct {
	*httptest.Server

	mu     sync.Mutex // guards the rest
	status int        // of its answers
	taken  []string   // positions of what it answered with 204
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{status: http.StatusNoContent}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var event struct{ Data struct{ Position string } }
	err := json.NewDecoder(req.Body).Decode(&event)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
		return
	case r.status == http.StatusNoContent:
		r.taken = append(r.taken, event.Data.Position)
	case r.status == http.StatusInternalServerError:
		w.Header().Set("Retry-After", "60") // that is not waited for where it stands
	}
	w.WriteHeader(r.status)
}

func (r *receiver) answer(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

func (r *receiver) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(r.taken))) // at least once
}

// A webhook that a server runs, seen over HTTP and on the command line: where its receiver
// fails it stalls, and goes on with all of it after the first success; where the receiver
// is gone it pauses; where it is behind for longer than changes are held it expires.
func TestHookOfAServer(t *testing.T) {
	t.Parallel()
	url := exemplary.Database(t)
	pool := pgtest.Pool(t, url)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	hook := newReceiver(t)
	server := startServe(t, append(os.Environ(), "DATABASE_URL="+url), "--listen", "127.0.0.1:0")
	cli := func(code int, want string, args ...string) {
		t.Helper()
		r := program(t, map[string]string{"DATABASE_URL": url}, "", append([]string{"changes"}, args...)...)
		if r.code != code || !strings.Contains(r.stdout+r.stderr, want) {
			t.Errorf("%q = %+v, want %d %s", args, r, code, want)
		}
	}
	const at = "/v1/changes/consumers/hook"
	become := func(want ...string) { // over HTTP, and so on the command line
		t.Helper()
		eventually(t, fmt.Sprintf("it has become %q", want), func() bool {
			_, text := server.ask(t, "GET", at, "", nil)
			return !slices.ContainsFunc(want, func(part string) bool { return !strings.Contains(text, part) })
		})
		for _, part := range want {
			cli(0, part, "consumers", "hook")
		}
	}
	took := func(want ...string) {
		t.Helper()
		cli(0, `"name":"hook"`, "wait", "hook", "--timeout", "3m")
		if diff := cmp.Diff(want, hook.took()); diff != "" {
			t.Errorf("it took (-want +got):\n%s", diff)
		}
	}

	cli(0, "saved", "run", "hook", "--table", "public.users", "--webhook", hook.URL, "--allow-private", "--batch", "1", "--save")
	hook.answer(http.StatusInternalServerError)
	exec(`INSERT INTO users SELECT generate_series(1, 5)`)
	become(`"state":"stalled"`, `"parked":3`, "500 Internal Server Error")
	server.want(t, "GET", at+"/parked", "", 200, `"position":"1.3"`)
	server.want(t, "GET", "/metrics", "", 200, `howdah_changes_stalled{consumer="hook",shard="0"} 1`)
	hook.answer(http.StatusNoContent)
	cli(0, `"retried":1`, "retry", "hook", "1.1") // sooner than it was asked to
	become(`"state":"running"`, `"parked":0`)
	server.want(t, "GET", "/metrics", "", 200, `howdah_changes_stalled{consumer="hook",shard="0"} 0`)
	took("1.1", "1.2", "1.3", "1.4", "1.5")

	hook.answer(http.StatusGone)
	exec(`INSERT INTO users VALUES (6)`)
	become(`"state":"paused"`, "410 Gone", `"parked":0`)
	cli(6, "has not handled all", "wait", "hook", "--timeout", "50ms")
	hook.answer(http.StatusNoContent)
	server.want(t, "POST", at+"/resume", "{}", 200, `"state":"running"`)
	took("1.1", "1.2", "1.3", "1.4", "1.5", "2.6")

	cli(0, "", "pause", "hook", "--reason", "holidays")
	exec(`INSERT INTO users VALUES (7)`)
	cli(0, `"position":"3"`, "position")
	exec(`UPDATE howdah.change_tick SET at = at - interval '8 days'`)
	log := changes.New(pool, changes.Config{})
	eventually(t, "it has expired", func() bool { // unless the server is at it
		if err := log.Tend(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, text := server.ask(t, "GET", at, "", nil)
		return strings.Contains(text, `"state":"expired"`)
	})
	become(`"state":"expired"`, `"reason":"it was behind for longer than 7 days"`)
	cli(5, "expired", "resume", "hook")
	server.want(t, "POST", at+"/resume", "{}", 409, "expired")
	cli(5, "expired", "wait", "hook", "--timeout", "3m")
	server.want(t, "POST", at+"/wait", "{}", 409, "expired")
	cli(0, "", "seek", "hook", "now", "--yes")
	exec(`INSERT INTO users VALUES (8)`)
	took("1.1", "1.2", "1.3", "1.4", "1.5", "2.6", "4.8")
}
