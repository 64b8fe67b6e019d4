package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// OnceHeader is what makes a request safe to send again.
type OnceHeader struct {
	Once string `header:"Idempotency-Key" maxLength:"900" example:"5f0c6a0e" doc:"Counted once in 7 days, however often it is sent; another request with it is refused."`
}

// digest returns a digest of what a request asks, nil of one that may be sent once only.
func (o OnceHeader) digest(asked string, body []byte) []byte {
	if o.Once == "" {
		return nil
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %s ", len(asked), asked)
	h.Write(body)
	return h.Sum(nil)
}

// identify gives an event the ID of its request, and the digest of that.
func (o OnceHeader) identify(e *counters.Event, digest []byte) error {
	if o.Once == "" {
		return nil
	}
	if e.ID != "" {
		return pg.Refuse("id", "%q beside an Idempotency-Key; want one of them", e.ID)
	}
	e.ID, e.Hash = o.Once, digest
	return nil
}

// refused says of a request whose key another one had that this is why.
func (o OnceHeader) refused(err error) error {
	if o.Once == "" || !errors.Is(err, counters.ErrReused) {
		return err
	}
	p := newProblem(http.StatusUnprocessableEntity, "the Idempotency-Key was used for another request: %s", err)
	p.Type = "urn:howdah:idempotency-key-reused"
	p.Errors = []ProblemField{{Location: "header.Idempotency-Key", Message: counters.ErrReused.Error()}}
	return p
}

// parseEvent reads the object of an event; what is wrong with all of it has no field.
func parseEvent(text []byte) (counters.Event, error) {
	e, err := counters.ParseEvent(text, time.Now())
	var input *pg.InputError
	if errors.As(err, &input) && input.Field == "event" {
		input.Field = ""
	}
	return e, err
}

const (
	maxEvents = 10_000  // of an array
	maxLine   = 1 << 20 // bytes of an event of a stream
	unit      = 1000    // events of a stream in one transaction
	maxBad    = 100     // lines of which is told what is wrong
)

type eventsInput struct {
	OnceHeader
	stream
}

type eventsOutput struct {
	Body struct {
		Applied    int       `json:"applied" example:"2" doc:"Were counted."`
		Duplicates *int      `json:"duplicates,omitempty" example:"0" doc:"Of a stream: had an id that was seen before."`
		Failed     *int      `json:"failed,omitempty" example:"0" doc:"Of a stream: lines that could not be counted."`
		Errors     []BadLine `json:"errors,omitempty" nullable:"false" doc:"Of a stream: what is wrong with the first 100 of those."`
	}
}

// BadLine says what is wrong with a line.
type BadLine struct {
	Line   int    `json:"line" example:"3" doc:"From 1."`
	Field  string `json:"field,omitempty" example:"values.count"`
	Detail string `json:"detail" example:"the text \"x\"; want a number"`
}

// ownJSON is the description of a JSON body that huma is not to read.
const ownJSON = "own JSON"

// eventsIn describes a request body of events.
func eventsIn(op *huma.Operation) {
	op.Metadata[streamed], op.Metadata[endless] = true, true
	fails(op, http.StatusRequestEntityTooLarge)
	const one, two = `{"key":"orders","at":"2025-05-06T09:15:00Z","values":{"count":1,"revenue":12.5}}`, `{"op":"assert","key":"stock","values":{"left":7},"id":"stock-17"}`
	op.RequestBody = &huma.RequestBody{
		Description: "An array of at most 10,000 events: counted in one transaction, all or none. Or a stream of events, one a line, of any length: a line that is wrong is left out and told. Also with Content-Encoding: gzip.",
		Required:    true,
		Content: map[string]*huma.MediaType{
			"application/x-ndjson": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}, Example: one + "\n" + two + "\n"},
		},
	}
	op.Metadata[ownJSON] = &huma.MediaType{
		Schema:  &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}},
		Example: json.RawMessage("[" + one + "," + two + "]"),
	}
}

// applyEvents counts many events.
func (a *api) applyEvents(ctx context.Context, in *eventsInput) (*eventsOutput, error) {
	media, _, err := mime.ParseMediaType(in.contentType)
	out := new(eventsOutput)
	switch {
	case err == nil && media == "application/json":
		out.Body.Applied, err = a.applyArray(ctx, in)
	case err == nil && media == "application/x-ndjson":
		err = a.applyLines(ctx, in, out)
	default:
		err = newProblem(http.StatusUnsupportedMediaType, "Content-Type %q; want application/json or application/x-ndjson", in.contentType)
	}
	if err != nil {
		in.giveUp()
		return nil, err
	}
	return out, nil
}

