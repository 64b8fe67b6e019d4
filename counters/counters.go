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
// the last of them. A [Calendar] says in which bucket an instant lies. What is no
// plain sum, such as the largest, a histogram or who was seen, is a [Leaf].
//
// A [Store] counts, reads and mends. What counts is one transaction, or part of the
// caller's: [Store.WithTx]. An [Event] with an ID is applied once, however often it
// is sent. What many count at once shares transactions in a [Writer]. A [Keeper]
// does what a table needs now and then, and has to run somewhere: in howdah serve,
// or in a program of yours.
//
// [Store.Setup] makes a table and records how it counts, and [Store.Adopt] takes
// over one that was there. Without a record the defaults of a [Config] hold.
//
// Errors have a kind of package fault: what cannot be is Invalid and names the field,
// and has written nothing.
package counters
