package triflehttp

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/howdah-db/howdah/counters"
)

// maxPoints bounds an answer, which is made in memory.
const maxPoints = 100_000

// values answers GET /api/v1/metrics.
func (a *api) values(ctx context.Context, r *request) (*answer, error) {
	asked, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("query: %v", err)
	}
	q, err := frameOf(asked).query()
	if err != nil {
		return nil, err
	}
	series, err := a.series(ctx, q)
	if err != nil {
		return nil, err
	}
	return &answer{http.StatusOK, series}, nil
}

func (a *api) series(ctx context.Context, q counters.Query) (*counters.Series, error) {
	series, err := a.reads.Values(ctx, q)
	if err != nil {
		return nil, err
	}
	if n := len(series.At); n > maxPoints {
		return nil, unprocessable("%d points of %s; at most %d: ask for a shorter time, or a coarser granularity", n, q.Granularity, maxPoints)
	}
	return series, nil
}

// event is the body of POST /api/v1/metrics.
type event struct {
	Operation string          `json:"operation"` // default track
	Key       string          `json:"key"`
	At        string          `json:"at"`
	Values    json.RawMessage `json:"values"`
	Untracked bool            `json:"untracked"`
}

// event reads it. Every name in its values is literal: $max means nothing here.
func (e event) event() (counters.Event, error) {
	event := counters.Event{Key: e.Key, Untracked: e.Untracked}
	switch e.Operation {
	case "", "track":
		event.Op = counters.OpAdd
	case "assert":
		event.Op = counters.OpPut
	default:
		return event, badRequest("operation: %q; want track or assert", e.Operation)
	}
	if e.Key == "" {
		return event, badRequest("key: missing or empty")
	}
	var err error
	if event.At, err = parseTime("at", e.At); err != nil {
		return event, err
	}
	if err := event.Values.UnmarshalJSON(e.Values); err != nil {
		return event, badRequest("%v", err)
	}
	if event.Values == nil {
		return event, badRequest("values: missing; want an object")
	}
	return event, nil
}

// apply answers POST /api/v1/metrics.
func (a *api) apply(ctx context.Context, r *request) (*answer, error) {
	var body event
	if err := r.body(&body); err != nil {
		return nil, err
	}
	event, err := body.event()
	if err != nil {
		return nil, err
	}
	if _, err := a.events.Apply(ctx, event); err != nil {
		return nil, err
	}
	return &answer{http.StatusCreated, map[string]string{"created": "ok"}}, nil
}

// source answers GET /api/v1/source.
func (a *api) source(ctx context.Context, _ *request) (*answer, error) {
	s, err := a.reads.Settings(ctx)
	if err != nil {
		return nil, err
	}
	return &answer{http.StatusOK, map[string]any{
		"api_version": "v1", "server_version": a.cfg.Version, "id": s.Table, "type": "postgres", "display_name": s.Table,
		"default_timeframe": "7d", "default_granularity": "1h", "available_granularities": s.Granularities, "time_zone": s.TimeZone,
	}}, nil
}