// applyArray counts the events of an array, all or none.
func (a *api) applyArray(ctx context.Context, in *eventsInput) (int, error) {
	text, err := io.ReadAll(io.LimitReader(in.body, a.cfg.MaxBody+1))
	if err != nil {
		return 0, err
	}
	if int64(len(text)) > a.cfg.MaxBody {
		return 0, newProblem(http.StatusRequestEntityTooLarge, "the array is over %d bytes; a stream (application/x-ndjson) may have any length", a.cfg.MaxBody)
	}
	var array []json.RawMessage
	if err := json.Unmarshal(text, &array); err != nil || array == nil {
		return 0, pg.Refuse("events", "want an array of events: %v", err)
	}
	if len(array) > maxEvents {
		return 0, newProblem(http.StatusRequestEntityTooLarge, "%d events; an array may have %d, a stream (application/x-ndjson) any number", len(array), maxEvents)
	}
	events, digest := make([]counters.Event, len(array)), in.digest("events", text)
	for i, text := range array {
		if events[i], err = parseEvent(text); err == nil {
			err = in.identify(&events[i], digest)
		}
		if err != nil {
			return 0, inArray(i, err)
		}
	}
	n, err := a.client.Writers.Counters.Apply(ctx, events...)
	if len(events) == 1 {
		err = inArray(0, err)
	}
	return n, in.refused(err)
}

// inArray says of which element of an array err is.
func inArray(i int, err error) error {
	var input *pg.InputError
	if errors.As(err, &input) {
		dot := "."
		if input.Field == "" {
			dot = ""
		}
		input.Field = "events[" + strconv.Itoa(i) + "]" + dot + input.Field
	}
	return err
}

// applyLines counts the events of a stream, some lines in each transaction.
func (a *api) applyLines(ctx context.Context, in *eventsInput, out *eventsOutput) error {
	duplicates, failed := 0, 0
	out.Body.Duplicates, out.Body.Failed = &duplicates, &failed
	var wrong []BadLine // of those since the last transaction
	bad := func(line int, err error) {
		l := BadLine{Line: line, Detail: err.Error()}
		var input *pg.InputError
		switch {
		case errors.As(err, &input):
			l.Field, l.Detail = input.Field, input.Problem
		case errors.Is(err, counters.ErrReused):
			l.Detail = counters.ErrReused.Error()
			if in.Once == "" {
				l.Field = "id"
			}
		}
		wrong = append(wrong, l)
	}
	var events []counters.Event
	var lines []int // of events
	apply := func() error {
		for i, o := range a.client.Writers.Counters.ApplyEach(ctx, events...) {
			switch kind := pg.KindOf(o.Err); {
			case o.Err == nil && o.Applied:
				out.Body.Applied++
			case o.Err == nil:
				duplicates++
			case kind == fault.Invalid || errors.Is(o.Err, counters.ErrReused):
				bad(lines[i], o.Err)
			default: // it is not the line's fault
				return o.Err
			}
		}
		slices.SortFunc(wrong, func(a, b BadLine) int { return a.Line - b.Line })
		failed += len(wrong)
		out.Body.Errors = append(out.Body.Errors, wrong[:min(len(wrong), maxBad-len(out.Body.Errors))]...)
		events, lines, wrong = events[:0], lines[:0], wrong[:0]
		return nil
	}
	read := bufio.NewReaderSize(in.body, maxLine+2)
	for line, end := 1, false; !end; line++ {
		text, err := readLine(read)
		switch end = err != nil && !errors.Is(err, bufio.ErrBufferFull); {
		case end && err != io.EOF: // what was read counts
			if failed := apply(); failed != nil {
				err = failed
			}
			return in.after(line-1, out, err)
		case err != nil && !end:
			bad(line, pg.Refuse("", "over %d bytes", maxLine))
		case len(text) > 0:
			e, err := parseEvent(text)
			if err == nil {
				err = in.identify(&e, in.digest("line", text))
			}
			if err != nil {
				bad(line, err)
				break
			}
			if in.Once != "" {
				e.ID += ":" + strconv.Itoa(line)
			}
			events, lines = append(events, e), append(lines, line)
		}
		if len(events)+len(wrong) >= unit || end {
			if err := apply(); err != nil {
				return in.after(line-1, out, err)
			}
		}
	}
	return nil
}

// after says of a stream that broke off what was done before.
func (in *eventsInput) after(lines int, out *eventsOutput, err error) error {
	return fmt.Errorf("%w; of %d lines before that: applied %d, duplicates %d, failed %d", err, lines, out.Body.Applied, *out.Body.Duplicates, *out.Body.Failed)
}

// readLine returns the next line without its end, which is the reader's. One that is
// too long is passed over: [bufio.ErrBufferFull].
func readLine(r *bufio.Reader) ([]byte, error) {
	text, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
		if err == nil || err == io.EOF {
			err = bufio.ErrBufferFull
		}
		return nil, err
	}
	return bytes.TrimSpace(bytes.TrimPrefix(text, []byte("\ufeff"))), err
}
