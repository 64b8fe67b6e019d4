package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// FeedQuery is which changes are wanted. Exported, because huma passes over what
// is not.
type FeedQuery struct {
	Table []string `query:"table" doc:"schema.table, schema.*, message.topic.* or *, perhaps with :insert; several with commas between." example:"[\"public.users\"]"`
	Op    []string `query:"op" enum:"insert,update,delete,truncate,message" doc:"What happened; several with commas between." example:"[\"insert\"]"`
	Match string   `query:"match" doc:"A JSON object that the row contains." example:"{\"status\":\"paid\"}"`
}

func (q *FeedQuery) filter() (f changes.Filter, err error) {
	f.Patterns, err = changes.ParsePatterns(q.Table...)
	for _, op := range q.Op {
		f.Ops = append(f.Ops, changes.Op(op))
	}
	if q.Match != "" {
		f.Match = json.RawMessage(q.Match)
	}
	return f, pg.Renamed("table", err)
}

// positionNamed reads a position that a request has in field: "start", "now", a time, or
// one of the feed.
func (a *api) positionNamed(ctx context.Context, field, name string) (changes.Position, error) {
	p, err := a.client.Changes.Find(ctx, cmp.Or(name, "now"))
	return p, pg.Renamed(field, err)
}

type changesOutput struct {
	Body struct {
		Changes []changes.Change `json:"changes" example:"[{\"position\":\"1042.88213\",\"op\":\"update\",\"schema\":\"public\",\"table\":\"users\",\"key\":{\"id\":2},\"new\":{\"id\":2,\"status\":\"paid\"},\"at\":\"2026-11-20T14:18:31.711368Z\",\"xid\":\"1396719\",\"last\":true}]"`
		Next    changes.Position `json:"next" example:"1042.88213" doc:"Value of after for the next page. The same as after: the feed has ended for now."`
		Head    changes.Position `json:"head" example:"1050" doc:"The end of the feed when the page had been read: how far there is to go from next."`
	}
}

func (a *api) pageChanges(ctx context.Context, in *struct {
	FeedQuery
	After string `query:"after" default:"start" doc:"A position, start or now." example:"1042.88213"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most so many."`
}) (*changesOutput, error) {
	filter, err := in.filter()
	if err != nil {
		return nil, err
	}
	after, err := a.positionNamed(ctx, "after", in.After)
	if err != nil {
		return nil, err
	}
	out := new(changesOutput)
	out.Body.Changes, out.Body.Next, err = a.client.Changes.Page(ctx, after, in.Limit, filter)
	if err != nil {
		return nil, err
	}
	out.Body.Head, err = a.client.Changes.Head(ctx) // later, so that it is not before next
	return out, err
}

type positionOutput struct {
	Body struct {
		Position changes.Position `json:"position" example:"1042"`
	}
}

func (a *api) syncChanges(ctx context.Context, _ *struct{}) (*positionOutput, error) {
	position, err := a.client.Changes.Find(ctx, "now")
	out := new(positionOutput)
	out.Body.Position = position
	return out, err
}

type emitInput struct {
	Body struct {
		Topic   string          `json:"topic" example:"orders.shipped"`
		Payload json.RawMessage `json:"payload" example:"{\"id\":1}" doc:"Anything JSON can say, up to 1 MiB."`
	}
}

type emitOutput struct {
	Body struct {
		Topic string `json:"topic" example:"orders.shipped"`
	}
}

func (a *api) emitMessage(ctx context.Context, in *emitInput) (*emitOutput, error) {
	err := a.client.Transact(ctx, func(_ pgx.Tx, s howdah.Services) error {
		return s.Changes.Emit(ctx, in.Body.Topic, in.Body.Payload)
	})
	out := new(emitOutput)
	out.Body.Topic = in.Body.Topic
	return out, err
}

type capturesOutput struct {
	Body struct {
		Captures []changes.Capture `json:"captures" example:"[{\"table\":\"public.users\",\"ops\":[\"insert\",\"update\"],\"key\":[\"id\"],\"payload\":\"row\",\"max_bytes\":1048576,\"wake\":\"notify\"}]"`
	}
}

func (a *api) listCaptures(ctx context.Context, in *struct {
	All bool `query:"all" doc:"Also what services of howdah capture for themselves, which bears its owner."`
}) (*capturesOutput, error) {
	captured, err := a.client.Changes.Captures(ctx, in.All)
	out := new(capturesOutput)
	out.Body.Captures = captured
	return out, err
}

type triggersOutput struct {
	Body struct {
		Triggers []changes.Trigger `json:"triggers" example:"[{\"table_name\":\"public.users\",\"trigger_name\":\"!howdah_insert\",\"events\":\"insert\",\"enabled\":\"yes\",\"whose\":\"howdah\"}]"`
	}
}

func (a *api) listTriggers(ctx context.Context, _ *struct{}) (*triggersOutput, error) {
	triggers, err := a.client.Changes.Triggers(ctx)
	out := new(triggersOutput)
	out.Body.Triggers = triggers
	return out, err
}

type doctorOutput struct {
	Body struct {
		Findings []changes.Finding `json:"findings"`
	}
}

func (a *api) examineChanges(ctx context.Context, _ *struct{}) (*doctorOutput, error) {
	findings, err := a.client.Changes.Doctor(ctx)
	out := new(doctorOutput)
	out.Body.Findings = findings
	return out, err
}

