package checklists_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
)

// Whatever the input, it is items or an Invalid error, and what was read can be
// written and read again.
func FuzzReadItems(f *testing.F) {
	for _, seed := range []string{"a\n\nb\r\n", "a\x00b", `{"item":"a"}`, "\ufeff{}", "\r\n\r", "\xff", "item,a\nb,\"c\"\n", "item,payload\na,{}"} {
		for format := range checklists.Formats {
			f.Add([]byte(seed), format)
		}
	}
	f.Fuzz(func(t *testing.T, input []byte, which int) {
		if which < 0 || which >= len(checklists.Formats) {
			return
		}
		format := checklists.Format(checklists.Formats[which])
		var written bytes.Buffer
		var want []string
		var items []checklists.Item
		for item, err := range checklists.ReadItems(bytes.NewReader(input), format) {
			if err != nil {
				if !errors.Is(err, fault.Invalid) {
					t.Fatalf("%v, want Invalid", err)
				}
				continue // as far as it goes
			}
			if checklists.WriteItems(io.Discard, format, these(item)) == nil {
				items, want = append(items, item), append(want, item.Name)
			}
		}
		if err := checklists.WriteItems(&written, format, these(items...)); err != nil {
			t.Fatal(err)
		}
		for item, err := range checklists.ReadItems(&written, format) {
			if err != nil || len(want) == 0 || item.Name != want[0] {
				t.Fatalf("read %q, %v again, want %q", item.Name, err, want)
			}
			want = want[1:]
		}
		if len(want) > 0 {
			t.Fatalf("%q were not read again", want)
		}
	})
}
