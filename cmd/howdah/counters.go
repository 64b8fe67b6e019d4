package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
)

func (c *cli) counters() *cobra.Command {
	var table string
	cmd := &cobra.Command{
		Use:   "counters",
		Short: "Numbers added up over time",
		Example: `  howdah counters track orders count=1 revenue=12.50
  howdah counters values orders --from -24h -g 1h
  howdah counters inc test::now count=1`,
		Args: cobra.NoArgs,
		RunE: help,
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			if err := c.begin(cmd, args); err != nil {
				return err
			}
			if cmd.Flags().Changed("table") {
				c.counting.Table = pgx.Identifier(strings.Split(table, "."))
			}
			return nil
		},
	}
	cmd.PersistentFlags().StringVar(&table, "table", "trifle_stats", "the table, or schema.table")
	cmd.AddCommand(
		c.countersGet(),
		c.countersWrite("inc", "Add numbers to the fields of a row", readAmount,
			func(ctx context.Context, s *counters.Store, keys []counters.Key, v counters.Values) (counters.Values, error) {
				return s.Inc(ctx, keys, v)
			}),
		c.countersWrite("set", "Put values into the fields of a row", readAny,
			func(ctx context.Context, s *counters.Store, keys []counters.Key, v counters.Values) (counters.Values, error) {
				return s.Set(ctx, keys, v)
			}),
		c.countersEvent("track", "Add values to the buckets of a time", counters.OpAdd, readLeaf),
		c.countersEvent("assert", "Put values into the buckets of a time", counters.OpPut, readAny),
		c.countersValues(),
		c.countersQuery(),
		c.countersPlot(),
		c.countersImport(),
		c.countersKeys(),
		c.countersDelete(),
		c.countersRename(),
		c.countersRebuild(),
		c.countersReplace(),
		c.countersVerify(),
		c.countersExport(),
		c.countersPrune(),
		c.countersBeam(),
		c.countersScan(),
		c.countersSetup(),
		c.countersSettings(),
		c.countersDoctor(),
		c.countersFold(),
	)
	return cmd
}

// rowKey is a key as it is written on the line: all of it in one.
func rowKey(text string) counters.Key { return counters.Key{text} }

func (c *cli) countersGet() *cobra.Command {
	return &cobra.Command{
		Use:     "get KEY...",
		Short:   "What rows hold",
		Long:    "Prints what rows hold, an object a line: {} where there is no row.",
		Example: "  howdah counters get test::now",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				keys := make([]counters.Key, len(args))
				for i, arg := range args {
					keys[i] = rowKey(arg)
				}
				all, err := client.Reads().Counters.Get(ctx, keys)
				if err != nil {
					return err
				}
				for _, values := range all {
					if err := jsonLine(c.out, values); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// countersWrite is a command that writes fields to one row.
func (c *cli) countersWrite(verb, short string, read func(string) (any, error), write func(context.Context, *counters.Store, []counters.Key, counters.Values) (counters.Values, error)) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " KEY FIELD=VALUE...",
		Short:   short,
		Long:    short + ", and print what was written.",
		Example: fmt.Sprintf("  howdah counters %s test::now count=1 account.count=1", verb),
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := readFields(args[1:], read)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				written, err := write(ctx, client.Counters, []counters.Key{rowKey(args[0])}, values)
				if err != nil {
					return err
				}
				return jsonLine(c.out, written)
			})
		},
	}
}

// countersEvent is a command that counts one event.
func (c *cli) countersEvent(verb, short string, op counters.Op, read func(string) (any, error)) *cobra.Command {
	var at, id string
	var untracked bool
	long := short + ": of every granularity of the table."
	example := "  howdah counters assert stock --at 2025-05-06T09:15:00Z shelf.a=7 note=full"
	if op == counters.OpAdd {
		long += `
A value is a number, or max:9, min:9, put:TEXT, stat:38, hist:38, distinct:alice.`
		example = "  howdah counters track orders --at 2025-05-06T09:15:00Z count=1 revenue=12.50 latency=stat:38 user=distinct:alice"
	}
	cmd := &cobra.Command{
		Use:     verb + " KEY FIELD=VALUE...",
		Short:   short,
		Long:    long,
		Example: example,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := readFields(args[1:], read)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				when, err := tableTime(ctx, client.Counters, "--at", at)
				if err != nil {
					return err
				}
				n, err := client.Counters.Apply(ctx, counters.Event{ID: id, Op: op, Key: args[0], At: when, Values: values, Untracked: untracked})
				if err != nil {
					return err
				}
				return c.result(fmt.Sprintf("applied %d", n), map[string]int{"applied": n})
			})
		},
	}
	cmd.Flags().StringVar(&at, "at", "now", "when: RFC 3339, a date, -24h, now")
	cmd.Flags().StringVar(&id, "id", "", "counted once in 7 days, however often it is sent")
	cmd.Flags().BoolVar(&untracked, "untracked", false, "count it in the system row without its name")
	return cmd
}

func (c *cli) countersBeam() *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:     "beam KEY FIELD=VALUE...",
		Short:   "Keep the last known state of a key",
		Example: "  howdah counters beam worker::a state=up load=0.5",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := readFields(args[1:], readAny)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				when, err := tableTime(ctx, client.Counters, "--at", at)
				if err != nil {
					return err
				}
				if err := client.Counters.Beam(ctx, args[0], when, values); err != nil {
					return err
				}
				return c.result("beamed", map[string]bool{"beamed": true})
			})
		},
	}
	cmd.Flags().StringVar(&at, "at", "now", "when: RFC 3339, a date, -24h, now")
	return cmd
}

func (c *cli) countersScan() *cobra.Command {
	return &cobra.Command{
		Use:     "scan KEY",
		Short:   "The last known state of a key",
		Example: "  howdah counters scan worker::a",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				at, values, err := client.Reads().Counters.Scan(ctx, args[0])
				if err != nil {
					return err
				}
				return jsonLine(c.out, counters.Point{At: at, Values: values})
			})
		},
	}
}
