package httpapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs.html
var docsHTML string

var docsPage = template.Must(template.New("docs").Parse(docsHTML))

// operation is a route as the page of the documentation shows it.
type operation struct {
	*huma.Operation
	Request, Answer string // examples, or media types of a stream
}

// docs serves the routes as one page that loads nothing from elsewhere.
func (a *api) docs(w http.ResponseWriter, r *http.Request) {
	doc := a.huma.OpenAPI()
	sections := map[string][]operation{}
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		item := doc.Paths[path]
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op == nil {
				continue
			}
			shown := operation{Operation: op}
			if op.RequestBody != nil {
				shown.Request = a.example(op.RequestBody.Content)
			}
			if ok := success(op); ok != nil {
				shown.Answer = a.example(ok.Content)
			}
			sections[op.Tags[0]] = append(sections[op.Tags[0]], shown)
		}
	}
	var page bytes.Buffer
	err := docsPage.Execute(&page, map[string]any{"Info": doc.Info, "Sections": sections})
	if err != nil {
		a.fault(w, r, "docs", err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.Write(page.Bytes())
}

// example writes what a body looks like.
func (a *api) example(content map[string]*huma.MediaType) string {
	if json := content["application/json"]; json != nil && json.Schema != nil {
		return a.sample(json.Schema, 0)
	}
	return strings.Join(slices.Sorted(maps.Keys(content)), "\n")
}

// sample is a value of a schema: its example where there is one, else its type.
func (a *api) sample(s *huma.Schema, depth int) string {
	if s == nil || depth > 8 {
		return "null"
	}
	if len(s.Examples) > 0 {
		text, err := json.Marshal(s.Examples[0])
		if err == nil {
			return string(text)
		}
	}
	if s.Ref != "" {
		return a.sample(a.huma.OpenAPI().Components.Schemas.SchemaFromRef(s.Ref), depth+1)
	}
	switch s.Type {
	case huma.TypeObject:
		var fields []string
		for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
			fields = append(fields, `"`+name+`": `+a.sample(s.Properties[name], depth+1))
		}
		return "{" + strings.Join(fields, ", ") + "}"
	case huma.TypeArray:
		return "[" + a.sample(s.Items, depth+1) + "]"
	case huma.TypeString:
		return `"…"`
	case huma.TypeBoolean:
		return "false"
	}
	return "0"
}

// index says where to go on.
func (a *api) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.Write([]byte(`<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>howdah</title>` +
		`<h1>howdah is running</h1><p><a href="/docs">The API</a> · <a href="/openapi.json">its OpenAPI document</a> · <a href="/readyz">is it ready</a></html>` + "\n"))
}

// tag groups operations by the service in front of their name.
func tag(id string) string {
	service, _, ok := strings.Cut(id, "-")
	if !ok {
		return "server"
	}
	return service
}
