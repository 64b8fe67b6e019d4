package triflehttp

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// question is the body of POST /api/v1/metrics/query.
type question struct {
	frame
	Mode       string       `json:"mode"`
	ValuePath  string       `json:"value_path"`
	Aggregator string       `json:"aggregator"`
	Slices     *json.Number `json:"slices"` // default 1
}

// modes answer a question about a series: each adds to result what it found.
var modes = map[string]func(q question, s *counters.Series, slices int, result map[string]any) error{
	"aggregate": question.aggregate,
	"timeline":  question.timeline,
	"category":  question.category,
}

var aggregators = []string{"max", "mean", "min", "sum"}

// maxCells bounds what is looked at, and answered, for one question.
const maxCells = 1_000_000

// read says what is asked, or what is wrong with it.
func (q question) read() (asked counters.Query, parts int, err error) {
	if asked, err = q.frame.query(); err != nil {
		return asked, 0, err
	}
	switch {
	case q.Mode == "":
		return asked, 0, unprocessable("Mode must be provided (options: aggregate, category, timeline).")
	case modes[q.Mode] == nil:
		return asked, 0, unprocessable("Unknown mode: %s (options: aggregate, category, timeline).", q.Mode)
	case q.ValuePath == "":
		return asked, 0, unprocessable("Value path must be provided.")
	case q.Mode == "aggregate" && q.Aggregator == "":
		return asked, 0, unprocessable("Aggregator must be provided (options: %s).", strings.Join(aggregators, ", "))
	case q.Mode == "aggregate" && !slices.Contains(aggregators, q.Aggregator):
		return asked, 0, unprocessable("Unknown aggregator: %s (options: %s).", q.Aggregator, strings.Join(aggregators, ", "))
	}
	parts = 1
	if q.Slices != nil {
		n, err := q.Slices.Int64()
		if err != nil || n < 1 || n > maxPoints {
			return asked, 0, unprocessable("Slices must be a whole number from 1 to the number of points.")
		}
		parts = int(n)
	}
	return asked, parts, nil
}

// query answers POST /api/v1/metrics/query.
func (a *api) query(ctx context.Context, r *request) (*answer, error) {
	var q question
	if err := r.body(&q); err != nil {
		return nil, err
	}
	asked, slices, err := q.read()
	if err != nil {
		return nil, err
	}
	series, err := a.series(ctx, asked)
	if err != nil {
		return nil, err
	}
	result, err := q.answer(asked, series, slices)
	if err != nil {
		return nil, err
	}
	return &answer{http.StatusOK, result}, nil
}

// answer is the whole answer.
func (q question) answer(asked counters.Query, s *counters.Series, slices int) (map[string]any, error) {
	available := s.Paths()
	if n := len(available) * len(s.At); n > maxCells {
		return nil, unprocessable("%d fields in %d points are over %d numbers: ask for a shorter time, or a coarser granularity", len(available), len(s.At), maxCells)
	}
	matched := s.Match(q.ValuePath)
	if q.Mode == "aggregate" && !aggregable(s, q.ValuePath, available) {
		matched = nil
	}
	if len(matched) == 0 {
		text := "Unknown path(s): " + q.ValuePath
		return nil, &refusal{http.StatusUnprocessableEntity, text, map[string]any{
			"status": "error", "error": text, "missing_paths": []string{q.ValuePath}, "available_paths": available,
		}}
	}
	result := map[string]any{
		"status": "ok", "metric_key": asked.Key, "value_path": q.ValuePath, "slices": slices,
		"timeframe": map[string]any{
			"from": asked.From.Format(time.RFC3339), "to": asked.To.Format(time.RFC3339), "label": "custom", "granularity": asked.Granularity,
		},
		"available_paths": available, "matched_paths": matched,
	}
	if err := modes[q.Mode](q, s, slices, result); err != nil {
		return nil, err
	}
	var err error
	result["table"], err = table(s, matched)
	return result, err
}

// aggregable reports whether there are numbers at path itself, not only below it, or
// a leaf that is none.
func aggregable(s *counters.Series, path string, available []string) bool {
	least, err := s.Aggregate(counters.FnMin, path, 1)
	return err == nil && len(least) == 1 && least[0] != (counters.Number{}) || slices.Contains(available, path)
}

func (q question) aggregate(s *counters.Series, slices int, result map[string]any) error {
	values, err := s.Aggregate(counters.Fn(q.Aggregator), q.ValuePath, slices)
	if err != nil {
		return err
	}
	result["aggregator"], result["values"], result["count"] = q.Aggregator, values, len(values)
	if slices == 1 {
		result["value"] = values[0]
	}
	return nil
}

func (q question) timeline(s *counters.Series, slices int, result map[string]any) error {
	lines, err := s.Timeline(q.ValuePath, slices)
	if err != nil {
		return err
	}
	result["formatter"], result["result"] = q.Mode, lines
	if slices == 1 {
		flat := make(map[string][]counters.Sample, len(lines))
		for name, parts := range lines {
			flat[name] = parts[0]
		}
		result["result"] = flat
	}
	return nil
}

func (q question) category(s *counters.Series, slices int, result map[string]any) error {
	sums, err := s.Category(q.ValuePath, slices)
	if err != nil {
		return err
	}
	result["formatter"], result["result"] = q.Mode, sums
	if slices == 1 {
		result["result"] = sums[0]
	}
	return nil
}

// table is a row for each point and a column for each path; null where a point has no
// number there.
func table(s *counters.Series, paths []string) (map[string]any, error) {
	rows := make([][]any, len(s.At))
	for i, at := range s.At {
		rows[i] = []any{at}
	}
	for _, path := range paths {
		column, err := s.Aggregate(counters.FnMin, path, len(s.At)) // of one point each
		if err != nil {
			return nil, err
		}
		for i, n := range column {
			rows[i] = append(rows[i], n)
		}
	}
	return map[string]any{"columns": append([]string{"at"}, paths...), "rows": rows}, nil
}
