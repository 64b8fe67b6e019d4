package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/spf13/cobra"
)

func (c *cli) countersValues() *cobra.Command {
	var span span
	var skip, asCSV bool
	cmd := &cobra.Command{
		Use:   "values KEY",
		Short: "The buckets of a metric",
		Long: `Prints the buckets of a metric: a table on a terminal, JSON lines otherwise. Times are
RFC 3339, dates in the table's time zone, -24h, or now.`,
		Example: `  howdah counters values orders --from 2025-05-06 --to 2025-05-07 -g 1d
  howdah counters values orders --from -24h --csv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				store := client.Reads().Counters
				q, err := span.query(ctx, store, args[0])
				if err != nil {
					return err
				}
				q.SkipBlanks = skip
				series, err := store.Values(ctx, q)
				if err != nil {
					return err
				}
				return c.points(series, asCSV)
			})
		},
	}
	span.flags(cmd)
	cmd.Flags().BoolVar(&skip, "skip-blanks", false, "leave out buckets without values")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "comma-separated, with a line of names")
	return cmd
}

// span is the part of a metric that --from, --to and --granularity ask for.
type span struct{ from, to, granularity string }

func (span *span) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&span.from, "from", "", "the first bucket is that of this time (default 24 buckets before the last)")
	cmd.Flags().StringVar(&span.to, "to", "now", "the last bucket is that of this time")
	cmd.Flags().StringVarP(&span.granularity, "granularity", "g", "1h", "length of the buckets: a number and s m h d w mo q y")
}

// query asks for the span of a metric, by the table's own calendar.
func (span *span) query(ctx context.Context, s *counters.Store, key string) (q counters.Query, err error) {
	q.Key = key
	if q.Granularity, err = counters.ParseGranularity(span.granularity); err != nil {
		return q, err
	}
	if q.To, err = tableTime(ctx, s, "--to", span.to); err != nil {
		return q, err
	}
	if span.from != "" {
		q.From, err = tableTime(ctx, s, "--from", span.from)
		return q, err
	}
	settings, err := s.Settings(ctx)
	if err != nil {
		return q, err
	}
	loc, err := counters.LoadLocation(settings.TimeZone)
	if err != nil {
		return q, err
	}
	calendar := counters.Calendar{Location: loc, WeekStart: settings.WeekStart}
	q.From = calendar.Floor(q.Granularity, q.To)
	for range 23 {
		q.From = calendar.Floor(q.Granularity, q.From.Add(-time.Second))
	}
	return q, nil
}

// points prints a series.
func (c *cli) points(series *counters.Series, asCSV bool) error {
	names := map[string]bool{}
	points := make([]counters.Point, len(series.At))
	flat := make([]map[string]any, len(series.At))
	for i, at := range series.At {
		points[i] = counters.Point{At: at, Values: series.Values[i]}
		flat[i] = map[string]any{}
		flatten(flat[i], "", series.Values[i])
		for name := range flat[i] {
			names[name] = true
		}
	}
	columns := slices.Sorted(maps.Keys(names))
	cells := func(i int) []any {
		cells := []any{series.At[i].Format(time.RFC3339)}
		for _, name := range columns {
			cells = append(cells, cell(flat[i], name))
		}
		return cells
	}
	head := append([]string{"at"}, columns...)
	if asCSV {
		w := csv.NewWriter(c.out)
		w.Write(head)
		for i := range points {
			var line []string
			for _, cell := range cells(i) {
				line = append(line, strings.TrimSpace(fmt.Sprint(cell)))
			}
			w.Write(line)
		}
		w.Flush()
		return w.Error()
	}
	numbers := make([]int, len(points))
	for i := range numbers {
		numbers[i] = i
	}
	if c.wantsJSON() {
		for _, p := range points {
			if err := jsonLine(c.out, p); err != nil {
				return err
			}
		}
		return nil
	}
	return rows(c, head, cells, sequence(numbers))
}

// flatten puts the leaves of values into flat, under their paths.
func flatten(flat map[string]any, prefix string, values counters.Values) {
	for name, leaf := range values {
		if below, ok := leaf.(counters.Values); ok {
			flatten(flat, prefix+name+".", below)
		} else {
			flat[prefix+name] = leaf
		}
	}
}

// cell is a leaf as people read it: nothing where there is none.
func cell(flat map[string]any, name string) any {
	leaf, ok := flat[name]
	if !ok {
		return " " // "" would be shown as an empty text
	}
	if _, isList := leaf.([]any); isList {
		if text, err := json.Marshal(leaf); err == nil {
			return string(text)
		}
	}
	return leaf
}
