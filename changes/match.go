package changes

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// names reports whether the filter names the table and the operation of c.
func (f *Filter) names(c *Change) bool {
	if len(f.Patterns) > 0 && !slices.ContainsFunc(f.Patterns, func(p Pattern) bool { return p.Matches(c) }) {
		return false
	}
	return len(f.Ops) == 0 || slices.Contains(f.Ops, c.Op)
}

// matches reports whether c has what the filter looks for in rows, as the server's
// statement does.
func (f *Filter) matches(c *Change) bool {
	if f.Match == nil {
		return true
	}
	want := decode(f.Match)
	return contains(decode(c.New), want) || contains(decode(c.Old), want)
}

// decode reads JSON with its numbers digit for digit; nil for none.
func decode(text json.RawMessage) (v any) {
	if text == nil {
		return missing{}
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return missing{}
	}
	return v
}

// missing is contained in nothing and contains nothing.
type missing struct{}

// contains is the operator @> of jsonb.
func contains(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		object, ok := have.(map[string]any)
		if !ok {
			return false
		}
		for name, value := range want {
			inner, ok := object[name]
			if !ok || !contains(inner, value) {
				return false
			}
		}
		return true
	case []any:
		array, ok := have.([]any)
		if !ok {
			return false
		}
		for _, value := range want {
			if !slices.ContainsFunc(array, func(inner any) bool { return contains(inner, value) }) {
				return false
			}
		}
		return true
	case json.Number:
		number, ok := have.(json.Number)
		return ok && sameNumber(number.String(), want.String())
	case missing:
		return false
	}
	return have == want // a string, a boolean, null
}

// sameNumber reports whether two numbers of JSON have the same value.
func sameNumber(a, b string) bool {
	negA, digitsA, exponentA := decimal(a)
	negB, digitsB, exponentB := decimal(b)
	return digitsA == digitsB && (digitsA == "" || negA == negB && exponentA == exponentB)
}

// decimal is a number as 0.digits × 10^exponent, without zeros at either end.
func decimal(s string) (negative bool, digits string, exponent int) {
	s, negative = strings.CutPrefix(s, "-")
	mantissa, power, ok := strings.Cut(strings.ToLower(s), "e")
	if ok {
		if json.Unmarshal([]byte(strings.TrimPrefix(power, "+")), &exponent) != nil {
			exponent = 1 << 30 // jsonb holds no such number
		}
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits = strings.TrimRight(whole+fraction, "0")
	trimmed := strings.TrimLeft(digits, "0")
	exponent += len(whole) - (len(digits) - len(trimmed))
	return negative, trimmed, exponent
}
