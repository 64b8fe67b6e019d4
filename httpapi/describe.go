package httpapi

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"sync"

	"github.com/danielgtaylor/huma/v2"
)

// mayMiss is an operation about something that need not be there.
func mayMiss(op *huma.Operation) { fails(op, http.StatusNotFound) }

// mayConflict is an operation that the state of things may not allow.
func mayConflict(op *huma.Operation) { fails(op, http.StatusConflict) }

// creates is an operation whose answer says that something is there now.
func creates(op *huma.Operation) { op.DefaultStatus = http.StatusCreated }

// mayBeAway is an operation that asks the database.
func mayBeAway(op *huma.Operation) { fails(op, http.StatusServiceUnavailable) }

// mayBeReused is an operation whose id, or Idempotency-Key, another request may have had.
func mayBeReused(op *huma.Operation) {
	fails(op, http.StatusConflict, http.StatusUnprocessableEntity)
}

// mayBeEmpty is an operation that can be asked for without a body: nothing in it has to be
// said.
func mayBeEmpty(op *huma.Operation) { op.Metadata[bodiless] = true }

const bodiless = "bodiless"

func fails(op *huma.Operation, statuses ...int) {
	for _, status := range statuses {
		op.Responses[strconv.Itoa(status)] = &huma.Response{}
	}
}

// success is what an operation answers that was done.
func success(op *huma.Operation) *huma.Response {
	return op.Responses[strconv.Itoa(op.DefaultStatus)]
}

// failures says when an operation answers with a status.
var failures = map[int]string{
	http.StatusBadRequest:            "The request is wrong; errors says where. Nothing was written.",
	http.StatusForbidden:             "The database does not allow it, or the request came through another web site.",
	http.StatusNotFound:              "There is no such thing.",
	http.StatusConflict:              "The state of things does not allow it. Read again, then decide.",
	http.StatusRequestTimeout:        "The body did not arrive in time.",
	http.StatusRequestEntityTooLarge: "The body is too long, or a limit of the database is reached.",
	http.StatusUnsupportedMediaType:  "A Content-Type or Content-Encoding that is not taken here.",
	http.StatusUnprocessableEntity:   "The Idempotency-Key was used for another request. Nothing was written.",
	http.StatusInternalServerError:   "A fault of the server, whose log says more.",
	http.StatusServiceUnavailable:    "The database is away, or busy. Try again.",
}

// describe completes what huma knows of an operation: how it fails, and what its
// bodies look like.
func (a *api) describe(op *huma.Operation) {
	delete(op.Responses, "default")
	fails(op, http.StatusBadRequest, http.StatusForbidden, http.StatusInternalServerError)
	if tag(op.OperationID) != "server" {
		mayBeAway(op)
	}
	if op.RequestBody != nil {
		fails(op, http.StatusUnsupportedMediaType)
		if op.Metadata[streamed] == nil {
			fails(op, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge)
		}
		a.exemplify(op.RequestBody.Content)
		if body, ok := op.Metadata[ownJSON].(*huma.MediaType); ok {
			op.RequestBody.Content["application/json"] = body
		}
	}
	schemas := a.huma.OpenAPI().Components.Schemas
	problem := schemas.Schema(reflect.TypeFor[Problem](), true, "")
	for status, when := range failures {
		answer := op.Responses[strconv.Itoa(status)]
		if answer == nil {
			continue
		}
		example := newProblem(status, "%s", when)
		if op.Metadata[streamed] != nil && status == http.StatusBadRequest {
			when = "The request is wrong, or its stream is; detail says where, and how much was written before."
		}
		answer.Description = when
		answer.Content = map[string]*huma.MediaType{example.ContentType(""): {Schema: problem, Example: example}}
		for name := range example.GetHeaders() {
			answer.Headers = map[string]*huma.Param{name: {Description: "Seconds to wait.", Schema: &huma.Schema{Type: huma.TypeInteger}}}
		}
	}
	if ok := success(op); ok != nil {
		a.exemplify(ok.Content)
	}
	for name := range schemas.Map() {
		if name == "ErrorModel" || name == "ErrorDetail" { // huma's own, which nobody gets
			delete(schemas.Map(), name)
		}
	}
}

// exemplify gives JSON bodies the example that their fields make up.
func (a *api) exemplify(content map[string]*huma.MediaType) {
	if body := content["application/json"]; body != nil {
		body.Example = json.RawMessage(a.sample(body.Schema, 0))
	}
}

// operationOf is an operation as the document has it.
func operationOf(doc *huma.OpenAPI, method, path string) *huma.Operation {
	item := doc.Paths[path]
	return map[string]*huma.Operation{
		http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodPut: item.Put,
		http.MethodPatch: item.Patch, http.MethodDelete: item.Delete,
	}[method]
}

// document serves the routes as OpenAPI.
func (a *api) document() http.Handler {
	text := sync.OnceValues(func() ([]byte, error) { return json.MarshalIndent(a.huma.OpenAPI(), "", "  ") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := text()
		if err != nil {
			a.fault(w, r, "openapi", err)
			return
		}
		w.Header().Set("Content-Type", "application/openapi+json")
		w.Write(body)
	})
}
