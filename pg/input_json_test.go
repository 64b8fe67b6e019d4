package pg_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

func TestCheckJSON(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"a":"plain ä 😀"}`:           "",
		`"\ud83d\ude00"`:              "",
		`"\\ud800"`:                   "", // a backslash and five letters
		`"\n\"\\"`:                    "",
		`"\u0041\u00e4\uFFFD"`:        "",
		`"\ud800"`:                    `half a surrogate pair at byte 1: \ud800`,
		`"\uDC00"`:                    `half a surrogate pair at byte 1: \uDC00`,
		`"\ud800\ud800"`:              `half a surrogate pair at byte 1`,
		`"\ud83d\ude00\ud83d"`:        `half a surrogate pair at byte 13`,
		`"\ud800x\udc00"`:             `half a surrogate pair at byte 1`,
		`"\\\ud800"`:                  `half a surrogate pair at byte 3`,
		"\"\xff\"":                    `invalid UTF-8 at byte 1`,
		"\"\x00\xff\"":                `invalid UTF-8 at byte 2`,
		`\`:                           "",
		`"\u12`:                       "",
		`"\ud800`:                     `half a surrogate pair at byte 1`,
		`"` + strings.Repeat(`\\`, 9): "",
	} {
		err := pg.CheckJSON("body", []byte(text))
		if want == "" && err != nil || want != "" && (!errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "body: "+want)) {
			t.Errorf("CheckJSON(%q) = %v, want %q", text, err, want)
		}
	}
}

// What CheckJSON lets through, encoding/json reads without putting anything in
// the place of something else.
func FuzzCheckJSON(f *testing.F) {
	for _, seed := range []string{`\ud83d\ude00`, `\ud800`, `\\ud800`, "\xff", `a\u0000`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, inner string) {
		text := []byte(`"` + inner + `"`)
		var got string
		if json.Unmarshal(text, &got) != nil || strings.Contains(strings.ToLower(inner), "fffd") || strings.Contains(inner, "\ufffd") {
			return
		}
		refused := pg.CheckJSON("body", text) != nil
		if replaced := strings.Contains(got, "\ufffd"); replaced != refused {
			t.Errorf("CheckJSON(%q) refused = %v, json replaced = %v", text, refused, replaced)
		}
	})
}
