package pg

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/howdah-db/howdah/fault"
)

// InputError is an Invalid error that names the field it is about, as the caller
// knows it: "list", "items[17]", "database URL".
type InputError struct {
	Field   string
	Problem string
}

// Error returns "field: problem".
func (e *InputError) Error() string { return e.Field + ": " + e.Problem }

// Unwrap returns fault.Invalid.
func (e *InputError) Unwrap() error { return fault.Invalid }

// Refuse returns an [InputError] for field.
func Refuse(field, format string, args ...any) error {
	return &InputError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// CheckText refuses what a text column cannot hold: NUL bytes and invalid UTF-8.
func CheckText(field, s string) error {
	if i := strings.IndexByte(s, 0); i >= 0 {
		return Refuse(field, "a NUL byte at byte %d; PostgreSQL cannot store it", i)
	}
	if !utf8.ValidString(s) {
		for i, r := range s {
			if _, n := utf8.DecodeRuneInString(s[i:]); r == utf8.RuneError && n == 1 {
				return Refuse(field, "invalid UTF-8 at byte %d", i)
			}
		}
	}
	return nil
}
