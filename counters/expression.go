package counters

import (
	"strings"
	"unicode/utf8"

	"github.com/cockroachdb/apd/v3"

	"github.com/howdah-db/howdah/pg"
)

// What an expression may have.
const (
	maxExpression = 1000 // characters
	maxNested     = 64   // levels of parentheses
	maxVariables  = 26
)

// Expression returns a new Series with the result of expr at response in each point.
//
// In expr the letters a to z stand for the numbers at paths, in their order. There
// are numbers, + - * / and parentheses, and the functions sum, mean (or avg), min,
// max and sqrt. A number that is missing, a division by zero and the root of what is
// negative make the result null. Quotients and roots have 34 digits.
//
// An expression that cannot be read is Invalid, with the position in it. So are no
// paths and more than 26, wildcards, and a response that leads through a leaf or to
// a map.
func (s *Series) Expression(paths []string, expr, response string) (*Series, error) {
	if len(s.Values) != len(s.At) {
		return nil, pg.Refuse("series", "%d times and %d values", len(s.At), len(s.Values))
	}
	if len(paths) < 1 || len(paths) > maxVariables {
		return nil, pg.Refuse("paths", "%d; want 1 to %d", len(paths), maxVariables)
	}
	places := make([]place, len(paths))
	for i, path := range paths {
		p, err := s.single("paths", path)
		if err != nil {
			return nil, err
		}
		places[i] = p
	}
	target, err := s.single("response", response)
	if err != nil {
		return nil, err
	}
	if _, _, problem := s.paths.store(response); problem != "" {
		return nil, pg.Refuse("response", "%s", problem)
	}
	evaluate, err := parseExpression(expr, len(paths))
	if err != nil {
		return nil, err
	}
	result := &Series{At: s.At, Values: make([]Values, len(s.Values)), paths: s.paths}
	variables := make([]Number, len(paths))
	for i, values := range s.Values {
		for j, p := range places {
			variables[j] = Number{}
			p.numbers(s.Values[i:i+1], func(n Number) { variables[j] = n })
		}
		if result.Values[i], err = target.with(values, evaluate(variables), s.paths); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// single reads a path that leads to one place.
func (s *Series) single(field, path string) (place, error) {
	p := s.paths.parsePath(path)
	if path == "" {
		return p, pg.Refuse(field, "an empty path")
	}
	for _, wild := range p.wild {
		if wild {
			return p, pg.Refuse(field, "%q: no wildcards here", shorten(path))
		}
	}
	return p, nil
}

// formula is a part of an expression, read.
type formula func(variables []Number) Number

// parseExpression reads an expression of so many variables.
func parseExpression(text string, variables int) (formula, error) {
	switch {
	case !utf8.ValidString(text):
		return nil, pg.Refuse("expression", "invalid UTF-8")
	case utf8.RuneCountInString(text) > maxExpression:
		return nil, pg.Refuse("expression", "%d characters; at most %d", utf8.RuneCountInString(text), maxExpression)
	}
	p := parser{text: text, variables: variables}
	f := p.sum()
	if p.next(); p.at < len(p.text) {
		p.refuse("%q is too much", p.shown())
	}
	return f, p.err
}

// parser reads an expression. After its first error it is at the end.
type parser struct {
	text      string
	at        int
	depth     int
	variables int
	err       error
}

// refuse tells what is wrong at the position.
func (p *parser) refuse(format string, args ...any) {
	if p.err == nil {
		position := utf8.RuneCountInString(p.text[:p.at]) + 1
		p.err = pg.Refuse("expression", "position %d: "+format, append([]any{position}, args...)...)
	}
	p.at = len(p.text)
}

// next returns the next byte that is no space, 0 at the end.
func (p *parser) next() byte {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
	if p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

// take passes over c where it is next.
func (p *parser) take(c byte) bool {
	if p.next() != c {
		return false
	}
	p.at++
	return true
}

// shown is the character at the position.
func (p *parser) shown() string {
	_, size := utf8.DecodeRuneInString(p.text[p.at:])
	return p.text[p.at : p.at+size]
}

// word passes over the bytes that are in set, and returns them.
func (p *parser) word(set string) string {
	rest := strings.TrimLeft(p.text[p.at:], set)
	word := p.text[p.at : len(p.text)-len(rest)]
	p.at += len(word)
	return word
}

func (p *parser) sum() formula {
	left := p.product()
	for {
		switch {
		case p.take('+'):
			left = combine(left, p.product(), exact.Add)
		case p.take('-'):
			left = combine(left, p.product(), exact.Sub)
		default:
			return left
		}
	}
}

func (p *parser) product() formula {
	left := p.factor()
	for {
		switch {
		case p.take('*'):
			left = combine(left, p.factor(), exact.Mul)
		case p.take('/'):
			left = combine(left, p.factor(), rational.Quo)
		default:
			return left
		}
	}
}

func combine(left, right formula, op func(d, x, y *apd.Decimal) (apd.Condition, error)) formula {
	return func(variables []Number) Number { return left(variables).calculate(op, right(variables)) }
}

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyz"
)

func (p *parser) factor() formula {
	negative := false
	for p.take('-') {
		negative = !negative
	}
	f := p.primary()
	if !negative {
		return f
	}
	return func(variables []Number) Number { return whole(0).sub(f(variables)) }
}

func (p *parser) primary() formula {
	switch c := p.next(); {
	case p.at == len(p.text):
		p.refuse("the expression ends where a number, a name or ( is wanted")
	case c == '(':
		return p.nested(func() formula { return p.sum() })
	case c >= '0' && c <= '9' || c == '.':
		return p.number()
	case c >= 'a' && c <= 'z':
		return p.name()
	default:
		p.refuse("%q where a number, a name or ( is wanted", p.shown())
	}
	return null
}

func null([]Number) Number { return Number{} }

// nested reads what is between parentheses.
func (p *parser) nested(inner func() formula) formula {
	if p.depth++; p.depth > maxNested {
		p.refuse("over %d levels of parentheses", maxNested)
		return null
	}
	p.take('(')
	f := inner()
	if !p.take(')') && p.err == nil {
		p.refuse("no )")
	}
	p.depth--
	return f
}

func (p *parser) number() formula {
	begin := p.at
	p.word(digits)
	if p.at < len(p.text) && p.text[p.at] == '.' {
		p.at++
		p.word(digits)
	}
	if end := p.at; end < len(p.text) && p.text[end] == 'e' {
		p.at++
		if p.at < len(p.text) && strings.IndexByte("+-", p.text[p.at]) >= 0 {
			p.at++
		}
		if p.word(digits) == "" {
			p.at = end // the variable e, which may not follow
		}
	}
	n, problem := parseNumber(p.text[begin:p.at], MaxDigits, MaxExponent)
	if problem != "" {
		p.at = begin
		p.refuse("%s", problem)
	}
	return func([]Number) Number { return n }
}

// name reads a variable or a function with its arguments.
func (p *parser) name() formula {
	begin := p.at
	name := p.word(letters)
	function, ok := functions[name]
	switch {
	case ok && p.next() == '(':
		return p.call(begin, name, function)
	case ok:
		p.at = begin
		p.refuse("%s without (", name)
	case len(name) > 1:
		p.at = begin
		p.refuse("unknown name %q; want a variable, sum, mean, avg, min, max or sqrt", shorten(name))
	case int(name[0]-'a') >= p.variables:
		p.at = begin
		p.refuse("no path for variable %s: there are %d", name, p.variables)
	default:
		return func(variables []Number) Number { return variables[name[0]-'a'] }
	}
	return null
}

func (p *parser) call(begin int, name string, function func([]Number) Number) formula {
	var arguments []formula
	return p.nested(func() formula {
		for {
			arguments = append(arguments, p.sum())
			if !p.take(',') {
				break
			}
		}
		if p.err == nil && name == "sqrt" && len(arguments) != 1 {
			p.at = begin
			p.refuse("sqrt of %d arguments; want one", len(arguments))
		}
		return func(variables []Number) Number {
			numbers := make([]Number, len(arguments))
			for i, argument := range arguments {
				if numbers[i] = argument(variables); !numbers[i].known {
					return Number{}
				}
			}
			return function(numbers)
		}
	})
}

// functions have at least one argument, and all of them known.
var functions = map[string]func([]Number) Number{
	"sum":  total,
	"mean": average,
	"avg":  average,
	"min":  func(numbers []Number) Number { return most(numbers, -1) },
	"max":  func(numbers []Number) Number { return most(numbers, 1) },
	"sqrt": func(numbers []Number) Number { return numbers[0].sqrt() },
}

func total(numbers []Number) Number {
	sum := whole(0)
	for _, n := range numbers {
		sum = sum.Add(n)
	}
	return sum
}

func average(numbers []Number) Number { return total(numbers).quo(whole(int64(len(numbers)))) }

// most returns the number that compares to all others as sign says, or equals them.
func most(numbers []Number, sign int) Number {
	found := numbers[0]
	for _, n := range numbers {
		if n.Cmp(found) == sign {
			found = n
		}
	}
	return found
}
