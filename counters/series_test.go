package counters_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// series returns one of daily points, each written as JSON.
func series(t testing.TB, points ...string) *counters.Series {
	t.Helper()
	s := &counters.Series{}
	for i, text := range points {
		var v counters.Values
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		s.At = append(s.At, time.Unix(int64(i)*86400, 0).UTC())
		s.Values = append(s.Values, v)
	}
	return s
}

// asJSON is v as JSON, for comparing.
func asJSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestAggregate(t *testing.T) {
	t.Parallel()
	s := series(t, `{"n":100}`, `{"n":1,"c":{"a":1,"b":2}}`, `{}`, `{"n":"0.25e1","c":{"a":5}}`, `{"n":"text"}`, `{}`, `{"n":{"":0.5,"x":1}}`)
	for _, test := range []struct {
		fn     counters.Fn
		path   string
		slices int
		want   string
	}{
		{"sum", "n", 1, `[104]`}, {"mean", "n", 1, `[26]`}, {"min", "n", 1, `[0.5]`}, {"max", "n", 1, `[100]`},
		{"sum", "n", 3, `[1,2.5,0.5]`}, {"mean", "n", 3, `[1,2.5,0.5]`}, {"sum", "n", 7, `[100,1,0,2.5,0,0,0.5]`},
		{"min", "n", 7, `[100,1,null,2.5,null,null,0.5]`}, {"max", "n", 7, `[100,1,null,2.5,null,null,0.5]`}, {"mean", "n", 7, `[100,1,0,2.5,0,0,0.5]`},
		{"sum", "c.*", 1, `[8]`}, {"max", "c.*", 1, `[5]`}, {"mean", "c.*", 1, `[2.666666666666666666666666666666667]`}, {"sum", "c.a", 1, `[6]`},
		{"sum", "nope", 2, `[0,0]`}, {"mean", "nope.x", 1, `[0]`}, {"min", "nope", 1, `[null]`}, {"stddev", "nope", 1, `[null]`}, {"sum", "c", 1, `[0]`},
	} {
		got, err := s.Aggregate(test.fn, test.path, test.slices)
		if err != nil || asJSON(t, got) != test.want {
			t.Errorf("Aggregate(%s, %s, %d) = %s, %v, want %s", test.fn, test.path, test.slices, asJSON(t, got), err, test.want)
		}
	}
	empty := &counters.Series{}
	if got, err := empty.Aggregate("sum", "n", 5); err != nil || len(got) != 0 {
		t.Errorf("of no points: %v, %v", got, err)
	}
	for what, err := range map[string]error{
		"slices: 0":  second(s.Aggregate("sum", "n", 0)),
		"slices: -1": second(empty.Aggregate("sum", "n", -1)),
		"slices: 8":  second(s.Aggregate("sum", "n", 8)),
		"fn: ":       second(s.Aggregate("median", "n", 1)),
		"path: ":     second(s.Aggregate("sum", "", 1)),
		"q: NaN":     second(s.Quantile(math.NaN(), "n", 1)),
		"q: -0.1":    second(s.Quantile(-0.1, "n", 1)),
		"q: 1.1":     second(s.Quantile(1.1, "n", 1)),
		"slices: 9":  second(s.Timeline("n", 9)),
		"slices: 10": second(s.Category("n", 10)),
		"slices: 11": second(s.Distinct("n", 11)),
		"series: ":   second((&counters.Series{At: s.At}).Aggregate("sum", "n", 1)),
	} {
		if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), what) {
			t.Errorf("%v, want %s", err, what)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestTimelineAndCategory(t *testing.T) {
	t.Parallel()
	s := series(t, `{"n":1,"c":{"a":1}}`, `{"c":{"b":{"deep":3},"a":"2"}}`, `{"n":0.5,"c":{"x":true}}`)
	for _, test := range []struct{ path, timeline, category string }{
		{"n", `{"n":[1,0,0.5]}`, `{"n":1.5}`},
		{"c", `{"c.a":[1,2,0],"c.b":[0,0,0],"c.x":[0,0,0]}`, `{"c.a":3,"c.b":0,"c.x":0}`},
		{"c.*", `{"c.a":[1,2,0],"c.b.deep":[0,3,0],"c.x":[0,0,0]}`, `{"c.a":3,"c.b.deep":3,"c.x":0}`},
		{"c.*.deep", `{"c.b.deep":[0,3,0]}`, `{"c.b.deep":3}`},
		{"", `{"c":[0,0,0],"n":[1,0,0.5]}`, `{"c":0,"n":1.5}`},
		{"nope", `{"nope":[0,0,0]}`, `{"nope":0}`},
		{"nope.*", `{}`, `{}`},
	} {
		lines, err := s.Timeline(test.path, 1)
		if err != nil {
			t.Fatal(err)
		}
		flat := map[string][]counters.Number{}
		for name, line := range lines {
			for i, sample := range line[0] {
				flat[name] = append(flat[name], sample.Value)
				if !sample.At.Equal(s.At[i]) {
					t.Errorf("sample %d at %v", i, sample.At)
				}
			}
		}
		if got := asJSON(t, flat); got != test.timeline {
			t.Errorf("Timeline(%q) = %s, want %s", test.path, got, test.timeline)
		}
		sums, err := s.Category(test.path, 1)
		if err != nil || asJSON(t, sums) != "["+test.category+"]" {
			t.Errorf("Category(%q) = %s, %v, want %s", test.path, asJSON(t, sums), err, test.category)
		}
	}
	if lines, err := s.Timeline("n", 3); err != nil || len(lines["n"]) != 3 || len(lines["n"][2]) != 1 {
		t.Errorf("Timeline of 3 slices = %v, %v", lines, err)
	}
	if lines, err := (&counters.Series{}).Timeline("n", 3); err != nil || asJSON(t, lines) != `{}` {
		t.Errorf("Timeline of no points = %v, %v", lines, err)
	}
	if got, want := s.Paths(), []string{"c.a", "c.b.deep", "c.x", "n"}; !slices.Equal(got, want) {
		t.Errorf("Paths = %q, want %q", got, want)
	}
	for path, want := range map[string][]string{"c": {"c.a", "c.b", "c.x"}, "n": {"n"}, "nope": nil, "c.*.deep": {"c.b.deep"}} {
		if got := s.Match(path); !slices.Equal(got, want) {
			t.Errorf("Match(%s) = %q, want %q", path, got, want)
		}
	}
}

func TestStddev(t *testing.T) {
	t.Parallel()
	s := series(t, `{"l":{"count":2,"sum":6,"square":20}}`, `{"l":{"count":6,"sum":34,"square":212}}`, `{"l":{"count":1,"sum":3,"square":9}}`, `{"l":{"count":2,"sum":9,"square":1}}`)
	got, err := s.Aggregate("stddev", "l", 4)
	want := `[1.414213562373095048801688724209698,1.966384160500350111245891146937151,null,null]`
	if err != nil || asJSON(t, got) != want {
		t.Errorf("stddev = %s, %v, want %s", asJSON(t, got), err, want)
	}
	// 2 4 4 4 5 5 7 9, in two points
	got, err = series(t, `{"l":{"count":2,"sum":6,"square":20}}`, `{"l":{"count":6,"sum":34,"square":212}}`).Aggregate("stddev", "l", 1)
	if err != nil || !strings.HasPrefix(asJSON(t, got), "[2.1380899352993950774764278470380") {
		t.Errorf("stddev = %s, %v", asJSON(t, got), err)
	}
}

// What is counted is told within 1.25 %, whatever it is.
func TestQuantile(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var sent []float64
		s := &counters.Series{At: make([]time.Time, 3), Values: []counters.Values{{}, {}, {}}}
		counts := make([]map[string]int64, 3)
		for i := range counts {
			counts[i] = map[string]int64{}
		}
		for range rapid.IntRange(1, 60).Draw(t, "n") {
			v := rapid.Float64Range(-1e6, 1e6).Draw(t, "v")
			if math.Abs(v) < 1e-90 {
				v = 0
			}
			sent = append(sent, v)
			counts[rapid.IntRange(0, 2).Draw(t, "point")][counters.BucketOf(number(v))]++
		}
		for i, of := range counts {
			s.Values[i]["size"] = counters.Values{}
			for name, n := range of {
				s.Values[i]["size"].(counters.Values)[name] = number(n)
			}
		}
		slices.Sort(sent)
		q := rapid.Float64Range(0, 1).Draw(t, "q")
		got, err := s.Quantile(q, "size", 1)
		if err != nil {
			t.Fatal(err)
		}
		want := sent[max(int(math.Ceil(q*float64(len(sent)))), 1)-1]
		if diff := math.Abs(got[0].Float64() - want); diff > 0.0125*math.Abs(want)+1e-12 {
			t.Errorf("Quantile(%v) = %v, want %v", q, got, want)
		}
	})
	s := series(t, `{"h":{"124e0":1,"nonsense":5,"125e0":9,"500e0":"2","510e0":-3,"0":0}}`, `{}`)
	for q, want := range map[float64]string{0: "[125,null]", 1.0 / 3: "[125,null]", 0.34: "[505,null]", 1: "[505,null]", 1e-300: "[125,null]"} {
		if got, err := s.Quantile(q, "h", 2); err != nil || asJSON(t, got) != want {
			t.Errorf("Quantile(%v) = %s, %v, want %s", q, asJSON(t, got), err, want)
		}
	}
}

