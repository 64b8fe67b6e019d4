package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// Result is a line of a table: a value beside its bar, and the absolute figures
// that it comes from.
type Result struct {
	Work    string   `json:"work"`
	Control string   `json:"control,omitempty"`
	Figures []Figure `json:"figures"` // for orientation
	Of      string   `json:"of"`      // what Value is: ratio, growth, …
	Value   float64  `json:"value"`   // the median of the rounds
	Min     float64  `json:"min"`
	Max     float64  `json:"max"`
	Bar     float64  `json:"bar"`
	AtMost  bool     `json:"at_most,omitempty"` // else Bar is the least that will do
}

// Figure is a number with a unit.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Met reports whether the value reaches its bar.
func (r Result) Met() bool { return r.within(1) }

// within is Met with a bar that is generous by a factor.
func (r Result) within(generous float64) bool {
	if r.AtMost {
		return r.Value <= r.Bar*generous
	}
	return r.Value >= r.Bar/generous
}

// Ratio compares two ways to do the same work, by turns: their rates, in units of
// work per second, are divided round by round.
type Ratio struct {
	Work    string
	Control string // what the other side does
	Bar     float64
	Open    func(ctx context.Context, lab *Lab) (control, ours Side, err error)
}

// Side is one of the two ways.
type Side struct {
	Prepare func(ctx context.Context) error // before each Run, not timed; nil: nothing
	Run     func(ctx context.Context) (units int, err error)
}

// Title implements Row.
func (r Ratio) Title() string { return r.Work }

// Measure implements Row. The first round is for warming up.
func (r Ratio) Measure(ctx context.Context, lab *Lab) ([]Result, error) {
	lab.Say("preparing")
	control, ours, err := r.Open(ctx, lab)
	if err != nil {
		return nil, err
	}
	var controls, rates, ratios []float64
	for round := range lab.Rounds + 1 {
		a, err := control.rate(ctx, lab, round, r.Control)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.Control, err)
		}
		b, err := ours.rate(ctx, lab, round, "howdah")
		if err != nil {
			return nil, fmt.Errorf("howdah: %w", err)
		}
		if round > 0 {
			controls, rates, ratios = append(controls, a), append(rates, b), append(ratios, b/a)
		}
	}
	return []Result{{
		Work: r.Work, Control: r.Control, Bar: r.Bar,
		Figures: []Figure{{"control", median(controls), "/s"}, {"howdah", median(rates), "/s"}},
		Of:      "ratio", Value: median(ratios), Min: slices.Min(ratios), Max: slices.Max(ratios),
	}}, nil
}

// rate runs one round and returns units per second.
func (s Side) rate(ctx context.Context, lab *Lab, round int, name string) (float64, error) {
	lab.Say("%s, %s", roundOf(round, lab.Rounds), name)
	if s.Prepare != nil {
		if err := s.Prepare(ctx); err != nil {
			return 0, err
		}
	}
	if err := lab.Vacuum(ctx); err != nil {
		return 0, err
	}
	runtime.GC() // what the other side left is not this side's to clear
	began := time.Now()
	units, err := s.Run(ctx)
	return float64(units) / time.Since(began).Seconds(), err
}

func roundOf(round, rounds int) string {
	if round == 0 {
		return "warming up"
	}
	return fmt.Sprintf("round %d of %d", round, rounds)
}

// Growth measures operations at several sizes: what the last costs, divided by
// what the first costs.
type Growth struct {
	Work    string
	Bar     float64 // the most growth that will do, from the first size to the last
	Tenfold bool    // it is of each ten times as much
	Sizes   func(lab *Lab) []int
	Times   int // how often each operation is run in a round
	Open    func(ctx context.Context, lab *Lab, size int) ([]Op, error)
}

// bar is the most growth that will do from the first of sizes to the last.
func (g Growth) bar(sizes []int) float64 {
	if !g.Tenfold {
		return g.Bar
	}
	return math.Pow(g.Bar, math.Log10(float64(sizes[len(sizes)-1])/float64(sizes[0])))
}

// Op is an operation of a Growth.
type Op struct {
	Name string
	Run  func(ctx context.Context) error
}

// Title implements Row.
func (g Growth) Title() string { return g.Work }

// Measure implements Row. Sizes take turns; the first round is for warming up.
func (g Growth) Measure(ctx context.Context, lab *Lab) ([]Result, error) {
	sizes := g.Sizes(lab)
	ops := make([][]Op, len(sizes))
	for i, size := range sizes {
		lab.Say("preparing %s", grouped(size))
		var err error
		if ops[i], err = g.Open(ctx, lab, size); err != nil {
			return nil, err
		}
	}
	took := make([][][]float64, len(ops[0])) // operation, size, round
	for op := range took {
		took[op] = make([][]float64, len(sizes))
	}
	for round := range lab.Rounds + 1 {
		if err := lab.Vacuum(ctx); err != nil {
			return nil, err
		}
		for i, size := range sizes {
			lab.Say("%s, %s", roundOf(round, lab.Rounds), grouped(size))
			for op := range took {
				began := time.Now()
				for range g.Times {
					if err := ops[i][op].Run(ctx); err != nil {
						return nil, fmt.Errorf("%s at %s: %w", ops[i][op].Name, grouped(size), err)
					}
				}
				if round > 0 {
					took[op][i] = append(took[op][i], float64(time.Since(began).Microseconds())/float64(g.Times))
				}
			}
		}
	}
	var results []Result
	for op := range took {
		r := Result{Work: ops[0][op].Name, Of: "growth", Bar: g.bar(sizes), AtMost: true}
		for i, size := range sizes {
			r.Figures = append(r.Figures, Figure{grouped(size), median(took[op][i]), "µs"})
		}
		var ratios []float64
		for round := range lab.Rounds {
			ratios = append(ratios, took[op][len(sizes)-1][round]/took[op][0][round])
		}
		r.Value, r.Min, r.Max = median(ratios), slices.Min(ratios), slices.Max(ratios)
		results = append(results, r)
	}
	return results, nil
}

// Count compares what two ways leave behind, measured once: deadlocks, bloat.
type Count struct {
	Work    string
	Control string
	Unit    string
	Bar     float64 // the most that will do
	Open    func(ctx context.Context, lab *Lab) (control, ours func(context.Context) (float64, error), err error)
}

// Title implements Row.
func (c Count) Title() string { return c.Work }

// Measure implements Row.
func (c Count) Measure(ctx context.Context, lab *Lab) ([]Result, error) {
	lab.Say("preparing")
	control, ours, err := c.Open(ctx, lab)
	if err != nil {
		return nil, err
	}
	lab.Say("%s", c.Control)
	a, err := control(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Control, err)
	}
	lab.Say("howdah")
	b, err := ours(ctx)
	if err != nil {
		return nil, fmt.Errorf("howdah: %w", err)
	}
	return []Result{{
		Work: c.Work, Control: c.Control, Bar: c.Bar, AtMost: true,
		Figures: []Figure{{"control", a, c.Unit}, {"howdah", b, c.Unit}},
		Of:      "", Value: b, Min: b, Max: b,
	}}, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
