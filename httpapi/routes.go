package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// routes is the map of the API. Names of lists and items are percent-encoded, so
// that they may hold slashes; the list without a name has no path.
func (a *api) routes() {
	const get, post = http.MethodGet, http.MethodPost

	add(a, get, "/healthz", "health", "Is the process alive", a.health)
	add(a, get, "/readyz", "ready", "Can it serve: 503 while the database is away", a.ready)

	add(a, get, "/v1/checklists", "checklists-lists", "The lists, in order", a.listLists)
	add(a, post, "/v1/checklists/{list}/items", "checklists-insert", "Put items on a list; those already there are skipped", a.insertItems)
	add(a, get, "/v1/checklists/{list}/items", "checklists-page", "A page of items, in order", a.pageItems)
	add(a, get, "/v1/checklists/{list}/items/{item}", "checklists-get", "One item", a.getItem)
	add(a, post, "/v1/checklists/{list}/increment", "checklists-increment", "Add an attempt to items", a.incrementItems)
	add(a, post, "/v1/checklists/{list}/delete", "checklists-delete", "Take items off a list", a.deleteItems)
	add(a, post, "/v1/checklists/{list}/import", "checklists-import", "Put a stream of items on a list", a.importItems, streamIn)
	add(a, get, "/v1/checklists/{list}/export", "checklists-export", "All items of a list as a stream", a.exportItems, streamOut)
}

// add registers an operation. Its handler returns errors as the services do;
// they become problems here and nowhere else.
func add[I, O any](a *api, method, path, id, summary string, handle func(context.Context, *I) (*O, error), options ...func(*huma.Operation)) {
	op := huma.Operation{
		OperationID:     id,
		Method:          method,
		Path:            path,
		Summary:         summary,
		Tags:            []string{tag(id)},
		MaxBodyBytes:    a.cfg.MaxBody,
		BodyReadTimeout: a.cfg.BodyTimeout,
		Errors:          []int{http.StatusBadRequest, http.StatusServiceUnavailable},
		Metadata:        map[string]any{ours: true},
	}
	for _, option := range options {
		option(&op)
	}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.problem(ctx, id, err)
		}
		return out, nil
	})
}
