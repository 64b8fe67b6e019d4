package counters_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// replayed is a data set, one of those of datasets.json.
type replayed struct {
	Events []struct {
		Op, Key string
		At      int64
		Values  counters.Values
	}
}

// counted adds up the events of a metric, as its rows have them.
func counted(t *testing.T, set replayed, key string, from, to time.Time, g counters.Granularity) *counters.Series {
	t.Helper()
	c := counters.Calendar{}
	buckets := map[int64]map[string]counters.Number{}
	for _, event := range set.Events {
		if event.Key != key || event.Op != "track" {
			continue
		}
		packed, err := counters.Raw.Pack(event.Values, counters.OpAdd)
		if err != nil {
			t.Fatal(err)
		}
		start := c.Floor(g, time.Unix(event.At, 0)).Unix()
		if buckets[start] == nil {
			buckets[start] = map[string]counters.Number{}
		}
		for path, n := range packed {
			buckets[start][path] = buckets[start][path].Add(n.(counters.Number))
		}
	}
	s := &counters.Series{}
	for at := range c.Timeline(g, from, to) {
		text, err := json.Marshal(buckets[at.Unix()])
		if err != nil {
			t.Fatal(err)
		}
		v, err := counters.Raw.Unpack(string(text))
		if err != nil {
			t.Fatal(err)
		}
		s.At, s.Values = append(s.At, at), append(s.Values, v)
	}
	return s
}

func TestSeriesAsCompatible(t *testing.T) {
	t.Parallel()
	file := golden[struct {
		On        string
		Tolerance float64
		Cases     []struct {
			Key         string
			From, To    time.Time
			Granularity counters.Granularity
			Function    string
			Path        string
			Paths       []string
			Expression  string
			Response    string
			Slices      int
			Expected    any
		}
	}](t, "series.json")
	if len(file.Cases) != 14 {
		t.Fatalf("%d cases", len(file.Cases))
	}
	all := golden[struct{ Datasets []replayed }](t, "datasets.json")
	for _, c := range file.Cases {
		s := counted(t, all.Datasets[0], c.Key, c.From, c.To, c.Granularity)
		var got any
		var err error
		switch c.Function {
		case "timeline":
			lines, lineErr := s.Timeline(c.Path, c.Slices)
			samples := map[string][][][]any{}
			for name, line := range lines {
				for i, slice := range line {
					samples[name] = append(samples[name], nil)
					for _, sample := range slice {
						samples[name][i] = append(samples[name][i], []any{sample.At.Unix(), sample.Value})
					}
				}
			}
			got, err = samples, lineErr
			if c.Slices == 1 { // is flat there
				flat := map[string]any{}
				for name, line := range samples {
					flat[name] = line[0]
				}
				got = flat
			}
		case "category":
			sums, sumErr := s.Category(c.Path, c.Slices)
			got, err = sums, sumErr
			if c.Slices == 1 {
				got = sums[0]
			}
		case "expression":
			result, resultErr := s.Expression(c.Paths, c.Expression, c.Response)
			if err = resultErr; err == nil {
				var numbers []any
				for _, v := range result.Values {
					numbers = append(numbers, v[c.Response])
				}
				got = numbers
			}
		default:
			got, err = s.Aggregate(counters.Fn(c.Function), c.Path, c.Slices)
		}
		var plain any
		if err != nil || json.Unmarshal([]byte(asJSON(t, got)), &plain) != nil || !near(plain, c.Expected, file.Tolerance) {
			t.Errorf("%s %s%q in %d: %s, %v, want %v", c.Function, c.Path, c.Paths, c.Slices, asJSON(t, got), err, c.Expected)
		}
	}
}

// near reports whether two values of JSON are the same but for the last digits of
// their numbers.
func near(a, b any, tolerance float64) bool {
	switch a := a.(type) {
	case float64:
		b, ok := b.(float64)
		return ok && math.Abs(a-b) <= tolerance*max(1, math.Abs(b))
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !near(a[i], b[i], tolerance) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for name := range a {
			if there, ok := b[name]; !ok || !near(a[name], there, tolerance) {
				return false
			}
		}
		return true
	}
	return a == b
}
