package counters

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strconv"
	"strings"

	"github.com/cockroachdb/apd/v3"

	"github.com/howdah-db/howdah/pg"
)

// Limits of numbers that are written: significant digits, and the power of ten of the
// first of them, either way. What others stored may have more, and is read.
const (
	MaxDigits   = 100
	MaxExponent = 100
)

// maxStored is more digits than PostgreSQL's numeric has.
const maxStored = 200_000

// rational rounds what has no end, half to even. exact does not: two numbers that
// were written and their product have fewer digits.
var (
	rational = &apd.Context{Precision: 34, MaxExponent: apd.MaxExponent, MinExponent: apd.MinExponent, Rounding: apd.RoundHalfEven}
	exact    = &apd.Context{Precision: 1000, MaxExponent: apd.MaxExponent, MinExponent: apd.MinExponent, Rounding: apd.RoundHalfEven}
)

// Number is an exact decimal. The zero Number is no value: null in JSON.
type Number struct {
	known bool
	whole int64
	long  *apd.Decimal // reduced and never changed; nil where whole holds the number
}

// NumberOf returns v as a Number: any number of Go, json.Number, *big.Int,
// *apd.Decimal or Number. A float stands for its shortest decimal. What is no
// number, NaN and infinities, more than MaxDigits significant digits and an
// exponent beyond ±MaxExponent are Invalid.
func NumberOf(v any) (Number, error) {
	n, problem := numberOf(v)
	if problem != "" {
		return Number{}, pg.Refuse("number", "%s", problem)
	}
	return n, nil
}

// numberOf returns v as a Number, or what is wrong with it.
func numberOf(v any) (n Number, problem string) {
	switch v := v.(type) {
	case Number:
		return v.checked()
	case int:
		return whole(int64(v)), ""
	case int64:
		return whole(v), ""
	case float64:
		return parseNumber(strconv.FormatFloat(v, 'g', -1, 64), MaxDigits, MaxExponent)
	case json.Number:
		return parseNumber(string(v), MaxDigits, MaxExponent)
	case *big.Int:
		if v == nil {
			return Number{}, "null; want a number"
		}
		if v.BitLen() > 340 { // do not write out what is too long anyway
			return Number{}, fmt.Sprintf("an integer of %d bits; want less than 10^%d", v.BitLen(), MaxExponent+1)
		}
		return parseNumber(v.String(), MaxDigits, MaxExponent)
	case *apd.Decimal:
		if v == nil {
			return Number{}, "null; want a number"
		}
		if v.Form != apd.Finite {
			return Number{}, v.String() + "; want a finite number"
		}
		return parseNumber(v.Text('e'), MaxDigits, MaxExponent)
	case apd.Decimal:
		return numberOf(&v)
	}
	switch value := reflect.ValueOf(v); value.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return whole(value.Int()), ""
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return parseNumber(strconv.FormatUint(value.Uint(), 10), MaxDigits, MaxExponent)
	case reflect.Float32:
		return parseNumber(strconv.FormatFloat(value.Float(), 'g', -1, 32), MaxDigits, MaxExponent)
	case reflect.Float64:
		return parseNumber(strconv.FormatFloat(value.Float(), 'g', -1, 64), MaxDigits, MaxExponent)
	}
	return Number{}, describe(v) + "; want a number"
}

// checked returns n where it may be written.
func (n Number) checked() (Number, string) {
	if !n.known {
		return n, "null; want a number"
	}
	if n.long == nil {
		return n, ""
	}
	return parseNumber(n.long.Text('e'), MaxDigits, MaxExponent)
}

// storedNumber returns the number in a leaf that was read. A text that is a plain
// decimal is one: the original writes numbers of some classes so.
func storedNumber(v any) (Number, bool) {
	switch v := v.(type) {
	case Number:
		return v, v.known
	case string:
		n, problem := parseNumber(v, MaxDigits, MaxExponent)
		return n, problem == ""
	case nil, bool, []any, Values:
		return Number{}, false
	}
	n, problem := numberOf(v) // a Series need not come from a Store
	return n, problem == ""
}

