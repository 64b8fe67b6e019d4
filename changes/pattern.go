package changes

import (
	"slices"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// Pattern names tables, or topics of messages, and perhaps what happens to them:
// "public.users", "public.*", "message.orders.*", "*", "public.users:insert,update".
// The schema ends at the first dot.
type Pattern struct {
	text   string
	schema string // "" = any
	table  string // "" = any
	prefix bool   // table is how a topic begins
	ops    []Op   // nil = any
}

// ParsePattern reads a pattern; the error is Invalid.
func ParsePattern(s string) (Pattern, error) {
	refuse := func(problem string) (Pattern, error) {
		return Pattern{}, pg.Refuse("pattern", "%q %s; want schema.table, schema.*, message.topic.* or *, perhaps with :insert,update", s, problem)
	}
	if err := pg.CheckText("pattern", s); err != nil {
		return Pattern{}, err
	}
	p := Pattern{text: s}
	name, list, restricted := strings.Cut(s, ":")
	if restricted {
		for op := range strings.SplitSeq(list, ",") {
			if !slices.Contains(ops, Op(op)) {
				return refuse("names an unknown operation")
			}
			p.ops = append(p.ops, Op(op))
		}
	}
	if name == "*" {
		return p, nil
	}
	var ok bool
	if p.schema, p.table, ok = strings.Cut(name, "."); !ok || p.schema == "" || p.table == "" {
		return refuse("has no schema or no table")
	}
	switch topic, ok := strings.CutSuffix(p.table, ".*"); {
	case p.table == "*":
		p.table = ""
	case ok && p.schema == "message":
		p.table, p.prefix = topic+".", true
	}
	if strings.Contains(p.schema+p.table, "*") {
		return refuse("has a * inside a name")
	}
	return p, nil
}

// ParsePatterns reads several; the error is Invalid. An operation by itself belongs to the
// one before: lists are cut at commas on their way here.
func ParsePatterns(texts ...string) ([]Pattern, error) {
	var patterns []Pattern
	for _, text := range texts {
		last := len(patterns) - 1
		more := last >= 0 && patterns[last].ops != nil && slices.Contains(ops, Op(text))
		if more {
			text = patterns[last].text + "," + text
		}
		p, err := ParsePattern(text)
		if err != nil {
			return nil, err
		}
		if more {
			patterns = patterns[:last]
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// String returns the pattern as it was written.
func (p Pattern) String() string { return p.text }

// Matches reports whether c is one of the changes that p names.
func (p Pattern) Matches(c *Change) bool {
	switch {
	case p.schema != "" && p.schema != c.Schema:
		return false
	case p.prefix && !strings.HasPrefix(c.Table, p.table):
		return false
	case !p.prefix && p.table != "" && p.table != c.Table:
		return false
	}
	return p.ops == nil || slices.Contains(p.ops, c.Op)
}

// mostSpecific returns which of patterns c belongs to: a table goes before a
// schema and that before everything, then one with operations before one without;
// -1 where none matches.
func mostSpecific(patterns []Pattern, c *Change) int {
	best, weight := -1, -1
	for i, p := range patterns {
		if w := p.weight(); w > weight && p.Matches(c) {
			best, weight = i, w
		}
	}
	return best
}

func (p Pattern) weight() int {
	w := 0
	switch {
	case p.prefix: // a longer beginning says more
		w = 4 + 2*len(p.table)
	case p.table != "":
		w = 1 << 20
	case p.schema != "":
		w = 2
	}
	if p.ops != nil {
		w++
	}
	return w
}
