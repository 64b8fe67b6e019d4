package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

// KeyPath is the metric an operation is about.
type KeyPath struct {
	Key string `path:"key" doc:"Name of the metric, percent-encoded." example:"orders"`
}

// moment is a time in a body: RFC 3339, or Unix seconds.
type moment struct{ text string }

// UnmarshalJSON implements json.Unmarshaler.
func (m *moment) UnmarshalJSON(text []byte) error {
	m.text = strings.Trim(string(text), `"`)
	return nil
}

// Schema implements huma.SchemaProvider.
func (moment) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		OneOf:       []*huma.Schema{{Type: huma.TypeString}, {Type: huma.TypeNumber}},
		Description: "RFC 3339, or Unix seconds.", Examples: []any{"2025-05-06T09:15:00Z"},
	}
}

// time returns the moment, or now where none was given.
func (m moment) time() (time.Time, error) {
	if m.text == "" {
		return time.Now(), nil
	}
	return parseTime("at", m.text)
}

// parseTime reads RFC 3339, or Unix seconds with or without a fraction.
func parseTime(field, text string) (time.Time, error) {
	at, err := counters.ParseTime(text)
	var input *pg.InputError
	if errors.As(err, &input) {
		input.Field = field
	}
	return at, err
}

type eventInput struct {
	KeyPath
	OnceHeader
	Body struct {
		At        moment          `json:"at,omitempty"`
		Values    json.RawMessage `json:"values,omitempty" example:"{\"count\":1,\"revenue\":12.5}" doc:"Nested names; numbers keep all their digits. Of a track, {\"$max\":120} and $min, $put, $stat, $hist and $distinct stand for what is no plain sum."`
		ID        string          `json:"id,omitempty" example:"order-17" doc:"Counted once in 7 days, however often it is sent; with other values it is refused."`
		Untracked bool            `json:"untracked,omitempty" doc:"Count it in the system row without its name."`
	}
}

type appliedOutput struct {
	Body struct {
		Applied int `json:"applied" example:"1" doc:"0 where the id was seen before."`
	}
}

func (a *api) track(ctx context.Context, in *eventInput) (*appliedOutput, error) {
	return a.apply(ctx, in, counters.OpAdd)
}

func (a *api) assert(ctx context.Context, in *eventInput) (*appliedOutput, error) {
	return a.apply(ctx, in, counters.OpPut)
}

func (a *api) apply(ctx context.Context, in *eventInput, op counters.Op) (*appliedOutput, error) {
	at, err := in.Body.At.time()
	if err != nil {
		return nil, err
	}
	values, err := readValues(in.Body.Values)
	if err != nil {
		return nil, err
	}
	e := counters.Event{ID: in.Body.ID, Op: op, Key: in.Key, At: at, Values: values, Untracked: in.Body.Untracked}
	asked := fmt.Sprintf("%s %q %q %t", op, in.Key, in.Body.At.text, in.Body.Untracked)
	if err := in.identify(&e, in.digest(asked, in.Body.Values)); err != nil {
		return nil, err
	}
	n, err := a.client.Writers.Counters.Apply(ctx, e)
	out := new(appliedOutput)
	out.Body.Applied = n
	return out, in.refused(err)
}

// readValues reads an object with all digits of its numbers; none is empty.
func readValues(text json.RawMessage) (counters.Values, error) {
	if len(text) == 0 {
		return nil, nil
	}
	return counters.ParseValues(text)
}

type beamInput struct {
	KeyPath
	Body struct {
		At     moment          `json:"at,omitempty"`
		Values json.RawMessage `json:"values,omitempty" example:"{\"state\":\"up\"}"`
	}
}

type beamedOutput struct {
	Body struct {
		Beamed bool `json:"beamed" example:"true"`
	}
}

type beamOutput struct {
	Body struct {
		At     time.Time       `json:"at" example:"2025-05-06T09:15:00Z"`
		Values counters.Values `json:"values" nullable:"false" example:"{\"state\":\"up\"}"`
	}
}

