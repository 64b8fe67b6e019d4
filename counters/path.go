package counters

import (
	"slices"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// Encoding is how the names of a table's fields are stored. The zero Encoding is Raw.
type Encoding string

const (
	// Raw stores names as they are, joined with dots: a name with a dot in it is
	// two levels when it is read. It is what the original does.
	Raw Encoding = "raw"
	// V1 is the percent encoding of later releases of the original. In names and
	// paths given by callers \. \* and \\ stand for the character, any other
	// backslash for itself, and only a dot without one goes down a level.
	V1 Encoding = "v1"
)

// ParseEncoding returns the encoding of a name. Another text is Invalid.
func ParseEncoding(text string) (Encoding, error) {
	switch e := Encoding(text); e {
	case Raw, V1:
		return e, nil
	}
	return "", pg.Refuse("paths", "%q; want raw or v1", text)
}

// place is where a path leads to in Values.
type place struct {
	segments []string
	wild     []bool // segments that stand for every name
}

// Escape returns a name so that, given to an event of a table with V1 paths or as a
// segment of a path, it is literal. Under Raw nothing can be escaped.
func (e Encoding) Escape(name string) string {
	if e != V1 {
		return name
	}
	return escaper.Replace(name)
}

// parsePath reads a path as a caller writes it. The empty text leads nowhere else
// than to the Values themselves.
func (e Encoding) parsePath(text string) place {
	if text == "" {
		return place{}
	}
	if e != V1 || !strings.Contains(text, `\`) {
		p := place{segments: strings.Split(text, ".")}
		for _, segment := range p.segments {
			p.wild = append(p.wild, segment == "*")
		}
		return p
	}
	var p place
	var segment strings.Builder
	literal := false // whether the segment has an escaped character
	end := func() {
		p.segments = append(p.segments, segment.String())
		p.wild = append(p.wild, segment.String() == "*" && !literal)
		segment.Reset()
		literal = false
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '.':
			end()
		case c == '\\' && i+1 < len(text) && strings.IndexByte(`.*\`, text[i+1]) >= 0:
			i++
			segment.WriteByte(text[i])
			literal = true
		default:
			segment.WriteByte(c)
		}
	}
	end()
	return p
}

var escaper = strings.NewReplacer(`.`, `\.`, `*`, `\*`, `\`, `\\`)

// render writes a path so that parsePath reads it again.
func (e Encoding) render(p place) string {
	if e != V1 {
		return strings.Join(p.segments, ".")
	}
	segments := slices.Clone(p.segments)
	for i, segment := range segments {
		if !p.wild[i] {
			segments[i] = e.Escape(segment)
		}
	}
	return strings.Join(segments, ".")
}

var (
	encoder = strings.NewReplacer("\x00", "%00", `"`, "%22", "$", "%24", "%", "%25", "*", "%2A", ".", "%2E", `\`, "%5C")
	decoder = strings.NewReplacer("%00", "\x00", "%22", `"`, "%24", "$", "%25", "%", "%2A", "*", "%2E", ".", "%5C", `\`)
)

// encode returns a segment as it is stored.
func (e Encoding) encode(segment string) string {
	if e != V1 {
		return segment
	}
	return encoder.Replace(segment)
}

// store returns a name that a caller gives as it is stored, and how many levels
// down it leads. What cannot be a name is told in problem.
func (e Encoding) store(name string) (stored string, levels int, problem string) {
	switch {
	case name == "":
		return "", 0, "an empty name"
	case pg.CheckText("name", strings.ReplaceAll(name, "\x00", "")) != nil:
		return "", 0, "a name that is not valid UTF-8"
	case e != V1 && strings.Contains(name, "\x00"):
		return "", 0, "a name with a NUL byte; PostgreSQL cannot store it"
	}
	levels = 1
	if e == V1 || strings.Contains(name, ".") {
		segments := e.parsePath(name).segments
		if slices.Contains(segments, "") {
			return "", 0, "a name that is empty before or after a dot"
		}
		levels = len(segments)
		for i, segment := range segments {
			segments[i] = e.encode(segment)
		}
		name = strings.Join(segments, ".")
	}
	return name, levels, ""
}

// split returns the names of a stored path.
func (e Encoding) split(stored string) []string {
	segments := strings.Split(stored, ".")
	if e == V1 && strings.Contains(stored, "%") {
		for i, segment := range segments {
			segments[i] = decoder.Replace(segment)
		}
	}
	return segments
}
