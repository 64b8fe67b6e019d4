package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// statuses is the one table from kinds of failure to HTTP.
var statuses = map[fault.Kind]int{
	fault.Invalid:     http.StatusBadRequest,
	fault.Denied:      http.StatusForbidden,
	fault.NotFound:    http.StatusNotFound,
	fault.Conflict:    http.StatusConflict,
	fault.Exhausted:   http.StatusRequestEntityTooLarge,
	fault.Unavailable: http.StatusServiceUnavailable,
}

// Problem is the body of every error: RFC 9457.
type Problem struct {
	Type   string         `json:"type" example:"urn:howdah:invalid" doc:"Names the kind of failure."`
	Title  string         `json:"title" example:"invalid input"`
	Status int            `json:"status" example:"400"`
	Detail string         `json:"detail,omitempty" doc:"What was wrong, and what to do."`
	Errors []ProblemField `json:"errors,omitempty" doc:"The fields that were wrong."`
	Held   *int64         `json:"held,omitempty" doc:"Of a lease that was lost: how many of the items it still held. With them it was done."`

	again bool // a repeat may help, and does no harm
}

// ProblemField says what was wrong with one field of a request.
type ProblemField struct {
	Location string `json:"location" example:"items[17]"`
	Message  string `json:"message"`
}

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError: who is told to come back is told when.
func (p *Problem) GetHeaders() http.Header {
	if p.again {
		return http.Header{"Retry-After": {"1"}}
	}
	return nil
}

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// problem turns an error of a service into an answer. What has no kind is a bug
// or an outage: it is logged with its cause and told without it.
func (a *api) problem(ctx context.Context, op *huma.Operation, err error) *Problem {
	var already *Problem
	var connect *pgconn.ConnectError
	kind := pg.KindOf(err)
	switch {
	case errors.As(err, &already):
		return already
	case errors.As(err, &connect): // whatever the reason, and the password is the operator's
		a.tellRefusal(ctx, op.OperationID, err)
		return newProblem(http.StatusServiceUnavailable, "the database is away; try again in a moment")
	case errors.Is(err, pg.ErrOutcomeUnknown):
		a.tellRefusal(ctx, op.OperationID, err)
		p := newProblem(http.StatusServiceUnavailable, "the database was lost before it answered: nobody knows whether this was done; look before you repeat it")
		p.Type, p.again = "urn:howdah:outcome-unknown", false
		return p
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return newProblem(499, "the client went away") // nobody reads it
	case kind == "":
		a.cfg.Log.ErrorContext(ctx, "request failed", "operation", op.OperationID, "error", err)
		return newProblem(http.StatusInternalServerError, "the server's log says more")
	case kind == fault.Unavailable:
		a.tellRefusal(ctx, op.OperationID, err)
		if pg.LostConnection(err) { // where and as whom we connect is the operator's to know
			return newProblem(http.StatusServiceUnavailable, "the database is away; try again in a moment")
		}
	}
	p := newProblem(statuses[kind], "%s", err)
	for sentinel, name := range sentinels {
		if errors.Is(err, sentinel) {
			p.Type = "urn:howdah:" + name
		}
	}
	if lost := (*lostError)(nil); errors.As(err, &lost) {
		p.Held = &lost.held
	}
	var input *pg.InputError
	if errors.As(err, &input) {
		p.Errors = []ProblemField{{Location: location(op, input.Field), Message: input.Problem}}
	}
	return p
}

// tellRefusal logs that the database is away, not for each of the requests that
// find it so.
func (a *api) tellRefusal(ctx context.Context, op string, err error) {
	const often = 10 * time.Second
	now := time.Now().UnixNano()
	last := a.refused.Load()
	if now-last > int64(often) && a.refused.CompareAndSwap(last, now) {
		a.cfg.Log.WarnContext(ctx, "requests are refused", "operation", op, "error", err)
	}
}

// location says where in a request of op a service's field came from, in the
// way huma says it: path.list, query.limit, body.items[17].
func location(op *huma.Operation, field string) string {
	for _, param := range op.Parameters {
		if param.Name == field {
			return param.In + "." + field
		}
	}
	if op.Metadata[ownJSON] != nil && strings.HasPrefix(field, "events") { // the array is the body
		return "body" + strings.TrimPrefix(field, "events")
	}
	switch {
	case field == "body":
		return field
	case op.RequestBody == nil || op.RequestBody.Content["application/json"] == nil:
		return field // the line of a stream
	case field == "item": // the only one
		return "body.items[0]"
	}
	return "body." + field
}

// fault answers what should not have happened.
func (a *api) fault(w http.ResponseWriter, r *http.Request, op string, err error) {
	a.cfg.Log.ErrorContext(r.Context(), "request failed", "operation", op, "error", err)
	writeProblem(w, newProblem(http.StatusInternalServerError, "the server's log says more"))
}

