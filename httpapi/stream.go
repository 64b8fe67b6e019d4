package httpapi

import (
	"context"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

// stream is the body of a request that is read as it arrives: any length, each
// line limited.
type stream struct {
	contentType string
	body        io.Reader
}

// Resolve implements huma.Resolver.
func (s *stream) Resolve(ctx huma.Context) []error {
	r, w := humago.Unwrap(ctx)
	// Reading goes on while the first rows are written, and an answer may begin
	// before the body has ended.
	http.NewResponseController(w).EnableFullDuplex() // HTTP/2 has it anyway
	s.contentType, s.body = r.Header.Get("Content-Type"), r.Body
	return nil
}

func (s *stream) format() (checklists.Format, error) {
	media, _, err := mime.ParseMediaType(s.contentType)
	if format, ok := formats[media]; ok && err == nil {
		return format, nil
	}
	return "", pg.Refuse("Content-Type", "%q; want one of %s", s.contentType, strings.Join(slices.Sorted(maps.Keys(formats)), ", "))
}

// streamIn describes a request body that huma does not read.
func streamIn(op *huma.Operation) {
	content := map[string]*huma.MediaType{}
	for media := range formats {
		content[media] = &huma.MediaType{Schema: &huma.Schema{Type: "string", Format: "binary"}}
	}
	op.RequestBody = &huma.RequestBody{Description: "A stream of items, of any length.", Content: content}
}

// streamOut describes an answer without a schema.
func streamOut(op *huma.Operation) {
	content := map[string]*huma.MediaType{}
	for media := range formats {
		content[media] = &huma.MediaType{Schema: &huma.Schema{Type: "string", Format: "binary"}}
	}
	op.Responses = map[string]*huma.Response{"200": {Description: "A stream of items. One that fails on the way is cut, never ended cleanly.", Content: content}}
}

// abort cuts the connection, so that nobody takes half an answer for a whole.
func (a *api) abort(ctx context.Context, op string, err error) {
	if !errors.Is(err, context.Canceled) {
		a.cfg.Log.ErrorContext(ctx, "stream cut", "operation", op, "error", err)
	}
	panic(http.ErrAbortHandler)
}