func TestDistinct(t *testing.T) {
	t.Parallel()
	points := []counters.Values{{}, {}, {}}
	for i := range points {
		points[i]["v"] = counters.Values{"zzz": number(1), "0af": number(99), "1": number(1)} // left out
	}
	for i := range 1000 {
		register, rank := counters.RegisterOf(fmt.Sprint("user-", i))
		v := points[i%2]["v"].(counters.Values)
		if old, ok := v[register].(counters.Number); !ok || old.Cmp(number(rank)) < 0 || old.Equal(number(99)) {
			v[register] = number(rank)
		}
		if i < 10 {
			s := &counters.Series{At: make([]time.Time, 2), Values: points[:2]}
			if got, err := s.Distinct("v", 1); err != nil || got[0] > uint64(i)+2 || got[0]+1 < uint64(i)+1 {
				t.Errorf("Distinct of %d = %v, %v", i+1, got, err)
			}
		}
	}
	s := &counters.Series{At: make([]time.Time, 3), Values: points}
	got, err := s.Distinct("v", 1)
	if err != nil || got[0] < 900 || got[0] > 1100 {
		t.Errorf("Distinct of 1,000 = %v, %v", got, err)
	}
	if got, err = s.Distinct("v", 3); err != nil || got[2] != 0 || got[0] < 440 || got[0] > 560 {
		t.Errorf("Distinct of 500, 500 and none = %v, %v", got, err)
	}
}

// The mean of many estimates is right, and their spread is one sigma.
func TestDistinctIsWithinItsBounds(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 10, 100, 1000, 3000, 10_000, 100_000, 10_000_000} {
		random := rand.New(rand.NewPCG(uint64(n), 1))
		rounds := max(1, min(200, 2_000_000/n))
		bias, spread := 0.0, 0.0
		for range rounds {
			off := float64(counters.Estimate(n, random.Uint64))/float64(n) - 1
			bias += off
			spread += off * off
			if n <= 10 && math.Abs(off*float64(n)) > 2 || math.Abs(off) > 5*0.0325 && n > 10 {
				t.Errorf("%d members are told as %v of them", n, 1+off)
			}
		}
		bias, spread = bias/float64(rounds), math.Sqrt(spread/float64(rounds))
		if n >= 100 && rounds >= 100 && (math.Abs(bias) > 0.01 || spread > 0.0325*1.3) {
			t.Errorf("%d members: bias %v, spread %v", n, bias, spread)
		}
	}
}
