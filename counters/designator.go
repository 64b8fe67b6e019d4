package counters

import (
	"slices"
	"strings"

	"github.com/cockroachdb/apd/v3"

	"github.com/howdah-db/howdah/pg"
)

// Designator names the bucket of a histogram that a value lies in. Names may have a
// dot ("10.0"), which under Raw paths goes down a level: replace it there, with _ for
// example.
type Designator struct {
	bucket func(v Number) string
}

// Bucket returns the name of the bucket of v. What is no number is Invalid.
func (d Designator) Bucket(v any) (string, error) {
	if d.bucket == nil {
		return "", pg.Refuse("designator", "made by none of Linear, Geometric and Custom")
	}
	n, problem := numberOf(v)
	if problem != "" {
		return "", pg.Refuse("value", "%s", problem)
	}
	return d.bucket(n), nil
}

// Linear names the multiple of step that a value reaches up to: 55 is in 60 where
// step is 10. What is not above min is in min, the last bucket is max and what is
// above it in "<max>+". A step that is not above 0, and a min that is not below max,
// are Invalid.
func Linear(min, max, step any) (Designator, error) {
	least, most, err := bounds(min, max)
	if err != nil {
		return Designator{}, err
	}
	by, problem := numberOf(step)
	if problem == "" && by.sign() <= 0 {
		problem = by.String() + "; want more than 0"
	}
	if problem != "" {
		return Designator{}, pg.Refuse("step", "%s", problem)
	}
	return Designator{func(v Number) string {
		switch {
		case v.Cmp(least) <= 0:
			return least.String()
		case v.Cmp(most) > 0:
			return most.String() + "+"
		}
		steps := v.quo(by).ceil()
		if steps.mul(by).Cmp(v) < 0 { // the quotient was rounded down to a whole number
			steps = steps.Add(whole(1))
		}
		return lesser(steps.mul(by), most).String()
	}}, nil
}

// Geometric names the power of ten that lies above a value: 11 is in 100.0, and 0.004
// in 0.01; 1 is in 1.0. What is not above min is in min, the last bucket is max and
// what is above it in "<max>+". A min below 0, or not below max, is Invalid.
func Geometric(min, max any) (Designator, error) {
	least, most, err := bounds(min, max)
	if err == nil && least.sign() < 0 {
		err = pg.Refuse("min", "%s; want 0 or more", least)
	}
	if err != nil {
		return Designator{}, err
	}
	return Designator{func(v Number) string {
		switch {
		case v.Cmp(least) <= 0:
			return decimalName(least)
		case v.Cmp(most) > 0:
			return decimalName(most) + "+"
		case v.Equal(whole(1)):
			return decimalName(v)
		}
		d := v.decimal()
		above := apd.New(1, d.Exponent+int32(d.NumDigits()))
		return decimalName(lesser(reduced(above), most))
	}}, nil
}

// Custom names the smallest of bounds that is not below a value; what is above the
// last is in "<last>+". No bounds, and what is no number, are Invalid.
func Custom(bounds ...any) (Designator, error) {
	if len(bounds) == 0 {
		return Designator{}, pg.Refuse("bounds", "none; want at least one")
	}
	numbers := make([]Number, len(bounds))
	for i, bound := range bounds {
		n, problem := numberOf(bound)
		if problem != "" {
			return Designator{}, pg.Refuse("bounds", "[%d]: %s", i, problem)
		}
		numbers[i] = n
	}
	slices.SortFunc(numbers, Number.Cmp)
	return Designator{func(v Number) string {
		if i, _ := slices.BinarySearchFunc(numbers, v, Number.Cmp); i < len(numbers) {
			return numbers[i].String()
		}
		return numbers[len(numbers)-1].String() + "+"
	}}, nil
}

func bounds(min, max any) (least, most Number, err error) {
	least, problem := numberOf(min)
	if problem != "" {
		return least, most, pg.Refuse("min", "%s", problem)
	}
	if most, problem = numberOf(max); problem != "" {
		return least, most, pg.Refuse("max", "%s", problem)
	}
	if least.Cmp(most) >= 0 {
		return least, most, pg.Refuse("min", "%s; want less than max, which is %s", least, most)
	}
	return least, most, nil
}

// decimalName writes n with a point, as floats are named.
func decimalName(n Number) string {
	name := n.String()
	if !strings.Contains(name, ".") {
		name += ".0"
	}
	return name
}

func lesser(n, m Number) Number {
	if n.Cmp(m) <= 0 {
		return n
	}
	return m
}

// ceil returns the least whole number that is not below n.
func (n Number) ceil() Number {
	return n.calculate(func(d, x, _ *apd.Decimal) (apd.Condition, error) { return exact.Ceil(d, x) }, n)
}
