package pg

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
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

// Renamed returns err with the field of an [InputError] in it called field: as the
// caller knows it, who may have sent a position as "after". Other errors, nil among
// them, are returned as they are.
func Renamed(field string, err error) error {
	var input *InputError
	if errors.As(err, &input) {
		return &InputError{Field: field, Problem: input.Problem}
	}
	return err
}

// Within returns err with the field of an [InputError] in it called parent.field;
// other errors as Renamed does.
func Within(parent string, err error) error {
	var input *InputError
	if errors.As(err, &input) {
		return Renamed(parent+"."+input.Field, err)
	}
	return err
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

// CheckJSON refuses JSON whose strings cannot be kept as they were sent: invalid
// UTF-8, and escapes of half a surrogate pair. encoding/json puts U+FFFD in
// their place, and another name would be stored. It does not parse the rest.
func CheckJSON(field string, text []byte) error {
	if !utf8.Valid(text) {
		return CheckText(field, strings.ReplaceAll(string(text), "\x00", " "))
	}
	for i := 0; ; {
		next := bytes.IndexByte(text[i:], '\\')
		if next < 0 {
			return nil
		}
		i += next
		unit, ok := escape(text[i:])
		switch {
		case !ok:
			i += 2 // \n, \\ and the like; what is none is the parser's to tell
		case !utf16.IsSurrogate(unit):
			i += 6
		default:
			low, _ := escape(text[min(i+6, len(text)):])
			if utf16.DecodeRune(unit, low) == utf8.RuneError {
				return Refuse(field, "half a surrogate pair at byte %d: %s", i, text[i:i+6])
			}
			i += 12
		}
		if i >= len(text) {
			return nil
		}
	}
}

// escape returns the unit of UTF-16 that text begins with as \uXXXX.
func escape(text []byte) (unit rune, ok bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	return rune(n), err == nil
}
