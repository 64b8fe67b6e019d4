package counters_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

func TestAsk(t *testing.T) {
	t.Parallel()
	s := &counters.Series{}
	for i, text := range []string{
		`{"n":9,"by":{"a":9}}`,
		`{"n":1,"m":2,"by":{"a":1},"size":{"100e0":3},"who":{"001":1,"002":1},"stat":{"count":2,"sum":4,"square":10}}`,
		`{"n":2,"m":0,"by":{"b":2},"size":{"200e0":1}}`,
		`{}`,
		`{"n":4,"m":4}`,
	} {
		v, err := counters.ParseValues([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		s.At, s.Values = append(s.At, time.Unix(int64(i), 0).UTC()), append(s.Values, v)
	}
	const at = `{"at":["1970-01-01T00:00:01Z","1970-01-01T00:00:03Z"],"values":`
	for _, c := range []struct {
		q    counters.Question
		want string
	}{
		{counters.Question{Fn: "sum", Path: "n"}, `{"at":["1970-01-01T00:00:00Z"],"values":[16]}`},
		{counters.Question{Fn: "sum", Path: "n", Slices: 2}, at + `[3,4]}`},
		{counters.Question{Fn: "mean", Path: "n", Slices: 2}, at + `[1.5,4]}`},
		{counters.Question{Fn: "min", Path: "by.b", Slices: 2}, at + `[2,null]}`},
		{counters.Question{Fn: "max", Path: "*", Slices: 2}, at + `[2,4]}`},
		{counters.Question{Fn: "stddev", Path: "stat", Slices: 2}, at + `[1.414213562373095048801688724209698,null]}`},
		{counters.Question{Fn: "quantile", Path: "size", Slices: 2, Q: 0.5}, at + `[101,null]}`},
		{counters.Question{Fn: "distinct", Path: "who", Slices: 2}, at + `[2,0]}`},
		{counters.Question{Fn: "category", Path: "by", Slices: 2}, at + `[{"by.a":1,"by.b":2},{"by.a":0,"by.b":0}]}`},
		{counters.Question{Fn: "timeline", Path: "m", Slices: 2}, at + `[{"m":[{"at":"1970-01-01T00:00:01Z","value":2},{"at":"1970-01-01T00:00:02Z","value":0}]},{"m":[{"at":"1970-01-01T00:00:03Z","value":0},{"at":"1970-01-01T00:00:04Z","value":4}]}]}`},
		{counters.Question{Fn: "expression", Paths: []string{"n", "m"}, Expr: "a / b"}, `{"at":["1970-01-01T00:00:00Z","1970-01-01T00:00:01Z","1970-01-01T00:00:02Z","1970-01-01T00:00:03Z","1970-01-01T00:00:04Z"],"values":[null,0.5,null,null,1]}`},
		{counters.Question{Fn: "expression", Paths: []string{"n"}, Expr: "a + 1", Response: "deep.er"}, `{"at":["1970-01-01T00:00:00Z","1970-01-01T00:00:01Z","1970-01-01T00:00:02Z","1970-01-01T00:00:03Z","1970-01-01T00:00:04Z"],"values":[10,2,3,null,5]}`},
	} {
		answer, err := s.Ask(c.q)
		got, bad := json.Marshal(answer)
		if diff := cmp.Diff(c.want, string(got)); diff != "" || err != nil || bad != nil {
			t.Errorf("%+v: %v, %v\n%s", c.q, err, bad, diff)
		}
	}
	for want, q := range map[string]counters.Question{
		`fn: "median"; want one of sum, mean, min, max, stddev, quantile, distinct, timeline, category, expression`: {Fn: "median", Path: "n"},
		"slices: 6 of 5 points; want 1 to 5":       {Fn: "timeline", Path: "n", Slices: 6},
		"slices: -1; want 1 or more":               {Fn: "sum", Path: "n", Slices: -1},
		"q: 1.5; want 0 to 1":                      {Fn: "quantile", Path: "size", Q: 1.5},
		"q: not for sum":                           {Fn: "sum", Path: "n", Q: 0.5},
		"path: missing":                            {Fn: "sum"},
		"paths: not for sum":                       {Fn: "sum", Path: "n", Paths: []string{"n"}},
		"expr: not for category":                   {Fn: "category", Path: "n", Expr: "a"},
		"response: not for sum":                    {Fn: "sum", Path: "n", Response: "a"},
		"paths: 0; want 1 to 26":                   {Fn: "expression", Expr: "a"},
		"expr: position 5: ":                       {Fn: "expression", Paths: []string{"n"}, Expr: "a + "},
		"path: not for expression":                 {Fn: "expression", Path: "n"},
		"slices: not for expression":               {Fn: "expression", Slices: 1},
		"q: not for expression":                    {Fn: "expression", Q: 1},
		"response: by is a map":                    {Fn: "expression", Paths: []string{"n"}, Expr: "a", Response: "by"},
		`paths: "*": no wildcards here`:            {Fn: "expression", Paths: []string{"*"}, Expr: "a"},
		"fn: \"\"; want one of sum":                {},
		"expr: position 1: no path for variable b": {Fn: "expression", Paths: []string{"n"}, Expr: "b"},
	} {
		if _, err := s.Ask(q); err == nil || !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", q, err, want)
		}
	}
	if answer, err := new(counters.Series).Ask(counters.Question{Fn: "sum", Path: "n", Slices: 3}); err != nil || len(answer.Values) > 0 {
		t.Errorf("%v, %v", answer, err)
	}
}
