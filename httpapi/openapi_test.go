package httpapi_test

import (
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/httpapi"
)

var update = flag.Bool("update", false, "write docs/openapi.json")

// openAPI is what these tests look at of an OpenAPI document.
type openAPI struct {
	OpenAPI    string
	Info       struct{ Title, Version string }
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]json.RawMessage }
}

type operation struct {
	OperationID string
	Summary     string
	Tags        []string
	Parameters  []struct {
		Name, In, Description string
		Required              bool
	}
	RequestBody *struct{ Content map[string]media }
	Responses   map[string]struct {
		Description string
		Content     map[string]media
		Headers     map[string]any
	}
}

type media struct {
	Schema  map[string]any
	Example any
}

func document(t *testing.T) (text string, doc openAPI) {
	t.Helper()
	s := serve(t, "", httpapi.Config{Version: "dev"})
	r := s.get("/openapi.json")
	if got := r.Header.Get("Content-Type"); r.StatusCode != 200 || got != "application/openapi+json" {
		t.Fatalf("%s, %s", r.Status, got)
	}
	if err := json.Unmarshal([]byte(r.body), &doc); err != nil {
		t.Fatal(err)
	}
	return r.body + "\n", doc
}

// The copy that people and generators of clients read is that of this code.
func TestOpenAPIOfTheDocs(t *testing.T) {
	t.Parallel()
	const file = "../docs/openapi.json"
	got, _ := document(t)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; write it with go test ./httpapi -run OpenAPI -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is old, write it with go test ./httpapi -run OpenAPI -update (-file +code):\n%s", file, diff)
	}
}

// The document has the routes that routes.go registers, and no others.
func TestOpenAPIHasTheRoutes(t *testing.T) {
	t.Parallel()
	_, doc := document(t)
	got := []string{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			got = append(got, strings.ToUpper(method)+" "+path+" "+op.OperationID+" "+op.Summary)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(registered(t), got); diff != "" {
		t.Errorf("(-routes.go +openapi.json):\n%s", diff)
	}
}

// registered reads the calls of add in routes.go.
func registered(t *testing.T) (routes []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "routes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if name, ok := call.Fun.(*ast.Ident); !ok || name.Name != "add" {
			return true
		}
		parts := []string{strings.Replace(strings.ToUpper(call.Args[1].(*ast.Ident).Name), "DEL", "DELETE", 1)}
		for _, arg := range call.Args[2:5] {
			text, err := strconv.Unquote(arg.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, text)
		}
		routes = append(routes, strings.Join(parts, " "))
		return true
	})
	slices.Sort(routes)
	return routes
}

func TestOpenAPISaysAll(t *testing.T) {
	t.Parallel()
	text, doc := document(t)
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") || doc.Info.Title != "howdah" || doc.Info.Version != "dev" {
		t.Errorf("openapi %q, info %+v", doc.OpenAPI, doc.Info)
	}
	seen := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			id := op.OperationID
			if seen[id] || id == "" || op.Summary == "" || len(op.Tags) != 1 {
				t.Errorf("%s %s: id %q, summary %q, tags %q", method, path, id, op.Summary, op.Tags)
			}
			seen[id] = true
			for _, name := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
				if !slices.ContainsFunc(op.Parameters, func(p struct {
					Name, In, Description string
					Required              bool
				}) bool {
					return p.Name == name[1] && p.In == "path" && p.Required
				}) {
					t.Errorf("%s: no parameter %s", id, name[1])
				}
			}
			for _, p := range op.Parameters {
				if p.Description == "" {
					t.Errorf("%s: parameter %s says nothing", id, p.Name)
				}
			}
			want := []string{succeeds(op), "400", "403", "500"}
			if strings.HasPrefix(path, "/v1/") || path == "/readyz" {
				want = append(want, "503")
			}
			want = append(want, map[string][]string{
				"services-transact": {"409"}, "checklists-get": {"404"}, "checklists-settings": {"404", "409"}, "checklists-set": {"409"}, "checklists-drop": {"404"},
				"checklists-rename": {"404", "409"}, "checklists-page": {"409"}, "checklists-insert": {"409"}, "changes-page": {"404", "409"}, "changes-watch": {"404", "409"}, "changes-sync": {"409"}, "changes-save": {"409"}, "counters-scan": {"404"}, "counters-rename": {"409"},
				"counters-track": {"409", "422"}, "counters-assert": {"409", "422"}, "counters-apply": {"409", "413", "422"},
			}[id]...)
			if strings.Contains(path, "/consumers/") && id != "changes-save" || id == "changes-release" {
				want = append(want, "404")
			}
			if strings.Contains(path, "/consumers/") && regexp.MustCompile(`/(pause|resume|seek|reshard|backfill|wait)$`).MatchString(path) || strings.Contains(path, "/captures/") { // a service's own
				want = append(want, "409")
			}
			if strings.Contains(path, "/leases/") || regexp.MustCompile(`/(claim|kill|redrive|progress|watch|recount|import|export)$`).MatchString(path) { // a table without the columns
				want = append(want, "409")
			}
			if method == "post" || method == "put" || method == "patch" {
				want = append(want, "415")
				if op.RequestBody != nil && op.RequestBody.Content["application/json"].Schema != nil && id != "counters-apply" { // a stream has neither limit
					want = append(want, "408", "413")
				}
				if op.RequestBody == nil || len(op.RequestBody.Content) == 0 {
					t.Fatalf("%s: no request body", id)
				}
				examples(t, id+" request", op.RequestBody.Content)
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(op.Responses))); diff != "" {
				t.Errorf("%s: answers (-want +got):\n%s", id, diff)
			}
			for status, answer := range op.Responses {
				if answer.Description == "" {
					t.Errorf("%s: %s says nothing", id, status)
				}
				if status != succeeds(op) && answer.Content["application/problem+json"].Schema["$ref"] != "#/components/schemas/Problem" {
					t.Errorf("%s: %s is %v", id, status, answer.Content)
				}
				if status == "503" && answer.Headers["Retry-After"] == nil {
					t.Errorf("%s: 503 without Retry-After", id)
				}
				examples(t, id+" "+status, answer.Content)
			}
		}
	}
	used := map[string]bool{}
	for _, ref := range regexp.MustCompile(`"#/components/schemas/(\w+)"`).FindAllStringSubmatch(text, -1) {
		used[ref[1]] = true
		if doc.Components.Schemas[ref[1]] == nil {
			t.Errorf("%s is not there", ref[0])
		}
	}
	for name := range doc.Components.Schemas {
		if !used[name] {
			t.Errorf("schema %s is not used", name)
		}
	}
	if strings.Contains(text, `$schema"`) {
		t.Error("a $schema is left")
	}
}

