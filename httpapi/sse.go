package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// event is one of a stream of Server-Sent Events.
type event struct {
	ID   string // to resume from
	Name string
	Data any
}

// eventStream answers with the events that source sends, until it returns, the
// client goes, or the server stops, which it says with a last event "bye". They
// follow after, "" where a client cannot go on from where it was. source runs beside;
// send returns false when it is to end. HEAD is answered without them.
func (a *api) eventStream(ctx context.Context, after string, source func(ctx context.Context, send func(event) bool)) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		if hctx.Method() == http.MethodHead { // nobody reads them: it would never end
			return
		}
		out := &eventWriter{w: w, rc: http.NewResponseController(w)}

		ctx, stop := context.WithCancel(ctx)
		events := make(chan event)
		go func() {
			defer close(events)
			source(ctx, func(e event) bool {
				select {
				case events <- e:
					return true
				case <-ctx.Done():
					return false
				}
			})
		}()
		defer func() {
			stop()
			for range events { // until source has returned
			}
		}()
		// An id without an event: who connects again before there was one goes on here.
		if after != "" && !out.write("id: "+after+"\n\n") {
			return
		}
		quiet := time.NewTicker(a.cfg.keepAlive)
		defer quiet.Stop()
		for {
			select {
			case e, ok := <-events:
				if !ok || !out.event(e) {
					return
				}
				quiet.Reset(a.cfg.keepAlive)
			case <-quiet.C:
				if !out.comment("") {
					return
				}
			case <-a.cfg.Ending:
				out.event(event{Name: "bye", Data: struct{}{}})
				return
			case <-ctx.Done():
				return
			}
		}
	}}
}

// eventWriter writes events, each as soon as it is there; false when the client is
// gone or does not read.
type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (out *eventWriter) event(e event) bool {
	data, err := json.Marshal(e.Data)
	if err != nil {
		return false
	}
	text := ""
	if e.ID != "" {
		text = "id: " + e.ID + "\n"
	}
	return out.write(fmt.Sprintf("%sevent: %s\ndata: %s\n\n", text, e.Name, data))
}

func (out *eventWriter) comment(text string) bool { return out.write(": " + text + "\n\n") }

func (out *eventWriter) write(text string) bool {
	if _, err := out.w.Write([]byte(text)); err != nil {
		return false
	}
	return out.rc.Flush() == nil
}
