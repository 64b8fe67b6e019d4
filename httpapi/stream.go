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
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah/checklists"
)

// stream is the body of a request that is read as it arrives: any length, each
// line limited.
type stream struct {
	contentType string
	body        io.Reader
	header      http.Header // of the answer
}

// Resolve implements huma.Resolver.
func (s *stream) Resolve(ctx huma.Context) []error {
	r, w := humago.Unwrap(ctx)
	// Reading goes on while the first rows are written, and an answer may begin
	// before the body has ended.
	http.NewResponseController(w).EnableFullDuplex() // HTTP/2 has it anyway
	s.header = w.Header()
	s.contentType = r.Header.Get("Content-Type")
	s.body = &unpacked{body: &patient{r.Body, http.NewResponseController(w), time.Duration(ctx.Operation().BodyReadTimeout)}, gzip: strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip")}
	return nil
}

// patient waits for each part of a body, but not for ever.
type patient struct {
	io.Reader
	rc       *http.ResponseController
	patience time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	p.rc.SetReadDeadline(time.Now().Add(p.patience)) // where that cannot be, none is needed
	return p.Reader.Read(b)
}

// giveUp leaves the rest of the body unread; another request cannot follow it on
// the same connection, which a client has to be told.
func (s *stream) giveUp() { s.header.Set("Connection", "close") }

func (s *stream) format() (checklists.Format, error) {
	media, _, err := mime.ParseMediaType(s.contentType)
	if format, ok := formats[media]; ok && err == nil {
		return format, nil
	}
	return "", newProblem(http.StatusUnsupportedMediaType, "Content-Type %q; want one of %s", s.contentType, strings.Join(slices.Sorted(maps.Keys(formats)), ", "))
}

// streamed marks operations whose request body is a stream.
const streamed = "streamed"

// endless marks operations that take as long as they take.
const endless = "endless"

// mayWait is an operation that bounds its time by itself.
func mayWait(op *huma.Operation) { op.Metadata[endless] = true }

// streamIn describes a request body that huma does not read.
func streamIn(op *huma.Operation) {
	op.Metadata[streamed], op.Metadata[endless] = true, true
	op.RequestBody = &huma.RequestBody{
		Description: "A stream of items, of any length; also with Content-Encoding: gzip.",
		Content:     streams(),
		Required:    true,
	}
}

// streamOut describes an answer without a schema.
func streamOut(op *huma.Operation) {
	op.Metadata[endless] = true
	op.Responses["200"] = &huma.Response{
		Description: "A stream of items. One that fails on the way is cut, never ended cleanly.",
		Content:     streams(),
	}
}

// eventsOut describes a stream of Server-Sent Events.
func eventsOut(what, example string) func(*huma.Operation) {
	return func(op *huma.Operation) {
		op.Metadata[endless] = true
		op.Responses["200"] = &huma.Response{
			Description: what + " A comment every 15 s keeps the stream alive; bye says that the server stops, error that it cannot go on.",
			Content: map[string]*huma.MediaType{"text/event-stream": {
				Schema:  &huma.Schema{Type: "string"},
				Example: example,
			}},
		}
	}
}

// changesOut are the events of the feed, progressOut those of a list, bucketsOut those
// of a metric.
var (
	changesOut = eventsOut("Events named for what happened, with the position as their id; expired as the last, where the feed does not have what follows any more: begin anew.",
		"id: 1042.88213\nevent: update\ndata: {\"position\":\"1042.88213\",\"op\":\"update\",\"schema\":\"public\",\"table\":\"users\",\"key\":{\"id\":2}}\n\n")
	progressOut = eventsOut("How far the list is: snapshot at once, progress when that has changed, at most once a second.",
		"event: progress\ndata: {\"total\":4,\"left\":2,\"leased\":1,\"dead\":0,\"done\":2,\"failed\":0,\"rate\":0.5,\"eta_seconds\":4,\"paused\":false}\n\n")
	bucketsOut = eventsOut("The newest two buckets at once, and again when they change, looked at once a second, with their start as their id.",
		"id: 2025-05-06T09:00:00Z\nevent: bucket\ndata: {\"at\":\"2025-05-06T09:00:00Z\",\"values\":{\"count\":2}}\n\n")
)

// unhurried is an operation on all items of a list, however many.
func unhurried(op *huma.Operation) { op.Metadata[endless] = true }

// streams are the media types of a stream, each with two items as an example.
func streams() map[string]*huma.MediaType {
	content := map[string]*huma.MediaType{}
	for media, format := range formats {
		var example strings.Builder
		checklists.WriteItems(&example, format, func(yield func(checklists.Item, error) bool) {
			_ = yield(checklists.Item{Name: "a.txt"}, nil) && yield(checklists.Item{Name: "b.txt", Priority: 2, Payload: []byte(`{"size":1}`)}, nil)
		}) // both fit into a line
		content[media] = &huma.MediaType{Schema: &huma.Schema{Type: "string", Format: "binary"}, Example: example.String()}
	}
	return content
}

// abort cuts the connection, so that nobody takes half an answer for a whole.
func (a *api) abort(ctx context.Context, op string, err error) {
	if !errors.Is(err, context.Canceled) {
		a.cfg.Log.ErrorContext(ctx, "stream cut", "operation", op, "error", err)
	}
	panic(http.ErrAbortHandler)
}
