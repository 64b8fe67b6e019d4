package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Latency is what all but a hundredth of the calls take at most, one after the other.
type Latency struct {
	Work  string
	Times int     // calls in a round
	Bar   float64 // ms
	Open  func(ctx context.Context, lab *Lab) (call func(context.Context) error, err error)
}

// Title implements Row.
func (l Latency) Title() string { return l.Work }

// Measure implements Row. The first round is for warming up.
func (l Latency) Measure(ctx context.Context, lab *Lab) ([]Result, error) {
	lab.Say("preparing")
	call, err := l.Open(ctx, lab)
	if err != nil {
		return nil, err
	}
	var p99s []float64
	for round := range lab.Rounds + 1 {
		lab.Say("%s", roundOf(round, lab.Rounds))
		if err := lab.Vacuum(ctx); err != nil {
			return nil, err
		}
		took := make([]float64, l.Times)
		for i := range took {
			began := time.Now()
			if err := call(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", l.Work, err)
			}
			took[i] = float64(time.Since(began).Microseconds()) / 1e3
		}
		slices.Sort(took)
		if round > 0 {
			p99s = append(p99s, took[len(took)*99/100])
		}
	}
	return []Result{{
		Work: l.Work, Bar: l.Bar, AtMost: true,
		Figures: []Figure{{"howdah", median(p99s), "ms"}},
		Value:   median(p99s), Min: slices.Min(p99s), Max: slices.Max(p99s),
	}}, nil
}
