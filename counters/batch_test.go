package counters

import (
	"fmt"
	"testing"
	"time"
	"unsafe"
)

// What an event writes is made to text once, however many rows get it.
func TestEventsArePackedOnce(t *testing.T) {
	t.Parallel()
	for _, mode := range []Mode{Full, Partial, Separated} {
		of := &table{layout: layouts[mode], recent: new(recent), mode: mode, separator: "::", granularities: defaultGranularities, calendar: Calendar{Location: time.UTC, WeekStart: Monday}, system: Off, paths: Raw}
		const events = 50
		var f fold
		for i := range events {
			w, err := of.writes(Event{Key: fmt.Sprint("k", i), At: time.Unix(1746522000, 0), Values: Values{"n": i, "most": Max(i)}})
			if err == nil {
				err = w.into(&f)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		statements := New(nil, Config{}).batch(of, &f).QueuedQueries
		if len(statements) != 2 {
			t.Fatalf("%s: %d statements, want one of each operation", mode, len(statements))
		}
		for _, q := range statements {
			texts := map[*byte]bool{}
			data := q.Arguments[len(q.Arguments)-1].([]string)
			for _, text := range data {
				texts[unsafe.StringData(text)] = true
			}
			if want := events * len(defaultGranularities); len(data) != want || len(texts) != events {
				t.Errorf("%s: %d rows get %d texts, want %d and %d", mode, len(data), len(texts), want, events)
			}
		}
	}
}
