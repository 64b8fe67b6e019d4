package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

// lineFormats are the formats of a counters import, and what a line of them is.
var lineFormats = []struct{ name, about string }{
	{"events", `an object a line: {"key":"orders","at":"2025-05-06T09:15:00Z","values":{"count":1}},
            and as one likes "id", "op" (track or assert) and "untracked"`},
	{"combined", `a web server's access log: requests, bytes, status.2xx, method.GET, size (a histogram
            of the bytes) and visitors (distinct hosts) of each line`},
	{"rows", `what export printed: rows take the place of those that are there, any number of times`},
}

func lineFormatNames() []string {
	var names []string
	for _, f := range lineFormats {
		names = append(names, f.name)
	}
	return names
}

func (c *cli) countersImport() *cobra.Command {
	var format, key string
	var granularities []string
	var opt counters.ApplyOptions
	long := `Counts what the lines of a file say, perhaps packed with gzip. Lines that are wrong are
left out and told, the first 100 of them one by one.

The format follows the file's name: .jsonl and .ndjson are events, .log is combined.
`
	for _, f := range lineFormats {
		long += fmt.Sprintf("\n  %-9s %s", f.name, f.about)
	}
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Count the lines of a log, or of a file of events; - is stdin",
		Long: long + `

With --once an import that was interrupted is simply run again, and so is that of a file
that has grown: within 7 days, what was counted under that name is passed over.`,
		Example: `  howdah counters import access.log --key web -g 1m,1h,1d --once access.log
  howdah counters import events.jsonl
  zcat access.log.*.gz | howdah counters import - --format combined --key web`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := lineFormatOf(format, args[0])
			if err != nil {
				return err
			}
			if format == "combined" && key == "" {
				return pg.Refuse("--key", "missing; lines of a log say nothing of a metric")
			}
			buckets, err := counters.ParseGranularities(granularities)
			if err != nil {
				return err
			}
			in, size, err := c.openInput(args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			if format == "rows" {
				if key != "" || len(buckets) > 0 || opt.Once != "" {
					return pg.Refuse("--format", "rows are put as they are, without --key, --granularity and --once")
				}
				return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
					bar := c.progress("import "+printable(args[0]), size)
					report, err := interruptible(ctx, func() (counters.ImportReport, error) {
						return client.Counters.Import(ctx, counted(bar, counters.ReadRows(bar.reader(in))))
					})
					bar.finish()
					return c.imports(report, err)
				})
			}
			refused := 0
			opt.Refused = func(err error) {
				if refused++; refused <= maxTold {
					c.note("left out: " + err.Error())
				}
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				bar := c.progress("import "+printable(args[0]), size)
				events := bucketed(counted(bar, readerOf(format)(bar.reader(in), key)), buckets)
				done, err := interruptible(ctx, func() (counters.Applied, error) {
					return client.Counters.ApplyAll(ctx, events, opt)
				})
				bar.finish()
				return c.counted(done, err)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", strings.Join(lineFormatNames(), ", "))
	cmd.Flags().StringVar(&key, "key", "", "the metric of lines that name none")
	cmd.Flags().StringSliceVarP(&granularities, "granularity", "g", nil, "lengths of the buckets to count in, as 1m,1h,1d (default those of the table)")
	cmd.Flags().StringVar(&opt.Once, "once", "", "a name for the file, under which each line is counted once")
	return cmd
}

// maxTold is how many lines that are left out are told one by one.
const maxTold = 100

// lineFormatOf is the format asked for, else the one of a file's name.
func lineFormatOf(format, path string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(filepath.Base(path)), ".gz")
	switch ext := filepath.Ext(name); {
	case format != "":
		for _, f := range lineFormats {
			if f.name == format {
				return format, nil
			}
		}
	case ext == ".jsonl" || ext == ".ndjson":
		return "events", nil
	case ext == ".log" || strings.Contains(name, ".log."): // access.log.1
		return "combined", nil
	}
	given := fmt.Sprintf("%q", format)
	if format == "" {
		given = "missing, and not told by the name " + printable(name)
	}
	return "", pg.Refuse("--format", "%s; want one of %s", given, strings.Join(lineFormatNames(), ", "))
}

// readerOf is what reads a format of events.
func readerOf(format string) func(r io.Reader, key string) iter.Seq2[counters.Event, error] {
	if format == "combined" {
		return counters.ReadAccess
	}
	return counters.ReadEvents
}

// bucketed counts events in the buckets of granularities; none are those of the table.
func bucketed(events iter.Seq2[counters.Event, error], granularities []counters.Granularity) iter.Seq2[counters.Event, error] {
	return func(yield func(counters.Event, error) bool) {
		for e, err := range events {
			e.Granularities = granularities
			if !yield(e, err) {
				return
			}
		}
	}
}

// counted prints what became of an import's lines. One without any good line failed.
func (c *cli) counted(done counters.Applied, err error) error {
	lines := done.Applied + done.Duplicates + done.Refused
	if done.Refused > maxTold {
		c.note(fmt.Sprintf("left out: %d more", done.Refused-maxTold))
	}
	if err != nil && lines == 0 {
		return err
	}
	words := fmt.Sprintf("lines %d, applied %d, duplicates %d, refused %d", lines, done.Applied, done.Duplicates, done.Refused)
	printed := c.result(words, struct {
		Lines int64 `json:"lines"`
		counters.Applied
	}{lines, done})
	switch {
	case err != nil:
		return err
	case printed == nil && done.Refused == lines && lines > 0:
		return errors.New("no line could be counted: is it of another format?")
	}
	return printed
}

// imports prints what became of an import's rows. One without any good row failed.
func (c *cli) imports(report counters.ImportReport, err error) error {
	for _, refused := range report.Errors {
		c.note("left out: " + refused.Error())
	}
	if more := report.Refused - int64(len(report.Errors)); more > 0 {
		c.note(fmt.Sprintf("left out: %d more", more))
	}
	if err != nil && report.Rows == 0 {
		return err
	}
	printed := c.result(fmt.Sprintf("rows %d, refused %d", report.Rows, report.Refused), report)
	switch {
	case err != nil:
		return err
	case printed == nil && report.Rows == 0 && report.Refused > 0:
		return errors.New("no row could be put: is it of another format?")
	}
	return printed
}
