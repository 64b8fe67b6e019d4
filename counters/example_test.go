package counters_test

import (
	"fmt"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// The bucket of an instant begins by the clocks of a zone.
func ExampleCalendar_Floor() {
	zone, err := counters.LoadLocation("America/New_York")
	if err != nil {
		fmt.Println(err)
		return
	}
	c := counters.Calendar{Location: zone, WeekStart: counters.Sunday}
	at := time.Date(2025, 3, 20, 13, 44, 0, 0, time.UTC)
	for _, g := range []counters.Granularity{"15m", "1d", "1w", "1mo"} {
		fmt.Println(g, c.Floor(g, at).Format(time.RFC3339))
	}
	// Output:
	// 15m 2025-03-20T09:30:00-04:00
	// 1d 2025-03-20T00:00:00-04:00
	// 1w 2025-03-16T00:00:00-04:00
	// 1mo 2025-03-01T00:00:00-05:00
}

// What a line of an access log counts.
func ExampleParseAccess() {
	e, err := counters.ParseAccess(`203.0.113.7 - - [17/May/2015:10:05:03 +0000] "GET /a.png HTTP/1.1" 200 2326 "-" "-"`)
	if err != nil {
		fmt.Println(err)
		return
	}
	text, _ := e.Values.MarshalJSON()
	fmt.Println(e.At.UTC(), string(text))
	// Output: 2015-05-17 10:05:03 +0000 UTC {"bytes":2326,"method":{"GET":1},"requests":1,"size":{"$hist":2326},"status":{"2xx":1},"visitors":{"$distinct":"203.0.113.7"}}
}

// Percentiles of what a Hist has counted.
func ExampleSeries_Quantile() {
	s := &counters.Series{
		At: []time.Time{time.Unix(0, 0), time.Unix(60, 0)},
		Values: []counters.Values{
			{"latency": counters.Values{"380e-1": 90, "420e-1": 5}},
			{"latency": counters.Values{"900e-1": 4, "250e0": 1}},
		},
	}
	for _, q := range []float64{0.5, 0.95, 1} {
		values, err := s.Quantile(q, "latency", 1)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(q, values[0])
	}
	// Output:
	// 0.5 38.25
	// 0.95 42.25
	// 1 252.5
}

// A number that is calculated from others, in each point.
func ExampleSeries_Expression() {
	s := &counters.Series{
		At:     []time.Time{time.Unix(0, 0), time.Unix(60, 0)},
		Values: []counters.Values{{"revenue": 12.5, "orders": 2}, {"orders": 0}},
	}
	s, err := s.Expression([]string{"revenue", "orders"}, "a / b", "average")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Values[0]["average"], s.Values[1]["average"])
	// Output: 6.25 null
}

// Designators name the bucket of a histogram with bounds.
func ExampleLinear() {
	d, err := counters.Linear(0, 100, 10)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, v := range []any{0, 41.5, 100, 101} {
		bucket, _ := d.Bucket(v)
		fmt.Println(bucket)
	}
	// Output:
	// 0
	// 50
	// 100
	// 100+
}
