package main

import (
	"context"
	"fmt"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (c *cli) countersSetup() *cobra.Command {
	var mode, system string
	var where placing
	var granularities []string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make a table, and record how it counts",
		Long: `Makes the table and its ping table where they are missing, and records how the table
counts. What was recorded stays: other settings than those are a conflict, but for
granularities and system rows, which may change.`,
		Example: `  howdah counters setup
  howdah counters setup --table shop --mode separated --time-zone America/New_York --week-start sunday`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg := &c.counting
			cfg.Mode, cfg.System = counters.Mode(mode), counters.System(system)
			if err := where.set(cfg); err != nil {
				return err
			}
			if cfg.Granularities, err = counters.ParseGranularities(granularities); err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if err := client.Counters.Setup(ctx); err != nil {
					return err
				}
				return c.settings(ctx, client.Counters)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&mode, "mode", "", "full, partial or separated; of a table that is made (default full)")
	where.flags(flags)
	flags.StringSliceVarP(&granularities, "granularities", "g", nil, "in which events are counted (default 1m,1h,1d,1w,1mo,1q,1y)")
	flags.StringVar(&system, "system", "", "count all events in system rows: sync or off (default sync)")
	return cmd
}

// placing are the settings that say where in a table a number lies, as flags.
type placing struct{ zone, week, separator, paths string }

func (p *placing) flags(flags *pflag.FlagSet) {
	flags.StringVar(&p.zone, "time-zone", "", "in which days begin, such as Europe/Bratislava (default UTC)")
	flags.StringVar(&p.week, "week-start", "", "the day that weeks begin with (default monday)")
	flags.StringVar(&p.separator, "separator", "", "between the parts of keys (default ::)")
	flags.StringVar(&p.paths, "paths", "", "how names of fields are stored: raw or v1 (default raw)")
}

func (p *placing) set(cfg *counters.Config) (err error) {
	cfg.Separator, cfg.Paths = p.separator, counters.Encoding(p.paths)
	if p.zone != "" {
		if cfg.Location, err = counters.LoadLocation(p.zone); err != nil {
			return err
		}
	}
	if p.week != "" {
		cfg.WeekStart, err = counters.ParseWeekday(p.week)
	}
	return err
}

func (c *cli) countersSettings() *cobra.Command {
	return &cobra.Command{
		Use:     "settings",
		Short:   "How a table counts",
		Example: "  howdah counters settings",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return c.settings(ctx, client.Reads().Counters)
			})
		},
	}
}

func (c *cli) countersDoctor() *cobra.Command {
	return doctorOf(c, "counters", "What is wrong with a table, and what to do", askCounters)
}

func askCounters(ctx context.Context, client *howdah.Client) ([]counters.Finding, error) {
	return client.Counters.Doctor(ctx)
}

func (c *cli) settings(ctx context.Context, s *counters.Store) error {
	set, err := s.Settings(ctx)
	if err != nil {
		return err
	}
	words := fmt.Sprintf("%s  %s  time zone %s  weeks from %s  separator %s  paths %s  system %s  granularities %s",
		set.Table, set.Mode, set.TimeZone, set.WeekStart, set.Separator, set.Paths, set.System, joined(set.Granularities))
	if !set.Recorded {
		words += "  (not recorded)"
	}
	return c.result(words, set)
}
