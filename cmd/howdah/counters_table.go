package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
	"github.com/spf13/pflag"
)

func (c *cli) countersSetup() *cobra.Command {
	var mode, system string
	var where placing
	var granularities, striped []string
	var slots int
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make a table, and record how it counts",
		Long: `Makes the table and its ping table where they are missing, and records how the table
counts. What was recorded stays: other settings than those are a conflict, but for
granularities, system rows, striped names and slots, which may change.`,
		Example: `  howdah counters setup
  howdah counters setup --table shop --mode separated --time-zone America/New_York --week-start sunday`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg := &c.counting
			cfg.Mode, cfg.System, cfg.Slots = counters.Mode(mode), counters.System(system), slots
			if cmd.Flags().Changed("striped") {
				cfg.Striped = striped
			}
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
	flags.StringVar(&system, "system", "", "count all events in system rows: deferred, sync or off (default deferred)")
	flags.StringSliceVar(&striped, "striped", nil, "names that many add to at once, or how they begin: orders,http::*")
	flags.IntVar(&slots, "slots", 0, "rows that what is added to one of them is spread over (default 16)")
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
		Use:   "settings [NAME=VALUE...]",
		Short: "How a table counts, and change it",
		Long: `Prints how a table counts, after it has changed what is given: system, striped, slots,
granularities, retention.1m=7d (how long buckets of a granularity are kept; empty: for
ever) or rollup.PATH=put (how a field is made of finer buckets: add, put, max or min;
empty: as its name says). Lists have commas. Running programs follow within half a minute.`,
		Example: `  howdah counters settings
  howdah counters settings retention.1m=7d rollup.stock=put
  howdah counters settings system=off striped=orders,http::*
  howdah counters settings striped=`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var aging []string
			for _, arg := range args {
				if strings.HasPrefix(arg, "retention.") || strings.HasPrefix(arg, "rollup.") {
					aging = append(aging, arg)
				} else if err := readSetting(&c.counting, arg); err != nil {
					return err
				}
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if len(args) == 0 {
					return c.settings(ctx, client.Reads().Counters)
				}
				set, err := client.Counters.Settings(ctx)
				if err != nil { // one that is missing is setup's to make
					return err
				}
				cfg := c.counting
				for _, arg := range aging {
					if err := changeAging(&cfg, set, arg); err != nil {
						return err
					}
				}
				store := counters.New(client.Pool, cfg)
				if err := store.Setup(ctx); err != nil {
					return err
				}
				return c.settings(ctx, store)
			})
		},
	}
}

// changeAging changes one of the retentions or rules that a table has.
func changeAging(cfg *counters.Config, set counters.Settings, arg string) error {
	name, value, ok := strings.Cut(arg, "=")
	if !ok {
		return pg.Refuse("setting", "%q; want NAME=VALUE", arg)
	}
	if label, ok := strings.CutPrefix(name, "retention."); ok {
		g, err := counters.ParseGranularity(label)
		if err != nil {
			return err
		}
		if cfg.Retention == nil {
			cfg.Retention = counters.Retention{}
			maps.Copy(cfg.Retention, set.Retention)
		}
		if delete(cfg.Retention, g); value == "" {
			return nil
		}
		cfg.Retention[g], err = counters.ParseAge(value)
		return err
	}
	path := strings.TrimPrefix(name, "rollup.")
	if cfg.Rollup == nil {
		cfg.Rollup = append([]counters.Rule{}, set.Rollup...)
	}
	cfg.Rollup = slices.DeleteFunc(cfg.Rollup, func(r counters.Rule) bool { return r.Path == path })
	if value != "" {
		cfg.Rollup = append(cfg.Rollup, counters.Rule{Path: path, Op: counters.Op(value)})
	}
	return nil
}

// readSetting reads NAME=VALUE of what may change of a table.
func readSetting(cfg *counters.Config, arg string) (err error) {
	name, value, ok := strings.Cut(arg, "=")
	if !ok {
		return pg.Refuse("setting", "%q; want NAME=VALUE", arg)
	}
	switch {
	case name == "striped":
		cfg.Striped = []string{}
		if value != "" {
			cfg.Striped = strings.Split(value, ",")
		}
	case value == "":
		return pg.Refuse(name, "empty")
	case name == "system":
		cfg.System = counters.System(value)
	case name == "slots":
		if cfg.Slots, err = strconv.Atoi(value); err != nil || cfg.Slots == 0 {
			return pg.Refuse(name, "%q; want 1 to %d", value, counters.MaxSlots)
		}
	case name == "granularities":
		cfg.Granularities, err = counters.ParseGranularities(strings.Split(value, ","))
	default:
		return pg.Refuse("setting", "%q; what may change is system, striped, slots, granularities, retention.1m and rollup.PATH", name)
	}
	return err
}

func (c *cli) countersFold() *cobra.Command {
	return &cobra.Command{
		Use:   "fold",
		Short: "Add what is in slots to the rows",
		Long: `Adds what was counted in slots, of striped names and of system rows, to the rows where
other programs look for it. howdah serve does so every 10 seconds.`,
		Example: "  howdah counters fold",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				n, err := client.Counters.Fold(ctx)
				if err != nil {
					return err
				}
				return c.result(fmt.Sprintf("folded %d", n), map[string]int64{"folded": n})
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
	if len(set.Striped) > 0 {
		words += fmt.Sprintf("  striped %s over %d slots", strings.Join(set.Striped, ","), set.Slots)
	}
	for _, g := range slices.Sorted(maps.Keys(set.Retention)) {
		words += fmt.Sprintf("  %s kept for %s", g, counters.FormatAge(set.Retention[g]))
	}
	for _, rule := range set.Rollup {
		words += fmt.Sprintf("  rollup %s %s", printable(rule.Path), rule.Op)
	}
	if !set.Recorded {
		words += "  (not recorded)"
	}
	return c.result(words, set)
}
