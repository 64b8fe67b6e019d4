// Command bench measures howdah against controls in the same run, on the same
// server: raw SQL for the same effect, and what one would use instead.
//
// A figure is a ratio, because absolute figures of a shared machine mean little.
// Each service has a file here with its rows, and suite lists them; a row is a
// [Ratio] (two sides by turns), a [Growth] (the same work at growing sizes), a
// [Count] (what each of two sides leaves behind) or anything else that returns
// [Result]s. Every row has a database of its own, which is dropped after it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// suite is every row there is, by service.
var suite = []Service{
	{Name: "checklists", Rows: slices.Concat(checklistsRows, leaseRows, singleRows)},
	{Name: "counters", Rows: slices.Concat(countersRows, counterHot, counterReads, counterLines)},
	{Name: "pg.Batcher", Rows: batcherRows},
	{Name: "changes", Rows: changesRows},
}

const (
	resultsDir = "results"
	docsFile   = "../docs/benchmarks.md"
)

func main() {
	// The first interrupt ends the run; others change nothing, so that what we
	// started and made is always removed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "Measures howdah against controls, on a PostgreSQL that it starts, or on BENCH_DATABASE_URL.\n\n")
		flags.PrintDefaults()
	}
	var opt Options
	flags.BoolVar(&opt.Quick, "quick", false, "smaller sizes and three rounds")
	flags.IntVar(&opt.Rounds, "rounds", 0, "rounds of each row (default 5; 3 with -quick)")
	only := flags.String("run", "", "only rows whose service/work matches this `regexp`")
	keep := flags.Bool("keep", false, "with -run: put the services measured, each as a whole, into the newest result")
	docs := flags.Bool("docs", false, "measure nothing: write "+docsFile+" from the newest result")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || opt.Rounds < 0 || *keep && (opt.Quick || *only == "") {
		flags.Usage()
		return errors.New("wrong arguments")
	}
	if *docs {
		return writeDocs(resultsDir, docsFile)
	}
	var err error
	if opt.Only, err = regexp.Compile(*only); err != nil {
		return err
	}

	opt.Progress = newProgress(stderr)
	report, err := Measure(ctx, suite, opt, func(t Table) { fmt.Fprint(stdout, t.Text(), "\n") })
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, report.Summary())
	switch {
	case *keep:
		part := report
		if report, err = newest(resultsDir); err != nil {
			return err
		}
		if err := report.keep(part); err != nil {
			return err
		}
	case opt.Quick || *only != "":
		fmt.Fprintln(stderr, "Not saved: only a complete run is, and with -keep a service.")
		return belowBars(report, opt)
	}
	path := filepath.Join(resultsDir, report.Began.Format(time.DateOnly)+".json")
	if err := report.Save(path); err != nil {
		return err
	}
	fmt.Fprintln(stderr, "Saved as", filepath.Join("bench", path), "- make bench-docs writes the page.")
	return belowBars(report, opt)
}

// belowBars is an error where a bar is missed. The bars are of the full sizes: with others
// they tell nothing.
func belowBars(r *Report, opt Options) error {
	if missed := len(r.Missed(1)); missed > 0 && !opt.Quick {
		return fmt.Errorf("%d bars missed", missed)
	}
	return nil
}
