package counters_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

func TestExpression(t *testing.T) {
	t.Parallel()
	s := series(t, `{"x":6,"y":4,"z":{"z":-0.5},"t":"text"}`)
	paths := []string{"x", "y", "z.z", "missing", "t"}
	for expr, want := range map[string]string{
		"a / b": "1.5", "a+b*2": "14", "(a+b)*2": "20", "-a - -b": "-2", "a - b - 1": "1", "a / b / 2": "0.75", "--a": "6", "-(a)": "-6", "2*-c": "1",
		"1/3": "0.3333333333333333333333333333333333", ".5e1 + 5.": "10", "1e-2": "0.01", "sum(a, b, c)": "9.5", "mean(a,b)": "5", "avg( a )": "6", "min(a,b,c)": "-0.5", "max(c,a,b)": "6", "sqrt(b)": "2",
		"sqrt(sum(a,b,-1))": "3", "a/0": "null", "a/(b-4)": "null", "sqrt(c)": "null", "d": "null", "a + d": "null", "sum(a, d)": "null", "e * 2": "null", "0 * d": "null", "7": "7", " 7 ": "7",
		"0.1+0.2": "0.3", "9223372036854775807 + 1": "9223372036854775808", "min(0,0)": "0", strings.Repeat("(", 64) + "a" + strings.Repeat(")", 64): "6", strings.Repeat("-", 998) + "a": "6",
		strings.Repeat("a*", 400) + "0": "0", "2e1": "20",
	} {
		got, err := s.Expression(paths, expr, "out.put")
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if out := asJSON(t, got.Values[0]["out"]); out != `{"put":`+want+`}` {
			t.Errorf("%s = %s, want %s", expr, out, want)
		}
		if len(s.Values[0]) != 4 {
			t.Fatalf("%s changed the series to %v", expr, s.Values)
		}
	}
}

func TestExpressionsThatAreRefused(t *testing.T) {
	t.Parallel()
	s := series(t, `{"x":6,"m":{"y":1}}`)
	for expr, want := range map[string]string{
		"": "position 1: ", "  ": "position 3: ", "a +": "position 4: ", "a b": "position 3: ", "c": "position 1: no path for variable c", "a + foo": "position 5: unknown name", "foo(a)": "position 1: unknown name",
		"sum": "position 1: sum without (", "sum()": "position 5: ", "sqrt(a, b)": "position 1: sqrt of 2", "(a": "position 3: no )", "a)": "position 2: ", "sum(a,)": "position 7: ", "+a": "position 1: ", "a ** b": "position 4: ",
		"2 e": "position 3: ", "2e": "position 2: ", "2x": "position 2: ", "a ? b": "position 3: ", "é": `position 1: "é"`, "aé+": `position 2: "é"`, "A": "position 1: ", ".": "position 1: ", "1..2": "position 3: ", "1e101": "position 1: exponent",
		"a.b": "position 2: ", "\xff": "invalid UTF-8", "a\x00": "position 2: ", strings.Repeat("(", 65) + "a" + strings.Repeat(")", 65): "position 65: over 64", strings.Repeat("a+", 500) + "a": "1001 characters",
	} {
		_, err := s.Expression([]string{"x", "m.y"}, expr, "out")
		if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "expression: "+want) {
			t.Errorf("%q: %v, want %s", expr, err, want)
		}
	}
	many := strings.Split(strings.Repeat("x ", 27), " ")
	for _, test := range []struct {
		paths    []string
		response string
		want     string
	}{
		{nil, "out", "paths: 0"}, {many[:27], "out", "paths: 27"}, {[]string{"*"}, "out", "paths: "}, {[]string{""}, "out", "paths: "},
		{[]string{"x"}, "", "response: "}, {[]string{"x"}, "m.*", "response: "}, {[]string{"x"}, "x.y", "response: x is a leaf"}, {[]string{"x"}, "m", "response: m is a map"}, {[]string{"x"}, "a..b", "response: "}, {[]string{"x"}, "a\x00", "response: "},
	} {
		if _, err := s.Expression(test.paths, "a", test.response); !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("paths %q, response %q: %v, want %s", test.paths, test.response, err, test.want)
		}
	}
	if got, err := s.Expression(many[:26], "z - a", "m.new"); err != nil || asJSON(t, got.Values) != `[{"m":{"new":0,"y":1},"x":6}]` {
		t.Errorf("26 variables: %v, %v", got, err)
	}
	if got, err := s.Expression([]string{"x"}, "a + 1", "x"); err != nil || asJSON(t, got.Values) != `[{"m":{"y":1},"x":7}]` {
		t.Errorf("in place: %v, %v", got, err)
	}
}

// Whatever the expression, it is read or refused with what is wrong.
func FuzzExpression(f *testing.F) {
	for _, seed := range []string{"a / b", "-sum(a, mean(b, 1e3)) * (2 - .5)", "((((", "sqrt(min(a))", "1e", "é", "a\x00", "max(a,,b)"} {
		f.Add(seed)
	}
	s := series(f, `{"x":6,"y":0.25}`, `{"x":-1}`)
	f.Fuzz(func(t *testing.T, expr string) {
		got, err := s.Expression([]string{"x", "y"}, expr, "out")
		switch {
		case err != nil && (!errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "expression: ")):
			t.Errorf("%q: %v, want Invalid", expr, err)
		case err == nil && (len(got.Values) != 2 || got.Values[0]["out"] == nil):
			t.Errorf("%q: %v", expr, got)
		case err == nil:
			if again, err := s.Expression([]string{"x", "y"}, "("+expr+")", "out"); err == nil && !again.Values[0]["out"].(counters.Number).Equal(got.Values[0]["out"].(counters.Number)) {
				t.Errorf("%q is %v, in parentheses %v", expr, got.Values, again.Values)
			}
		}
	})
}
