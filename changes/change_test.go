package changes_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/howdah-db/howdah/changes"
)

// What compact makes of the JSON that PostgreSQL writes is what the standard
// library makes of any.
func FuzzCompact(f *testing.F) {
	for _, text := range []string{
		`{}`, `[]`, `{"a": 1, "b": [1, 2.50, -3e10], "c": {"d": null}}`, `""`, `" "`, `{" a ": " b, c : d "}`,
		`{"q": "\" , \\", "r": "\\\\ \" x"}`, `{"\\": " ", "é ü": "\u0020  \" :"}`, `[true, false, null]`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var want bytes.Buffer
		if json.Compact(&want, text) != nil || bytes.ContainsAny(text, "\t\r\n") {
			return // PostgreSQL writes no such thing
		}
		if got := changes.Compact(bytes.Clone(text)); !bytes.Equal(got, want.Bytes()) {
			t.Errorf("compact(%s) = %s, want %s", text, got, want.Bytes())
		}
	})
	if got := changes.Compact(nil); got != nil {
		f.Errorf("compact(nil) = %q", got)
	}
}
