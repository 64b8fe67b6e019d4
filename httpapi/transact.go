package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/pg"
)

// operations are what one transaction can do, by service and op: the handlers of
// the routes, on the transaction's services.
var operations = map[string]step{
	"checklists.insert":    stepOf((*api).insertItems),
	"checklists.increment": stepOf((*api).incrementItems),
	"checklists.delete":    stepOf((*api).deleteItems),
	"checklists.done":      stepOf((*api).doneItems),
	"checklists.fail":      stepOf((*api).failItems),
	"checklists.release":   stepOf((*api).releaseItems),
	"checklists.extend":    stepOf((*api).extendLease),
	"checklists.kill":      stepOf((*api).killItems),
	"checklists.redrive":   stepOf((*api).redriveItems),
	"checklists.set":       stepOf((*api).setList),
	"counters.track":       stepOf((*api).track),
	"counters.assert":      stepOf((*api).assert),
	"counters.beam":        stepOf((*api).beam),
	"counters.inc":         stepOf((*api).incRows),
	"counters.set":         stepOf((*api).setRows),
	"changes.emit":         stepOf((*api).emitWithin),
}

// step does what an object says and returns what its route would answer. Of
// its members those that the path of the route names are the path's, and all
// others the body.
type step func(a *api, ctx context.Context, of call) (any, error)

// call is an operation of a request, and the route that does the same.
type call struct {
	place   string // body.operations[1]
	members OperationBody
	route   *huma.Operation
}

// OperationBody is one of several operations: its service, its op, and what these want.
type OperationBody map[string]json.RawMessage

// Schema implements huma.SchemaProvider.
func (OperationBody) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: true, Required: []string{"service", "op"},
		Properties: map[string]*huma.Schema{
			"service": {Type: huma.TypeString, Description: "Of which service the operation is."},
			"op":      {Type: huma.TypeString, Description: "One of " + strings.Join(operationNames(), ", ") + ": with the names in the path of its route, and the members of its body, as further members."},
		},
		Examples: []any{map[string]any{"service": "checklists", "op": "delete", "list": "downloads", "items": []string{"a.txt"}}},
	}
}

func operationNames() []string {
	names := make([]string, 0, len(operations))
	for name := range operations {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

type transactInput struct {
	Body struct {
		Operations []OperationBody `json:"operations" nullable:"false" minItems:"1" maxItems:"1000" doc:"In this order, in one transaction: all or nothing."`
	}
}

type transactOutput struct {
	Body struct {
		Results []any `json:"results" nullable:"false" example:"[{\"deleted\":1}]" doc:"What each route would have answered."`
	}
}

// transact does several operations in one transaction. One that fails ends it, and
// nothing is done.
func (a *api) transact(ctx context.Context, in *transactInput) (*transactOutput, error) {
	out := new(transactOutput)
	failed := -1 // which of them; none: BEGIN or COMMIT
	err := pg.Retry(ctx, a.client.Pool, func() error {
		out.Body.Results, failed = nil, -1
		return a.client.Transact(ctx, func(_ pgx.Tx, s howdah.Services) error {
			within := a.within(s)
			for i, of := range in.Body.Operations {
				result, err := within.operate(ctx, i, of)
				if err != nil {
					failed = i
					return err
				}
				out.Body.Results = append(out.Body.Results, result)
			}
			return nil
		})
	})
	if err != nil && failed >= 0 {
		return nil, a.failedOperation(ctx, failed, err)
	}
	return out, err
}

// within returns an api on the services of a transaction, for handlers.
func (a *api) within(s howdah.Services) *api {
	client := *a.client
	client.Services = s
	client.Writers = howdah.NewWriters(s, a.cfg.Log) // which do not run: they are the stores
	return &api{client: &client, cfg: a.cfg, huma: a.huma}
}

func (a *api) operate(ctx context.Context, i int, members OperationBody) (any, error) {
	var service, op string
	for name, into := range map[string]*string{"service": &service, "op": &op} {
		if err := json.Unmarshal(members[name], into); err != nil {
			return nil, pg.Refuse(name, "want a text")
		}
	}
	do := operations[service+"."+op]
	if do == nil {
		return nil, pg.Refuse("op", "%q of service %q; want one of %s", op, service, strings.Join(operationNames(), ", "))
	}
	return do(a, ctx, call{placeOf(i), members, a.operationByID(service + "-" + op)})
}

// operationByID returns the route of that name.
func (a *api) operationByID(id string) *huma.Operation {
	for _, item := range a.huma.OpenAPI().Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil && op.OperationID == id {
				return op
			}
		}
	}
	panic("no route " + id) // each step is that of one
}

