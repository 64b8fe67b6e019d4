package pg

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// maxIdentifier is NAMEDATALEN-1: PostgreSQL silently cuts what is longer, so
// that two long names could be one table.
const maxIdentifier = 63

// Names are the identifiers of one store, by the name its SQL uses for them.
type Names struct {
	quoted map[string]string
	sql    *strings.Replacer
	err    error
}

// NewNames quotes ids. It never fails: an identifier that cannot be one is told
// by [Names.Err], so that constructors of stores need no error.
func NewNames(ids map[string]pgx.Identifier) Names {
	n := Names{quoted: make(map[string]string, len(ids))}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		if err := checkIdentifier(name, ids[name]); err != nil && n.err == nil {
			n.err = err
		}
		n.quoted[name] = ids[name].Sanitize()
		pairs = append(pairs, "{"+name+"}", n.quoted[name])
	}
	n.sql = strings.NewReplacer(pairs...)
	return n
}

// Err returns an Invalid error when a name is empty, longer than 63 bytes, holds a NUL
// or has more before it than a schema, else nil. Stores return it from every method.
func (n Names) Err() error { return n.err }

// SQL returns text with each {name} replaced by its quoted identifier.
func (n Names) SQL(text string) string { return n.sql.Replace(text) }

// Data returns the names for a migration's template: {{.lists}} is the quoted
// identifier, {{.lists_text}} the same as a string literal, as to_regclass takes it.
func (n Names) Data() map[string]any {
	data := make(map[string]any, 2*len(n.quoted))
	for name, id := range n.quoted {
		data[name] = id
		data[name+"_text"] = Literal(id)
	}
	return data
}

func checkIdentifier(name string, id pgx.Identifier) error {
	if len(id) == 0 {
		return &InputError{Field: name, Problem: "has no identifier"}
	}
	if len(id) > 2 {
		return &InputError{Field: name, Problem: fmt.Sprintf("%d identifiers; want one, or a schema and one", len(id))}
	}
	for _, part := range id {
		switch {
		case part == "":
			return &InputError{Field: name, Problem: "an identifier is empty"}
		case len(part) > maxIdentifier:
			return &InputError{Field: name, Problem: fmt.Sprintf("identifier of %d bytes; PostgreSQL keeps %d", len(part), maxIdentifier)}
		case strings.ContainsRune(part, 0):
			return &InputError{Field: name, Problem: "identifier with a NUL byte"}
		}
	}
	return nil
}

// Literal quotes s as an SQL string literal, for the few places where a value
// cannot be a parameter: DDL, and expressions that must match an index.
func Literal(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.ContainsRune(s, '\\') {
		return " E" + strings.ReplaceAll(q, `\`, `\\`) // the same whatever standard_conforming_strings says
	}
	return q
}
