package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) changesRetention() *cobra.Command {
	var hold string
	cmd := &cobra.Command{
		Use:   "retention [DURATION]",
		Short: "For how long the log keeps changes, and waits for consumers",
		Long: `Prints for how long the log keeps changes, or sets it. Consumers that are behind hold
the log for longer, but not for ever: then they expire. Durations are 90m, 72h or 7d.`,
		Example: `  howdah changes retention
  howdah changes retention 72h --hold 14d`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var keep, held time.Duration // 0 stays as it is
			var err error
			if len(args) > 0 {
				keep, err = readDays("retention", args[0])
			}
			if err == nil && cmd.Flags().Changed("hold") {
				held, err = readDays("--hold", hold)
			}
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if keep != 0 || held != 0 {
					if err := client.Changes.Retain(ctx, keep, held); err != nil {
						return err
					}
				}
				r, err := client.Changes.Retention(ctx)
				if err != nil {
					return err
				}
				return c.result(fmt.Sprintf("kept for %s, held for %s", inDays(r.Keep), inDays(r.Hold)),
					map[string]string{"retention": inDays(r.Keep), "hold": inDays(r.Hold)})
			})
		},
	}
	cmd.Flags().StringVar(&hold, "hold", "", "how long consumers that are behind hold the log")
	return cmd
}

// readDays reads a duration that may be in days.
func readDays(name, text string) (time.Duration, error) {
	days, inDays := strings.CutSuffix(text, "d")
	if n, err := strconv.Atoi(days); inDays && err == nil && n > 0 && n < 100*365 {
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, pg.Refuse(name, "%q; want a duration such as 90m, 72h or 7d", text)
	}
	return d, nil
}

// inDays writes a duration as short as readDays reads it.
func inDays(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d%day == 0 && d > day:
		return strconv.Itoa(int(d/day)) + "d"
	case d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	}
	return d.String()
}

func (c *cli) changesRebase() *cobra.Command {
	var keep, yes bool
	cmd := &cobra.Command{
		Use:   "rebase",
		Short: "Make the log usable after a dump was restored, or after pg_upgrade",
		Long: `A log that came from another database means nothing in this one: nobody can read it until
it was rebased. That empties it and begins an era; consumers expire, and go on where they
are moved to. A log that is this database's own is left alone. --keep goes on with the log
as it is, which is right after pg_upgrade.`,
		Example: `  howdah changes rebase --keep
  howdah changes rebase --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !keep && !yes {
				return pg.Refuse("--yes", "is missing: this empties the log, and all consumers expire")
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if err := client.Changes.Rebase(ctx, keep); err != nil {
					return err
				}
				return c.result("rebased", map[string]bool{"rebased": true})
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "go on with the log: after pg_upgrade")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
