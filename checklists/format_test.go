package checklists_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
)

func gzipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// inWords are what is read: items as a line of words each, and errors.
func inWords(src iter.Seq2[checklists.Item, error]) (items []string, errs []error) {
	for item, err := range src {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		words := item.Name
		if item.Priority != 0 {
			words += fmt.Sprint(" priority ", item.Priority)
		}
		if !item.Due.IsZero() {
			words += " due " + item.Due.Format(time.RFC3339)
		}
		if item.Payload != nil {
			words += " payload " + string(item.Payload)
		}
		items = append(items, words)
	}
	return items, errs
}

// What is wrong is told with its place, and what follows a line that is wrong can
// be read; what is wrong with the whole of the source is told once.
func TestReadItems(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 1001) + strings.Repeat("]", 1001)
	for name, tc := range map[string]struct {
		format checklists.Format
		in     string
		want   []string
		errs   []string
	}{
		"lines":            {checklists.Text, "one\n\ntwo\r\n  \nthree ", []string{"one", "two", "three "}, nil},
		"byte order mark":  {checklists.Text, "\ufeffone\n", []string{"one"}, nil},
		"nothing":          {checklists.Text, "", nil, nil},
		"a line too long":  {checklists.Text, "a\n" + strings.Repeat("x", 1<<21) + "\nb", []string{"a", "b"}, []string{"line 2: over 1,048,576 bytes"}},
		"an endless line":  {checklists.Text, strings.Repeat("x", 1<<22), nil, []string{"line 1: over 1,048,576 bytes"}},
		"a NUL":            {checklists.Text, "a\n\nb\x00\nc", []string{"a", "c"}, []string{"line 3: a NUL byte at byte 1"}},
		"invalid UTF-8":    {checklists.Text, "a\nb\xff\nc\n", []string{"a", "c"}, []string{"line 2: invalid UTF-8 at byte 1"}},
		"names too long":   {checklists.Text, strings.Repeat("x", 2601) + "\nb\n" + strings.Repeat("x", 2601), []string{"b"}, []string{"line 1: 2,601 bytes", "line 3: 2,601 bytes"}},
		"gzip":             {checklists.Text, gzipped(t, "a\nb\n"), []string{"a", "b"}, nil},
		"a gzip cut short": {checklists.Text, gzipped(t, strings.Repeat("abcdefgh\n", 3)+"last")[:30], []string{"abcdefgh", "abcdefgh", "abcdefgh"}, []string{"gzip: unexpected EOF after line 3"}},
		"half a gzip":      {checklists.Text, "\x1f\x8b", nil, []string{"gzip: unexpected EOF"}},
		"a picture":        {checklists.Text, "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\n", nil, []string{"source: binary data; want text in UTF-8"}},
		"xz":               {checklists.JSONL, "\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46", nil, []string{"source: packed with xz; want it unpacked, or with gzip"}},
		"UTF-16":           {checklists.CSV, "\xff\xfei\x00t\x00e\x00m\x00\n\x00", nil, []string{"source: UTF-16; want UTF-8"}},
		"a letter cut":     {checklists.Text, strings.Repeat("ä", 2000), nil, []string{"line 1: 4,000 bytes"}},
		"unknown":          {"xml", "<a/>", nil, []string{`format: "xml"; want one of text, nul, csv, jsonl`}},

		"NULs":           {checklists.NUL, "a\nb\x00\x00c", []string{"a\nb", "", "c"}, nil},
		"a mark, exact":  {checklists.NUL, "\ufeffa\x00", []string{"\ufeffa"}, nil},
		"NULs and UTF-8": {checklists.NUL, "a\x00\xff\x00b\x00", []string{"a", "b"}, []string{"item 2: invalid UTF-8 at byte 0"}},

		"objects": {checklists.JSONL, "{\"item\":\"a\",\"attempts\":3,\"error\":\"e\",\"tried\":\"2026-11-20T14:05:00Z\",\"worker\":\"w\",\"state\":\"dead\"}\n\n{\"item\":\"\"}\n", []string{"a", ""}, nil},
		"all of it": {checklists.JSONL, `{"item":"a","priority":-5,"due":"2026-11-20T14:05:00Z","payload":{"n":1}}` + "\n" + `{"item":"b","payload":null,"due":null}`,
			[]string{`a priority -5 due 2026-11-20T14:05:00Z payload {"n":1}`, "b"}, nil},
		"the end of a lease":  {checklists.JSONL, `{"item":"a","state":"leased","due":"2026-11-20T14:05:00Z"}`, []string{"a"}, nil},
		"no object":           {checklists.JSONL, "{\"item\":\"a\"}\nb\n5\n[]\n{\"item\":\"c\"}", []string{"a", "c"}, []string{"line 2: no JSON", "line 3: want an object", "line 4: want an object"}},
		"half an object":      {checklists.JSONL, "{\"item\":\"a\"", nil, []string{"line 1: no JSON"}},
		"two on a line":       {checklists.JSONL, `{"item":"a"}{"item":"b"}`, nil, []string{"line 1: no JSON (invalid character '{' after top-level value)"}},
		"object with no item": {checklists.JSONL, "{}\n{\"name\":\"b\"}", nil, []string{`line 1: the object has no "item"`, `line 2: the object has no "item"`}},
		"a member too many":   {checklists.JSONL, `{"item":"a","size":3}`, nil, []string{`line 1: unknown member "size"; want item, payload, priority, due`}},
		"odd members":         {checklists.JSONL, ` { "payload" : {"size":[{"x":1}],"\"":":"} , "ITEM" : ":\":" } `, []string{`:": payload {"size":[{"x":1}],"\"":":"}`}, nil},
		"invalid UTF-8, JSON": {checklists.JSONL, "{\"item\":\"a\"}\n{\"item\":\"\xff\"}\n", []string{"a"}, []string{"line 2: item: invalid UTF-8 at byte 9"}},
		"half a surrogate":    {checklists.JSONL, `{"item":"\ud800"}`, nil, []string{`line 1: item: half a surrogate pair at byte 9: \ud800`}},
		"priorities": {checklists.JSONL, `{"item":"a","priority":6}` + "\n" + `{"item":"a","priority":2.5}` + "\n" + `{"item":"a","priority":"high"}`, nil,
			[]string{"line 1: priority 6; want -5 to 5", "line 2: priority: a number 2.5; want a whole number from -5 to 5", "line 3: priority: a string; want a whole number"}},
		"dues": {checklists.JSONL, `{"item":"a","due":"infinity"}` + "\n" + `{"item":"a","due":5}` + "\n" + `{"item":"a","due":"0000-01-01T00:00:00Z"}`, nil,
			[]string{`line 1: due: "infinity"; want a time such as 2026-11-20T14:05:00Z`, "line 2: due: a number; want a time", "line 3: due in the year 0; want 1 to 9999"}},
		"payloads": {checklists.JSONL, `{"item":"a","payload":"x\u0000"}` + "\n" + `{"item":"a","payload":{"a":}}` + "\n" + `{"item":"a","payload":"` + strings.Repeat("x", 1<<20) + `"}` + "\n" +
			`{"item":"a","payload":1e2000}` + "\n" + `{"item":"a","payload":` + deep + "}\n" + `{"item":"a","payload":["\\u0000",-1.5e-300]}`,
			[]string{`a payload ["\\u0000",-1.5e-300]`},
			[]string{`line 1: payload: \u0000 in a string; PostgreSQL cannot store it`, "line 2: no JSON", "line 3: payload: 1,048,578 bytes; want at most 1,048,576",
				"line 4: payload: the number at byte 0 is too long or too large", "line 5: payload: nested more than 1,000 deep"}},
		"an endless object": {checklists.JSONL, `{"item":"` + strings.Repeat("x", 1<<22), nil, []string{"line 1: over 2,097,152 bytes"}},

		"a table": {checklists.CSV, "\ufeffname,item,size\r\n\r\n\"b, c\",a.txt,1\r\n,\"x\ny\",", []string{`a.txt payload {"name":"b, c","size":"1"}`, "x\ny payload {\"name\":\"\",\"size\":\"\"}"}, nil},
		"all columns": {checklists.CSV, "item,priority,due,payload\na,5,2026-11-20T14:05:00Z,\"{\"\"n\"\":1}\"\nb,,,\n,,,null\n",
			[]string{`a priority 5 due 2026-11-20T14:05:00Z payload {"n":1}`, "b", ""}, nil},
		"a header only":      {checklists.CSV, "item\n", nil, nil},
		"no header":          {checklists.CSV, "", nil, []string{"line 1: nothing is there; want a header with the column item"}},
		"no column item":     {checklists.CSV, "name,size\na,1\n", nil, []string{"line 1: the header has no column item: name, size"}},
		"a column twice":     {checklists.CSV, "item,a,a\n", nil, []string{`line 1: the header names the column "a" twice`}},
		"a column of naught": {checklists.CSV, "item,\n", nil, []string{"line 1: column 2 of the header has no name"}},
		"payload and others": {checklists.CSV, "item,payload,a\n", nil, []string{"line 1: the header has the column payload and others"}},
		"ragged rows":        {checklists.CSV, "item,a\nb\nc,1\nd,1,2\n\ne,2", []string{`c payload {"a":"1"}`, `e payload {"a":"2"}`}, []string{"line 2: fields: 1; the header has 2", "line 4: fields: 3; the header has 2"}},
		"a bare quote":       {checklists.CSV, "item\na\"b\nc", []string{"c"}, []string{`line 2: column 2: bare " in non-quoted-field`}},
		"an open quote":      {checklists.CSV, "item\na\n\"b\nc\n", []string{"a"}, []string{`line 3: column 3: extraneous or missing " in quoted-field`}},
		"an endless quote":   {checklists.CSV, "item\na\n\"" + strings.Repeat("b\n", 1<<21), []string{"a"}, []string{"line 3: the row that begins here is over 2,097,152 bytes; is a quote not closed?"}},
		"bad cells": {checklists.CSV, "item,priority,due,payload\na,high,,\na,6,,\na,,infinity,\na,,,{\na,,,\"\"\"\\u0000\"\"\"\n", nil,
			[]string{`line 2: priority: "high"; want a whole number from -5 to 5`, "line 3: priority 6; want -5 to 5", `line 4: due: "infinity"; want a time such as`, "line 5: payload: no JSON (unexpected end",
				`line 6: payload: \u0000 in a string; PostgreSQL cannot store it`}},
		"bad other cells":  {checklists.CSV, "item,a\nb,\xff\nc,\x00\n\xff,d", nil, []string{"line 2: a: invalid UTF-8 at byte 0", "line 3: a: a NUL byte at byte 0", "line 4: invalid UTF-8 at byte 0"}},
		"a bad gzip table": {checklists.CSV, gzipped(t, "name\na\n"), nil, []string{"line 1: the header has no column item: name"}},
	} {
		if name == "bad other cells" { // which together look like no text at all
			tc.in = strings.Replace(tc.in, "b,", "b"+strings.Repeat("b", 600)+",", 1)
		}
		got, errs := inWords(checklists.ReadItems(strings.NewReader(tc.in), tc.format))
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if len(errs) != len(tc.errs) {
			t.Errorf("%s: %v, want %q", name, errs, tc.errs)
			continue
		}
		for i, err := range errs {
			if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), tc.errs[i]) {
				t.Errorf("%s: %v, want %q", name, err, tc.errs[i])
			}
		}
	}
}