func (a *api) beam(ctx context.Context, in *beamInput) (*beamedOutput, error) {
	at, err := in.Body.At.time()
	if err != nil {
		return nil, err
	}
	values, err := readValues(in.Body.Values)
	if err != nil {
		return nil, err
	}
	out := new(beamedOutput)
	out.Body.Beamed = true
	return out, a.client.Counters.Beam(ctx, in.Key, at, values)
}

func (a *api) scan(ctx context.Context, in *struct{ KeyPath }) (*beamOutput, error) {
	at, values, err := a.client.Reads().Counters.Scan(ctx, in.Key)
	out := new(beamOutput)
	out.Body.At, out.Body.Values = at, values
	return out, err
}

type keysInput struct {
	Body struct {
		Keys []counters.Key `json:"keys" nullable:"false" maxItems:"10000" example:"[[\"test\",\"now\"]]" doc:"The parts of each key."`
	}
}

type rowsOutput struct {
	Body struct {
		Values []counters.Values `json:"values" nullable:"false" example:"[{\"count\":2}]" doc:"One for each key, in their order; empty where there is no row."`
	}
}

func (a *api) getRows(ctx context.Context, in *keysInput) (*rowsOutput, error) {
	values, err := a.client.Reads().Counters.Get(ctx, in.Body.Keys)
	out := new(rowsOutput)
	out.Body.Values = values
	return out, err
}

type rowsInput struct {
	Body struct {
		Keys   []counters.Key  `json:"keys" nullable:"false" minItems:"1" maxItems:"10000" example:"[[\"test\",\"now\"]]" doc:"The parts of each key."`
		Values json.RawMessage `json:"values" example:"{\"count\":1,\"account\":{\"count\":1}}"`
	}
}

type writtenOutput struct {
	Body struct {
		Values counters.Values `json:"values" nullable:"false" example:"{\"account.count\":1,\"count\":1}" doc:"What was written to each row, a name for each field."`
	}
}

func (a *api) incRows(ctx context.Context, in *rowsInput) (*writtenOutput, error) {
	return writeRows(ctx, in, a.client.Counters.Inc)
}

func (a *api) setRows(ctx context.Context, in *rowsInput) (*writtenOutput, error) {
	return writeRows(ctx, in, a.client.Counters.Set)
}

func writeRows(ctx context.Context, in *rowsInput, write func(context.Context, []counters.Key, counters.Values) (counters.Values, error)) (*writtenOutput, error) {
	values, err := readValues(in.Body.Values)
	if err != nil {
		return nil, err
	}
	written, err := write(ctx, in.Body.Keys, values)
	out := new(writtenOutput)
	out.Body.Values = written
	return out, err
}

type tableOutput struct {
	Body counters.Settings `example:"{\"table\":\"public.trifle_stats\",\"mode\":\"full\",\"time_zone\":\"UTC\",\"week_start\":\"monday\",\"separator\":\"::\",\"paths\":\"raw\",\"granularities\":[\"1m\",\"1h\",\"1d\"],\"system\":\"deferred\",\"striped\":[\"orders\"],\"slots\":16,\"recorded\":true}"`
}

func (a *api) counterSettings(ctx context.Context, _ *struct{}) (*tableOutput, error) {
	settings, err := a.client.Reads().Counters.Settings(ctx)
	return &tableOutput{Body: settings}, err
}

type counterDoctorOutput struct {
	Body struct {
		Findings []counters.Finding `json:"findings" nullable:"false"`
	}
}

func (a *api) examineCounters(ctx context.Context, _ *struct{}) (*counterDoctorOutput, error) {
	findings, err := a.client.Counters.Doctor(ctx)
	out := new(counterDoctorOutput)
	out.Body.Findings = findings
	return out, err
}

type foldInput struct {
	Body struct{}
}

type foldedOutput struct {
	Body struct {
		Folded int64 `json:"folded" example:"14" doc:"How many rows were added to."`
	}
}

func (a *api) fold(ctx context.Context, _ *foldInput) (*foldedOutput, error) {
	n, err := a.client.Counters.Fold(ctx)
	out := new(foldedOutput)
	out.Body.Folded = n
	return out, err
}
