package counters_test

import (
	"encoding/json"
	"errors"
	"math"
	"testing"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// designator returns a designator of the vectors.
func designator(t *testing.T, name string) counters.Designator {
	t.Helper()
	var d counters.Designator
	var err error
	switch name {
	case "linear(0,100,10)":
		d, err = counters.Linear(0, 100, 10)
	case "geometric(0,1000)":
		d, err = counters.Geometric(0, 1000)
	case "custom(10,50,100)":
		d, err = counters.Custom(10, 50, 100)
	default:
		t.Fatalf("what is %s?", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDesignatorsAsCompatible(t *testing.T) {
	t.Parallel()
	for _, c := range golden[struct {
		Cases []struct {
			Designator string
			Value      json.Number
			Bucket     string
		}
	}](t, "designators.json").Cases {
		if got, err := designator(t, c.Designator).Bucket(c.Value); err != nil || got != c.Bucket {
			t.Errorf("%s of %s = %q, %v, want %q", c.Designator, c.Value, got, err, c.Bucket)
		}
	}
}

// D14: just below the last bound is a bucket like any other.
func TestD14DesignatorsAtTheirBounds(t *testing.T) {
	t.Parallel()
	linear, err := counters.Linear(-1, 2.25, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	geometric, err := counters.Geometric(0.001, 500)
	if err != nil {
		t.Fatal(err)
	}
	custom, err := counters.Custom(100, 10.5, 100, -3)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		d     counters.Designator
		value any
		want  string
	}{
		{custom, 99.999, "100"}, {custom, 100, "100"}, {custom, 100.001, "100+"}, {custom, 10.5, "10.5"}, {custom, -3, "-3"}, {custom, -2.9, "10.5"}, {custom, -100, "-3"},
		{linear, -1, "-1"}, {linear, -0.9, "-0.5"}, {linear, 0, "0"}, {linear, 0.1, "0.5"}, {linear, 2.2, "2.25"}, {linear, 2.25, "2.25"}, {linear, 2.26, "2.25+"},
		{linear, json.Number("0.5000000000000000000000000000000000000000000000000001"), "1"},
		{geometric, 0, "0.001"}, {geometric, 0.001, "0.001"}, {geometric, 0.0011, "0.01"}, {geometric, 0.01, "0.1"}, {geometric, 0.5, "1.0"}, {geometric, 1, "1.0"}, {geometric, 9.99, "10.0"},
		{geometric, 99, "100.0"}, {geometric, 100, "500.0"}, {geometric, 500, "500.0"}, {geometric, 501, "500.0+"},
	} {
		if got, err := test.d.Bucket(test.value); err != nil || got != test.want {
			t.Errorf("the bucket of %v is %q, %v, want %q", test.value, got, err, test.want)
		}
	}
}

func TestDesignatorsThatAreNone(t *testing.T) {
	t.Parallel()
	made := func(_ counters.Designator, err error) error { return err }
	named := func(_ string, err error) error { return err }
	custom, _ := counters.Custom(1)
	for what, err := range map[string]error{
		"step 0":          made(counters.Linear(0, 1, 0)),
		"step -1":         made(counters.Linear(0, 1, -1)),
		"step x":          made(counters.Linear(0, 1, "x")),
		"min = max":       made(counters.Linear(1, 1, 1)),
		"min x":           made(counters.Linear("x", 1, 1)),
		"max NaN":         made(counters.Geometric(0, math.NaN())),
		"min < 0":         made(counters.Geometric(-1, 1)),
		"no bounds":       made(counters.Custom()),
		"a text":          made(counters.Custom(1, "2")),
		"no designator":   named(counters.Designator{}.Bucket(1)),
		"no value":        named(custom.Bucket(nil)),
		"an infinite one": named(custom.Bucket(math.Inf(1))),
	} {
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", what, err)
		}
	}
}
