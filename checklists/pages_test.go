package checklists

import (
	"encoding/json"
	"strings"
	"testing"
)

// A page holds what fits into memory, be the payloads of a byte or of a mebibyte.
func TestPagesHoldAsManyBytes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ items, payload, want int }{
		{16, 0, pageItems}, {pageItems, 0, pageItems}, {16, 1 << 20, 3}, {3, 1 << 20, 3}, {1, 8 << 20, 1}, {3, 100, pageItems}, {100, 10_000, 419},
	} {
		items := make([]Item, tc.items)
		for i := range items {
			items[i] = Item{Name: "a", Payload: json.RawMessage(strings.Repeat("x", tc.payload))}
		}
		if got := nextPage(items); got != tc.want {
			t.Errorf("after %d items of %d bytes: %d, want %d", tc.items, tc.payload, got, tc.want)
		}
	}
}
