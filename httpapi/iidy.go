package httpapi

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah/compat/iidyhttp"
)

// iidy serves the routes of iidy beside ours. They have forms of their own for
// everything, errors included, and are not in the OpenAPI document.
func (a *api) iidy(next http.Handler) http.Handler {
	theirs := iidyhttp.New(a.client.Pool, a.client.Checklists, iidyhttp.Config{
		Timeout: a.cfg.Timeout,
		MaxBody: a.cfg.MaxBody,
		Explain: func(ctx context.Context, operation string, err error) (int, http.Header, string) {
			p := a.problem(ctx, &huma.Operation{OperationID: operation}, err)
			return p.Status, p.GetHeaders(), p.Detail
		},
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !forIidy(r) {
			next.ServeHTTP(w, r)
			return
		}
		r.Body = struct {
			io.Reader
			io.Closer
		}{&patient{r.Body, http.NewResponseController(w), a.cfg.BodyTimeout}, r.Body}
		theirs.ServeHTTP(w, r)
	})
}

// forIidy reports whether a request is for a route of iidy.
func forIidy(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/iidy/v1/") }
