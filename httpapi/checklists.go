package httpapi

import (
	"context"
	"errors"
	"fmt"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

// ListPath is the list an operation is about. Exported, because huma passes over
// what is not.
type ListPath struct {
	List string `path:"list" doc:"Name of the list, percent-encoded." example:"downloads"`
}

// PageQuery is which page is wanted.
type PageQuery struct {
	After string `query:"after" doc:"Begin after this name; without it, begin at the first. The empty name is a name too."`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"At most so many."`

	hasAfter bool
}

// Resolve implements huma.Resolver: an empty parameter is not a missing one.
func (q *PageQuery) Resolve(ctx huma.Context) []error {
	u := ctx.URL()
	query := u.Query()
	q.After, q.hasAfter = query.Get("after"), query.Has("after")
	if query.Has("limit") && query.Get("limit") == "" {
		return []error{&huma.ErrorDetail{Location: "query.limit", Message: "empty"}}
	}
	return nil
}

func (q *PageQuery) after() *string {
	if q.hasAfter {
		return &q.After
	}
	return nil
}

type itemsInput struct {
	ListPath
	Body struct {
		Items []string `json:"items" nullable:"false" maxItems:"1000000" example:"[\"a.txt\",\"b.txt\"]"`
	}
}

type itemsOutput struct {
	Body struct {
		Items []checklists.Item `json:"items" nullable:"false" example:"[{\"item\":\"a.txt\",\"attempts\":1}]"`
		Next  *string           `json:"next,omitempty" example:"a.txt" doc:"Value of after for the next page; absent on the last."`
	}
}

// FindQuery is which items are wanted; exported, because huma passes over what is
// not.
type FindQuery struct {
	State string `query:"state" enum:"ready,waiting,leased,dead,done" doc:"Those in this state; done: those that the list kept." example:"dead"`
	Error string `query:"error" doc:"Those with this in their error." example:"503"`
}

func (a *api) pageItems(ctx context.Context, in *struct {
	ListPath
	PageQuery
	FindQuery
}) (*itemsOutput, error) {
	store := a.client.Reads().Checklists
	out := new(itemsOutput)
	items := []checklists.Item{}
	var err error
	if in.State == "" && in.Error == "" {
		items, err = store.Page(ctx, in.List, in.after(), in.Limit)
	} else {
		q := checklists.Query{State: checklists.State(in.State), Error: in.Error, After: in.after(), Limit: in.Limit + 1}
		for item, failed := range store.Find(ctx, in.List, q) {
			if err = failed; err == nil {
				items = append(items, item)
			}
		}
	}
	if out.Body.Items = items; err != nil || len(items) < in.Limit {
		return out, err
	}
	last := &items[in.Limit-1].Name
	if len(items) > in.Limit { // Find has looked one further
		out.Body.Items, out.Body.Next = items[:in.Limit], last
		return out, nil
	}
	if in.State != "" || in.Error != "" {
		return out, nil
	}
	more, err := store.Page(ctx, in.List, last, 1) // only then is there a next page
	if len(more) > 0 {
		out.Body.Next = last
	}
	return out, err
}

type itemOutput struct {
	Body checklists.Item `example:"{\"item\":\"a.txt\",\"attempts\":1}"`
}

func (a *api) getItem(ctx context.Context, in *struct {
	ListPath
	Item string `path:"item" doc:"Name of the item, percent-encoded." example:"a.txt"`
}) (*itemOutput, error) {
	item, err := a.client.Checklists.Get(ctx, in.List, in.Item)
	return &itemOutput{Body: item}, err
}

type incrementOutput struct {
	Body struct {
		Incremented int64 `json:"incremented" example:"2"`
	}
}

func (a *api) incrementItems(ctx context.Context, in *itemsInput) (*incrementOutput, error) {
	n, err := a.client.Writers.Checklists.Increment(ctx, in.List, in.Body.Items...)
	out := new(incrementOutput)
	out.Body.Incremented = n
	return out, err
}

type deleteOutput struct {
	Body struct {
		Deleted int64 `json:"deleted" example:"2"`
	}
}

func (a *api) deleteItems(ctx context.Context, in *itemsInput) (*deleteOutput, error) {
	n, err := a.client.Writers.Checklists.Delete(ctx, in.List, in.Body.Items...)
	out := new(deleteOutput)
	out.Body.Deleted = n
	return out, err
}

// formats are the media types of a stream of items.
var formats = map[string]checklists.Format{
	"text/plain":           checklists.Text,
	"text/csv":             checklists.CSV,
	"application/x-nul":    checklists.NUL,
	"application/x-ndjson": checklists.JSONL,
}

type importInput struct {
	ListPath
	ID      string `query:"id" doc:"Names the source: an import that broke off is gone on with by the next one of the same id, which sends the whole source again." example:"/data/urls.txt"`
	Again   bool   `query:"again" doc:"Begin at the start, whatever is known of the id."`
	SkipBad bool   `query:"skip_bad" doc:"Leave out what cannot be stored, instead of ending there."`
	stream
}

type importOutput struct {
	Body struct {
		checklists.Imported
		Errors []ProblemField `json:"errors,omitempty" nullable:"false" doc:"With skip_bad: the first of what was left out."`
	} `example:"{\"added\":63664,\"skipped\":0}"`
}

func (a *api) importItems(ctx context.Context, in *importInput) (*importOutput, error) {
	format, err := in.format()
	if err != nil {
		in.giveUp()
		return nil, err
	}
	out := new(importOutput)
	opt := checklists.ImportOptions{ID: in.ID, Again: in.Again}
	if in.SkipBad {
		opt.SkipBad = func(err error) {
			var bad *pg.InputError
			if len(out.Body.Errors) < maxFields && errors.As(err, &bad) {
				out.Body.Errors = append(out.Body.Errors, ProblemField{Location: bad.Field, Message: bad.Problem})
			}
		}
	}
	done, err := a.client.Checklists.Import(ctx, in.List, checklists.ReadItems(in.body, format), opt)
	if err != nil {
		in.giveUp()
		if done.Added+done.Skipped > 0 {
			err = fmt.Errorf("%w; before that: added %d, skipped %d", err, done.Added, done.Skipped)
		}
		return nil, err
	}
	out.Body.Imported = done
	return out, nil
}

func (a *api) exportItems(ctx context.Context, in *struct {
	ListPath
	Format string `query:"format" enum:"text,nul,csv,jsonl" default:"jsonl" doc:"text: a name a line; nul: each name ended by a NUL byte; csv: a row an item; jsonl: an object a line."`
	State  string `query:"state" enum:"ready,waiting,leased,left,dead,done" doc:"Only items in this state; left: ready, waiting or leased."`
}) (*huma.StreamResponse, error) {
	lists := a.client.Reads().Checklists
	// What fails at once gets a proper answer.
	for _, err := range lists.Export(ctx, in.List, checklists.State(in.State)) {
		if err != nil {
			return nil, err
		}
		break
	}
	format := checklists.Format(in.Format)
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", mediaType(format))
		if err := checklists.WriteItems(w, format, lists.Export(ctx, in.List, checklists.State(in.State))); err != nil {
			a.abort(ctx, "checklists-export", err)
		}
	}}, nil
}

func mediaType(format checklists.Format) string {
	for media, f := range formats {
		if f == format {
			return media
		}
	}
	return "application/octet-stream"
}
