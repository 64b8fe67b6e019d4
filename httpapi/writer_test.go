package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// background runs what the client does in the background until the test ends.
func background(t *testing.T, s *server) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- s.db.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := pgtest.Receive(t, ran, "the end of Run"); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "it runs", func() bool { return strings.Contains(s.get("/readyz").body, `"listening"`) })
}

// Many who write one item each are answered as one alone is.
func TestManyWriteOneItemEach(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	background(t, s)
	const many = 32
	// each sends the i-th of many requests at once and counts the answers.
	each := func(path string, body func(i int) string) map[string]int {
		got := map[string]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range many {
			all.Go(func() {
				r := s.post(path, body(i))
				mu.Lock()
				defer mu.Unlock()
				if r.StatusCode != 200 {
					wantProblem(t, r, 409, "lost 1 of 1")
					r.body = fmt.Sprint(r.StatusCode)
				}
				got[r.body]++
			})
		}
		all.Wait()
		return got
	}
	want := func(what string, got map[string]int, body string, n int) {
		t.Helper()
		if got[body] != n {
			t.Errorf("%s: %v, want %d times %s", what, got, n, body)
		}
	}
	same := func(int) string { return `{"items":["same"]}` }
	own := func(i int) string { return fmt.Sprintf(`{"items":["own-%02d"]}`, i) }
	want("inserts of the same", each(someItems, same), `{"added":1,"skipped":0}`+"\n", 1)
	want("inserts of their own", each(someItems, own), `{"added":1,"skipped":0}`+"\n", many)
	want("increments", each("/v1/checklists/l/increment", same), `{"incremented":1}`+"\n", many)
	wantJSON(t, s.get(someItems+"/same"), fmt.Sprintf(`{"item":"same","attempts":%d}`, many))
	want("deletes", each("/v1/checklists/l/delete", same), `{"deleted":1}`+"\n", 1)

	var claim struct{ Lease string }
	if err := json.Unmarshal([]byte(s.post("/v1/checklists/l/claim", `{"count":100,"lease":"5m"}`).body), &claim); err != nil {
		t.Fatal(err)
	}
	lease := "/v1/checklists/l/leases/" + claim.Lease
	failed := each(lease+"/fail", func(i int) string { return fmt.Sprintf(`{"items":[{"item":"own-%02d"}]}`, i/2) })
	want("failures, two of each", failed, `{"failed":1}`+"\n", many/2)
	want("failures, two of each", failed, "409", many/2)
	want("done, half of it failed", each(lease+"/done", own), `{"done":1}`+"\n", many/2)
	wantJSON(t, still(s.get("/v1/checklists/l/progress")),
		fmt.Sprintf(`{"total":33,"left":%d,"leased":0,"dead":0,"done":17,"failed":16,"rate":0,"eta_seconds":null,"paused":false}`, many/2))
}

// What waits to be written together is told, too, that the database is away.
func TestDatabaseAwayFromManyWriters(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	s := serve(t, proxy.URL(), httpapi.Config{})
	background(t, s)
	proxy.Refuse(true)
	proxy.Cut()
	s.db.Pool.Reset() // what is written to a connection before its end is noticed may have been done
	var lines []string
	for range 8 {
		lines = append(lines, "POST "+someItems, "POST /v1/checklists/l/increment", "POST /v1/checklists/l/delete")
	}
	awayAll(t, s, lines)
	proxy.Refuse(false)
	wantJSON(t, s.post(someItems, `{"items":["a"]}`), `{"added":1,"skipped":0}`)
}