// succeeds is the status of an operation that was done.
func succeeds(op operation) string {
	if op.OperationID == "changes-emit" {
		return "201"
	}
	return "200"
}

func examples(t *testing.T, where string, content map[string]media) {
	t.Helper()
	if len(content) == 0 {
		t.Errorf("%s: no body", where)
	}
	for name, body := range content {
		if body.Schema == nil || body.Example == nil {
			t.Errorf("%s: %s has schema %v, example %v", where, name, body.Schema, body.Example)
		}
		if text, _ := json.Marshal(body.Example); strings.Contains(string(text), "…") || strings.Contains(string(text), "null") {
			t.Errorf("%s: example %s", where, text)
		}
	}
}

// The examples of the document are requests that work.
func TestOpenAPIExamplesWork(t *testing.T) {
	t.Parallel()
	_, doc := document(t)
	s := serve(t, "", httpapi.Config{})
	wantJSON(t, s.post("/v1/checklists/downloads/items", `{"items":["a.txt","b.txt"]}`), `{"added":2,"skipped":0}`)
	if _, err := s.db.Pool.Exec(t.Context(), `CREATE TABLE users (id int PRIMARY KEY, status text, password text); CREATE TABLE orders (id int PRIMARY KEY)`); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Counters.Beam(t.Context(), "orders", time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for method, op := range doc.Paths[path] {
			path := strings.NewReplacer("{key}", "orders", "{list}", "downloads", "{item}", "a.txt", "{schema}", "public", "{table}", "users",
				"{name}", "billing", "{token}", "0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e").Replace(path)
			if strings.Contains(path, "/leases/") {
				if _, err := s.db.Pool.Exec(t.Context(), `
					INSERT INTO iidy.lists (list, item, due, lease)
					SELECT 'downloads', item, 'tomorrow', '0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e'
					FROM unnest(ARRAY['a.txt', 'b.txt', 'c.txt']) AS item
					ON CONFLICT (list, item) DO UPDATE
					SET due = EXCLUDED.due, lease = EXCLUDED.lease`); err != nil {
					t.Fatal(err)
				}
			}
			if strings.Contains(path, "/consumers/") { // others have forgotten or moved it
				s.sql(`DELETE FROM howdah.change_consumer; DELETE FROM howdah.change_checkpoint`)
				s.sql(`INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('billing', 1, '{*}')`)
				s.sql(`INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n) VALUES ('billing', 0, 1, 2000)`)
			}
			if strings.Contains(path, "/parked/") { // what the examples name
				s.sql(`
					DELETE FROM howdah.change_parked;
					INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head)
					VALUES ('billing', 0, 1042, 88213, 0, 'public.orders', false, '{"position":"1042.88213","op":"insert","schema":"public","table":"orders"}', true)`)
			}
			if op.OperationID == "changes-release" {
				if _, err := s.db.Changes.Apply(t.Context(), []changes.Capture{{Table: "public.users"}}, false); err != nil {
					t.Fatal(err)
				}
			}
			if op.OperationID == "changes-save" { // it runs none of its own, and what it reads is captured
				s.sql(`DELETE FROM howdah.change_consumer; DELETE FROM howdah.change_checkpoint`)
				if _, err := s.db.Changes.Apply(t.Context(), []changes.Capture{{Table: "public.orders"}}, false); err != nil {
					t.Fatal(err)
				}
			}
			if strings.HasSuffix(op.OperationID, "-watch") { // without an end: it has a test of its own
				continue
			}
			// Others have renamed or dropped it.
			if _, err := s.db.Checklists.Insert(t.Context(), "downloads", "here"); err != nil {
				t.Fatal(err)
			}
			if op.OperationID == "checklists-claim" { // which waits for one that is ready, on a list that another has paused
				if err := s.db.Checklists.Pause(t.Context(), "downloads", false); err != nil {
					t.Fatal(err)
				}
			}
			if method == "delete" {
				if r := s.do("DELETE", path, nil); r.StatusCode != 200 {
					t.Errorf("%s: %s %s", op.OperationID, r.Status, r.body)
				}
				continue
			}
			if method == "get" {
				if op.OperationID == "checklists-get" { // a delete may have come before
					continue
				}
				if op.OperationID == "counters-values" || op.OperationID == "counters-query" {
					path += "?from=2025-05-06T00:00:00Z&to=2025-05-06T23:00:00Z&granularity=1h"
				}
				if op.OperationID == "counters-query" {
					path += "&fn=sum&path=count&slices=2"
				}
				if op.OperationID == "counters-verify" {
					path += "?from=2025-05-06T00:00:00Z&to=2025-05-06T23:00:00Z&granularity=1d"
				}
				if r := s.get(path); r.StatusCode != 200 {
					t.Errorf("%s: %s %s", op.OperationID, r.Status, r.body)
				}
				continue
			}
			if op.OperationID == "counters-replace" {
				path += "?from=2025-05-06T00:00:00Z&to=2025-05-07T00:00:00Z"
			}
			for media, body := range op.RequestBody.Content {
				text, ok := body.Example.(string)
				if !ok {
					b, err := json.Marshal(body.Example)
					if err != nil {
						t.Fatal(err)
					}
					text = string(b)
				}
				text = strings.Replace(text, `"order-17"`, `"`+op.OperationID+`"`, 1) // a track and an assert are not the same event
				if r := s.do(strings.ToUpper(method), path, strings.NewReader(text), "Content-Type: "+media); strconv.Itoa(r.StatusCode) != succeeds(op) {
					t.Errorf("%s: %s %s", op.OperationID, r.Status, r.body)
				}
			}
		}
	}
}

