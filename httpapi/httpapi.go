// Package httpapi serves the services over HTTP: typed JSON described by OpenAPI
// 3.1, errors as problem+json (RFC 9457), streams where there is no end to hold
// in memory.
//
// The whole API is in routes.go, but for those of iidy (iidy.go) and Trifle (trifle.go).
// A handler turns a request into one call of a service and its answer into JSON; it
// holds no logic of its own.
package httpapi

import (
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
)

// Config are settings of the API; the zero Config is right for most.
type Config struct {
	Version      string          // of the program, told in the OpenAPI document
	MaxBody      int64           // bytes of a request body, streams excepted; default 8 MiB
	BodyTimeout  time.Duration   // for a body to arrive, or a part of a stream; default 1 minute
	Timeout      time.Duration   // for the database to answer, streams excepted; default 1 minute
	Ending       <-chan struct{} // closed when streams are to end
	LoopbackOnly bool            // refuse requests whose Host is not this machine (DNS rebinding)
	Log          *slog.Logger    // default slog.Default

	slowReader time.Duration // for the reader of an answer to take a part of it; of a stream it resumes by the last id it got; default 30 s
	keepAlive  time.Duration // between signs of life on a quiet stream of events; default 15 s
}

// api is what handlers share.
type api struct {
	client *howdah.Client
	cfg    Config
	mux    *http.ServeMux
	huma   huma.API
	waiter *checklists.Waiter
	polls  *polls

	metrics *metrics

	refused atomic.Int64 // when it was last logged that the database is away, in ns
}

// New returns the API on client.
func New(client *howdah.Client, cfg Config) http.Handler {
	a := newAPI(client, cfg)
	a.routes()
	return a.handler()
}

// newAPI returns an API without a route.
func newAPI(client *howdah.Client, cfg Config) *api {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 8 << 20
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = time.Minute
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if cfg.slowReader == 0 {
		cfg.slowReader = 30 * time.Second
	}
	if cfg.keepAlive == 0 {
		cfg.keepAlive = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	mux := http.NewServeMux()
	return &api{
		client: client, cfg: cfg, mux: mux, huma: humago.New(mux, openAPI(cfg.Version)),
		waiter: checklists.NewWaiter(client.Checklists, client.Hub), polls: newPolls(time.Second, newest(client.Reads().Counters)),
		metrics: newMetrics(client),
	}
}

// handler adds what is not an operation: pages for people, and the document of
// the routes that are there by now.
func (a *api) handler() http.Handler {
	a.mux.HandleFunc("GET /{$}", a.index)
	a.mux.HandleFunc("GET /docs", a.docs)
	a.mux.Handle("GET /metrics", a.metrics.handler())
	a.mux.Handle("GET /openapi.json", a.document())
	return a.guard(a.iidy(a.trifle(problems(a.mux, a.metrics))))
}

// openAPI describes the API as a whole; operations add themselves.
func openAPI(version string) huma.Config {
	c := huma.DefaultConfig("howdah", version)
	c.Info.Description = "Backend services on the PostgreSQL you already run."
	c.Info.License = &huma.License{Name: "Apache 2.0", Identifier: "Apache-2.0"}
	c.OpenAPIPath = "" // what it brings is made by the first requests, two of which race
	c.DocsPath = ""    // the page it brings loads scripts from elsewhere
	c.SchemasPath = "" // the document holds them
	c.CreateHooks = nil
	c.RejectUnknownQueryParameters = true
	c.Formats = map[string]huma.Format{"application/json": strictJSON, "json": strictJSON, mended: mendedJSON}
	c.OpenAPI.OnAddOperation = nil
	c.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	return c
}

// schemaName keeps the types of the services apart: checklists.Item and another
// service's Item are two schemas.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	service, ours := strings.CutPrefix(t.PkgPath(), "github.com/howdah-db/howdah/")
	if !ours || t.Name() == "" || service == "httpapi" {
		return name
	}
	return strings.ToUpper(service[:1]) + service[1:] + name
}
