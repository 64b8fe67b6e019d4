package counters

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/howdah-db/howdah/pg"
)

// What the Values of one event may have.
const (
	MaxLeaves = 2000    // fields that they write
	MaxLevels = 64      // names from the top to a leaf
	MaxText   = 1 << 20 // bytes of their names and texts
)

// Values are nested maps of names. A map may also name a place below it, as in
// "account.count".
//
// Leaves that are written: any number of Go, json.Number, *big.Int, *apd.Decimal,
// Number, and where values are put also string, bool, nil and lists of any JSON.
// Leaves that are read: Number, string, bool, nil, []any.
type Values map[string]any

// Op is how a value that is written meets the one that is there. The zero Op is OpAdd.
type Op string

// The ways in which values meet.
const (
	OpAdd Op = "add" // the sum
	OpPut Op = "put" // the later
	OpMax Op = "max" // the larger
	OpMin Op = "min" // the smaller
)

// field is a leaf as it is stored, and how.
type field struct {
	path   string
	op     Op
	number Number // known where the leaf is one
	other  any    // else: string, bool, nil, []any
	over   bool   // it is put over what has to be a number
}

func (f field) value() any {
	if f.number.known {
		return f.number
	}
	return f.other
}

// pack returns the fields that values write, in the order of their paths. With OpAdd
// leaves are numbers or Leafs, with OpPut any JSON but no Leafs. What cannot be
// written, and what would be written twice, is Invalid, with its path.
func (e Encoding) pack(values Values, op Op) ([]field, error) {
	p := packer{encoding: e}
	if err := p.values("", 0, values, op); err != nil {
		return nil, err
	}
	slices.SortFunc(p.fields, func(a, b field) int { return strings.Compare(a.path, b.path) })
	return p.fields, p.checkConflicts()
}

// repack is the other way of unpack: the fields that put back what was read, whatever
// others wrote. Names are literal, and limits do not hold.
func (e Encoding) repack(values Values) ([]field, error) {
	var fields []field
	err := e.repackBelow(nil, values, &fields)
	slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.path, b.path) })
	for i := 1; err == nil && i < len(fields); i++ {
		if fields[i].path == fields[i-1].path {
			err = refuse(fields[i].path, "there twice")
		}
	}
	return fields, err
}

func (e Encoding) repackBelow(names []string, values Values, fields *[]field) error {
	for name, v := range values {
		below := append(names[:len(names):len(names)], e.encode(name))
		if name == "" && len(names) > 0 && len(values) > 1 {
			below = names // a leaf that the others are below
		}
		path := strings.Join(below, ".")
		if !utf8.ValidString(path) || strings.Contains(path, "\x00") {
			return refuse(path, "a name that PostgreSQL cannot store")
		}
		if m := mapOf(v); m != nil {
			if err := e.repackBelow(below, m, fields); err != nil {
				return err
			}
			continue
		}
		f := field{path: path, op: OpPut}
		if n, ok := v.(Number); ok && n.known {
			f.number = n
		} else {
			leaf, problem := plain(v, 0)
			if problem != "" {
				return refuse(path, "%s", problem)
			}
			if n, ok := leaf.(Number); ok {
				f.number, leaf = n, nil
			}
			f.other = leaf
		}
		*fields = append(*fields, f)
	}
	return nil
}

type packer struct {
	encoding Encoding
	fields   []field
	text     int // bytes of names and texts
}

