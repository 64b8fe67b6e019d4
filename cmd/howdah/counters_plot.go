package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/guptarohit/asciigraph"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) countersPlot() *cobra.Command {
	var span span
	var watch bool
	cmd := &cobra.Command{
		Use:   "plot KEY PATH...",
		Short: "Numbers of a metric as lines over time",
		Long: `Draws the numbers at paths over time, as large as the terminal, or in 80 columns and 20
lines. A path that leads to several numbers, such as status or *.count, is as many
lines. What is missing is 0. Where there are more buckets than columns, a column shows
the largest of its own.`,
		Example: `  howdah counters plot web requests --from 2015-05-17 --to 2015-05-20T23:00:00Z -g 1h
  howdah counters plot web status.2xx status.4xx -g 1d`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch && !isTerminal(c.out) {
				return pg.Refuse("--watch", "is for a terminal")
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				draw := func() (string, error) {
					store := client.Reads().Counters
					q, err := span.query(ctx, store, args[0])
					if err != nil {
						return "", err
					}
					series, err := store.Values(ctx, q)
					if err != nil {
						return "", err
					}
					width, height := c.screen()
					return plot(series, args[1:], width, height, isTerminal(c.out) && !c.noColor)
				}
				if watch {
					return c.redraw(ctx, time.Second, draw)
				}
				text, err := draw()
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.out, text)
				return err
			})
		},
	}
	span.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "draw it again as it changes, until interrupted")
	return cmd
}

// screen is how many columns and lines a plot has.
func (c *cli) screen() (width, height int) {
	if out, ok := c.out.(*output); ok {
		if f, ok := out.Writer.(*os.File); ok {
			if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 1 {
				return w, h - 1 // the last line is for the prompt
			}
		}
	}
	return 80, 20
}

