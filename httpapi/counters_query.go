package httpapi

import (
	"context"
	"iter"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah/counters"
)

// SpanQuery is the part of a metric that an operation is about.
type SpanQuery struct {
	KeyPath
	From        string               `query:"from" required:"true" doc:"RFC 3339, or Unix seconds." example:"2025-05-06T00:00:00Z"`
	To          string               `query:"to" required:"true" doc:"Included, as the whole bucket that it lies in." example:"2025-05-06T23:00:00Z"`
	Granularity counters.Granularity `query:"granularity" required:"true" doc:"A number and a unit: s m h d w mo q y." example:"1h"`
}

// maxPoints bounds an answer that is made in memory.
const maxPoints = 100_000

func (in *SpanQuery) query() (q counters.Query, err error) {
	q = counters.Query{Key: in.Key, Granularity: in.Granularity, Limit: maxPoints}
	if q.From, err = parseTime("from", in.From); err != nil {
		return q, err
	}
	q.To, err = parseTime("to", in.To)
	return q, err
}

// SeriesBody is a series in one answer.
type SeriesBody struct {
	At     []time.Time       `json:"at" nullable:"false" example:"[\"2025-05-06T09:00:00Z\"]" doc:"When buckets begin."`
	Values []counters.Values `json:"values" nullable:"false" example:"[{\"count\":1}]" doc:"What each of them holds."`
}

const ndjson = "application/x-ndjson"

// seriesOut describes the two forms of a series.
func (a *api) seriesOut(op *huma.Operation) {
	op.Metadata[endless] = true // the one in one answer is bounded by itself
	op.Responses["200"] = &huma.Response{
		Description: "A series of up to 100,000 points; with Accept: application/x-ndjson a stream of the buckets that are stored, however many. A stream that fails on the way is cut, never ended cleanly.",
		Content: map[string]*huma.MediaType{
			"application/json": {Schema: a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[SeriesBody](), true, "")},
			ndjson:             {Schema: &huma.Schema{Type: "string", Format: "binary"}, Example: "{\"at\":\"2025-05-06T09:00:00Z\",\"values\":{\"count\":1}}\n"},
		},
	}
}

func (a *api) seriesOf(ctx context.Context, in *struct {
	SpanQuery
	SkipBlanks bool   `query:"skip_blanks" doc:"Leave out buckets without values."`
	Accept     string `header:"Accept" doc:"application/x-ndjson for a stream of points." example:"application/json"`
}) (*huma.StreamResponse, error) {
	q, err := in.query()
	if err != nil {
		return nil, err
	}
	q.SkipBlanks = in.SkipBlanks
	if strings.Contains(strings.ToLower(in.Accept), ndjson) {
		return a.pointsOf(ctx, q)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	series, err := a.client.Reads().Counters.Values(ctx, q)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", "application/json")
		strictJSON.Marshal(w, SeriesBody{series.At, series.Values}) // the client is gone if this fails
	}}, nil
}

// pointsOf streams the stored buckets that q asks for.
func (a *api) pointsOf(ctx context.Context, q counters.Query) (*huma.StreamResponse, error) {
	next, stop := iter.Pull2(a.client.Reads().Counters.Rows(ctx, q))
	point, err, more := next()
	if err != nil { // what fails at once gets a proper answer
		stop()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer stop()
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", ndjson)
		for ; more; point, err, more = next() {
			if err == nil {
				err = strictJSON.Marshal(w, point)
			}
			if err != nil {
				a.abort(ctx, "counters-values", err)
			}
		}
	}}, nil
}

type queryOutput struct {
	Body struct {
		At     []time.Time `json:"at" nullable:"false" example:"[\"2025-05-06T00:00:00Z\",\"2025-05-06T12:00:00Z\"]" doc:"When slices begin; of an expression buckets."`
		Values []any       `json:"values" nullable:"false" example:"[1632,2893]" doc:"Of each: a number, or null; of a category an object of numbers by their names; of a timeline an object of lists of {\"at\",\"value\"}."`
	}
}

func (a *api) queryKey(ctx context.Context, in *struct {
	SpanQuery
	Fn       string   `query:"fn" required:"true" enum:"sum,mean,min,max,stddev,quantile,distinct,timeline,category,expression" example:"sum" doc:"What to make of the buckets."`
	Path     string   `query:"path" example:"count" doc:"Names with dots between; * is any name. For all but an expression."`
	Slices   int      `query:"slices" minimum:"1" example:"2" doc:"Equal parts to cut the buckets into, each with a value; what does not divide is left out at the front. Default 1."`
	Q        float64  `query:"q" minimum:"0" maximum:"1" default:"0.5" doc:"The share of the values that a quantile is not below."`
	Paths    []string `query:"paths" example:"[\"bytes\",\"requests\"]" doc:"What a, b, c … stand for in an expression; with commas between."`
	Expr     string   `query:"expr" example:"a/b" doc:"An expression of + - * / ( ) sum mean min max sqrt and the variables."`
	Response string   `query:"response" example:"mean" doc:"The name of an expression's result. Default result."`
}) (*queryOutput, error) {
	q, err := in.query()
	if err != nil {
		return nil, err
	}
	question := counters.Question{Fn: in.Fn, Path: in.Path, Slices: in.Slices, Paths: in.Paths, Expr: in.Expr, Response: in.Response}
	if in.Fn == counters.AskQuantile {
		question.Q = in.Q
	}
	series, err := a.client.Reads().Counters.Values(ctx, q)
	if err != nil {
		return nil, err
	}
	answer, err := series.Ask(question)
	out := new(queryOutput)
	out.Body.At, out.Body.Values = answer.At, answer.Values
	return out, err
}