func (p *packer) values(prefix string, levels int, values map[string]any, op Op) error {
	for name, v := range values {
		stored, down, problem := p.encoding.store(name)
		if problem != "" {
			return refuse(prefix, "%s: %q", problem, shorten(name))
		}
		if levels+down > MaxLevels {
			return refuse(shorten(prefix), "over %d levels", MaxLevels)
		}
		if prefix != "" {
			stored = prefix + "." + stored
		}
		if err := p.value(stored, levels+down, v, op); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) value(path string, levels int, v any, op Op) error {
	switch v := v.(type) {
	case Values:
		return p.values(path, levels, v, op)
	case map[string]any:
		return p.values(path, levels, v, op)
	case Leaf:
		return p.leaf(path, levels, v, op)
	}
	if m := reflect.ValueOf(v); m.Kind() == reflect.Map && m.Type().Key().Kind() == reflect.String {
		values := make(map[string]any, m.Len())
		for key, value := range m.Seq2() {
			values[key.String()] = value.Interface()
		}
		return p.values(path, levels, values, op)
	}
	f := field{path: path, op: op}
	problem := ""
	if op == OpPut {
		f.other, problem = plain(v, levels)
		if n, ok := f.other.(Number); ok {
			f.number, f.other = n, nil
		}
	} else {
		f.number, problem = numberOf(v)
	}
	if problem != "" {
		return refuse(path, "%s", problem)
	}
	return p.add(f)
}

func (p *packer) leaf(path string, levels int, leaf Leaf, op Op) error {
	switch {
	case op == OpPut:
		return refuse(path, "%s; only a track takes it", describe(leaf))
	case leaf.kind == leafPut:
		if _, ok := leaf.value.(Leaf); ok {
			return refuse(path, "a leaf in a leaf")
		}
		return p.value(path, levels, leaf.value, OpPut)
	}
	fields, problem := leaf.fields()
	if problem != "" {
		return refuse(path, "%s", problem)
	}
	for _, f := range fields {
		if f.path == "" {
			f.path = path
		} else if levels == MaxLevels {
			return refuse(shorten(path), "over %d levels", MaxLevels)
		} else {
			f.path = path + "." + p.encoding.encode(f.path)
		}
		if err := p.add(f); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) add(f field) error {
	p.text += len(f.path) + textOf(f.other)
	switch p.fields = append(p.fields, f); {
	case len(p.fields) > MaxLeaves:
		return pg.Refuse("values", "over %d leaves", MaxLeaves)
	case p.text > MaxText:
		return pg.Refuse("values", "over %d bytes of names and texts", MaxText)
	}
	return nil
}

// checkConflicts refuses a path that is there twice, or leads through a leaf.
func (p *packer) checkConflicts() error {
	nested := false
	for i, f := range p.fields {
		if i > 0 && f.path == p.fields[i-1].path {
			return refuse(f.path, "written twice in one call")
		}
		nested = nested || strings.Contains(f.path, ".")
	}
	if !nested {
		return nil
	}
	leaves := make(map[string]bool, len(p.fields))
	for _, f := range p.fields {
		leaves[f.path] = true
	}
	for _, f := range p.fields {
		for i := range len(f.path) {
			if f.path[i] == '.' && leaves[f.path[:i]] {
				return refuse(f.path, "written below %s, which is a leaf of the same call", f.path[:i])
			}
		}
	}
	return nil
}

// refuse is pg.Refuse of the leaf at a path.
func refuse(path, format string, args ...any) error {
	name := "values"
	switch {
	case path == "":
	case strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) }):
		name += "." + strconv.Quote(path)
	default:
		name += "." + path
	}
	return pg.Refuse(name, format, args...)
}

// shorten cuts a name that would fill an error.
func shorten(name string) string {
	if len(name) > 100 {
		return strings.ToValidUTF8(name[:100], "") + "…"
	}
	return name
}

const tooDeep = "over 64 levels of lists and maps"

