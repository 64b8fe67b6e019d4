package counters

import (
	"cmp"
	"iter"
	"slices"
	"strings"
)

// Rows are locked in one order, so that none who hold some wait for each other in a circle.
// It has to be the one of the original, whose programs repeat nothing that a deadlock took
// from them: these go from granularity to granularity of an event, in practice from the
// shorter to the longer, and from the row of the metric to that of the system. Beyond that
// the order is that of the bytes.

// inOrder returns each of rows once, in the order in which they are locked.
func inOrder(rows iter.Seq[rowID]) []rowID {
	type ranked struct {
		rowID
		rank int64
	}
	var all []ranked
	for id := range rows {
		all = append(all, ranked{id, id.rank()})
	}
	slices.SortFunc(all, func(a, b ranked) int {
		if a.rank != b.rank {
			return cmp.Compare(a.rank, b.rank)
		}
		return a.byBytes(b.rowID)
	})
	ids := make([]rowID, len(all))
	for i, one := range all {
		ids[i] = one.rowID
	}
	return slices.Compact(ids)
}

// compare is the order in which rows are locked.
func (a rowID) compare(b rowID) int {
	return cmp.Or(cmp.Compare(a.rank(), b.rank()), a.byBytes(b))
}

func (a rowID) byBytes(b rowID) int {
	return cmp.Or(strings.Compare(a.key, b.key), strings.Compare(a.granularity, b.granularity), cmp.Compare(a.at, b.at))
}

// rank is what comes before the bytes in the order. A row that is of no bucket is the first.
func (a rowID) rank() int64 {
	if a.granularity != "" {
		return rankOf(a.key, Granularity(a.granularity))
	}
	return rankOf(a.key, lastGranularity(a.key))
}

func rankOf(name string, g Granularity) int64 {
	rank := 2 * g.length()
	if strings.HasPrefix(name, systemKey) {
		rank++
	}
	return rank
}

// lastGranularity is what looks like one in the end of a key, before the seconds if there
// are any. It asks nobody for the separator: in the order of locks all that counts is that
// everybody finds the same.
func lastGranularity(key string) Granularity {
	rest := strings.TrimRight(key, "0123456789")
	rest = strings.TrimRightFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') })
	number := strings.TrimRight(rest, "smhdwoqy")
	return Granularity(rest[len(strings.TrimRight(number, "0123456789")):])
}

// inLockOrder sorts heads as their rows are locked.
func (t *table) inLockOrder(heads []head) {
	slices.SortFunc(heads, func(a, b head) int {
		return cmp.Or(cmp.Compare(t.rank(a), t.rank(b)), t.byBytes(a, b))
	})
}

// rank is that of the rows of a head, whatever the separator makes of their keys.
func (t *table) rank(h head) int64 {
	id, _ := t.bucket(h.name, h.g, firstRanged)
	return id.rank()
}

// inByteOrder sorts heads as their rows lie in the table.
func (t *table) inByteOrder(heads []head) { slices.SortFunc(heads, t.byBytes) }

func (t *table) byBytes(a, b head) int {
	return cmp.Or(strings.Compare(t.prefix(a), t.prefix(b)), strings.Compare(string(a.g), string(b.g)))
}
