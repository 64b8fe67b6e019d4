package counters

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// Leaf is a leaf of a Track that is no plain sum. It expands into plain numeric
// fields, which other programs read as any other. What is wrong with its value is
// told when it is written.
type Leaf struct {
	kind  leafKind
	value any
}

type leafKind string

const (
	leafMax      leafKind = "max"
	leafMin      leafKind = "min"
	leafPut      leafKind = "put"
	leafStat     leafKind = "stat"
	leafHist     leafKind = "hist"
	leafDistinct leafKind = "distinct"
)

// Max keeps the larger of v and what the field holds.
func Max(v any) Leaf { return Leaf{leafMax, v} }

// Min keeps the smaller of v and what the field holds.
func Min(v any) Leaf { return Leaf{leafMin, v} }

// Put puts v, any JSON, in the place of what the field holds: a gauge inside a Track.
func Put(v any) Leaf { return Leaf{leafPut, v} }

// Stat counts v in the fields count, sum, square, min and max below its own.
func Stat(v any) Leaf { return Leaf{leafStat, v} }

// Hist counts v in a bucket of a histogram that needs no bounds, so that quantiles
// can be told within 1.25 %. Each bucket is a field below its own.
func Hist(v any) Leaf { return Leaf{leafHist, v} }

// Distinct remembers member among those that were seen, so that their number can be
// told within a few percent (one sigma is 3.25 %), in at most 1,024 fields below its
// own.
func Distinct(member string) Leaf { return Leaf{leafDistinct, member} }

// ParseLeaf returns the leaf of a kind: max, min, put, stat, hist or distinct. Another
// kind, and a distinct of what is no text, are Invalid.
func ParseLeaf(kind string, v any) (Leaf, error) {
	switch leafKind(kind) {
	case leafMax, leafMin, leafPut, leafStat, leafHist:
		return Leaf{leafKind(kind), v}, nil
	case leafDistinct:
		if member, ok := v.(string); ok {
			return Distinct(member), nil
		}
		return Leaf{}, pg.Refuse("distinct", "%s; want a text", describe(v))
	}
	return Leaf{}, pg.Refuse("leaf", "%q; want max, min, put, stat, hist or distinct", kind)
}

// MarshalJSON returns the leaf as ParseValues reads it: {"$max": 120}.
func (l Leaf) MarshalJSON() ([]byte, error) {
	b, problem := appendJSON([]byte(`{"$`+string(l.kind)+`":`), l.value, 0)
	if problem != "" {
		return nil, pg.Refuse(string(l.kind), "%s", problem)
	}
	return append(b, '}'), nil
}

// fields returns what the leaf writes below its own path ("" is that path), or what
// is wrong with it. Put is not for here: its value may be a map.
func (l Leaf) fields() (fields []field, problem string) {
	if l.kind == leafDistinct {
		member, _ := l.value.(string)
		if member == "" {
			return nil, "an empty member"
		}
		if err := pg.CheckText("member", strings.ReplaceAll(member, "\x00", "")); err != nil {
			return nil, err.Error()
		}
		register, rank := registerOf(member)
		return []field{{path: register, op: OpMax, number: whole(rank)}}, ""
	}
	n, problem := numberOf(l.value)
	if problem != "" {
		return nil, problem
	}
	switch l.kind {
	case leafMax:
		return []field{{op: OpMax, number: n}}, ""
	case leafMin:
		return []field{{op: OpMin, number: n}}, ""
	case leafHist:
		return []field{{path: bucketOf(n), op: OpAdd, number: whole(1)}}, ""
	case leafStat:
		return []field{
			{path: "count", op: OpAdd, number: whole(1)},
			{path: "sum", op: OpAdd, number: n},
			{path: "square", op: OpAdd, number: n.mul(n)},
			{path: "min", op: OpMin, number: n},
			{path: "max", op: OpMax, number: n},
		}, ""
	}
	return nil, "a leaf without a kind"
}

// bucketOf returns the name of the bucket of a histogram that n lies in: three
// digits, rounded towards zero to steps of 2 from 100, 5 from 200 and 10 from 500,
// and the exponent of the last of them.
func bucketOf(n Number) string {
	if n.sign() == 0 {
		return "0"
	}
	d := n.decimal()
	text := d.Coeff.String()
	exponent := int(d.Exponent) + len(text) - 3
	digits, _ := strconv.Atoi((text + "00")[:3])
	digits -= digits % stepOf(digits)
	sign := ""
	if n.sign() < 0 {
		sign = "-"
	}
	return fmt.Sprintf("%s%de%d", sign, digits, exponent)
}

func stepOf(digits int) int {
	switch {
	case digits < 200:
		return 2
	case digits < 500:
		return 5
	}
	return 10
}

// The registers of a Distinct: the first bits of a hash say which, the others how
// high its rank is.
const (
	registerBits = 10
	registers    = 1 << registerBits
	maxRank      = 64 - registerBits + 1
)

// registerOf returns the register of a member and its rank there.
func registerOf(member string) (register string, rank int64) {
	sum := sha256.Sum256([]byte(member))
	i, high := split(binary.BigEndian.Uint64(sum[:8]))
	return fmt.Sprintf("%03x", i), int64(high)
}

// split returns the register that a hash belongs to, and its rank there: the place
// of the first 1 among the other bits.
func split(hash uint64) (register, rank int) {
	return int(hash >> (64 - registerBits)), min(bits.LeadingZeros64(hash<<registerBits)+1, maxRank)
}
