package counters_test

import (
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// What an event costs before PostgreSQL hears of it: a hot key in 4 granularities, and
// keys of their own.
func BenchmarkFold(b *testing.B) {
	granularities := []counters.Granularity{"1m", "1h", "1d", "1mo"}
	values := counters.Values{"count": 1, "bytes": 1234, "revenue": 12.5}
	for _, keys := range []int{1, 1000} {
		names := make([]string, keys)
		for i := range names {
			names[i] = "key" + string(rune('a'+i%26)) + time.Duration(i).String()
		}
		b.Run(names[keys-1], func(b *testing.B) {
			b.ReportAllocs()
			f := counters.NewFold(counters.Off, nil)
			for i := range b.N {
				if i%8000 == 0 {
					f.Statements()
					f = counters.NewFold(counters.Off, nil)
				}
				e := counters.Event{Key: names[i%keys], At: at.Add(time.Duration(i) * time.Microsecond), Values: values, Granularities: granularities}
				if err := f.Take(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
