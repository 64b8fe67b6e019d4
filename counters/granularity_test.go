package counters_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// D17: a granularity that is none is refused by name.
func TestD17GranularitiesThatAreNone(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "0m", "1x", "m", "1M", "-1h", "1000000000s", "1000000s", "01h", "1", "1h ", " 1h", "1.5h", "+1h", "١h", "1mom", "9223372036854775808y"} {
		if _, err := counters.ParseGranularity(text); !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "granularity: ") {
			t.Errorf("ParseGranularity(%q): %v", text, err)
		}
	}
	for _, text := range []string{"1s", "15m", "24h", "5d", "1w", "5mo", "1q", "10y", "999999s"} {
		if g, err := counters.ParseGranularity(text); err != nil || string(g) != text {
			t.Errorf("ParseGranularity(%q) = %q, %v", text, g, err)
		}
	}
	for _, g := range counters.DefaultGranularities {
		if _, err := counters.ParseGranularity(string(g)); err != nil {
			t.Error(err)
		}
	}
	if all, err := counters.ParseGranularities([]string{"1h", "1d", "1h"}); err != nil || len(all) != 2 {
		t.Errorf("ParseGranularities = %q, %v", all, err)
	}
	if _, err := counters.ParseGranularities([]string{"1h", "0d"}); err == nil || !strings.Contains(err.Error(), "granularities[1]: ") {
		t.Errorf("ParseGranularities: %v", err)
	}
	if _, err := counters.LoadLocation("Europe/Nowhere"); !errors.Is(err, fault.Invalid) {
		t.Errorf("LoadLocation: %v", err)
	}
	if loc, err := counters.LoadLocation("GMT"); err != nil || loc.String() != "UTC" {
		t.Errorf("LoadLocation(GMT) = %v, %v", loc, err)
	}
	if _, err := counters.ParseWeekday("someday"); !errors.Is(err, fault.Invalid) {
		t.Errorf("ParseWeekday: %v", err)
	}
}
