package counters

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/howdah-db/howdah/pg"
)

// maxNesting is how deep JSON that is read may be, as in encoding/json.
const maxNesting = 10_000

// parseJSON reads any JSON: objects as Values, numbers as Numbers. JSON from
// elsewhere is checked first; what PostgreSQL sends need not be.
func parseJSON(text []byte, check bool) (any, error) {
	if check {
		if err := pg.CheckJSON("values", text); err != nil {
			return nil, err
		}
		if !json.Valid(text) {
			return nil, pg.Refuse("values", "%v", json.Unmarshal(text, new(any)))
		}
	}
	s := scanner{text: text}
	v, err := s.value()
	if s.next(); err == nil && s.at < len(text) {
		err = s.refuse("something after the end")
	}
	return v, err
}

// scanner reads JSON. It is sure to refuse what cannot be read, but not all that is
// no JSON.
type scanner struct {
	text  []byte
	at    int
	depth int
}

func (s *scanner) refuse(format string, args ...any) error {
	return pg.Refuse("values", "JSON: "+format+" at byte %d", append(args, s.at)...)
}

// next returns the next byte that is no space, and stays before it; 0 at the end.
func (s *scanner) next() byte {
	for ; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take passes over c where it is next.
func (s *scanner) take(c byte) bool {
	if s.next() != c {
		return false
	}
	s.at++
	return true
}

func (s *scanner) value() (any, error) {
	switch c := s.next(); c {
	case '"':
		b, err := s.string()
		return string(b), err
	case '{':
		v := Values{}
		return v, s.object(func(name []byte) error {
			if _, ok := v[string(name)]; ok {
				return s.refuse("the name %q for the second time", shorten(string(name)))
			}
			element, err := s.value()
			v[string(name)] = element
			return err
		})
	case '[':
		list := []any{}
		return list, s.list(&list)
	case 't', 'f', 'n':
		for word, v := range map[string]any{"true": true, "false": false, "null": nil} {
			if bytes.HasPrefix(s.text[s.at:], []byte(word)) {
				s.at += len(word)
				return v, nil
			}
		}
	}
	return s.number()
}

func (s *scanner) number() (any, error) {
	end := s.at
	for end < len(s.text) && strings.IndexByte("+-.0123456789Ee", s.text[end]) >= 0 {
		end++
	}
	n, problem := parseNumber(string(s.text[s.at:end]), maxStored, maxStored)
	if problem != "" {
		return nil, s.refuse("%s", problem)
	}
	s.at = end
	return n, nil
}

// string returns the text of the string that is next.
func (s *scanner) string() ([]byte, error) {
	if !s.take('"') {
		return nil, s.refuse("no string")
	}
	begin := s.at
	escapes := false
	for ; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '"':
			s.at++
			if !escapes {
				return s.text[begin : s.at-1], nil
			}
			var text string
			if err := json.Unmarshal(s.text[begin-1:s.at], &text); err != nil {
				return nil, s.refuse("%v", err)
			}
			return []byte(text), nil
		case '\\':
			escapes = true
			s.at++
		}
	}
	return nil, s.refuse("no end of a string")
}

// object reads an object. member reads each value.
func (s *scanner) object(member func(name []byte) error) error {
	return s.elements('{', '}', func() error {
		s.next()
		name, err := s.string()
		if err != nil {
			return err
		}
		if !s.take(':') {
			return s.refuse("no colon")
		}
		return member(name)
	})
}

func (s *scanner) list(list *[]any) error {
	return s.elements('[', ']', func() error {
		v, err := s.value()
		*list = append(*list, v)
		return err
	})
}

// elements reads what is between begin and end with commas between.
func (s *scanner) elements(begin, end byte, element func() error) error {
	if s.depth++; s.depth > maxNesting {
		return s.refuse("over %d levels", maxNesting)
	}
	if !s.take(begin) {
		return s.refuse("no %c", begin)
	}
	if s.take(end) {
		s.depth--
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		if s.take(end) {
			s.depth--
			return nil
		}
		if !s.take(',') {
			return s.refuse("no comma and no %c", end)
		}
	}
}

