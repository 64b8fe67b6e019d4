// Package counters adds numbers up over time.
//
// What happens is counted at once per minute, hour, day, week, month, quarter and
// year, in rows that stay small and are read back as a [Series]. It works on the
// tables of Trifle::Stats, beside programs in other languages that go on writing
// them.
//
//	s := counters.New(pool, counters.Config{})
//	err := s.Track(ctx, "orders", time.Now(), counters.Values{"count": 1, "revenue": 12.5})
//	series, err := s.Values(ctx, counters.Query{Key: "orders", From: from, To: to, Granularity: "1h"})
//
// Numbers are exact: a [Number] holds every digit, and sums of many are right to
// the last of them. A [Calendar] says in which bucket an instant lies.
package counters
