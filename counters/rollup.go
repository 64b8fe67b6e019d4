package counters

import (
	"slices"
	"strconv"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// Rule says how a field, and what is below it, is made of those of finer buckets.
type Rule struct {
	Path string `json:"path"` // as of a Series: * stands for every name
	Op   Op     `json:"op"`   // OpAdd, OpPut (that of the latest bucket), OpMax or OpMin
}

func (r Rule) check(field string) error {
	if r.Path == "" {
		return pg.Refuse(field+".path", "empty")
	}
	if err := pg.CheckText(field+".path", r.Path); err != nil {
		return err
	}
	if merges[r.Op] == "" {
		return pg.Refuse(field+".op", "%q; want add, put, max or min", r.Op)
	}
	return nil
}

// covers reports whether a place, with wildcards, is that of a stored path, or above it.
func (p place) covers(names []string) bool {
	for i, segment := range p.segments {
		if i >= len(names) || !p.wild[i] && segment != names[i] {
			return false
		}
	}
	return true
}

// rollup is the row that comes of those of finer buckets.
type rollup struct {
	table  *table
	rules  []place
	fields map[string]*rolled
	rows   int
	lost   bool // they hold nothing, and yet the row holds something
}

// rolled is what becomes of a field.
type rolled struct {
	op     Op
	leaf   any
	parent string // where it may be a register of a Distinct: the path of that
	most   Number // the largest, for that case
}

// newRollup begins a row.
func (t *table) newRollup() *rollup {
	r := &rollup{table: t, fields: map[string]*rolled{}}
	for _, rule := range t.rollups {
		r.rules = append(r.rules, t.paths.parsePath(rule.Path))
	}
	return r
}

// op is how a field is merged: by the first rule that covers it, else by its name.
// ruled reports that a rule says so.
func (r *rollup) op(path string) (op Op, ruled bool) {
	names := r.table.paths.split(path)
	for i, rule := range r.rules {
		if rule.covers(names) {
			return r.table.rollups[i].Op, true
		}
	}
	switch names[len(names)-1] {
	case "max":
		return OpMax, false
	case "min":
		return OpMin, false
	}
	return OpAdd, false
}

// add merges the data of the bucket that follows.
func (r *rollup) add(data []byte) error {
	stored, err := parseJSON(data, false)
	if err != nil {
		return err
	}
	r.rows++
	object, _ := stored.(Values)
	for path, leaf := range object {
		f := r.fields[path]
		if f == nil {
			f = &rolled{leaf: leaf}
			var ruled bool
			if f.op, ruled = r.op(path); !ruled {
				if parent, _, below := cutLast(path, "."); below {
					f.parent = parent
				}
			}
			r.fields[path] = f
			f.most, _ = storedNumber(leaf)
			continue
		}
		n, isNumber := storedNumber(leaf)
		have, hasNumber := storedNumber(f.leaf)
		if isNumber && n.Cmp(f.most) > 0 {
			f.most = n
		}
		switch {
		case leaf == nil && f.op != OpPut: // adds nothing
		case f.op == OpPut, !isNumber, !hasNumber:
			f.leaf = leaf
		case f.op == OpAdd:
			f.leaf = have.Add(n)
		case (f.op == OpMax) == (n.Cmp(have) > 0):
			f.leaf = n
		}
	}
	return nil
}

// result returns the fields of the row, in order.
func (r *rollup) result() []field {
	registers := r.registers()
	fields := make([]field, 0, len(r.fields))
	for path, f := range r.fields {
		one := field{path: path, op: OpPut, other: f.leaf}
		if registers[f.parent] {
			one.other = f.most
		}
		if n, ok := one.other.(Number); ok {
			one.number, one.other = n, nil
		}
		fields = append(fields, one)
	}
	slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.path, b.path) })
	return fields
}

// registers returns the paths of those Distincts that no rule names. Nothing is stored
// that says so: they are told by the names of their registers, which are all three
// digits of hexadecimal up to 3ff, and not all decimal as those of status.200 are, and
// by what they hold.
func (r *rollup) registers() map[string]bool {
	is := map[string]bool{}
	other := map[string]bool{}
	for path, f := range r.fields {
		if f.parent == "" {
			continue
		}
		name := path[strings.LastIndex(path, ".")+1:]
		register, err := strconv.ParseUint(name, 16, 16)
		rank, whole := f.most.Int64()
		switch {
		case err != nil, len(name) != 3, register >= registers, strings.ToLower(name) != name, !whole, rank < 1, rank > maxRank:
			other[f.parent] = true
		case strings.ContainsAny(name, "abcdef"):
			is[f.parent] = true
		}
	}
	for parent := range other {
		delete(is, parent)
	}
	return is
}
