// Package iidyhttp is the HTTP API of iidy on top of howdah's checklists, under
// /iidy/v1: the paths of 2022 and those of 2025, text or JSON by Content-Type.
//
// It answers as the original does, duplicates refused included, with its defects
// mended: bad input is 400 and duplicates are 409, both with nothing written; a
// page that cannot be read is 503 and never empty; JSON is sent as JSON.
package iidyhttp

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

// Config is what the server around these routes decides for all of its routes.
type Config struct {
	Timeout   time.Duration // for the database to answer, an add of many excepted; default 1 minute
	MaxBody   int64         // bytes of a body, an add of many in text excepted; default 8 MiB
	MaxStream int64         // bytes of an add of many in text; default 1 GiB

	// Explain says how an error of a service is told: its status, headers that go
	// with it, and a text. It has no default: a server tells its errors one way.
	Explain func(ctx context.Context, operation string, err error) (status int, header http.Header, text string)
}

type api struct {
	db    pg.DB
	lists *checklists.Store
	names pg.Names
	cfg   Config
}

// New returns the API on lists, which live in db.
func New(db pg.DB, lists *checklists.Store, cfg Config) http.Handler {
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 8 << 20
	}
	if cfg.MaxStream == 0 {
		cfg.MaxStream = 1 << 30
	}
	names := pg.NewNames(map[string]pgx.Identifier{"lists": lists.Table()})
	return &api{db: db, lists: lists, names: names, cfg: cfg}
}

// target is what a path names.
type target struct {
	list, item string
	batch      bool // many items, which the body or the query names
	increment  bool // the form of 2025; that of 2022 is a query
}

// parse reads a path as it was sent: a name may hold an encoded slash. Each has
// one form only: empty names, dots and slashes too many are no path of ours.
func parse(escaped string) (t target, ok bool) {
	rest, ok := strings.CutPrefix(escaped, "/iidy/v1/")
	rest, t.increment = strings.CutPrefix(rest, "increment/")
	rest, t.batch = strings.CutPrefix(rest, "batch/")
	rest, lists := strings.CutPrefix(rest, "lists/")
	names := strings.Split(rest, "/")
	for i, name := range names {
		if name == "" || name == "." || name == ".." {
			return t, false
		}
		var err error
		if names[i], err = url.PathUnescape(name); err != nil {
			return t, false
		}
	}
	switch {
	case !ok || !lists:
		return t, false
	case t.batch && len(names) == 1:
		t.list = names[0]
		return t, true
	case !t.batch && len(names) == 2:
		t.list, t.item = names[0], names[1]
		return t, true
	}
	return t, false
}

// operation is what a request wants done.
type operation struct {
	verb string
	do   func(*api, context.Context, target, *request) (*answer, error)
}

var (
	addOne       = operation{"add", (*api).addOne}
	addMany      = operation{"add", (*api).addMany}
	getOne       = operation{"get", (*api).getOne}
	getMany      = operation{"get", (*api).getMany}
	deleteSome   = operation{"delete", (*api).deleteSome}
	incrementAny = operation{"increment", (*api).incrementSome}
)

// operations are the routes.
func operations(t target) map[string]operation {
	switch {
	case t.increment:
		return map[string]operation{http.MethodPost: incrementAny}
	case t.batch:
		return map[string]operation{http.MethodPost: addMany, http.MethodGet: getMany, http.MethodHead: getMany, http.MethodDelete: deleteSome}
	}
	return map[string]operation{http.MethodPost: addOne, http.MethodGet: getOne, http.MethodHead: getOne, http.MethodDelete: deleteSome}
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := &request{Request: r, w: w, json: isJSON(r.Header.Get("Content-Type")), limit: a.cfg.MaxBody}
	t, ok := parse(r.URL.EscapedPath())
	if !ok {
		req.refuse(&refusal{http.StatusNotFound, "404 page not found"})
		return
	}
	all := operations(t)
	op, ok := all[r.Method]
	if !ok {
		w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		req.refuse(&refusal{http.StatusMethodNotAllowed, "Method Not Allowed"})
		return
	}
	if packed := r.Header.Get("Content-Encoding"); packed != "" && !strings.EqualFold(packed, "identity") {
		req.refuse(&refusal{http.StatusUnsupportedMediaType, "A body with a Content-Encoding is not read here."})
		return
	}
	var err error
	if req.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		req.refuse(badRequest("Cannot read the query: %v", err))
		return
	}
	if action := req.query.Get("action"); r.Method == http.MethodPost && action != "" {
		if action != "increment" {
			req.refuse(badRequest("Unknown action: %s", action))
			return
		}
		op = incrementAny
	}
	a.serve(op, t, req)
}

func (a *api) serve(op operation, t target, req *request) {
	ctx := req.Context()
	if op.verb != "add" || !t.batch { // what takes as long as its body
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.cfg.Timeout)
		defer cancel()
	}
	answer, err := op.do(a, ctx, t, req)
	if err != nil {
		req.refuse(a.refusal(ctx, op, t, req, err))
		return
	}
	req.answer(answer)
}