// appendJSON appends v as JSON that jsonb takes, or tells what is wrong with it.
func appendJSON(b []byte, v any, depth int) (_ []byte, problem string) {
	if depth > maxNesting {
		return nil, fmt.Sprintf("over %d levels", maxNesting)
	}
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), ""
	case bool:
		return strconv.AppendBool(b, v), ""
	case string:
		return appendString(b, v), ""
	case Number:
		return v.append(b), ""
	case Leaf:
		text, err := v.MarshalJSON()
		if err != nil {
			return nil, err.Error()
		}
		return append(b, text...), ""
	case []any:
		b = append(b, '[')
		for i, element := range v {
			if i > 0 {
				b = append(b, ',')
			}
			if b, problem = appendJSON(b, element, depth+1); problem != "" {
				return nil, problem
			}
		}
		return append(b, ']'), ""
	case map[string]any:
		return appendJSON(b, Values(v), depth)
	case Values:
		b = append(b, '{')
		for i, name := range v.sorted() {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, name), ':')
			if b, problem = appendJSON(b, v[name], depth+1); problem != "" {
				return nil, problem
			}
		}
		return append(b, '}'), ""
	}
	leaf, problem := plain(v, 0)
	if problem != "" {
		return nil, problem
	}
	return appendJSON(b, leaf, depth)
}

// appendString appends s in quotes.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, _ := json.Marshal(s) // a string always can
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendFields appends the JSON object of those fields that are written by op.
func appendFields(b []byte, fields []field, op Op) []byte {
	b = append(b, '{')
	empty := true
	for _, f := range fields {
		if f.op != op {
			continue
		}
		if !empty {
			b = append(b, ',')
		}
		empty = false
		b = append(appendString(b, f.path), ':')
		b, _ = appendJSON(b, f.value(), 0) // pack saw to it that it can
	}
	return append(b, '}')
}

// unpacker reads rows. It remembers the names of their paths, which most share.
type unpacker struct {
	encoding Encoding
	names    map[string][]string
}

func newUnpacker(e Encoding) *unpacker {
	return &unpacker{encoding: e, names: make(map[string][]string)}
}

// maxNames is how many paths an unpacker remembers.
const maxNames = 10_000

// unpack returns what a row holds, nested. Nothing is hidden: a leaf at a place that
// others are below has the empty name there.
func (u *unpacker) unpack(data []byte) (Values, error) {
	values := Values{}
	s := scanner{text: data}
	err := s.object(func(stored []byte) error {
		names, ok := u.names[string(stored)]
		if !ok {
			names = u.encoding.split(string(stored))
			if len(u.names) < maxNames {
				u.names[string(stored)] = names
			}
		}
		v, err := s.value()
		if err == nil {
			values.insert(names, v, stored)
		}
		return err
	})
	return values, err
}

// insert puts a leaf to its place. An object, which no counter writes, is as many
// leaves as it has.
func (v Values) insert(names []string, leaf any, stored []byte) {
	if object, ok := leaf.(Values); ok {
		for _, name := range object.sorted() {
			v.insert(append(names[:len(names):len(names)], name), object[name], append(append(stored[:len(stored):len(stored)], '.'), name...))
		}
		return
	}
	at := v
	for _, name := range names[:len(names)-1] {
		switch there := at[name].(type) {
		case Values:
			at = there
		default:
			below := Values{}
			if _, ok := at[name]; ok {
				below[""] = there
			}
			at[name] = below
			at = below
		}
	}
	name := names[len(names)-1]
	for {
		there, ok := at[name]
		below, isMap := there.(Values)
		switch {
		case !ok:
			at[name] = leaf
			return
		case isMap:
			at, name = below, ""
		default: // two stored paths of one meaning: the later keeps its own name
			at, name = v, string(stored)
			for _, taken := v[name]; taken; _, taken = v[name] {
				name += "."
			}
		}
	}
}
