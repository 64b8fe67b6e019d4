package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
)

// Cost compares what two ways to the same effect cost, by turns, where that is no
// rate: a time, statements. Ours is divided by the control's round by round.
type Cost struct {
	Work    string
	Control string
	Unit    string
	Bar     float64 // how many times the control's cost ours may be
	Most    float64 // what ours may be by itself; 0: anything
	Open    func(ctx context.Context, lab *Lab) (control, ours Spend, err error)
}

// Spend does the work and returns what it has cost; what it prepares and tidies
// up is no part of that.
type Spend func(ctx context.Context) (cost float64, err error)

// Title implements Row.
func (c Cost) Title() string { return c.Work }

// Measure implements Row. The first round is for warming up.
func (c Cost) Measure(ctx context.Context, lab *Lab) ([]Result, error) {
	lab.Say("preparing")
	control, ours, err := c.Open(ctx, lab)
	if err != nil {
		return nil, err
	}
	var controls, own, ratios []float64
	for round := range lab.Rounds + 1 {
		var costs [2]float64
		for i, side := range []Spend{control, ours} {
			name := []string{c.Control, "howdah"}[i]
			lab.Say("%s, %s", roundOf(round, lab.Rounds), name)
			if err := lab.Vacuum(ctx); err != nil {
				return nil, err
			}
			runtime.GC()
			if costs[i], err = side(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		if round > 0 {
			controls, own, ratios = append(controls, costs[0]), append(own, costs[1]), append(ratios, costs[1]/costs[0])
		}
	}
	results := []Result{{
		Work: c.Work, Control: c.Control, Bar: c.Bar, AtMost: true,
		Figures: []Figure{{"control", median(controls), c.Unit}, {"howdah", median(own), c.Unit}},
		Of:      "cost", Value: median(ratios), Min: slices.Min(ratios), Max: slices.Max(ratios),
	}}
	if c.Most > 0 {
		results = append(results, Result{
			Work: c.Work + ", by itself", Bar: c.Most, AtMost: true,
			Figures: []Figure{{"howdah", median(own), c.Unit}},
			Value:   median(own), Min: slices.Min(own), Max: slices.Max(own),
		})
	}
	return results, nil
}
