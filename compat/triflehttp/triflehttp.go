// Package triflehttp is the HTTP API of Trifle on top of howdah's counters: series are
// read, events counted and queries answered under /api/v1, in Trifle's own JSON.
//
// Numbers are exact, an unreadable body or time is 400, what can be read but not done
// is 422, and the header X-Howdah-Detail says why where the body has no room for it.
package triflehttp

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// Config is what the server around these routes decides for all of its routes.
type Config struct {
	Version string        // of the server, which GET /api/v1/source tells
	Timeout time.Duration // for the database to answer; default 1 minute
	MaxBody int64         // bytes of a body, unpacked; default 8 MiB

	// Explain says how an error of a service is told: its status, headers that go
	// with it, and a text. It has no default: a server tells its errors one way.
	Explain func(ctx context.Context, operation string, err error) (status int, header http.Header, text string)
}

// Applier counts events, as [counters.Store] and [counters.Writer] do.
type Applier interface {
	Apply(ctx context.Context, events ...counters.Event) (applied int, err error)
}

type api struct {
	events Applier
	reads  *counters.Store
	cfg    Config
}

// New returns the API. Events go to events, and reads, which may be a moment old, are
// from reads.
func New(events Applier, reads *counters.Store, cfg Config) http.Handler {
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 8 << 20
	}
	return &api{events: events, reads: reads, cfg: cfg}
}

// operation is what a request wants done.
type operation struct {
	name string
	do   func(*api, context.Context, *request) (*answer, error)
}

// routes are all there are.
var routes = map[string]map[string]operation{
	"/api/v1/metrics": {
		http.MethodGet:  {"trifle-values", (*api).values},
		http.MethodHead: {"trifle-values", (*api).values},
		http.MethodPost: {"trifle-apply", (*api).apply},
	},
	"/api/v1/metrics/query": {
		http.MethodPost: {"trifle-query", (*api).query},
	},
	"/api/v1/source": {
		http.MethodGet:  {"trifle-source", (*api).source},
		http.MethodHead: {"trifle-source", (*api).source},
	},
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := &request{Request: r, w: w, limit: a.cfg.MaxBody}
	all, ok := routes[r.URL.Path]
	if !ok {
		req.refuse(&refusal{status: http.StatusNotFound})
		return
	}
	op, ok := all[r.Method]
	if !ok {
		w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		req.refuse(&refusal{status: http.StatusMethodNotAllowed})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.cfg.Timeout)
	defer cancel()
	answer, err := op.do(a, ctx, req)
	if err != nil {
		req.refuse(a.refusal(ctx, op, req, err))
		return
	}
	req.write(answer.status, map[string]any{"data": answer.data})
}
