package counters

import (
	"slices"
	"strconv"

	"github.com/howdah-db/howdah/pg"
)

// Granularity is the length of buckets, and their label in a table: a number
// without leading zeros and a unit, such as 1h or 15m.
type Granularity string

// The granularities that a table has when nothing is said.
var defaultGranularities = []Granularity{"1m", "1h", "1d", "1w", "1mo", "1q", "1y"}

// maxUnits is how many units a granularity may have. A bucket never is longer than
// the parent of its unit, so that more would say nothing.
const maxUnits = 999_999

// ParseGranularity returns text as a Granularity. What is none, with 0 units or
// over 999,999 of them, is Invalid.
func ParseGranularity(text string) (Granularity, error) {
	g := Granularity(text)
	return g, g.check("granularity")
}

func (g Granularity) check(field string) error {
	if _, _, ok := g.parse(); !ok {
		shown := string(g)
		if len(shown) > 40 {
			shown = shown[:40] + "…"
		}
		return pg.Refuse(field, "%q; want a number from 1 to 999999 and a unit: s m h d w mo q y", shown)
	}
	return nil
}

// parse returns how many of which unit.
func (g Granularity) parse() (n int64, unit string, ok bool) {
	i := 0
	for ; i < len(g) && g[i] >= '0' && g[i] <= '9'; i++ {
		if n = n*10 + int64(g[i]-'0'); n == 0 || n > maxUnits {
			return 0, "", false
		}
	}
	if i == 0 {
		return 0, "", false
	}
	switch unit = string(g[i:]); unit {
	case "s", "m", "h", "d", "w", "mo", "q", "y":
		return n, unit, true
	}
	return 0, "", false
}

// ParseGranularities returns each of texts once, in the order of their first.
func ParseGranularities(texts []string) ([]Granularity, error) {
	var all []Granularity
	for i, text := range texts {
		g := Granularity(text)
		if err := g.check("granularities[" + strconv.Itoa(i) + "]"); err != nil {
			return nil, err
		}
		if !slices.Contains(all, g) {
			all = append(all, g)
		}
	}
	return all, nil
}