// newProblem names the kind of failure by the status.
func newProblem(status int, format string, args ...any) *Problem {
	p := &Problem{Status: status, Title: http.StatusText(status), Detail: fmt.Sprintf(format, args...), again: status == http.StatusServiceUnavailable}
	p.Type = "urn:howdah:" + strings.ReplaceAll(strings.ToLower(p.Title), " ", "-")
	for kind, s := range statuses {
		if s == status {
			p.Title, p.Type = string(kind), "urn:howdah:"+kindNames[kind]
		}
	}
	return p
}

var kindNames = map[fault.Kind]string{
	fault.Invalid:     "invalid",
	fault.Denied:      "denied",
	fault.NotFound:    "not-found",
	fault.Conflict:    "conflict",
	fault.Exhausted:   "exhausted",
	fault.Unavailable: "unavailable",
}

// sentinels are failures that a client acts on in a way of their own.
var sentinels = map[error]string{
	changes.ErrExpired:    "position-expired",
	changes.ErrAhead:      "position-ahead",
	changes.ErrParked:     "parked",
	checklists.ErrChanged: "source-changed",
	counters.ErrReused:    "id-reused",
}

// ours marks operations of this package: huma keeps the making of errors in a
// variable of its own, which other APIs of the program may use as well.
const ours = "howdah"

func init() {
	others := huma.NewErrorWithContext
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		if ctx == nil || ctx.Operation() == nil || ctx.Operation().Metadata[ours] == nil {
			return others(ctx, status, msg, errs...)
		}
		return refused(ctx.Operation(), status, msg, errs)
	}
}

// refused is a request that huma refuses before it reaches a handler.
func refused(op *huma.Operation, status int, msg string, errs []error) *Problem {
	switch status {
	case http.StatusRequestEntityTooLarge:
		msg = fmt.Sprintf("the body is over %d bytes; a stream (checklists-import) may have any length", op.MaxBodyBytes-1)
	case http.StatusUnprocessableEntity, // one status for bad input, wherever it is found
		http.StatusInternalServerError: // the body broke off: its sender's fault, not ours
		status = http.StatusBadRequest
	}
	p := newProblem(status, "%s", msg)
	for i, err := range errs {
		if i == maxFields {
			p.Detail += fmt.Sprintf("; and %d more", len(errs)-i)
			break
		}
		field := ProblemField{Location: "body", Message: err.Error()}
		var detail huma.ErrorDetailer
		if errors.As(err, &detail) {
			field = ProblemField{Location: detail.ErrorDetail().Location, Message: detail.ErrorDetail().Message}
		}
		p.Errors = append(p.Errors, field)
		p.Detail += "; " + field.Location + ": " + field.Message
	}
	return p
}

// maxFields bounds an answer about a request in which everything is wrong.
const maxFields = 20

// problems answers what no route matches as a problem too.
func problems(mux *http.ServeMux, m *metrics) http.Handler {
	timed := m.timed(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := r.URL
		if !clean(asked) {
			writeProblem(w, nothingAt(asked))
			return
		}
		r = hideLoneSlashes(r)
		if _, pattern := mux.Handler(r); pattern != "" {
			timed.ServeHTTP(w, r)
			return
		}
		unmatched := statusOnly{header: w.Header()} // 404, or 405 and what is allowed
		mux.ServeHTTP(&unmatched, r)
		if unmatched.status == http.StatusMethodNotAllowed {
			writeProblem(w, newProblem(unmatched.status, "%s is not for %s; allowed: %s", asked.EscapedPath(), r.Method, w.Header().Get("Allow")))
			return
		}
		writeProblem(w, nothingAt(asked))
	})
}

func nothingAt(u *url.URL) *Problem {
	return newProblem(http.StatusNotFound, "nothing is served at %s; GET /docs lists what is", u.EscapedPath())
}

// statusOnly keeps the status and the headers of an answer and drops its body.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header         { return s.header }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }

func writeProblem(w http.ResponseWriter, p *Problem) {
	for name, values := range p.GetHeaders() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) // the client is gone if this fails
}

// strictJSON refuses what encoding/json would replace: another name would be
// stored than was sent.
var strictJSON = huma.Format{
	Marshal: writeJSON,
	Unmarshal: func(data []byte, v any) error {
		if err := pg.CheckJSON("JSON", data); err != nil {
			return err
		}
		return mendedJSON.Unmarshal(data, v)
	},
}

// mendedJSON puts U+FFFD in the place of what is no text, and leaves it to the body
// to refuse that where it may not be.
var mendedJSON = huma.Format{
	Marshal: writeJSON,
	Unmarshal: func(data []byte, v any) error {
		if bytes.Equal(bytes.TrimSpace(data), []byte("null")) {
			return errors.New("null; want an object")
		}
		return json.Unmarshal(data, v)
	},
}

// mended marks operations that read mendedJSON, and is the content type by which
// check asks for it.
const mended = "application/x-mended"

func mayMend(op *huma.Operation) { op.Metadata[mended] = true }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