// describe names what is not a number, shortly.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case string:
		if len(v) > 40 {
			return fmt.Sprintf("a text of %d bytes", len(v))
		}
		return fmt.Sprintf("the text %q", v)
	case Leaf:
		return "a " + string(v.kind) + " leaf"
	}
	switch reflect.ValueOf(v).Kind() {
	case reflect.Map:
		return "a map"
	case reflect.Slice, reflect.Array:
		return "a list"
	}
	return fmt.Sprintf("a %T", v)
}

func whole(n int64) Number { return Number{known: true, whole: n} }

// parseNumber reads an optional sign, digits with or without a point, and an
// optional exponent.
func parseNumber(text string, maxDigits, maxExponent int) (Number, string) {
	if n, ok := parseWhole(text); ok {
		return n, ""
	}
	mantissa, power, ok := text, 0, true
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		mantissa = text[:i]
		power, ok = parsePower(text[i+1:])
	}
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	if !negative {
		mantissa = strings.TrimPrefix(mantissa, "+")
	}
	left, right, _ := strings.Cut(mantissa, ".")
	digits := left + right
	if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" {
		if len(text) > 40 {
			return Number{}, fmt.Sprintf("%q… is no finite number", text[:40])
		}
		return Number{}, fmt.Sprintf("%q is no finite number", text)
	}
	digits = strings.TrimLeft(digits, "0")
	if digits == "" {
		return whole(0), ""
	}
	power += len(digits) - len(right) // the value is 0.digits × 10^power
	digits = strings.TrimRight(digits, "0")
	switch first := power - 1; {
	case len(digits) > maxDigits:
		return Number{}, fmt.Sprintf("%d significant digits; at most %d are kept", len(digits), maxDigits)
	case first > maxExponent || first < -maxExponent:
		return Number{}, fmt.Sprintf("exponent %d; want -%d to %d", first, maxExponent, maxExponent)
	case power <= 18 && len(digits) <= power: // a whole number, zeros cut off
		n, _ := strconv.ParseInt(digits+strings.Repeat("0", power-len(digits)), 10, 64)
		if negative {
			n = -n
		}
		return whole(n), ""
	}
	d := &apd.Decimal{Negative: negative, Exponent: int32(power - len(digits))}
	d.Coeff.SetString(digits, 10)
	return reduced(d), ""
}

// parseWhole reads up to 18 digits, which are most numbers.
func parseWhole(text string) (Number, bool) {
	digits, negative := strings.CutPrefix(text, "-")
	if len(digits) == 0 || len(digits) > 18 {
		return Number{}, false
	}
	n := int64(0)
	for i := range len(digits) {
		c := digits[i] - '0'
		if c > 9 {
			return Number{}, false
		}
		n = n*10 + int64(c)
	}
	if negative {
		n = -n
	}
	return whole(n), true
}

