package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestChecklists(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	const items = "/v1/checklists/downloads/items"

	wantJSON(t, s.get("/v1/checklists"), `{"lists":[]}`)
	wantJSON(t, s.get(items), `{"items":[]}`) // a list exists while it has items
	wantJSON(t, s.post(items, `{"items":["b.txt","a.txt","c.txt","a.txt"]}`), `{"added":3,"skipped":1}`)
	wantJSON(t, s.post(items, `{"items":["a.txt"]}`), `{"added":0,"skipped":1}`)
	wantJSON(t, s.post(items, `{"items":[]}`), `{"added":0,"skipped":0}`)
	wantJSON(t, s.post("/v1/checklists/downloads/increment", `{"items":["a.txt","none","a.txt"]}`), `{"incremented":1}`)
	wantJSON(t, s.get(items+"/a.txt"), `{"item":"a.txt","attempts":1}`)
	wantJSON(t, s.get(items), `{"items":[{"item":"a.txt","attempts":1},{"item":"b.txt","attempts":0},{"item":"c.txt","attempts":0}]}`)
	wantJSON(t, s.post("/v1/checklists/downloads/delete", `{"items":["a.txt","none"]}`), `{"deleted":1}`)
	wantJSON(t, s.post("/v1/checklists/uploads/items", `{"items":["a.txt"]}`), `{"added":1,"skipped":0}`)
	const usual = `"settings":{"paused":false,"max_attempts":10,"backoff":"10s","backoff_max":"1h0m0s","keep_done":false,"max_leased":0,"rate":0}`
	wantJSON(t, still(s.get("/v1/checklists?limit=1")), `{"lists":[{"list":"downloads",`+usual+`,
		"progress":{"total":3,"left":2,"leased":0,"dead":0,"done":1,"failed":0,"rate":0,"eta_seconds":null,"paused":false}}],"next":"downloads"}`)
	wantJSON(t, s.get("/v1/checklists?limit=2&after=downloads"), `{"lists":[{"list":"uploads",`+usual+`,
		"progress":{"total":1,"left":1,"leased":0,"dead":0,"done":0,"failed":0,"rate":0,"eta_seconds":null,"paused":false}}]}`)
	wantJSON(t, s.get("/healthz"), `{"status":"ok"}`)
	wantProblem(t, s.get(items+"/a.txt"), 404, "no such item")
	wantProblem(t, s.get("/v1/checklists/none/items/a.txt"), 404, "no such item")
}

// A page that is not full is the last; next is what after wants.
func TestPages(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	var all []string
	for i := range 25 {
		all = append(all, fmt.Sprintf("%03d", i))
	}
	if _, err := s.db.Checklists.Insert(t.Context(), "l", all...); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{1, 5, 24, 25, 26, 10_000} {
		var got []string
		query := ""
		for {
			r := s.get(fmt.Sprintf("/v1/checklists/l/items?limit=%d%s", limit, query))
			var page struct {
				Items []struct{ Item string }
				Next  *string
			}
			if err := json.Unmarshal([]byte(r.body), &page); err != nil {
				t.Fatalf("%v in %s", err, r.body)
			}
			for _, item := range page.Items {
				got = append(got, item.Item)
			}
			if page.Next == nil || len(got) > len(all) {
				break
			}
			query = "&after=" + url.QueryEscape(*page.Next)
		}
		if !slices.Equal(got, all) {
			t.Errorf("limit %d: %q, want %q", limit, got, all)
		}
	}
}

// The empty name is a name: after= is not the same as no after.
func TestAfterEmptyAndAbsent(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	wantJSON(t, s.post("/v1/checklists/l/items", `{"items":["","true","z"]}`), `{"added":3,"skipped":0}`)
	const first, rest = `{"item":"","attempts":0}`, `{"item":"true","attempts":0},{"item":"z","attempts":0}`
	wantJSON(t, s.get("/v1/checklists/l/items"), `{"items":[`+first+`,`+rest+`]}`)
	for _, query := range []string{"?after=", "?after", "?after=&limit=5", "?limit=5&after"} {
		wantJSON(t, s.get("/v1/checklists/l/items"+query), `{"items":[`+rest+`]}`)
	}
	wantJSON(t, s.get("/v1/checklists/l/items?limit=1"), `{"items":[`+first+`],"next":""}`)
}

