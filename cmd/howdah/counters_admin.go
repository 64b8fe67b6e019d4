package main

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
)

func (c *cli) countersKeys() *cobra.Command {
	var after string
	var limit int
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "The metrics of which there are rows, and since when",
		Example: `  howdah counters keys
  howdah counters keys --after orders --limit 10`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return rows(c, []string{"key", "granularities", "first", "last"}, metricCells, metrics(ctx, client.Reads().Counters, after, limit))
			})
		},
	}
	cmd.Flags().StringVar(&after, "after", "", "begin after this metric")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many (default all)")
	return cmd
}

// metrics reads pages to their end, or up to limit where that is not 0.
func metrics(ctx context.Context, s *counters.Store, after string, limit int) iter.Seq2[counters.KeyInfo, error] {
	const page = 1000
	return func(yield func(counters.KeyInfo, error) bool) {
		for left := limit; ; left -= page {
			n := page
			if limit != 0 {
				n = min(page, left)
			}
			infos, err := s.Page(ctx, after, n)
			if err != nil {
				yield(counters.KeyInfo{}, err)
				return
			}
			for _, info := range infos {
				if !yield(info, nil) {
					return
				}
			}
			if len(infos) < n || n == left {
				return
			}
			after = infos[n-1].Key
		}
	}
}

// metricCells are those of a table: the first and the last bucket of all.
func metricCells(info counters.KeyInfo) []any {
	var names []string
	var first, last time.Time
	for _, e := range info.Granularities {
		names = append(names, string(e.Name))
		if first.IsZero() || e.First.Before(first) {
			first = e.First
		}
		if e.Last.After(last) {
			last = e.Last
		}
	}
	return []any{info.Key, strings.Join(names, ","), first.Format(time.RFC3339), last.Format(time.RFC3339)}
}

// interval is what --from and --to say. An end that is not given is open.
type interval struct{ from, to string }

func (i *interval) flags(cmd *cobra.Command, to string) {
	cmd.Flags().StringVar(&i.from, "from", "", "RFC 3339, a date in the table's time zone, -24h")
	cmd.Flags().StringVar(&i.to, "to", "", to)
}

func (i *interval) times(ctx context.Context, s *counters.Store) (from, to time.Time, err error) {
	if i.from != "" {
		from, err = tableTime(ctx, s, "--from", i.from)
	}
	if i.to != "" && err == nil {
		to, err = tableTime(ctx, s, "--to", i.to)
	}
	return from, to, err
}

const wholeBucket = "included, as the whole bucket that it lies in"

// changedRows is what a command on many rows prints.
func (c *cli) changedRows(verb string, n int64) error {
	return c.result(verb+" "+quantity(n, "row"), map[string]int64{"rows": n})
}

func (c *cli) countersDelete() *cobra.Command {
	var granularities []string
	var span interval
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete KEY",
		Short: "Delete buckets of a metric",
		Long:  "Deletes the buckets of a metric, all or those of some granularities and some time, after\nit has asked.",
		Example: `  howdah counters delete old-orders --yes
  howdah counters delete orders -g 1m --to 2025-01-01 --yes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			buckets, err := counters.ParseGranularities(granularities)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				from, to, err := span.times(ctx, client.Counters)
				if err != nil {
					return err
				}
				if err := c.sure(ctx, yes, deletion(args[0], granularities, span)); err != nil {
					return err
				}
				n, err := client.Counters.Delete(ctx, args[0], buckets, from, to)
				if err != nil {
					return err
				}
				return c.changedRows("deleted", n)
			})
		},
	}
	cmd.Flags().StringSliceVarP(&granularities, "granularity", "g", nil, "only these, as 1m,1h (default all)")
	span.flags(cmd, wholeBucket)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// deletion says what is to go.
func deletion(key string, granularities []string, span interval) string {
	words := "delete all buckets"
	if len(granularities) > 0 {
		words = "delete the buckets of " + strings.Join(granularities, ", ")
	}
	words += " of " + printable(key)
	if span.from != "" {
		words += " from " + span.from
	}
	if span.to != "" {
		words += " to " + span.to
	}
	return words
}

func (c *cli) countersRename() *cobra.Command {
	return &cobra.Command{
		Use:     "rename KEY TO",
		Short:   "Give a metric another name",
		Long:    "Gives all buckets of a metric another name, of which there are none yet.",
		Example: "  howdah counters rename orders sales",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				n, err := client.Counters.Rename(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return c.changedRows("renamed", n)
			})
		},
	}
}

func (c *cli) countersPrune() *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Delete the buckets that are no longer to be kept",
		Long: `Deletes the buckets that ended longer ago than the table keeps those of their
granularity: see retention in howdah counters settings.`,
		Example: "  howdah counters prune",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				n, err := client.Counters.Prune(ctx, time.Now())
				if err != nil {
					return err
				}
				return c.changedRows("deleted", n)
			})
		},
	}
}