// redraw keeps a plot up to date, until ctx ends.
func (c *cli) redraw(ctx context.Context, every time.Duration, draw func() (string, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	seen := ""
	for {
		text, err := draw()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if text != seen {
			if _, err := fmt.Fprint(c.out, "\x1b[H\x1b[2J"+text+"\n"); err != nil {
				return err
			}
			seen = text
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// maxLines is how many lines a plot can tell apart.
const maxLines = 12

var (
	lineColors = []asciigraph.AnsiColor{
		asciigraph.Blue, asciigraph.Red, asciigraph.Green, asciigraph.Yellow, asciigraph.Magenta, asciigraph.Cyan,
		asciigraph.Orange, asciigraph.Pink, asciigraph.Olive, asciigraph.Purple, asciigraph.SkyBlue, asciigraph.Gray,
	}
	lineMarks = "─*+o#x=%@&$~"
)

// plot draws the numbers at paths in so many columns and lines.
func plot(series *counters.Series, paths []string, width, height int, colors bool) (string, error) {
	if len(series.At) == 0 {
		return "", pg.Refuse("--from", "is after --to: there is nothing to draw")
	}
	names, lines, err := linesOf(series, paths)
	if err != nil {
		return "", err
	}
	legend := legendOf(names, width, colors)
	const axis, margin, gap = 2, 3, 1
	rows := max(height-axis-gap-len(legend)-1, 3)
	low, high := bounds(lines)
	label := labels(low, high, rows)
	most := 0
	for i := range rows + 1 {
		most = max(most, utf8.RuneCountInString(label(float64(i))))
	}
	times := timeFormat(series.At)
	columns := max(width-most-margin-len(times)/2-1, 10)
	for i, line := range lines {
		line = largest(line, columns)
		for j, v := range line {
			line[j] = (v - low) / (high - low) * float64(rows) // asciigraph knows no very large or small numbers
		}
		lines[i] = line
	}
	options := []asciigraph.Option{
		asciigraph.Height(rows), asciigraph.LowerBound(0), asciigraph.UpperBound(float64(rows)),
		asciigraph.YAxisValueFormatter(label),
		asciigraph.XAxisRange(0, max(float64(len(series.At)-1), 0.1)),
		asciigraph.XAxisTickCount(min(max(columns/(len(times)+3), 2), max(len(series.At), 2))),
		asciigraph.XAxisValueFormatter(func(v float64) string {
			if len(series.At) == 1 && v > 0 {
				return ""
			}
			return series.At[int(math.Round(v))].Format(times)
		}),
	}
	if len(series.At) <= columns {
		options = append(options, asciigraph.Width(columns))
	}
	if colors {
		options = append(options, asciigraph.SeriesColors(lineColors...))
	} else {
		sets := []asciigraph.CharSet{asciigraph.DefaultCharSet}
		for _, mark := range lineMarks[len("─"):] {
			sets = append(sets, asciigraph.CreateCharSet(string(mark)))
		}
		options = append(options, asciigraph.SeriesChars(sets...))
	}
	return strings.Join(append([]string{asciigraph.PlotMany(lines, options...), ""}, legend...), "\n"), nil
}

// linesOf returns the numbers at paths, and their names.
func linesOf(series *counters.Series, paths []string) (names []string, lines [][]float64, err error) {
	for _, path := range paths {
		found, err := series.Timeline(path, 1)
		if err != nil {
			return nil, nil, err
		}
		if len(found) == 0 {
			return nil, nil, pg.Refuse("path", "%q leads to nothing; there are %s", path, some(series.Paths()))
		}
		for _, name := range slices.Sorted(maps.Keys(found)) {
			line := make([]float64, len(series.At))
			for i, sample := range found[name][0] {
				line[i] = sample.Value.Float64()
			}
			names, lines = append(names, name), append(lines, line)
		}
	}
	if len(lines) > maxLines {
		return nil, nil, pg.Refuse("path", "%d lines (%s); at most %d", len(lines), some(names), maxLines)
	}
	return names, lines, nil
}

// some names the first of many.
func some(names []string) string {
	const few = 8
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > few:
		return strings.Join(names[:few], ", ") + " …"
	}
	return strings.Join(names, ", ")
}

// largest cuts a line into so many columns, of which each is the largest of its points.
func largest(line []float64, columns int) []float64 {
	if len(line) <= columns {
		return line
	}
	cut := make([]float64, columns)
	for i := range cut {
		cut[i] = slices.Max(line[i*len(line)/columns : (i+1)*len(line)/columns])
	}
	return cut
}

// bounds are the numbers that an axis begins and ends with: never the same.
func bounds(lines [][]float64) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, line := range lines {
		low, high = min(low, slices.Min(line)), max(high, slices.Max(line))
	}
	if low == high {
		low, high = min(low, 0), max(high, 0)
	}
	if low == high {
		high = 1
	}
	return low, high
}

// labels returns what writes the number at a row of an axis, short and all alike.
func labels(low, high float64, rows int) func(row float64) string {
	unit, suffix, most := 1.0, "", max(math.Abs(low), math.Abs(high))
	for _, s := range []string{"k", "M", "G", "T", "P"} {
		if most >= 10_000*unit {
			unit, suffix = unit*1000, s
		}
	}
	// Digits enough to tell neighbours apart.
	digits, step := 0, (high-low)/unit/float64(rows)
	for ; step < 2 && step != math.Trunc(step) && digits < 9; step *= 10 {
		digits++
	}
	format := func(v float64) string { return strconv.FormatFloat(v/unit, 'f', digits, 64) + suffix }
	if most >= 1e6*unit || step < 0.1 {
		format = func(v float64) string { return strconv.FormatFloat(v, 'e', 3, 64) }
	}
	return func(row float64) string {
		v := low + row/float64(rows)*(high-low)
		if math.Abs(v) < (high-low)/1e9 { // it is how the sum comes out
			return "0"
		}
		return format(v)
	}
}

// timeFormat is how times under the axis are written: by what tells them apart.
func timeFormat(at []time.Time) string {
	layouts := []string{"2006", "2006-01", time.DateOnly, "01-02 15:04", "01-02 15:04:05"}
	if first, last := at[0], at[len(at)-1]; len(at) == 1 {
		return "2006-01-02 15:04"
	} else if first.Format(time.DateOnly) == last.Format(time.DateOnly) {
		layouts = []string{"15:04", "15:04:05"}
	}
	for _, layout := range layouts {
		twice := func(a, b time.Time) bool { return a.Format(layout) == b.Format(layout) }
		if len(slices.CompactFunc(slices.Clone(at), twice)) == len(at) {
			return layout
		}
	}
	return layouts[len(layouts)-1]
}

// legendOf says which line is which, in as many lines of text as it takes.
func legendOf(names []string, width int, colors bool) []string {
	marks := []rune(lineMarks)
	var legend []string
	var line bytes.Buffer
	used := 0
	for i, name := range names {
		name = printable(name)
		if runes := []rune(name); len(runes) > width-2 {
			name = string(runes[:max(width-3, 0)]) + "…"
		}
		entry := string([]rune{marks[i], ' '}) + name
		length := utf8.RuneCountInString(entry)
		if used > 0 && used+3+length > width {
			legend = append(legend, line.String())
			line.Reset()
			used = 0
		}
		if used > 0 {
			line.WriteString("   ")
			used += 3
		}
		if colors {
			entry = lineColors[i].String() + "■" + asciigraph.Default.String() + " " + name
		}
		line.WriteString(entry)
		used += length
	}
	return append(legend, line.String())
}
