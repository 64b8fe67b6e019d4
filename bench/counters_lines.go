package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// counterLines are of logs and rows, as they come and go by the line.
var counterLines = []Row{
	Latency{
		Work: "import of 10,000 lines of a log, 3 granularities, with hist and distinct", Times: 1, Bar: 2000,
		Open: func(ctx context.Context, lab *Lab) (func(context.Context) error, error) {
			var text strings.Builder
			if err := writeAccessLog(&text, 10_000, 30*time.Second); err != nil { // three and a half days, as the log that is imported most
				return nil, err
			}
			s, err := openCounters(ctx, lab, "trifle_stats", counters.Config{Granularities: []counters.Granularity{"1m", "1h", "1d"}})
			return func(ctx context.Context) error {
				if err := lab.Exec(ctx, `TRUNCATE trifle_stats, howdah.counter_slots`); err != nil {
					return err
				}
				done, err := s.ApplyAll(ctx, counters.ReadAccess(strings.NewReader(text.String()), "web"), counters.ApplyOptions{})
				if err == nil && done.Applied != 10_000 {
					err = fmt.Errorf("%+v", done)
				}
				return err
			}, err
		},
	},
	CounterMemory{},
}

// writeAccessLog writes n lines of a web server's log, so far apart: 20,000 hosts, and
// answers of many sizes.
func writeAccessLog(w io.Writer, n int, apart time.Duration) error {
	at := counterStart
	for i := range n {
		k := i * 7_368_787 // a prime
		method, status := "GET", 200
		switch k % 50 {
		case 0:
			method = "HEAD"
		case 1, 2:
			status = 404
		}
		_, err := fmt.Fprintf(w, "10.%d.%d.%d - - [%s] \"%s /articles/%d?page=%d HTTP/1.1\" %d %d \"https://example.com/\" \"Mozilla/5.0 (X11; Linux x86_64)\"\n",
			k%4, k/4%50, k/200%100, at.Format("02/Jan/2006:15:04:05 -0700"), method, k%997, k%7, status, k%250_000)
		if err != nil {
			return err
		}
		at = at.Add(apart)
	}
	return nil
}

// CounterMemory is the row of what the howdah binary needs at most while it imports a
// log and exports rows: it must not grow with either.
type CounterMemory struct{}

// Title implements Row.
func (CounterMemory) Title() string { return "peak memory" }

// Measure implements Row.
func (CounterMemory) Measure(ctx context.Context, lab *Lab) (results []Result, err error) {
	err = withHowdah(ctx, lab, func(h howdah) error {
		idle, err := h.idle(ctx)
		if err != nil {
			return err
		}
		lines := []int{lab.N(1_000_000, 10_000), lab.N(10_000_000, 30_000)}
		results, err = flat("howdah counters import of a log", "lines", idle, lines, func(n int) (float64, error) {
			lab.Say("importing %s lines", grouped(n))
			return h.importingLog(ctx, n)
		})
		if err != nil {
			return err
		}
		rows := []int{lab.N(100_000, 10_000), lab.N(1_000_000, 50_000)}
		for _, n := range rows {
			if err := (counterTable{lab: lab, table: "trifle_stats"}).fill(ctx, exported(n), n, 1); err != nil {
				return err
			}
		}
		more, err := flat("howdah counters export", "rows", idle, rows, func(n int) (float64, error) {
			lab.Say("exporting %s rows", grouped(n))
			return h.exportingRows(ctx, n)
		})
		results = append(results, more...)
		return err
	})
	return results, err
}

// flat measures a peak at two sizes: by how much it grows, and the greater by itself.
func flat(work, of string, idle float64, sizes []int, peak func(n int) (float64, error)) ([]Result, error) {
	figures := []Figure{{"howdah serve, idle", idle, "MiB"}}
	for _, n := range sizes {
		mib, err := peak(n)
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{grouped(n) + " " + of, mib, "MiB"})
	}
	most := figures[2]
	growth := most.Value / figures[1].Value
	return []Result{
		{Work: work, Figures: figures, Of: "growth", Value: growth, Min: growth, Max: growth, Bar: 1.2, AtMost: true},
		{Work: work + ", by itself", Figures: []Figure{most}, Value: most.Value, Min: most.Value, Max: most.Value, Bar: 100, AtMost: true},
	}, nil
}

// importingLog returns the peak of an import of a log of n lines, a second apart.
func (h howdah) importingLog(ctx context.Context, n int) (float64, error) {
	cmd := h.command(ctx, "counters", "import", "-", "--format", "combined", "--key", fmt.Sprint("web ", n), "--granularity", "1h,1d")
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	return peak(cmd, func() error {
		buffered := bufio.NewWriterSize(in, 64<<10)
		if err := writeAccessLog(buffered, n, time.Second); err == nil { // else it has ended; its error says why
			_ = buffered.Flush()
		}
		return in.Close()
	})
}

// exported is the metric of n rows. No other begins so.
func exported(n int) string { return fmt.Sprint(n, " rows") }

// exportingRows returns the peak of an export of n rows that are there.
func (h howdah) exportingRows(ctx context.Context, n int) (float64, error) {
	cmd := h.command(ctx, "counters", "export", exported(n))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	return peak(cmd, func() error {
		lines := 0
		scan := bufio.NewScanner(out)
		for scan.Scan() {
			lines++
		}
		if lines != n && scan.Err() == nil {
			return fmt.Errorf("howdah counters export: %d of %d rows", lines, n)
		}
		return scan.Err()
	})
}