// Whatever is written in a format is read back as it was; what a format cannot
// hold is refused.
func TestFormatsRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		format := checklists.Format(rapid.SampledFrom(checklists.Formats).Draw(t, "format"))
		var items []checklists.Item
		for _, item := range rapid.SliceOf(anyItem).Draw(t, "items") {
			switch err := checklists.WriteItems(io.Discard, format, these(item)); {
			case err == nil:
				items = append(items, carried(format, item))
			case !errors.Is(err, fault.Invalid) || format == checklists.NUL || format == checklists.JSONL:
				t.Fatalf("%s, %+v: %v", format, item, err)
			}
		}
		var written bytes.Buffer
		if err := checklists.WriteItems(&written, format, these(items...)); err != nil {
			t.Fatal(err)
		}
		got, errs := inWords(checklists.ReadItems(&written, format))
		want, _ := inWords(these(items...))
		if len(errs) > 0 || !slices.Equal(got, want) {
			t.Fatalf("%s: read %q, %v, wrote %q", format, got, errs, want)
		}
	})
}

// anyItem are items that can be put on a list.
var anyItem = rapid.Custom(func(t *rapid.T) checklists.Item {
	item := checklists.Item{Name: rapid.StringOf(rapid.RuneFrom([]rune("ab \t\n\r\\\"',.;{}'😀é\u2028\ufeff\x1b"))).Draw(t, "name")}
	if rapid.Bool().Draw(t, "more") {
		item.Priority = rapid.IntRange(-5, 5).Draw(t, "priority")
		if rapid.Bool().Draw(t, "waits") {
			item.Due = time.UnixMicro(rapid.Int64Range(-1e15, 250e15).Draw(t, "due")).UTC()
		}
		item.Payload = rapid.SampledFrom([]json.RawMessage{nil, []byte(`{}`), []byte(`"\u2028 é \\ \" , <&>"`), []byte(`[1,-2.5,1e30,true,false,null,{"a":{"b":[]}}]`),
			[]byte(`{"":"","item":"\r\n"}`), []byte(`0`), []byte(`false`)}).Draw(t, "payload")
	}
	return item
})

// carried is what a format keeps of an item.
func carried(format checklists.Format, item checklists.Item) checklists.Item {
	if format == checklists.Text || format == checklists.NUL {
		return checklists.Item{Name: item.Name}
	}
	return item
}

// A source that breaks off in the middle of a name has no such name.
func TestReadItemsOfABrokenSource(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, format := range []checklists.Format{checklists.Text, checklists.NUL, checklists.CSV, checklists.JSONL} {
		whole := map[checklists.Format]string{
			checklists.Text:  "one\ntw",
			checklists.NUL:   "one\x00tw",
			checklists.CSV:   "item\none\ntw",
			checklists.JSONL: "{\"item\":\"one\"}\n{\"item\":\"tw\"}", // whole as it stands, and yet perhaps not
		}[format]
		var got []string
		var failed error
		for item, err := range checklists.ReadItems(io.MultiReader(strings.NewReader(whole), iotest.ErrReader(broken)), format) {
			if failed = err; err == nil {
				got = append(got, item.Name)
			}
		}
		if !slices.Equal(got, []string{"one"}) || !errors.Is(failed, broken) {
			t.Errorf("%s: %q, %v, want one and what broke", format, got, failed)
		}
	}
}
