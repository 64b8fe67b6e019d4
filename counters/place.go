package counters

import (
	"maps"
	"slices"

	"github.com/howdah-db/howdah/pg"
)

// each calls found with what is at the places in v, and their names, which are only
// found's to read until it returns.
func (p place) each(v any, found func(names []string, there any)) {
	p.descend(v, make([]string, 0, len(p.segments)+1), found)
}

func (p place) descend(v any, names []string, found func(names []string, there any)) {
	i := len(names)
	if i == len(p.segments) {
		found(names, v)
		return
	}
	below := mapOf(v)
	if !p.wild[i] {
		if there, ok := below[p.segments[i]]; ok {
			p.descend(there, append(names, p.segments[i]), found)
		}
		return
	}
	for name, there := range below {
		p.descend(there, append(names, name), found)
	}
}

// numbers calls found with each number at the places in values.
func (p place) numbers(values []Values, found func(Number)) {
	for _, v := range values {
		p.each(v, func(_ []string, there any) {
			if n, ok := numberAt(there); ok {
				found(n)
			}
		})
	}
}

// maps calls found with each map at the places in values.
func (p place) maps(values []Values, found func(Values)) {
	for _, v := range values {
		p.each(v, func(_ []string, there any) {
			if below := mapOf(there); below != nil {
				found(below)
			}
		})
	}
}

// expand returns the places of leaves that are met in values, in order: where a map
// is, one level below it. A place without wildcards that leads nowhere is itself one.
func (p place) expand(values []Values, e Encoding) map[string]place {
	met := map[string]place{}
	meet := func(names []string) {
		literal := place{segments: slices.Clone(names), wild: make([]bool, len(names))}
		met[e.render(literal)] = literal
	}
	for _, v := range values {
		p.each(v, func(names []string, there any) {
			below := mapOf(there)
			if below == nil {
				meet(names)
			}
			for name := range below {
				meet(append(names, name))
			}
		})
	}
	if len(met) == 0 && len(p.segments) > 0 && !slices.Contains(p.wild, true) {
		meet(p.segments)
	}
	return met
}

// mapOf returns v where it is a map, else nil.
func mapOf(v any) Values {
	switch v := v.(type) {
	case Values:
		return v
	case map[string]any:
		return v
	}
	return nil
}

// numberAt returns the number at a place. A number that others are below has the
// empty name there.
func numberAt(v any) (Number, bool) {
	if below := mapOf(v); below != nil {
		v = below[""]
		if mapOf(v) != nil {
			return Number{}, false
		}
	}
	return storedNumber(v)
}

// with returns values, of which it changes nothing, with n at a place, or what is
// in the way.
func (p place) with(values Values, n Number, e Encoding) (Values, error) {
	changed := maps.Clone(values)
	if changed == nil {
		changed = Values{}
	}
	at := changed
	for i, name := range p.segments {
		there, ok := at[name]
		below := mapOf(there)
		last := i == len(p.segments)-1
		if ok && last != (below == nil) {
			what := "a leaf"
			if last {
				what = "a map"
			}
			return nil, pg.Refuse("response", "%s is %s", e.render(place{p.segments[:i+1], p.wild}), what)
		}
		if last {
			at[name] = n
			break
		}
		if below = maps.Clone(below); below == nil {
			below = Values{}
		}
		at[name] = below
		at = below
	}
	return changed, nil
}