func placeOf(i int) string { return fmt.Sprintf("body.operations[%d]", i) }

// failedOperation is the problem of the i-th operation, with its place.
func (a *api) failedOperation(ctx context.Context, i int, err error) *Problem {
	p := *a.problem(ctx, operationOf(a.huma.OpenAPI(), "POST", "/v1/transact"), err)
	p.Held = nil // nothing of it was done
	p.Detail = fmt.Sprintf("operations[%d]: %s; nothing was done", i, p.Detail)
	p.Errors = slices.Clone(p.Errors)
	for j, field := range p.Errors {
		if !strings.HasPrefix(field.Location, placeOf(i)) {
			p.Errors[j].Location = placeOf(i) + "." + strings.TrimPrefix(field.Location, "body.")
		}
	}
	return &p
}

// stepOf makes a step of the handler of a route.
func stepOf[I, O any](handle func(*api, context.Context, *I) (*O, error)) step {
	return func(a *api, ctx context.Context, of call) (any, error) {
		in := new(I)
		body := map[string]json.RawMessage{}
		for name, value := range of.members {
			if name != "service" && name != "op" {
				body[name] = value
			}
		}
		v := reflect.ValueOf(in).Elem()
		for _, field := range reflect.VisibleFields(v.Type()) {
			name := field.Tag.Get("path")
			if name == "" {
				continue
			}
			value, there := body[name]
			if !there {
				return nil, pg.Refuse(name, "missing")
			}
			if err := json.Unmarshal(value, v.FieldByIndex(field.Index).Addr().Interface()); err != nil || string(value) == "null" {
				return nil, pg.Refuse(name, "want a text")
			}
			delete(body, name)
		}
		if err := a.readBody(of, body, v.FieldByName("Body")); err != nil {
			return nil, err
		}
		out, err := handle(a, ctx, in)
		if err != nil {
			return nil, err
		}
		return reflect.ValueOf(out).Elem().FieldByName("Body").Interface(), nil
	}
}

// readBody reads members into a handler's body, after the checks that huma makes
// of the body of a route.
func (a *api) readBody(of call, members map[string]json.RawMessage, into reflect.Value) error {
	text, err := json.Marshal(members)
	if err != nil {
		return err
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		return pg.Refuse("operation", "%v", err)
	}
	path := huma.NewPathBuffer(nil, 0)
	path.Push(of.place)
	var found huma.ValidateResult
	huma.Validate(a.huma.OpenAPI().Components.Schemas, of.route.RequestBody.Content["application/json"].Schema, path, huma.ModeWriteToServer, plain, &found)
	if len(found.Errors) > 0 {
		return refused(of.route, http.StatusBadRequest, "validation failed", found.Errors)
	}
	if err := json.Unmarshal(text, into.Addr().Interface()); err != nil {
		return pg.Refuse("operation", "%v", err)
	}
	return nil
}

// emitWithin is emitMessage in a transaction that is there.
func (a *api) emitWithin(ctx context.Context, in *emitInput) (*emitOutput, error) {
	out := new(emitOutput)
	out.Body.Topic = in.Body.Topic
	return out, a.client.Changes.Emit(ctx, in.Body.Topic, in.Body.Payload)
}
