package checklists

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// MaxPayload is how many bytes the payload of an item may have.
const MaxPayload = 1 << 20

// What jsonb holds of numbers and nesting depends on settings of the server; so
// much it always does.
const (
	maxNumber  = 1000 // digits, and powers of ten
	maxNesting = 1000
)

// bare reports whether an item is its name and nothing else that could be stored.
func (i *Item) bare() bool { return i.Payload == nil && i.Priority == 0 && i.Due.IsZero() }

// checkItem refuses an item that cannot be put on list.
func checkItem(field, list string, item *Item) error {
	if err := checkName(field, list, item.Name); err != nil || item.bare() {
		return err
	}
	if item.Priority < -5 || item.Priority > 5 {
		return pg.Refuse(field, "priority %d; want -5 to 5", item.Priority)
	}
	if year := item.Due.UTC().Year(); year < 1 || year > 9999 {
		return pg.Refuse(field, "due in the year %d; want 1 to 9999", year)
	}
	if problem := badPayload(*item); problem != "" {
		return pg.Refuse(field, "payload: %s", problem)
	}
	return nil
}

// hasPayload reports whether an item says more than null.
func hasPayload(item Item) bool {
	text := bytes.TrimSpace(item.Payload)
	return len(text) > 0 && string(text) != "null"
}

// badPayload says why the payload of an item cannot be stored, "" where it can:
// what is no JSON, and JSON that a jsonb column cannot hold.
func badPayload(item Item) string {
	payload := item.Payload
	var refused *pg.InputError
	switch {
	case !hasPayload(item):
		return ""
	case len(payload) > MaxPayload:
		return thousands(len(payload)) + " bytes; want at most " + thousands(MaxPayload)
	case !json.Valid(payload):
		return fmt.Sprintf("no JSON (%v)", json.Unmarshal(payload, new(json.RawMessage)))
	case errors.As(pg.CheckJSON("payload", payload), &refused):
		return refused.Problem
	}
	return notForJSONB(payload)
}

// notForJSONB says why jsonb cannot hold valid JSON, "" where it can.
func notForJSONB(text []byte) string {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			for i++; text[i] != '"'; i++ {
				if text[i] != '\\' {
					continue
				}
				if bytes.HasPrefix(text[i:], []byte(`\u0000`)) {
					return `\u0000 in a string; PostgreSQL cannot store it`
				}
				i++
			}
		case c == '{' || c == '[':
			if depth++; depth > maxNesting {
				return "nested more than " + thousands(maxNesting) + " deep"
			}
		case c == '}' || c == ']':
			depth--
		case c == '-' || c >= '0' && c <= '9':
			end := i
			for end < len(text) && strings.IndexByte("+-.eE0123456789", text[end]) >= 0 {
				end++
			}
			digits, power, _ := strings.Cut(strings.ToLower(string(text[i:end])), "e")
			if n, err := strconv.Atoi(power); len(digits) > maxNumber || power != "" && (err != nil || n < -maxNumber || n > maxNumber) {
				return "the number at byte " + strconv.Itoa(i) + " is too long or too large"
			}
			i = end - 1
		}
	}
	return ""
}

// parseDue reads when an item is due.
func parseDue(text string) (time.Time, error) {
	due, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return due, pg.Refuse("due", "%q; want a time such as 2026-11-20T14:05:00Z", text)
	}
	return due, nil
}
