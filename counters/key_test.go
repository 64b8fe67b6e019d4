package counters_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/counters"
)

func TestKeysAreReadFromTheRight(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		separator, key, name string
		g                    counters.Granularity
		unix                 int64
	}{
		{"::", "orders::1h::1746522000", "orders", "1h", 1746522000},
		{"::", "event::signup::1mo::-86400", "event::signup", "1mo", -86400},
		{"::", "a::1h::5::1d::0", "a::1h::5", "1d", 0},
		{"::", "a:::1h::1", "a:", "1h", 1},
		{"/", "země/15m/7", "země", "15m", 7},
	} {
		name, g, unix, ok := counters.SplitFull(test.separator, test.key)
		if !ok || name != test.name || g != test.g || unix != test.unix {
			t.Errorf("%q is %q, %s, %d, %v, want %+v", test.key, name, g, unix, ok, test)
		}
		if got := counters.FullKey(test.separator, name, g, unix); got != test.key {
			t.Errorf("the key is %q, want %q", got, test.key)
		}
	}
	for _, key := range []string{
		"", "test::now", "1h::5", "::1h::5", "a::1x::5", "a::1h::", "a::1h::5 ", "a::1h::+5", "a::1h::05", "a::1h::-0",
		"a::1h::1e3", "a::01h::5", "a::1h::99999999999999999999", "a:1h:5",
	} {
		if name, g, unix, ok := counters.SplitFull("::", key); ok {
			t.Errorf("%q is %q, %s, %d, want no bucket", key, name, g, unix)
		}
	}
	if got := (counters.Key{"orders", "1h", "5"}).Join("::"); got != "orders::1h::5" {
		t.Errorf("the key is %q", got)
	}
	if name, g, ok := counters.SplitPartial("::", "a::b::1h"); !ok || name != "a::b" || g != "1h" {
		t.Errorf("a::b::1h is %q, %s, %v", name, g, ok)
	}
}

func TestKeysComeBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		separator := rapid.SampledFrom([]string{"::", ":", "/", "|", ".."}).Draw(t, "separator")
		name := rapid.StringN(1, 30, -1).Draw(t, "name")
		unix := rapid.Int64().Draw(t, "unix")
		got, g, at, ok := counters.SplitFull(separator, counters.FullKey(separator, name, "12mo", unix))
		if !ok || got != name || g != "12mo" || at != unix {
			t.Fatalf("%q, %d came back as %q, %s, %d, %v", name, unix, got, g, at, ok)
		}
	})
}
