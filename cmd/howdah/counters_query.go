package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) countersQuery() *cobra.Command {
	var q counters.Question
	var span span
	cmd := &cobra.Command{
		Use:   "query KEY FN [PATH]",
		Short: "A sum, a quantile, a timeline … of a metric",
		Long: `Prints what a function makes of the buckets of a metric: a table on a terminal; in a
pipe a number a line, or a JSON object where there is more to say. With --slices the
buckets are cut into so many equal parts, and there is a result of each; what does not
divide is left out at the front.

  sum mean min max    of the numbers at PATH; * stands for any name
  stddev              of what stat: counted
  quantile            of what hist: counted, with --q
  distinct            how many members distinct: has seen
  timeline            the numbers at PATH, and below it, as they follow each other
  category            their sums, by name
  expression          of each bucket: --expr, in which a is the first of --paths, b the
                      next …, with + - * / ( ) sum mean min max sqrt`,
		Example: `  howdah counters query web sum requests --from 2015-05-17 --to 2015-05-20 -g 1d --slices 4
  howdah counters query web category status --from -24h
  howdah counters query web quantile size --q 0.95
  howdah counters query web expression --paths bytes,requests --expr a/b`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Fn = args[1]
			if len(args) == 3 {
				q.Path = args[2]
			}
			if cmd.Flags().Changed("slices") && q.Slices == 0 {
				return pg.Refuse("--slices", "0; want 1 or more")
			}
			if q.Fn == counters.AskQuantile && !cmd.Flags().Changed("q") {
				q.Q = 0.5
			}
			if !slices.Contains(counters.Asks, q.Fn) { // before anything is asked for
				_, err := new(counters.Series).Ask(q)
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				store := client.Reads().Counters
				query, err := span.query(ctx, store, args[0])
				if err != nil {
					return err
				}
				series, err := store.Values(ctx, query)
				if err != nil {
					return err
				}
				answer, err := series.Ask(q)
				if err != nil {
					return err
				}
				return c.answer(q.Fn, answer)
			})
		},
	}
	span.flags(cmd)
	flags := cmd.Flags()
	flags.IntVar(&q.Slices, "slices", 0, "equal parts to cut the buckets into (default 1)")
	flags.Float64Var(&q.Q, "q", 0, "the share of the values that a quantile is not below (default 0.5)")
	flags.StringSliceVar(&q.Paths, "paths", nil, "what a, b, c … stand for in an expression")
	flags.StringVar(&q.Expr, "expr", "", "the expression")
	flags.StringVar(&q.Response, "response", "", "the name of an expression's result (default result)")
	return cmd
}

// answered is one line of an answer.
type answered struct {
	At    time.Time `json:"at"`
	Value any       `json:"value"`
}

// answer prints what a query found. Numbers alone are for the next program in a pipe.
func (c *cli) answer(fn string, answer counters.Answer) error {
	lines := make([]answered, len(answer.At))
	for i, at := range answer.At {
		lines[i] = answered{at, answer.Values[i]}
	}
	switch {
	case fn == counters.AskTimeline:
		return c.timeline(answer)
	case fn == counters.AskCategory && !c.wantsJSON():
		return c.points(categories(answer), false)
	case c.json || fn == counters.AskCategory || !c.wantsJSON():
		return rows(c, []string{"at", fn}, func(l answered) []any {
			return []any{l.At.Format(time.RFC3339), shown(l.Value)}
		}, sequence(lines))
	}
	for _, line := range lines {
		if err := jsonLine(c.out, line.Value); err != nil {
			return err
		}
	}
	return nil
}

// shown is a number as people read it.
func shown(v any) any {
	if n, ok := v.(counters.Number); ok && n.IsNull() || v == nil {
		return "-"
	}
	return v
}

// categories is an answer with a column for each name.
func categories(answer counters.Answer) *counters.Series {
	series := &counters.Series{At: answer.At, Values: make([]counters.Values, len(answer.At))}
	for i, v := range answer.Values {
		series.Values[i] = counters.Values{}
		for name, n := range v.(map[string]counters.Number) {
			series.Values[i][name] = n
		}
	}
	return series
}

// sampled is one point of a timeline.
type sampled struct {
	Slice  int                        `json:"slice"` // from 1
	At     time.Time                  `json:"at"`
	Values map[string]counters.Number `json:"values"`
}

// timeline prints the points of a timeline, with the slice that each is in.
func (c *cli) timeline(answer counters.Answer) error {
	var points []sampled
	var names []string
	for i, v := range answer.Values {
		lines := v.(map[string][]counters.Sample)
		names = slices.Sorted(maps.Keys(lines)) // the same in each slice
		begin := len(points)
		for _, name := range names {
			for j, sample := range lines[name] {
				if begin+j == len(points) {
					points = append(points, sampled{i + 1, sample.At, map[string]counters.Number{}})
				}
				points[begin+j].Values[name] = sample.Value
			}
		}
	}
	return rows(c, append([]string{"slice", "at"}, names...), func(p sampled) []any {
		cells := []any{p.Slice, p.At.Format(time.RFC3339)}
		for _, name := range names {
			cells = append(cells, p.Values[name])
		}
		return cells
	}, sequence(points))
}