// plain returns v as a leaf that is read: Number, string, bool, nil or []any. Maps,
// as Values, are only in lists.
func plain(v any, depth int) (leaf any, problem string) {
	if depth > MaxLevels {
		return nil, tooDeep
	}
	switch v := v.(type) {
	case nil, bool:
		return v, ""
	case string:
		return v, checkText(v)
	case Leaf:
		return nil, describe(v) + " in a list"
	case json.RawMessage:
		read, err := parseJSON(v, true)
		if err != nil {
			return nil, err.Error()
		}
		return plain(read, depth)
	case json.Number, Number:
		return numberOf(v)
	case Values:
		return plain(map[string]any(v), depth)
	case map[string]any:
		m := make(Values, len(v))
		for name, value := range v {
			if problem = checkText(name); problem == "" {
				m[name], problem = plain(value, depth+1)
			}
			if problem != "" {
				return nil, problem
			}
		}
		return m, ""
	}
	switch list := reflect.ValueOf(v); list.Kind() {
	case reflect.Slice, reflect.Array:
		if list.Type().Elem().Kind() == reflect.Uint8 {
			return nil, "bytes; want a text or a list of other numbers"
		}
		read := make([]any, list.Len())
		for i := range read {
			switch read[i], problem = plain(list.Index(i).Interface(), depth+1); problem {
			case "":
			case tooDeep:
				return nil, problem
			default:
				return nil, fmt.Sprintf("[%d]: %s", i, problem)
			}
		}
		return read, ""
	case reflect.String:
		return list.String(), checkText(list.String())
	case reflect.Bool:
		return list.Bool(), ""
	}
	n, problem := numberOf(v)
	if problem != "" {
		return nil, strings.Replace(problem, "want a number", "want a number, text, true, false, null or a list", 1)
	}
	return n, ""
}

func checkText(text string) string {
	if err := pg.CheckText("text", text); err != nil {
		return err.Error()
	}
	return ""
}

// textOf returns how many bytes of text are in a leaf.
func textOf(v any) (n int) {
	switch v := v.(type) {
	case string:
		return len(v)
	case []any:
		for _, element := range v {
			n += 1 + textOf(element)
		}
	case Values:
		for name, element := range v {
			n += len(name) + textOf(element)
		}
	}
	return n
}

// flat returns fields as Values of one level.
func flat(fields []field) Values {
	v := make(Values, len(fields))
	for _, f := range fields {
		v[f.path] = f.value()
	}
	return v
}

// ParseValues reads Values from a JSON object, with all digits of its numbers. An
// object whose single member is $max, $min, $put, $stat, $hist or $distinct is that
// Leaf. What is no JSON object, and a name that is there twice, is Invalid.
func ParseValues(text []byte) (Values, error) {
	var v Values
	if err := v.UnmarshalJSON(text); err != nil {
		return nil, err
	}
	return v, v.readLeaves("")
}

// readLeaves puts Leafs in the place of the objects that stand for them.
func (v Values) readLeaves(prefix string) error {
	for name, value := range v {
		object, ok := value.(Values)
		if !ok {
			continue
		}
		for member := range object {
			kind, ok := strings.CutPrefix(member, "$")
			if !ok || len(object) != 1 {
				break
			}
			leaf, err := ParseLeaf(kind, object[member])
			switch {
			case err == nil:
				v[name] = leaf
			case kind == string(leafDistinct):
				return refuse(prefix+name, "%v", err)
			}
		}
		if _, ok := v[name].(Values); ok {
			if err := object.readLeaves(prefix + name + "."); err != nil {
				return err
			}
		}
	}
	return nil
}

// UnmarshalJSON reads an object with all digits of its numbers. Every name in it
// is literal.
func (v *Values) UnmarshalJSON(text []byte) error {
	read, err := parseJSON(text, true)
	if err != nil {
		return err
	}
	switch read := read.(type) {
	case nil:
		*v = nil
	case Values:
		*v = read
	default:
		return pg.Refuse("values", "%s; want an object", describe(read))
	}
	return nil
}

// MarshalJSON returns an object with the names in order and all digits.
func (v Values) MarshalJSON() ([]byte, error) {
	b, problem := appendJSON(nil, v, 0)
	if problem != "" {
		return nil, pg.Refuse("values", "%s", problem)
	}
	return b, nil
}

// sorted returns the names of v in order.
func (v Values) sorted() []string { return slices.Sorted(maps.Keys(v)) }
