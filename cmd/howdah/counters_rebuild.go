package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
)

func (c *cli) countersRebuild() *cobra.Command {
	var granularity string
	var span interval
	cmd := &cobra.Command{
		Use:   "rebuild KEY",
		Short: "Make coarse buckets of a metric anew, of finer ones",
		Long: `Makes the buckets of a granularity anew, of the coarsest finer one that lies in them.
Fields are added up; those called max or min keep the larger or smaller, and the rules
of the table say otherwise. What is counted meanwhile is not lost.`,
		Example: "  howdah counters rebuild orders -g 1d --from 2025-05-01 --to 2025-05-31",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := counters.ParseGranularity(granularity)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				from, to, err := span.times(ctx, client.Counters)
				if err != nil {
					return err
				}
				n, err := client.Counters.Rebuild(ctx, args[0], g, from, to)
				if err != nil {
					return err
				}
				return c.changedRows("rebuilt", n)
			})
		},
	}
	cmd.Flags().StringVarP(&granularity, "granularity", "g", "", "of the buckets that are made")
	span.flags(cmd, wholeBucket)
	return cmd
}

func (c *cli) countersReplace() *cobra.Command {
	var span interval
	cmd := &cobra.Command{
		Use:   "replace KEY FILE",
		Short: "Put the events of a file in the place of what was counted; - is stdin",
		Long: `Takes away what was counted of a metric from --from up to --to, applies the events of a
file in its place, and makes all coarser buckets anew. An event is an object a line, as
import reads them, of the metric or without a key; they come a day after the other.

Each day is a transaction: after an error the days that were read to their end are
replaced, and it may simply be run again.`,
		Example: "  howdah counters replace orders orders.jsonl --from 2025-05-01 --to 2025-06-01",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, size, err := c.openInput(args[1])
			if err != nil {
				return err
			}
			defer in.Close()
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				from, to, err := span.times(ctx, client.Counters)
				if err != nil {
					return err
				}
				bar := c.progress("replace "+printable(args[0]), size)
				events := counted(bar, counters.ReadEvents(bar.reader(in), args[0]))
				n, err := interruptible(ctx, func() (int64, error) {
					return client.Counters.Replace(ctx, args[0], from, to, events)
				})
				bar.finish()
				if err != nil {
					if n > 0 {
						c.note(fmt.Sprintf("before the error: applied %s, those of days that are whole", grouped(n)))
					}
					return err
				}
				return c.result("applied "+grouped(n), map[string]int64{"applied": n})
			})
		},
	}
	span.flags(cmd, "not included")
	return cmd
}

func (c *cli) countersVerify() *cobra.Command {
	var granularity, fine string
	var span interval
	cmd := &cobra.Command{
		Use:   "verify KEY",
		Short: "Where coarse buckets are not what finer ones make",
		Long: `Prints the fields in which buckets differ from what rebuild would make of finer ones.
Where there are none it prints nothing and exits with 0, else with 1.`,
		Example: "  howdah counters verify orders -g 1d --from 2025-05-01 --to 2025-05-31",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			coarse, err := counters.ParseGranularity(granularity)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				store := client.Reads().Counters
				from, to, err := span.times(ctx, store)
				if err != nil {
					return err
				}
				return c.differences(store.Verify(ctx, args[0], coarse, counters.Granularity(fine), from, to))
			})
		},
	}
	cmd.Flags().StringVarP(&granularity, "granularity", "g", "", "of the buckets that are looked at")
	cmd.Flags().StringVar(&fine, "fine", "", "of those that they should be made of (default the coarsest that can be)")
	span.flags(cmd, wholeBucket)
	return cmd
}

// differences prints what differs, a table only where something does.
func (c *cli) differences(all iter.Seq2[counters.Difference, error]) error {
	next, stop := iter.Pull2(all)
	defer stop()
	first, err, found := next()
	if err != nil || !found {
		return err
	}
	err = rows(c, []string{"at", "path", "coarse", "fine"}, func(d counters.Difference) []any {
		return []any{d.At.Format(time.RFC3339), d.Path, d.Coarse, d.Fine}
	}, func(yield func(counters.Difference, error) bool) {
		for d, err, more := first, error(nil), true; more && yield(d, err); d, err, more = next() {
		}
	})
	if err != nil {
		return err
	}
	return errors.New("buckets are not what finer ones make; howdah counters rebuild makes them so")
}

func (c *cli) countersExport() *cobra.Command {
	return &cobra.Command{
		Use:   "export [PREFIX]",
		Short: "The rows of all metrics, or of those whose names begin so",
		Long: `Prints rows, an object a line: buckets with key, granularity, at and values, and rows at
the driver's level with key and values. import --format rows puts them into any table.`,
		Example: `  howdah counters export > rows.jsonl
  howdah counters export orders | gzip > orders.jsonl.gz`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if isTerminal(c.out) {
					return counters.WriteRows(c.out, client.Reads().Counters.Export(ctx, prefix))
				}
				bar := c.progress("export", -1)
				err := counters.WriteRows(c.out, counted(bar, client.Reads().Counters.Export(ctx, prefix)))
				bar.finish()
				return err
			})
		},
	}
}