func TestNamesOfAllKinds(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for _, name := range []string{
		"a/b", "a%2Fb", "//", "/", "a b+c", "?x=1&y#z", ".", "..", "../../etc/passwd", "ä😀", "\u2028", "\t\r\n", `"\'<>`, "%", "%zz", ";", "A", "a", "\ufffd", "~!@$^*()=[]{}|",
	} {
		list := "/v1/checklists/" + escape(name)
		body, err := json.Marshal(map[string][]string{"items": {name}})
		if err != nil {
			t.Fatal(err)
		}
		item, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		wantJSON(t, s.post(list+"/items", string(body)), `{"added":1,"skipped":0}`)
		wantJSON(t, s.get(list+"/items/"+escape(name)), fmt.Sprintf(`{"item":%s,"attempts":0}`, item))
		wantJSON(t, s.get(list+"/items?limit=1"), fmt.Sprintf(`{"items":[{"item":%s,"attempts":0}]}`, item))
		wantJSON(t, s.get(list+"/items?after="+url.QueryEscape(name)), `{"items":[]}`)
		wantJSON(t, s.do("POST", list+"/import", strings.NewReader("{\"item\":\"second\"}\n"), "Content-Type: application/x-ndjson"), `{"added":1,"skipped":0}`)
		if got := s.items(name); !slices.Contains(got, name) || len(got) != 2 {
			t.Errorf("items of %q = %q", name, got)
		}
	}
}

// escape encodes every byte that is not a letter or digit, dots too: a client
// would take dot segments out of the path.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func TestManyItemsInOneRequest(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	n := pgtest.Size(100_000, 10_000)
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%06d", i)
	}
	body, err := json.Marshal(map[string][]string{"items": names})
	if err != nil {
		t.Fatal(err)
	}
	wantJSON(t, s.post("/v1/checklists/l/items", string(body)), fmt.Sprintf(`{"added":%d,"skipped":0}`, n))
	wantJSON(t, s.post("/v1/checklists/l/increment", string(body)), fmt.Sprintf(`{"incremented":%d}`, n))
	wantJSON(t, s.post("/v1/checklists/l/delete", string(body)), fmt.Sprintf(`{"deleted":%d}`, n))
}

// Nothing of the tools that made the answer shows in it.
func TestAnswersHoldOnlyTheirFields(t *testing.T) {
	t.Parallel()
	s := serve(t, "", httpapi.Config{})
	for _, r := range []response{
		s.post("/v1/checklists/l/items", `{"items":["a<b>&c"]}`),
		s.get("/v1/checklists/l/items"),
		s.get("/v1/checklists?limit=0"),
		s.get("/healthz"),
	} {
		if strings.Contains(r.body, "$schema") || r.Header.Get("Link") != "" {
			t.Errorf("%s: %s, Link %q", r.Request.URL, r.body, r.Header.Get("Link"))
		}
		if got := r.Header.Get("X-Content-Type-Options"); got != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options %q", r.Request.URL, got)
		}
	}
	if got, want := s.get("/v1/checklists/l/items").body, `{"items":[{"item":"a<b>&c","attempts":0}]}`+"\n"; got != want {
		t.Error(cmp.Diff(want, got))
	}
	for _, accept := range []string{"*/*", "text/html", "application/x-unknown", "application/cbor"} {
		r := s.do("GET", "/v1/checklists/l/items", nil, "Accept: "+accept)
		if got := r.Header.Get("Content-Type"); r.StatusCode != 200 || got != "application/json" {
			t.Errorf("Accept %s: %s, Content-Type %q", accept, r.Status, got)
		}
	}
}