// CaptureBody is a capture as HTTP may ask for it: without a condition, which is
// SQL and runs as the table's writers.
type CaptureBody struct {
	Ops      []string `json:"ops,omitempty" enum:"insert,update,delete,truncate" doc:"Default all." example:"[\"insert\",\"update\"]"`
	Columns  []string `json:"columns,omitempty" doc:"An update counts only if one of these changed." example:"[\"status\"]"`
	Except   []string `json:"except,omitempty" doc:"Columns left out; those that are VIRTUAL always are." example:"[\"password\"]"`
	Key      []string `json:"key,omitempty" doc:"Default the primary key." example:"[\"id\"]"`
	Payload  string   `json:"payload,omitempty" enum:"keys,row,diff,full" doc:"Default row." example:"diff"`
	MaxBytes int      `json:"max_bytes,omitempty" minimum:"1" example:"1048576" doc:"Larger rows are left out; default 1 MiB."`
	Bulk     bool     `json:"bulk,omitempty" doc:"Log by statement."`
	Always   bool     `json:"always,omitempty" doc:"Also what replication applies."`
	Wake     string   `json:"wake,omitempty" enum:"notify,poll" doc:"Default notify." example:"notify"`
}

func (b *CaptureBody) capture(table string) changes.Capture {
	c := changes.Capture{
		Table: table, Columns: b.Columns, Except: b.Except, Key: b.Key,
		Payload: changes.Payload(b.Payload), MaxBytes: b.MaxBytes, Bulk: b.Bulk, Always: b.Always, Wake: b.Wake,
	}
	if b.Ops != nil {
		c.Ops = []changes.Op{}
	}
	for _, op := range b.Ops {
		c.Ops = append(c.Ops, changes.Op(op))
	}
	return c
}

// TablePath is the table an operation is about.
type TablePath struct {
	Schema string `path:"schema" doc:"Schema of the table." example:"public"`
	Table  string `path:"table" doc:"Name of the table." example:"users"`
}

// name is the table as a capture has it, which would read some as another one, or several.
func (p *TablePath) name() (string, error) {
	switch {
	case strings.Contains(p.Schema, "."):
		return "", pg.Refuse("schema", "%q; want a schema without a dot: others cannot be captured", p.Schema)
	case p.Table == "*":
		return "", pg.Refuse("table", "%q; want the name of one", p.Table)
	}
	return p.Schema + "." + p.Table, nil
}

type stepsOutput struct {
	Body struct {
		Steps []changes.Step `json:"steps" example:"[{\"table\":\"public.users\",\"action\":\"create\",\"triggers\":4,\"sql\":[\"-- the statements\"]}]" doc:"What was done; none: there was nothing to do."`
	}
}

// listed is a list that JSON shows as one where there is nothing on it.
func listed[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

func stepsOf(done []changes.Step, err error) (*stepsOutput, error) {
	out := new(stepsOutput)
	out.Body.Steps = listed(done)
	return out, err
}

func (a *api) applyCapture(ctx context.Context, in *struct {
	TablePath
	Body CaptureBody
}) (*stepsOutput, error) {
	table, err := in.name()
	if err != nil {
		return nil, err
	}
	return stepsOf(a.client.Changes.Apply(ctx, []changes.Capture{in.Body.capture(table)}, false))
}

func (a *api) releaseCapture(ctx context.Context, in *struct{ TablePath }) (*stepsOutput, error) {
	table, err := in.name()
	if err != nil {
		return nil, err
	}
	return stepsOf(a.client.Changes.Release(ctx, table))
}

// tableCapture is a capture that names its table.
type tableCapture struct {
	Table string `json:"table" example:"public.users"`
	CaptureBody
}

type planInput struct {
	Body struct {
		Captures []tableCapture `json:"captures"`
		Prune    bool           `json:"prune,omitempty" doc:"End the captures that are not named."`
	}
}

func (a *api) planCaptures(ctx context.Context, in *planInput) (*stepsOutput, error) {
	var want []changes.Capture
	for _, c := range in.Body.Captures {
		want = append(want, c.capture(c.Table))
	}
	steps, err := a.client.Changes.Plan(ctx, want, in.Body.Prune)
	if len(want) == 1 { // of which there is no number
		err = pg.Within("captures[0]", err)
	}
	return stepsOf(steps, err)
}

func (a *api) watchChanges(ctx context.Context, in *struct {
	FeedQuery
	After       string `query:"after" default:"now" doc:"A position, start or now." example:"1042.88213"`
	LastEventID string `header:"Last-Event-ID" doc:"As browsers send it when they connect again; wins over after." example:"1042.88213"`
}) (*huma.StreamResponse, error) {
	filter, err := in.filter()
	if err != nil {
		return nil, err
	}
	field, name := "after", in.After
	if in.LastEventID != "" {
		field, name = "Last-Event-ID", in.LastEventID
	}
	after, err := a.positionNamed(ctx, field, name)
	if err != nil {
		return nil, err
	}
	// A position that cannot be had gets a proper answer.
	if _, _, err := a.client.Changes.Page(ctx, after, 1, filter); err != nil {
		return nil, err
	}
	return a.eventStream(ctx, after.String(), func(ctx context.Context, send func(event) bool) {
		for change, err := range a.client.Tail.Watch(ctx, after, filter) {
			e := event{ID: change.Position.String(), Name: string(change.Op), Data: change}
			if err != nil {
				e = event{Name: "error", Data: a.problem(ctx, &huma.Operation{OperationID: "changes-watch"}, err)}
			}
			if errors.Is(err, changes.ErrExpired) || errors.Is(err, changes.ErrAhead) { // to connect again with it does not help
				e.Name = "expired"
			}
			if !send(e) || err != nil {
				return
			}
		}
	}), nil
}