// parsePower reads an exponent. One that is absurd is cut to one that still is.
func parsePower(text string) (int, bool) {
	digits, negative := strings.CutPrefix(text, "-")
	if !negative {
		digits = strings.TrimPrefix(digits, "+")
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n := 1_000_000_000
	if digits = strings.TrimLeft(digits, "0"); len(digits) < 10 {
		n, _ = strconv.Atoi("0" + digits)
	}
	if negative {
		n = -n
	}
	return n, true
}

// reduced returns d, which it takes over, as a Number: none where it is not finite.
func reduced(d *apd.Decimal) Number {
	if d.Form != apd.Finite {
		return Number{}
	}
	d.Reduce(d)
	if d.Exponent >= 0 && d.NumDigits()+int64(d.Exponent) <= 19 {
		if n, err := d.Int64(); err == nil {
			return whole(n)
		}
	}
	return Number{known: true, long: d}
}

// IsNull reports whether n is no value.
func (n Number) IsNull() bool { return !n.known }

// Int64 returns n where it is a whole number that fits.
func (n Number) Int64() (int64, bool) { return n.whole, n.known && n.long == nil }

// Float64 returns the float nearest to n, NaN for no value.
func (n Number) Float64() float64 {
	switch {
	case !n.known:
		return math.NaN()
	case n.long == nil:
		return float64(n.whole)
	}
	f, _ := strconv.ParseFloat(n.long.Text('e'), 64) // beyond the range of floats it is ±Inf
	return f
}

// Decimal returns a copy of n, nil for no value.
func (n Number) Decimal() *apd.Decimal {
	if !n.known {
		return nil
	}
	return new(apd.Decimal).Set(n.decimal())
}

// decimal returns n to read from.
func (n Number) decimal() *apd.Decimal {
	if n.long != nil {
		return n.long
	}
	return apd.New(n.whole, 0)
}

// String returns n with all its digits, without trailing zeros and without an
// exponent; "null" for no value.
func (n Number) String() string { return string(n.append(nil)) }

func (n Number) append(b []byte) []byte {
	switch {
	case !n.known:
		return append(b, "null"...)
	case n.long == nil:
		return strconv.AppendInt(b, n.whole, 10)
	}
	return n.long.Append(b, 'f')
}

// MarshalJSON returns n as a JSON number, or null.
func (n Number) MarshalJSON() ([]byte, error) { return n.append(nil), nil }

// UnmarshalJSON reads a JSON number with all its digits, or null.
func (n *Number) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*n = Number{}
		return nil
	}
	read, problem := parseNumber(string(text), maxStored, maxStored)
	if problem != "" {
		return pg.Refuse("number", "%s", problem)
	}
	*n = read
	return nil
}

// Cmp compares two numbers as [cmp.Compare] does; no value comes before all.
func (n Number) Cmp(m Number) int {
	switch {
	case !n.known || !m.known:
		return cmp.Compare(rank(n.known), rank(m.known))
	case n.long == nil && m.long == nil:
		return cmp.Compare(n.whole, m.whole)
	}
	return n.decimal().Cmp(m.decimal())
}

func rank(known bool) int {
	if known {
		return 1
	}
	return 0
}

// Equal reports whether n and m are the same number, or both no value.
func (n Number) Equal(m Number) bool { return n.Cmp(m) == 0 }

// Add returns n + m. What is no value adds nothing; two of them give none.
func (n Number) Add(m Number) Number {
	switch {
	case !n.known:
		return m
	case !m.known:
		return n
	case n.long == nil && m.long == nil:
		if sum := n.whole + m.whole; (sum > n.whole) == (m.whole > 0) {
			return whole(sum)
		}
	}
	return n.calculate(exact.Add, m)
}

func (n Number) sub(m Number) Number { return n.calculate(exact.Sub, m) }
func (n Number) mul(m Number) Number { return n.calculate(exact.Mul, m) }

// quo returns n / m to 34 digits, none where m is 0.
func (n Number) quo(m Number) Number { return n.calculate(rational.Quo, m) }

// sqrt returns the root of n to 34 digits, none where n is negative.
func (n Number) sqrt() Number {
	return n.calculate(func(d, x, _ *apd.Decimal) (apd.Condition, error) { return rational.Sqrt(d, x) }, n)
}

// calculate returns the result of an operation, none where it has none or an
// operand is none.
func (n Number) calculate(op func(d, x, y *apd.Decimal) (apd.Condition, error), m Number) Number {
	if !n.known || !m.known {
		return Number{}
	}
	d := new(apd.Decimal)
	if _, err := op(d, n.decimal(), m.decimal()); err != nil {
		return Number{}
	}
	return reduced(d)
}

func (n Number) sign() int {
	if n.long == nil {
		return cmp.Compare(n.whole, 0)
	}
	return n.long.Sign()
}
