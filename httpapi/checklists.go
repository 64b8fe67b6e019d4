package httpapi

import (
	"bufio"
	"context"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah/checklists"
)

// listPath is the list an operation is about.
type listPath struct {
	List string `path:"list" doc:"Name of the list, percent-encoded." example:"downloads"`
}

// pageQuery is which page is wanted.
type pageQuery struct {
	After string `query:"after" doc:"Begin after this name; without it, begin at the first. The empty name is a name too."`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"At most so many."`

	hasAfter bool
}

// Resolve implements huma.Resolver: an empty parameter is not a missing one.
func (q *pageQuery) Resolve(ctx huma.Context) []error {
	u := ctx.URL()
	q.hasAfter = u.Query().Has("after")
	return nil
}

func (q *pageQuery) after() *string {
	if q.hasAfter {
		return &q.After
	}
	return nil
}

type listsOutput struct {
	Body struct {
		Lists []checklists.List `json:"lists"`
		Next  *string           `json:"next,omitempty" doc:"Value of after for the next page; absent on the last."`
	}
}

func (a *api) listLists(ctx context.Context, in *struct{ pageQuery }) (*listsOutput, error) {
	lists, err := a.client.Reads().Checklists.Lists(ctx, in.after(), in.Limit)
	if err != nil {
		return nil, err
	}
	out := new(listsOutput)
	out.Body.Lists = lists
	if len(lists) == in.Limit {
		out.Body.Next = &lists[in.Limit-1].Name
	}
	return out, nil
}

type itemsInput struct {
	listPath
	Body struct {
		Items []string `json:"items" nullable:"false" maxItems:"1000000" example:"[\"a.txt\",\"b.txt\"]"`
	}
}

type insertOutput struct {
	Body struct {
		Added   int64 `json:"added"`
		Skipped int64 `json:"skipped" doc:"Already on the list, or more than once in the request."`
	}
}

func (a *api) insertItems(ctx context.Context, in *itemsInput) (*insertOutput, error) {
	added, err := a.client.Checklists.Insert(ctx, in.List, in.Body.Items...)
	if err != nil {
		return nil, err
	}
	out := new(insertOutput)
	out.Body.Added, out.Body.Skipped = added, int64(len(in.Body.Items))-added
	return out, nil
}

type itemsOutput struct {
	Body struct {
		Items []checklists.Item `json:"items"`
		Next  *string           `json:"next,omitempty" doc:"Value of after for the next page; absent on the last."`
	}
}

func (a *api) pageItems(ctx context.Context, in *struct {
	listPath
	pageQuery
}) (*itemsOutput, error) {
	items, err := a.client.Reads().Checklists.Page(ctx, in.List, in.after(), in.Limit)
	if err != nil {
		return nil, err
	}
	out := new(itemsOutput)
	out.Body.Items = items
	if len(items) == in.Limit {
		out.Body.Next = &items[in.Limit-1].Name
	}
	return out, nil
}

type itemOutput struct {
	Body checklists.Item
}

func (a *api) getItem(ctx context.Context, in *struct {
	listPath
	Item string `path:"item" doc:"Name of the item, percent-encoded." example:"a.txt"`
}) (*itemOutput, error) {
	item, err := a.client.Checklists.Get(ctx, in.List, in.Item)
	return &itemOutput{Body: item}, err
}

type incrementOutput struct {
	Body struct {
		Incremented int64 `json:"incremented"`
	}
}

func (a *api) incrementItems(ctx context.Context, in *itemsInput) (*incrementOutput, error) {
	n, err := a.client.Checklists.Increment(ctx, in.List, in.Body.Items...)
	out := new(incrementOutput)
	out.Body.Incremented = n
	return out, err
}

type deleteOutput struct {
	Body struct {
		Deleted int64 `json:"deleted"`
	}
}

func (a *api) deleteItems(ctx context.Context, in *itemsInput) (*deleteOutput, error) {
	n, err := a.client.Checklists.Delete(ctx, in.List, in.Body.Items...)
	out := new(deleteOutput)
	out.Body.Deleted = n
	return out, err
}

// formats are the media types of a stream of items.
var formats = map[string]checklists.Format{
	"text/plain":           checklists.Text,
	"application/x-nul":    checklists.NUL,
	"application/x-ndjson": checklists.JSONL,
}

type importInput struct {
	listPath
	stream
}

type importOutput struct {
	Body checklists.Imported
}

func (a *api) importItems(ctx context.Context, in *importInput) (*importOutput, error) {
	format, err := in.format()
	if err != nil {
		return nil, err
	}
	done, err := a.client.Checklists.Import(ctx, in.List, checklists.ReadItems(in.body, format), checklists.ImportOptions{})
	return &importOutput{Body: done}, err
}

func (a *api) exportItems(ctx context.Context, in *struct {
	listPath
	Format string `query:"format" enum:"text,nul,jsonl" default:"jsonl" doc:"text: a name a line; nul: each name ended by a NUL byte; jsonl: an object a line."`
}) (*huma.StreamResponse, error) {
	lists := a.client.Reads().Checklists
	// What fails at once gets a proper answer.
	if _, err := lists.Page(ctx, in.List, nil, 1); err != nil {
		return nil, err
	}
	format := checklists.Format(in.Format)
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", mediaType(format))
		out := bufio.NewWriterSize(w, 64<<10)
		for item, err := range lists.All(ctx, in.List) {
			if err == nil {
				err = checklists.WriteItem(out, format, item)
			}
			if err != nil {
				a.abort(ctx, "checklists-export", err)
			}
		}
		if err := out.Flush(); err != nil {
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
