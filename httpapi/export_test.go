package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah"
)

// NewWith is New with one more operation, GET /test, that does what a test wants.
func NewWith(client *howdah.Client, cfg Config, handle func(context.Context) error) http.Handler {
	a := newAPI(client, cfg)
	a.routes()
	add(a, http.MethodGet, "/test", "test", "A test", func(ctx context.Context, _ *struct{}) (*struct{}, error) {
		return nil, handle(ctx)
	})
	add(a, http.MethodGet, "/test/stream", "test-stream", "A stream", func(ctx context.Context, _ *struct{}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hctx huma.Context) {
			hctx.BodyWriter().Write([]byte("begun"))
			if err := handle(ctx); err != nil {
				panic(err)
			}
		}}, nil
	})
	return a.handler()
}
