package counters_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/apd/v3"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// number returns v as a Number.
func number(v any) counters.Number {
	n, err := counters.NumberOf(v)
	if err != nil {
		panic(err)
	}
	return n
}

func TestNumberOf(t *testing.T) {
	t.Parallel()
	decimal, _, _ := apd.NewFromString("12.500")
	type cents int32
	for _, test := range []struct {
		v    any
		want string
	}{
		{0, "0"}, {-7, "-7"}, {int8(-128), "-128"}, {uint8(255), "255"}, {uint64(math.MaxUint64), "18446744073709551615"}, {int64(math.MinInt64), "-9223372036854775808"},
		{cents(5), "5"}, {time.Second, "1000000000"}, {0.1, "0.1"}, {float32(0.1), "0.1"}, {1e21, "1000000000000000000000"}, {math.Copysign(0, -1), "0"}, {5e-100, "0." + strings.Repeat("0", 99) + "5"},
		{json.Number("4.50"), "4.5"}, {json.Number("-0.0"), "0"}, {json.Number("1E+3"), "1000"}, {json.Number("9223372036854775807"), "9223372036854775807"}, {json.Number("9223372036854775808"), "9223372036854775808"},
		{json.Number("1000000000000000000"), "1000000000000000000"}, {json.Number("0.000100"), "0.0001"}, {json.Number("00012.30"), "12.3"},
		{new(big.Int).Exp(big.NewInt(2), big.NewInt(70), nil), "1180591620717411303424"}, {decimal, "12.5"}, {*decimal, "12.5"}, {number(3), "3"},
		{json.Number(strings.Repeat("9", 100)), strings.Repeat("9", 100)}, {json.Number("1e100"), "1" + strings.Repeat("0", 100)},
		{json.Number("0." + strings.Repeat("0", 300)), "0"}, {json.Number("0e999999999999"), "0"},
	} {
		got, err := counters.NumberOf(test.v)
		if err != nil || got.String() != test.want {
			t.Errorf("NumberOf(%v) = %v, %v, want %s", test.v, got, err, test.want)
		}
	}
	for _, v := range []any{
		nil, "1", true, []any{}, math.NaN(), math.Inf(1), math.Inf(-1), 1e101, 1e-101, json.Number(""), json.Number("NaN"), json.Number("1x"), json.Number("--1"), json.Number("1e"), json.Number("e5"), json.Number("."),
		json.Number("1e101"), json.Number("1e99999999999999999999"), json.Number(strings.Repeat("9", 101)), counters.Number{}, (*big.Int)(nil), (*apd.Decimal)(nil), &apd.Decimal{Form: apd.NaN}, new(big.Int).Lsh(big.NewInt(1), 100_000), 1i,
	} {
		if got, err := counters.NumberOf(v); !errors.Is(err, fault.Invalid) {
			t.Errorf("NumberOf(%v) = %v, %v, want Invalid", v, got, err)
		}
	}
}

// D13: numbers stay numbers, and old texts of numbers count as them.
func TestD13TextsOfNumbers(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"0.15e1": "1.5", "-0.3E-2": "-0.003", "7": "7", "+1.5": "1.5", ".5": "0.5", "5.": "5"} {
		if n, ok := counters.StoredNumber(text); !ok || n.String() != want {
			t.Errorf("%q is %v, %v, want %s", text, n, ok, want)
		}
	}
	for _, v := range []any{"", " 1", "1 ", "NaN", "Infinity", "-inf", "0x10", "1_000", "١", "1e999", "one", true, nil, []any{}, counters.Number{}} {
		if n, ok := counters.StoredNumber(v); ok {
			t.Errorf("%#v is the number %v", v, n)
		}
	}
	sent, err := counters.Raw.PackJSON(counters.Values{"n": apd.New(15, -1)}, counters.OpPut)
	if err != nil || sent[counters.OpPut] != `{"n":1.5}` {
		t.Errorf("a decimal is sent as %v, %v", sent, err)
	}
}

