package counters

import (
	"slices"
	"testing"
)

// Rows are locked as the original does: of an event from the shorter granularity to the
// longer, of each the metric's before the system's, in tables of every mode.
func TestOrderOfLocks(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string][]rowID{
		"full": {
			{key: "1x"}, {key: "test::now"},
			{key: "a::1m::60"}, {key: "b::1m::-60"}, {key: "b::1m::60"}, {key: "__system__key__::1m::60"},
			{key: "a::15m::0"}, {key: "a::1h::0"}, {key: "__system__key__::1h::0"}, {key: "7/3d::1d::0"}, {key: "a::1d::0"},
			{key: "a::1w::0"}, {key: "a::1mo::0"}, {key: "a::1q::0"}, {key: "a::1y::0"}, {key: "__system__key__::1y::0"},
		},
		"partial": {
			{key: "a::1m", at: 60}, {key: "a::1m", at: 120}, {key: "__system__key__::1m", at: 60},
			{key: "a::1h"}, {key: "a::1d"}, {key: "__system__key__::1d"},
		},
		"separated": {
			{key: "a::1y", granularity: "1m", at: 60}, {key: "b", granularity: "1m"}, {key: "__system__key__", granularity: "1m"},
			{key: "a", granularity: "1h"}, {key: "a", granularity: "1d"},
		},
		"another separator": {{key: "a/1m/60"}, {key: "__system__key__/1m/60"}, {key: "a/1h/0"}, {key: "É–1d–0"}, {key: "a/1w/0"}},
	} {
		mixed := slices.Clone(want)
		slices.Reverse(mixed)
		if got := inOrder(slices.Values(append(mixed, want...))); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", mode, got, want)
		}
		if !slices.IsSortedFunc(want, rowID.compare) {
			t.Errorf("%s: compare says otherwise", mode)
		}
	}
}

// Rows have the rank of their heads, also where the separator looks like a part of a label.
func TestRankOfHeads(t *testing.T) {
	t.Parallel()
	for _, mode := range []Mode{Full, Partial, Separated} {
		for _, separator := range []string{"::", "o", "s", "d", "x", "m", "0", "-"} {
			of := &table{mode: mode, separator: separator}
			for _, g := range defaultGranularities {
				for _, at := range []int64{1746522000, 60, -60} {
					id, _ := of.bucket("k", g, at)
					if row, head := id.rank(), of.rank(head{"k", g}); row != head {
						t.Errorf("%s, separator %q: %q has the rank %d, its head %d", mode, separator, id.key, row, head)
					}
				}
			}
		}
	}
}
