package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
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
		c.countersBeam(),
		c.countersScan(),
		c.countersSetup(),
		c.countersSettings(),
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

func (c *cli) countersValues() *cobra.Command {
	var from, to, granularity string
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
				q, err := bucketsOf(ctx, store, args[0], from, to, granularity)
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
	cmd.Flags().StringVar(&from, "from", "", "the first bucket is that of this time (default 24 buckets before the last)")
	cmd.Flags().StringVar(&to, "to", "now", "the last bucket is that of this time")
	cmd.Flags().StringVarP(&granularity, "granularity", "g", "1h", "length of the buckets: a number and s m h d w mo q y")
	cmd.Flags().BoolVar(&skip, "skip-blanks", false, "leave out buckets without values")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "comma-separated, with a line of names")
	return cmd
}

// bucketsOf is what --from, --to and --granularity ask for.
func bucketsOf(ctx context.Context, s *counters.Store, key, from, to, granularity string) (q counters.Query, err error) {
	q.Key = key
	if q.Granularity, err = counters.ParseGranularity(granularity); err != nil {
		return q, err
	}
	if q.To, err = tableTime(ctx, s, "--to", to); err != nil {
		return q, err
	}
	if from != "" {
		q.From, err = tableTime(ctx, s, "--from", from)
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

func (c *cli) countersSetup() *cobra.Command {
	var mode, zone, week, separator, paths, system string
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
			cfg.Mode, cfg.Separator, cfg.Paths, cfg.System = counters.Mode(mode), separator, counters.Encoding(paths), counters.System(system)
			if zone != "" {
				if cfg.Location, err = counters.LoadLocation(zone); err != nil {
					return err
				}
			}
			if week != "" {
				if cfg.WeekStart, err = counters.ParseWeekday(week); err != nil {
					return err
				}
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
	flags.StringVar(&zone, "time-zone", "", "in which days begin, such as Europe/Bratislava (default UTC)")
	flags.StringVar(&week, "week-start", "", "the day that weeks begin with (default monday)")
	flags.StringVar(&separator, "separator", "", "between the parts of keys (default ::)")
	flags.StringVar(&paths, "paths", "", "how names of fields are stored: raw or v1 (default raw)")
	flags.StringSliceVarP(&granularities, "granularities", "g", nil, "in which events are counted (default 1m,1h,1d,1w,1mo,1q,1y)")
	flags.StringVar(&system, "system", "", "count all events in system rows: sync or off (default sync)")
	return cmd
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

func (c *cli) settings(ctx context.Context, s *counters.Store) error {
	set, err := s.Settings(ctx)
	if err != nil {
		return err
	}
	var granularities []string
	for _, g := range set.Granularities {
		granularities = append(granularities, string(g))
	}
	words := fmt.Sprintf("%s  %s  time zone %s  weeks from %s  separator %s  paths %s  system %s  granularities %s",
		set.Table, set.Mode, set.TimeZone, set.WeekStart, set.Separator, set.Paths, set.System, strings.Join(granularities, ","))
	if !set.Recorded {
		words += "  (not recorded)"
	}
	return c.result(words, set)
}

// readFields reads FIELD=VALUE; a dot in a field goes down a level.
func readFields(args []string, read func(string) (any, error)) (counters.Values, error) {
	values := counters.Values{}
	for _, arg := range args {
		name, text, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return nil, pg.Refuse("field", "%q; want NAME=VALUE", arg)
		}
		if _, ok := values[name]; ok {
			return nil, pg.Refuse(name, "given twice")
		}
		v, err := read(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		values[name] = v
	}
	return values, nil
}

// readAmount reads a number, which the store checks.
func readAmount(text string) (any, error) { return json.Number(text), nil }

// readAny reads a value: JSON if it is that, else text.
func readAny(text string) (any, error) {
	var v counters.Values
	if err := v.UnmarshalJSON([]byte(`{"v":` + text + `}`)); err != nil || len(v) != 1 {
		return text, nil
	}
	return v["v"], nil
}

// readLeaf reads a number, or kind:value.
func readLeaf(text string) (any, error) {
	kind, value, ok := strings.Cut(text, ":")
	switch {
	case !ok:
		return readAmount(text)
	case kind == "distinct":
		return counters.ParseLeaf(kind, value)
	case kind == "put":
		v, err := readAny(value)
		if err != nil {
			return nil, err
		}
		return counters.ParseLeaf(kind, v)
	}
	return counters.ParseLeaf(kind, json.Number(value))
}

// tableTime reads a time: RFC 3339, a date in the table's zone, -24h, or now.
func tableTime(ctx context.Context, s *counters.Store, flag, text string) (time.Time, error) {
	if text == "now" {
		return time.Now(), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(text); err == nil && strings.HasPrefix(text, "-") {
		return time.Now().Add(d), nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Unix(seconds, 0), nil
	}
	day, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return day, pg.Refuse(flag, "%q; want RFC 3339, a date, Unix seconds, -24h or now", text)
	}
	set, err := s.Settings(ctx)
	if err != nil {
		return day, err
	}
	loc, err := counters.LoadLocation(set.TimeZone)
	if err != nil {
		return day, err
	}
	noon := time.Date(day.Year(), day.Month(), day.Day(), 12, 0, 0, 0, loc) // not every day has a midnight
	return counters.Calendar{Location: loc}.Floor("1d", noon), nil
}
