package counters

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// The functions of [Series.Ask] beside those of Aggregate.
const (
	AskQuantile   = "quantile"
	AskDistinct   = "distinct"
	AskTimeline   = "timeline"
	AskCategory   = "category"
	AskExpression = "expression"
)

// Asks are the names of all functions of [Series.Ask].
var Asks = append(slices.Clone(Fns), AskQuantile, AskDistinct, AskTimeline, AskCategory, AskExpression)

// Question names a method of a Series, and says what it is to be called with.
type Question struct {
	Fn     string  // one of Asks
	Path   string  // of all but an expression
	Slices int     // default 1; of all but an expression
	Q      float64 // of a quantile

	// Of an expression.
	Paths    []string
	Expr     string
	Response string // default result
}

// Answer is what was asked of each slice, which begins with the point of At[i]: of an
// expression each point is one.
//
// A value is a Number, of a timeline a map[string][]Sample, of a category a
// map[string]Number.
type Answer struct {
	At     []time.Time `json:"at"`
	Values []any       `json:"values"`
}

// Ask calls the method of s that q names. What that refuses is Invalid, and so are an
// unknown function, and what its function has no use for.
func (s *Series) Ask(q Question) (Answer, error) {
	if !slices.Contains(Asks, q.Fn) {
		return Answer{}, pg.Refuse("fn", "%q; want one of %s", q.Fn, strings.Join(Asks, ", "))
	}
	if q.Fn == AskExpression {
		return s.askExpression(q)
	}
	switch {
	case len(q.Paths) > 0:
		return Answer{}, pg.Refuse("paths", "not for %s, which has one path; they are for %s", q.Fn, AskExpression)
	case q.Expr != "":
		return Answer{}, pg.Refuse("expr", "not for %s, but for %s", q.Fn, AskExpression)
	case q.Response != "":
		return Answer{}, pg.Refuse("response", "not for %s, but for %s", q.Fn, AskExpression)
	case q.Path == "":
		return Answer{}, pg.Refuse("path", "missing; want the name of a field, such as count")
	case q.Q != 0 && q.Fn != AskQuantile:
		return Answer{}, pg.Refuse("q", "not for %s, but for %s", q.Fn, AskQuantile)
	}
	n := either(q.Slices, 1)
	parts, err := s.slice(n)
	if err != nil {
		return Answer{}, err
	}
	answer := Answer{At: make([]time.Time, len(parts)), Values: make([]any, len(parts))}
	for i, part := range parts {
		answer.At[i] = part.At[0]
	}
	switch q.Fn {
	case AskTimeline:
		lines, err := s.Timeline(q.Path, n)
		for i := range answer.Values {
			of := make(map[string][]Sample, len(lines))
			for name, slices := range lines {
				of[name] = slices[i]
			}
			answer.Values[i] = of
		}
		return answer, err
	case AskCategory:
		sums, err := s.Category(q.Path, n)
		return answer, fill(answer.Values, sums, err)
	case AskQuantile:
		found, err := s.Quantile(q.Q, q.Path, n)
		return answer, fill(answer.Values, found, err)
	case AskDistinct:
		seen, err := s.Distinct(q.Path, n)
		for i, members := range seen {
			answer.Values[i] = whole(int64(members))
		}
		return answer, err
	}
	found, err := s.Aggregate(Fn(q.Fn), q.Path, n)
	return answer, fill(answer.Values, found, err)
}

func fill[T any](values []any, found []T, err error) error {
	for i, v := range found {
		values[i] = v
	}
	return err
}

func (s *Series) askExpression(q Question) (Answer, error) {
	switch {
	case q.Path != "":
		return Answer{}, pg.Refuse("path", "not for %s, which has paths", q.Fn)
	case q.Slices != 0:
		return Answer{}, pg.Refuse("slices", "not for %s, which is of every point", q.Fn)
	case q.Q != 0:
		return Answer{}, pg.Refuse("q", "not for %s, but for %s", q.Fn, AskQuantile)
	}
	response := either(q.Response, "result")
	result, err := s.Expression(q.Paths, q.Expr, response)
	if err != nil {
		var input *pg.InputError
		if errors.As(err, &input) && input.Field == "expression" {
			input.Field = "expr"
		}
		return Answer{}, err
	}
	answer := Answer{At: result.At, Values: make([]any, len(result.At))}
	target := s.paths.parsePath(response)
	for i, v := range result.Values {
		target.each(v, func(_ []string, there any) { answer.Values[i] = there })
	}
	return answer, nil
}
