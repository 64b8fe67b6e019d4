package counters

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/apd/v3"

	"github.com/howdah-db/howdah/pg"
)

// Quantile returns in each slice the value that a share of q of those counted by the
// Hist at path are not above: 0.5 is the median. It is the middle of a bucket, within
// 1.25 % of the value; null where nothing was counted. A q beyond 0 and 1 is Invalid.
func (s *Series) Quantile(q float64, path string, slices int) ([]Number, error) {
	if !(q >= 0 && q <= 1) {
		return nil, pg.Refuse("q", "%v; want 0 to 1", q)
	}
	share, problem := numberOf(q)
	if problem != "" { // 1e-300 is 0 to every count
		share = whole(0)
	}
	return perSlice(s, path, slices, func(p place, values []Values) Number {
		return p.histogram(values).quantile(share)
	})
}

// histogram is how many values are in each bucket, in the order of the buckets.
type histogram []bucket

type bucket struct{ middle, count Number }

// histogram adds up those at a place. What is no bucket, or counts nothing, is left out.
func (p place) histogram(values []Values) histogram {
	counts := map[string]Number{}
	p.maps(values, func(below Values) {
		for name, count := range below {
			if n, ok := numberAt(count); ok {
				counts[name] = counts[name].Add(n)
			}
		}
	})
	var h histogram
	for name, count := range counts {
		if middle, ok := middleOf(name); ok && count.sign() > 0 {
			h = append(h, bucket{middle, count})
		}
	}
	slices.SortFunc(h, func(a, b bucket) int { return a.middle.Cmp(b.middle) })
	return h
}

// quantile returns the middle of the first bucket up to which a share of all are.
func (h histogram) quantile(share Number) Number {
	total := whole(0)
	for _, b := range h {
		total = total.Add(b.count)
	}
	wanted := share.mul(total).ceil()
	if wanted.sign() <= 0 {
		wanted = whole(1)
	}
	reached := whole(0)
	for _, b := range h {
		if reached = reached.Add(b.count); reached.Cmp(wanted) >= 0 {
			return b.middle
		}
	}
	if len(h) > 0 { // counts that are no whole numbers may not reach 1
		return h[len(h)-1].middle
	}
	return Number{}
}

// middleOf returns the middle of the bucket with a name that bucketOf gives.
func middleOf(name string) (Number, bool) {
	if name == "0" {
		return whole(0), true
	}
	text, negative := strings.CutPrefix(name, "-")
	left, right, _ := strings.Cut(text, "e")
	digits, err := strconv.Atoi(left)
	if err != nil || len(left) != 3 || digits < 100 || digits%stepOf(digits) != 0 {
		return Number{}, false
	}
	exponent, err := strconv.Atoi(right)
	if err != nil || strconv.Itoa(exponent) != right || exponent < -3*MaxExponent || exponent > 3*MaxExponent {
		return Number{}, false
	}
	middle := apd.New(int64(10*digits+5*stepOf(digits)), int32(exponent-1))
	middle.Negative = negative
	return reduced(middle), true
}

// Distinct returns in each slice about how many members the Distinct at path has
// seen: up to 10 of them within 1, of more one sigma is 3.25 %.
func (s *Series) Distinct(path string, slices int) ([]uint64, error) {
	return perSlice(s, path, slices, func(p place, values []Values) uint64 {
		var seen sketch
		p.maps(values, func(below Values) {
			for register, rank := range below {
				seen.see(register, rank)
			}
		})
		return seen.estimate()
	})
}

// sketch is the highest rank of each register, 0 of those that saw nothing.
type sketch [registers]uint8

// see takes in the rank of a register. What is none is left out.
func (s *sketch) see(register string, rank any) {
	i, err := strconv.ParseUint(register, 16, 16)
	if err != nil || len(register) != 3 || i >= registers {
		return
	}
	if n, ok := numberAt(rank); ok {
		if rank, ok := n.Int64(); ok && rank >= 1 && rank <= maxRank {
			s[i] = max(s[i], uint8(rank))
		}
	}
}

// estimate is the improved raw estimator of Otmar Ertl, "New cardinality estimation
// algorithms for HyperLogLog sketches" (2017), which needs no correction for few or
// many members.
func (s *sketch) estimate() uint64 {
	var with [maxRank + 1]float64 // registers by their rank
	for _, rank := range s {
		with[rank]++
	}
	if with[0] == registers {
		return 0
	}
	z := registers * tau(1-with[maxRank]/registers)
	for rank := maxRank - 1; rank >= 1; rank-- {
		z = (z + with[rank]) / 2
	}
	z += registers * sigma(with[0]/registers)
	return uint64(math.Round(registers * registers / (2 * math.Ln2 * z)))
}

// sigma is x + Σ 2^(k-1) x^(2^k) over k from 1.
func sigma(x float64) float64 {
	sum, factor := x, 1.0
	for {
		x *= x
		before := sum
		sum += x * factor
		factor *= 2
		if sum == before {
			return sum
		}
	}
}

// tau is a third of 1 - x - Σ 2^-k (1 - x^(2^-k))² over k from 1.
func tau(x float64) float64 {
	if x == 0 || x == 1 {
		return 0
	}
	sum, factor := 1-x, 1.0
	for {
		x = math.Sqrt(x)
		before := sum
		factor /= 2
		sum -= (1 - x) * (1 - x) * factor
		if sum == before {
			return sum / 3
		}
	}
}
