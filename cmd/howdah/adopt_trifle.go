package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/pflag"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
)

func (c *cli) trifleSystem() adopted {
	var where placing
	var add counters.Extras
	return adopted{
		name: "trifle", short: "Record how a table of Trifle::Stats counts", table: "trifle_stats",
		example: `
  howdah adopt trifle --time-zone UTC --index --fillfactor --ping --yes`,
		flags: func(flags *pflag.FlagSet) {
			where.flags(flags)
			flags.BoolVar(&add.Index, "index", false, "also build an index of the keys in the order of their bytes")
			flags.BoolVar(&add.Fillfactor, "fillfactor", false, "also leave room in the table's blocks (fillfactor 70)")
			flags.BoolVar(&add.Ping, "ping", false, "also make the ping table")
		},
		read: func() error { return where.set(&c.counting) },
		set:  func(cfg *howdah.Config, table pgx.Identifier) { cfg.Counters.Table = table },
		look: func(ctx context.Context, client *howdah.Client) (*adoptee, error) { return trifle(ctx, client, add) },
	}
}

// trifle looks at a table of Trifle::Stats.
func trifle(ctx context.Context, client *howdah.Client, add counters.Extras) (*adoptee, error) {
	s := client.Counters
	v, err := s.Survey(ctx, add)
	if err != nil {
		return nil, err
	}
	a := &adoptee{
		found: v, words: trifleWords(v), steps: v.Steps, problems: v.Problems, undoable: v.Loss != nil,
		adopt: func(ctx context.Context, tell func(string)) error { return s.Adopt(ctx, add, told(tell)) },
		undo:  func(ctx context.Context, tell func(string)) error { return s.UndoAdopt(ctx, told(tell)) },
	}
	if l := v.Loss; l != nil {
		if l.Settings {
			a.losses = append(a.losses, "the record of how it counts")
		}
		a.losses = append(a.losses, fmt.Sprintf("IDs of events that were counted: %d; sent again, they would count twice", l.IDs),
			fmt.Sprintf("last known states: %d, in a ping table that howdah made", l.Beams))
	}
	return a, nil
}

func trifleWords(v counters.Survey) []string {
	words := []string{fmt.Sprintf("%s is a counter table, %s", printable(v.Table), v.Mode)}
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf("  "+format, args...)) }
	about := ""
	if v.Estimated {
		about = "about "
	}
	say("rows: %s%d, system rows: %s, ping table: %s", about, v.Rows, yesNo(v.SystemRows), yesNo(v.Ping))
	if s := v.Sample; s != nil {
		say("what follows is of %d rows in %d of its %d blocks, and of the first and last buckets of %d metrics", s.Rows, s.Blocks, s.OfBlocks, s.Metrics)
	}
	for _, span := range v.Found {
		say("granularity %s: from %s to %s", span.Granularity, span.First.Format(time.RFC3339), span.Last.Format(time.RFC3339))
	}
	bytewise := `no index is COLLATE "C" (--index builds one, by which ranges of a full table are read)`
	if v.Bytewise {
		bytewise = `an index is COLLATE "C"`
	}
	say("collation of keys: %s; %s", v.Collation, bytewise)
	if len(v.Offsets) > 0 {
		fit := "none that was tried"
		if len(v.Zones) > 0 {
			fit = strings.Join(v.Zones, ", ")
		}
		say("days begin at UTC offsets %s; zones that fit: %s", tally(v.Offsets), fit)
	}
	if len(v.WeekStarts) > 0 {
		say("weeks begin on %s", tally(v.WeekStarts))
	}
	if v.Encoded > 0 {
		say("rows with names that look percent-encoded: %d, such as %s; --paths v1 if a release that does so wrote them", v.Encoded, printable(v.EncodedSuch))
	}
	if v.Unparsed > 0 {
		say("rows whose keys are of no bucket: %d, such as %s; they can be read by their keys", v.Unparsed, strings.Join(v.UnparsedSuch, ", "))
	}
	if v.Twins > 0 {
		say("days, months or longer that are there twice: %d, such as %s", v.Twins, printable(v.TwinSuch))
	}
	if v.Strays > 0 {
		say("rows where no bucket of these settings begins: %d; they stay, and are not shown", v.Strays)
	}
	verb := "would be recorded"
	if v.Recorded {
		verb = "are recorded"
	}
	say("settings that %s: time zone %s, weeks from %s, separator %s, paths %s, system %s, granularities %s",
		verb, v.TimeZone, v.WeekStart, v.Separator, v.Paths, v.System, joined(v.Granularities))
	say("the original's own programs go on, now and after")
	return words
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// tally is how often each was met, the most first.
func tally[K ~string](met map[K]int) string {
	names := slices.SortedFunc(maps.Keys(met), func(a, b K) int {
		return cmp.Or(cmp.Compare(met[b], met[a]), cmp.Compare(a, b))
	})
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf("%s (%d)", name, met[name])
	}
	return strings.Join(parts, ", ")
}

func joined(granularities []counters.Granularity) string {
	texts := make([]string, len(granularities))
	for i, g := range granularities {
		texts[i] = string(g)
	}
	return strings.Join(texts, ",")
}
