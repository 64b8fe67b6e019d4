package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah/checklists"
)

// ItemBody is an item to be put on a list: its name, or an object with what else
// there is to say of it. Exported, because huma passes over what is not.
type ItemBody struct {
	checklists.Item
	problem string // why it is none
}

// itemObject is an item as an object.
type itemObject struct {
	Item     *string         `json:"item"`
	Payload  json.RawMessage `json:"payload"`
	Priority int             `json:"priority"`
	Due      *time.Time      `json:"due"`
}

// UnmarshalJSON implements json.Unmarshaler. It never fails: Resolve says which
// item is wrong.
func (b *ItemBody) UnmarshalJSON(text []byte) error {
	*b = ItemBody{}
	if text[0] == '"' {
		return json.Unmarshal(text, &b.Name)
	}
	if text[0] != '{' {
		b.problem = "expected string, or object with item"
		return nil
	}
	var object itemObject
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	switch err := strict.Decode(&object); {
	case err != nil:
		b.problem = fmt.Sprintf("expected string, or object with item, payload, priority and due: %v", err)
	case object.Item == nil:
		b.problem = "expected string, or object with item, which is missing"
	default:
		b.Item = checklists.Item{Name: *object.Item, Payload: object.Payload, Priority: object.Priority}
		if object.Due != nil {
			b.Due = *object.Due
		}
	}
	return nil
}

// Resolve implements huma.ResolverWithPath.
func (b *ItemBody) Resolve(_ huma.Context, at *huma.PathBuffer) []error {
	if b.problem == "" {
		return nil
	}
	return []error{&huma.ErrorDetail{Location: at.String(), Message: b.problem}}
}

// Schema implements huma.SchemaProvider. What it may be is described and not
// checked by it: that none of two schemas matches helps nobody.
func (ItemBody) Schema(huma.Registry) *huma.Schema {
	name := map[string]any{"type": "string"}
	return &huma.Schema{
		Description: "A name, or an object with what else there is to say of it.",
		Extensions: map[string]any{"oneOf": []any{name, map[string]any{
			"type":                 "object",
			"required":             []string{"item"},
			"additionalProperties": false,
			"properties": map[string]any{
				"item":     name,
				"payload":  map[string]any{"description": "Anything JSON can say, up to 1 MiB, for the worker."},
				"priority": map[string]any{"type": "integer", "minimum": -5, "maximum": 5, "description": "5 is claimed first; default 0."},
				"due":      map[string]any{"type": "string", "format": "date-time", "description": "From when it may be claimed; default now."},
			},
		}}},
	}
}

type insertInput struct {
	ListPath
	Body struct {
		Items     []ItemBody `json:"items" nullable:"false" maxItems:"1000000" example:"[\"a.txt\",{\"item\":\"b.txt\",\"priority\":2,\"payload\":{\"size\":1024}}]"`
		Overwrite bool       `json:"overwrite,omitempty" example:"false" doc:"Give payload, priority and due to those already there, too."`
	}
}

type insertOutput struct {
	Body struct {
		Added   int64  `json:"added" example:"2"`
		Changed *int64 `json:"changed,omitempty" example:"0" doc:"Were there and are otherwise now; with overwrite only."`
		Skipped int64  `json:"skipped" example:"0" doc:"Already on the list, or kept as done, or more than once in the request."`
	}
}

func (a *api) insertItems(ctx context.Context, in *insertInput) (*insertOutput, error) {
	items, names, bare := make([]checklists.Item, len(in.Body.Items)), make([]string, len(in.Body.Items)), true
	for i, item := range in.Body.Items {
		items[i], names[i] = item.Item, item.Name
		bare = bare && item.Priority == 0 && item.Due.IsZero() && item.Payload == nil
	}
	out := new(insertOutput)
	var changed int64
	var err error
	if in.Body.Overwrite {
		out.Body.Added, changed, err = a.client.Checklists.Upsert(ctx, in.List, items...)
		out.Body.Changed = &changed
	} else if bare { // single ones share their commits
		out.Body.Added, err = a.client.Writers.Checklists.Insert(ctx, in.List, names...)
	} else {
		out.Body.Added, err = a.client.Checklists.InsertItems(ctx, in.List, items...)
	}
	out.Body.Skipped = int64(len(items)) - out.Body.Added - changed
	return out, err
}
