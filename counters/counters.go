// Package counters adds numbers up over time.
//
// What happens is counted at once per minute, hour, day, week, month, quarter and
// year, in rows that stay small and are read back as a [Series]. It works on the
// tables of Trifle::Stats, beside programs in other languages that go on writing
// them.
//
// Numbers are exact: a [Number] holds every digit, and sums of many are right to
// the last of them. A [Calendar] says in which bucket an instant lies.
package counters
