package httpapi

import (
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

type metricsOutput struct {
	Body struct {
		Items []counters.KeyInfo `json:"items" nullable:"false" example:"[{\"key\":\"orders\",\"granularities\":[{\"name\":\"1h\",\"first\":\"2025-05-06T09:00:00Z\",\"last\":\"2025-05-06T11:00:00Z\"}]}]"`
		Next  *string            `json:"next,omitempty" example:"orders" doc:"Value of after for the next page; absent on the last."`
	}
}

func (a *api) pageMetrics(ctx context.Context, in *struct{ PageQuery }) (*metricsOutput, error) {
	items, err := a.client.Reads().Counters.Page(ctx, in.After, in.Limit+1)
	out := new(metricsOutput)
	if len(items) > in.Limit {
		items = items[:in.Limit]
		out.Body.Next = &items[in.Limit-1].Key
	}
	out.Body.Items = items
	return out, err
}

type changedOutput struct {
	Body struct {
		Rows int64 `json:"rows" example:"3"`
	}
}

func changed(n int64, err error) (*changedOutput, error) {
	out := new(changedOutput)
	out.Body.Rows = n
	return out, err
}

func (a *api) deleteMetric(ctx context.Context, in *struct {
	KeyPath
	Granularity []counters.Granularity `query:"granularity" doc:"Only of these, with commas between." example:"[\"1m\",\"1h\"]"`
	From        string                 `query:"from" doc:"RFC 3339, or Unix seconds. Without it, from the first." example:"2025-05-06T00:00:00Z"`
	To          string                 `query:"to" doc:"Included, as the whole bucket that it lies in. Without it, to the last." example:"2025-05-06T23:00:00Z"`
}) (*changedOutput, error) {
	from, to, err := interval(in.From, in.To)
	if err != nil {
		return nil, err
	}
	return changed(a.client.Counters.Delete(ctx, in.Key, in.Granularity, from, to))
}

// interval reads two times. One that is not given is zero.
func interval(from, to string) (first, last time.Time, err error) {
	if from != "" {
		first, err = parseTime("from", from)
	}
	if to != "" && err == nil {
		last, err = parseTime("to", to)
	}
	return first, last, err
}

type renameMetricInput struct {
	KeyPath
	Body struct {
		To string `json:"to" example:"sales" doc:"The new name, of which there are no rows."`
	}
}

func (a *api) renameMetric(ctx context.Context, in *renameMetricInput) (*changedOutput, error) {
	return changed(a.client.Counters.Rename(ctx, in.Key, in.Body.To))
}

type rebuildInput struct {
	KeyPath
	Body struct {
		Granularity counters.Granularity `json:"granularity" example:"1d" doc:"Of the buckets that are made anew, of finer ones."`
		From        moment               `json:"from"`
		To          moment               `json:"to"`
	}
}

func (a *api) rebuildMetric(ctx context.Context, in *rebuildInput) (*changedOutput, error) {
	from, to, err := interval(in.Body.From.text, in.Body.To.text)
	if err != nil {
		return nil, err
	}
	return changed(a.client.Counters.Rebuild(ctx, in.Key, in.Body.Granularity, from, to))
}

type replaceInput struct {
	KeyPath
	From string `query:"from" required:"true" doc:"RFC 3339, or Unix seconds; the start of a bucket." example:"2025-05-06T00:00:00Z"`
	To   string `query:"to" required:"true" doc:"Not included; the start of a bucket." example:"2025-05-07T00:00:00Z"`
	stream
}

type replacedOutput struct {
	Body struct {
		Applied int64 `json:"applied" example:"2" doc:"Events."`
	}
}

func (a *api) replaceMetric(ctx context.Context, in *replaceInput) (*replacedOutput, error) {
	from, to, err := interval(in.From, in.To)
	if err == nil {
		err = in.isLines()
	}
	out := new(replacedOutput)
	if err == nil {
		out.Body.Applied, err = a.client.Counters.Replace(ctx, in.Key, from, to, counters.ReadEvents(in.body, in.Key))
	}
	if err != nil {
		in.giveUp()
		return nil, err
	}
	return out, nil
}

// maxDifferences bounds an answer in which everything is wrong.
const maxDifferences = 1000

// DifferenceBody is a field that is not what it should be.
type DifferenceBody struct {
	At     time.Time `json:"at" example:"2025-05-06T00:00:00Z" doc:"When the coarse bucket begins."`
	Path   string    `json:"path" example:"count"`
	Coarse any       `json:"coarse" example:"3" doc:"What it holds; null where that is missing, or no number."`
	Fine   any       `json:"fine" example:"2" doc:"What it should hold."`
}

type verifyOutput struct {
	Body struct {
		Differences []DifferenceBody `json:"differences" nullable:"false" example:"[{\"at\":\"2025-05-06T00:00:00Z\",\"path\":\"count\",\"coarse\":3,\"fine\":2}]" doc:"The first 1,000; none where all is right."`
		More        bool             `json:"more" example:"false" doc:"There are others."`
	}
}

func (a *api) verifyMetric(ctx context.Context, in *struct {
	KeyPath
	From        string               `query:"from" required:"true" doc:"RFC 3339, or Unix seconds." example:"2025-05-06T00:00:00Z"`
	To          string               `query:"to" required:"true" doc:"Included, as the whole bucket that it lies in." example:"2025-05-06T23:00:00Z"`
	Granularity counters.Granularity `query:"granularity" required:"true" doc:"Of the buckets that are looked at." example:"1d"`
	Fine        counters.Granularity `query:"fine" doc:"Of those that they should be made of; without it, the coarsest of the table that can be." example:"1h"`
}) (*verifyOutput, error) {
	from, to, err := interval(in.From, in.To)
	if err != nil {
		return nil, err
	}
	out := new(verifyOutput)
	out.Body.Differences = []DifferenceBody{}
	for d, err := range a.client.Reads().Counters.Verify(ctx, in.Key, in.Granularity, in.Fine, from, to) {
		if err != nil {
			return nil, err
		}
		if out.Body.More = len(out.Body.Differences) == maxDifferences; out.Body.More {
			break
		}
		out.Body.Differences = append(out.Body.Differences, DifferenceBody{d.At, d.Path, d.Coarse, d.Fine})
	}
	return out, nil
}

// linesIn describes a request body of lines, that huma does not read.
func linesIn(what, example string) func(*huma.Operation) {
	return func(op *huma.Operation) {
		op.Metadata[streamed], op.Metadata[endless] = true, true
		op.RequestBody = &huma.RequestBody{
			Description: what + " Of any length; also with Content-Encoding: gzip.",
			Content:     map[string]*huma.MediaType{ndjson: {Schema: &huma.Schema{Type: "string", Format: "binary"}, Example: example}},
			Required:    true,
		}
	}
}

var (
	daysIn = linesIn("An event a line, a day after the other.",
		"{\"at\":\"2025-05-06T09:15:00Z\",\"values\":{\"count\":1}}\n{\"at\":\"2025-05-06T11:40:00Z\",\"values\":{\"count\":1,\"latency\":{\"$stat\":12}}}\n")
	rowsIn  = linesIn("A row a line.", rowsExample)
	rowsOut = func(op *huma.Operation) {
		op.Metadata[endless] = true
		op.Responses["200"] = &huma.Response{
			Description: "A row a line. A stream that fails on the way is cut, never ended cleanly.",
			Content:     map[string]*huma.MediaType{ndjson: {Schema: &huma.Schema{Type: "string", Format: "binary"}, Example: rowsExample}},
		}
	}
)

const rowsExample = "{\"key\":\"sales\",\"granularity\":\"1h\",\"at\":\"2025-05-06T09:00:00Z\",\"values\":{\"count\":2}}\n{\"key\":\"test::now\",\"values\":{\"count\":1}}\n"

// isLines refuses bodies that are something else.
func (s *stream) isLines() error {
	format, err := s.format()
	if err == nil && format == formats[ndjson] {
		return nil
	}
	return newProblem(415, "Content-Type %q; want %s", s.contentType, ndjson)
}

func (a *api) exportRows(ctx context.Context, in *struct {
	Prefix string `query:"prefix" doc:"Only metrics whose names begin so." example:"orders"`
}) (*huma.StreamResponse, error) {
	store := a.client.Reads().Counters
	// What fails at once gets a proper answer.
	for _, err := range store.Export(ctx, in.Prefix) {
		if err != nil {
			return nil, err
		}
		break
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", ndjson)
		if err := counters.WriteRows(w, store.Export(ctx, in.Prefix)); err != nil {
			a.abort(ctx, "counters-export", err)
		}
	}}, nil
}

type reportOutput struct {
	Body struct {
		counters.ImportReport
		Errors []ProblemField `json:"errors,omitempty" nullable:"false" doc:"The first 100 of what was left out."`
	} `example:"{\"rows\":2,\"refused\":0}"`
}

func (a *api) importRows(ctx context.Context, in *struct{ stream }) (*reportOutput, error) {
	if err := in.isLines(); err != nil {
		in.giveUp()
		return nil, err
	}
	out := new(reportOutput)
	report, err := a.client.Counters.Import(ctx, counters.ReadRows(in.body))
	if err != nil {
		in.giveUp()
		return nil, err
	}
	out.Body.ImportReport = report
	for _, err := range report.Errors {
		field := ProblemField{Message: err.Error()}
		var bad *pg.InputError
		if errors.As(err, &bad) {
			field = ProblemField{Location: bad.Field, Message: bad.Problem}
		}
		out.Body.Errors = append(out.Body.Errors, field)
	}
	return out, nil
}
