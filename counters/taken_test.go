package counters_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
)

// What is in slots is deleted, renamed, exported, replaced by an import and rebuilt as
// what is in rows is.
func TestWhatIsInSlotsIsNotForgotten(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"k*", "x"}, Granularities: []counters.Granularity{"1h", "1d"}, System: counters.Off})
			count := func(key string) counters.Values {
				t.Helper()
				series, err := s.Values(ctx, counters.Query{Key: key, From: at, To: at, Granularity: "1d"})
				if err != nil {
					t.Fatal(err)
				}
				return series.Values[0]
			}
			track := func(keys ...string) {
				t.Helper()
				for _, key := range keys {
					if err := s.Track(ctx, key, at, counters.Values{"n": 1}); err != nil {
						t.Fatal(err)
					}
				}
			}
			slots := func() (n int) {
				t.Helper()
				if err := pool.QueryRow(ctx, `SELECT count(*) FROM howdah.counter_slots WHERE tbl LIKE quote_ident(current_schema()) || '.%'`).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			track("k", "k", "k::1h", "x")
			if n := slots(); n < 6 {
				t.Fatalf("%d slots", n)
			}
			if n, err := s.Delete(ctx, "k", nil, time.Time{}, time.Time{}); err != nil || n != 2 || len(count("k")) > 0 {
				t.Errorf("Delete = %d, %v", n, err)
			}
			track("k")
			if n, err := s.Rename(ctx, "k", "k2"); err != nil || n != 2 || len(count("k")) > 0 || !cmp.Equal(count("k2"), counters.Values{"n": number(1)}) {
				t.Errorf("Rename = %d, %v; %v", n, err, count("k2"))
			}
			track("k")
			if _, err := s.Rename(ctx, "x", "k"); err == nil || !strings.Contains(err.Error(), "there is such a metric") {
				t.Errorf("%v, want ErrExists", err)
			}
			track("k2")
			if diff := cmp.Diff(counters.Values{"n": number(2)}, stored(t, s)["k2 1d 1746489600"]); diff != "" {
				t.Error(diff)
			}
			track("k2", "new::k")
			if report, err := s.Import(ctx, func(yield func(counters.Row, error) bool) {
				yield(counters.Row{Key: "k2", Granularity: "1d", At: at.Truncate(24 * time.Hour), Values: counters.Values{"n": 7}}, nil)
			}); err != nil || report.Rows != 1 || !cmp.Equal(count("k2"), counters.Values{"n": number(7)}) {
				t.Errorf("%v, %v: %v", report, err, count("k2"))
			}
			if found := differ(t, s, "k2", "1d", "1h", at, at); len(found) != 1 || !found[0].Fine.Equal(number(3)) {
				t.Errorf("%v", found)
			}
			track("k2")
			if n, err := s.Rebuild(ctx, "k2", "1d", at, at); err != nil || n != 1 || !cmp.Equal(count("k2"), counters.Values{"n": number(4)}) {
				t.Errorf("Rebuild = %d, %v: %v", n, err, count("k2"))
			}
			track("k2")
			day := at.Truncate(24 * time.Hour)
			if n, err := s.Replace(ctx, "k2", day, day.AddDate(0, 0, 1), sequenceOf([]counters.Event{{At: at, Values: counters.Values{"n": 10}}}, nil)); err != nil || n != 1 || !cmp.Equal(count("k2"), counters.Values{"n": number(10)}) {
				t.Errorf("Replace = %d, %v: %v", n, err, count("k2"))
			}
			if _, err := s.Fold(ctx); err != nil || slots() != 0 {
				t.Errorf("%d slots are left, %v", slots(), err)
			}
			if found := differ(t, s, "k2", "1d", "1h", at, at); len(found) > 0 || !cmp.Equal(count("k2"), counters.Values{"n": number(10)}) {
				t.Errorf("%v, %v", found, count("k2"))
			}
		})
	}
}