// The pages load nothing from elsewhere: they work without the Internet, and
// tell nobody that they were opened.
func TestPagesLoadNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	_, doc := document(t)
	s := serve(t, "", httpapi.Config{Version: "dev"})
	for _, path := range []string{"/", "/docs"} {
		r := s.get(path)
		if got := r.Header.Get("Content-Type"); r.StatusCode != 200 || got != "text/html; charset=utf-8" {
			t.Fatalf("%s: %s, %s", path, r.Status, got)
		}
		for _, found := range regexp.MustCompile(`(?i)(?:src|href|action|data|poster|srcset)\s*=\s*["']?([^"'\s>]*)|url\(([^)]*)|@import`).FindAllStringSubmatch(r.body, -1) {
			if !strings.HasPrefix(found[1], "/") || strings.HasPrefix(found[1], "//") {
				t.Errorf("%s: %s", path, found[0])
			} else if got := s.get(found[1]); got.StatusCode != 200 {
				t.Errorf("%s links to %s: %s", path, found[1], got.Status)
			}
		}
		text := strings.ReplaceAll(r.body, "https://example.com", "an example of one")
		if strings.Contains(text, "<script") || strings.Contains(text, "://") {
			t.Errorf("%s holds a script or a URL", path)
		}
		if got := r.Header.Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'") {
			t.Errorf("%s: Content-Security-Policy %q", path, got)
		}
	}
	page := s.get("/docs").body
	for path, methods := range doc.Paths {
		for _, op := range methods {
			if !strings.Contains(page, `id="`+op.OperationID+`"`) || !strings.Contains(page, path) {
				t.Errorf("/docs has no %s", op.OperationID)
			}
		}
	}
}