// Numbers and math/big calculate alike.
func TestNumbersCalculateExactly(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (counters.Number, *big.Rat) {
			digits := rapid.StringMatching(`-?[0-9]{1,60}`).Draw(t, name)
			text := fmt.Sprintf("%se%d", digits, rapid.IntRange(-40, 40).Draw(t, name+" exponent"))
			r, _ := new(big.Rat).SetString(text)
			return number(json.Number(text)), r
		}
		a, x := draw("a")
		b, y := draw("b")
		for _, test := range []struct {
			what string
			got  counters.Number
			want *big.Rat
		}{
			{"a + b", a.Add(b), new(big.Rat).Add(x, y)},
			{"a - b", a.Sub(b), new(big.Rat).Sub(x, y)},
			{"a * b", a.Mul(b), new(big.Rat).Mul(x, y)},
		} {
			got, ok := new(big.Rat).SetString(test.got.String())
			if !ok || got.Cmp(test.want) != 0 {
				t.Errorf("%v, %v: %s = %v, want %v", a, b, test.what, test.got, test.want)
			}
		}
		if a.Cmp(b) != x.Cmp(y) || a.Equal(b) != (x.Cmp(y) == 0) {
			t.Errorf("%v and %v compare as %d", a, b, a.Cmp(b))
		}
		if f, _ := x.Float64(); a.Float64() != f {
			t.Errorf("%v is the float %v, want %v", a, a.Float64(), f)
		}
		text, err := json.Marshal(a)
		var back counters.Number
		if err != nil || json.Unmarshal(text, &back) != nil || !back.Equal(a) {
			t.Errorf("%v is %s in JSON, and that is %v", a, text, back)
		}
	})
}

func TestNumbersAtTheEdges(t *testing.T) {
	t.Parallel()
	most, least, none := number(int64(math.MaxInt64)), number(int64(math.MinInt64)), counters.Number{}
	for _, test := range []struct {
		what string
		got  counters.Number
		want string
	}{
		{"max + 1", most.Add(number(1)), "9223372036854775808"},
		{"max + 1 - 1", most.Add(number(1)).Add(number(-1)), "9223372036854775807"},
		{"min - 1", least.Add(number(-1)), "-9223372036854775809"},
		{"min + 0", least.Add(number(0)), "-9223372036854775808"},
		{"0.1 + 0.1 + 0.1", number(0.1).Add(number(0.1)).Add(number(0.1)), "0.3"},
		{"0.5 + 0.5", number(0.5).Add(number(0.5)), "1"},
		{"1 / 3", number(1).Quo(number(3)), "0." + strings.Repeat("3", 34)},
		{"2 / 3", number(2).Quo(number(3)), "0." + strings.Repeat("6", 33) + "7"},
		{"1 / 0", number(1).Quo(number(0)), "null"},
		{"0 / 0", number(0).Quo(number(0)), "null"},
		{"√2", number(2).Sqrt(), "1.414213562373095048801688724209698"},
		{"√-1", number(-1).Sqrt(), "null"},
		{"none + 1", none.Add(number(1)), "1"},
		{"1 + none", number(1).Add(none), "1"},
		{"none + none", none.Add(none), "null"},
		{"none × 1", none.Mul(number(1)), "null"},
	} {
		if test.got.String() != test.want {
			t.Errorf("%s = %v, want %s", test.what, test.got, test.want)
		}
	}
	if n, ok := number(0.5).Add(number(0.5)).Int64(); n != 1 || !ok {
		t.Errorf("0.5 + 0.5 is %d, %v", n, ok)
	}
	if _, ok := number(0.5).Int64(); ok {
		t.Error("0.5 is whole")
	}
	if !none.IsNull() || none.Decimal() != nil || !math.IsNaN(none.Float64()) || none.Cmp(number(-1)) >= 0 || !none.Equal(none) {
		t.Error("no value is one")
	}
	d := number(0.5).Decimal()
	d.SetInt64(7)
	if got := number(0.5).Decimal().String(); got != "0.5" {
		t.Errorf("a copy changed its number to %s", got)
	}
}
