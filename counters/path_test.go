package counters_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/counters"
)

func TestPathsAsCompatible(t *testing.T) {
	t.Parallel()
	file := golden[struct {
		Paths []struct {
			Path        string
			Segments    []string
			Wildcards   []int
			Rendered    string
			RawSegments []string `json:"raw_segments"`
		}
		Codec   []struct{ Literal, Encoded string }
		Packing []struct {
			Name           string
			Input, Logical counters.Values
			Storage        json.RawMessage
		}
	}](t, "paths_v1.json")
	for _, c := range file.Paths {
		segments, wild, rendered := counters.V1.ParsePath(c.Path)
		wildcards := []int{}
		for i, w := range wild {
			if w {
				wildcards = append(wildcards, i)
			}
		}
		if !slices.Equal(segments, c.Segments) || !slices.Equal(wildcards, c.Wildcards) || rendered != c.Rendered {
			t.Errorf("path %q: %q, wildcards %v, rendered %q, want %+v", c.Path, segments, wildcards, rendered, c)
		}
		if segments, _, _ := counters.Raw.ParsePath(c.Path); !slices.Equal(segments, c.RawSegments) {
			t.Errorf("raw path %q: %q, want %q", c.Path, segments, c.RawSegments)
		}
	}
	for _, c := range file.Codec {
		if got := counters.V1.Encode(c.Literal); got != c.Encoded {
			t.Errorf("%q is stored as %q, want %q", c.Literal, got, c.Encoded)
		}
		if got := counters.V1.Split(c.Encoded); !slices.Equal(got, []string{c.Literal}) {
			t.Errorf("%q is read as %q, want %q", c.Encoded, got, c.Literal)
		}
	}
	for _, c := range file.Packing {
		var storage counters.Values
		if err := json.Unmarshal(c.Storage, &storage); err != nil {
			t.Fatal(err)
		}
		for _, op := range []counters.Op{counters.OpAdd, counters.OpPut} {
			if got, err := counters.V1.Pack(c.Input, op); err != nil || cmp.Diff(storage, got) != "" {
				t.Errorf("%s: %v\n%s", c.Name, err, cmp.Diff(storage, got))
			}
		}
		if got, err := counters.V1.Unpack(string(c.Storage)); err != nil || cmp.Diff(c.Logical, got) != "" {
			t.Errorf("%s: %v\n%s", c.Name, err, cmp.Diff(c.Logical, got))
		}
	}
}

// D10: any name is stored and read back: as it is under raw where it has no dot and
// no NUL, under v1 always.
func TestD10AnyNameComesBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a,b", "a}b", "{a", `a"b`, `a\b`, `a\`, "trailing ", " ", "NULL", "null", "'", "$1", "%", "%2E", "*", "ß", "🎉", "\u2028", "<&>", "\n\t\x01"} {
		for _, e := range []counters.Encoding{counters.Raw, counters.V1} {
			comesBack(t, e, e.Escape(name), name)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 20, -1).Draw(t, "name")
		comesBack(t, counters.V1, counters.V1.Escape(name), name)
		if !strings.ContainsAny(name, ".\x00") {
			comesBack(t, counters.Raw, name, name)
		}
	})
}

func comesBack(t interface {
	Errorf(format string, args ...any)
}, e counters.Encoding, input, name string) {
	sent, err := e.PackJSON(counters.Values{input: 1, "other": 2}, counters.OpAdd)
	if err != nil {
		t.Errorf("%s: %q: %v", e, input, err)
		return
	}
	got, err := e.Unpack(sent[counters.OpAdd])
	want := counters.Values{name: number(1), "other": number(2)}
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%s: %q was sent as %s and read as %v, %v", e, input, sent[counters.OpAdd], got, err)
	}
}

func FuzzPaths(f *testing.F) {
	for _, seed := range []string{"", ".", "..", `a.\.b`, `\`, `\\`, "*", `\*`, "%2E.%", "a.*.b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range []counters.Encoding{counters.Raw, counters.V1} {
			segments, wild, rendered := e.ParsePath(text)
			again, wildAgain, renderedAgain := e.ParsePath(rendered)
			if !slices.Equal(segments, again) || !slices.Equal(wild, wildAgain) || rendered != renderedAgain {
				t.Errorf("%s: %q is %q, rendered %q, that is %q", e, text, segments, rendered, again)
			}
			for _, segment := range segments {
				if e == counters.V1 && !slices.Equal(e.Split(e.Encode(segment)), []string{segment}) {
					t.Errorf("%q is stored as %q", segment, e.Encode(segment))
				}
			}
		}
	})
}
