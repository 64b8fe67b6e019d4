package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Report is what a run has measured, and where.
type Report struct {
	Began   time.Time `json:"began"`
	Took    string    `json:"took"`
	Command string    `json:"command"`
	Rounds  int       `json:"rounds"`
	Machine Machine   `json:"machine"`
	Tables  []Table   `json:"services"`
}

// Table is the results of a service.
type Table struct {
	Service string   `json:"service"`
	Apart   string   `json:"apart,omitempty"` // when and how, where not with the rest
	Results []Result `json:"results"`
	whole   bool     // all of the service's rows were measured
}

// defaultRounds are those of make bench.
const defaultRounds = 5

func newReport(ctx context.Context, server string, opt Options) (*Report, error) {
	machine, err := describe(ctx, server)
	command := "make bench"
	switch {
	case opt.Quick:
		command = "make bench-quick"
	case opt.Rounds != defaultRounds:
		command = fmt.Sprintf("go run . -rounds %d", opt.Rounds)
	}
	if opt.Only != nil && opt.Only.String() != "" {
		command = fmt.Sprintf("go run . -keep -run '%s'", opt.Only)
	}
	return &Report{Began: time.Now().UTC().Truncate(time.Second), Command: command, Rounds: opt.Rounds, Machine: machine}, err
}

// Save writes the report, completely or not at all.
func (r *Report) Save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// newest reads the latest report of dir.
func newest(dir string) (*Report, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("no result in %s; make bench makes one", dir)
	}
	b, err := os.ReadFile(slices.Max(paths)) // named for their dates
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", slices.Max(paths), err)
	}
	return &r, nil
}

// keep puts the services of a partial run into a complete report, each as a whole
// and with a note. It refuses figures of another machine, server or kind of run.
func (r *Report) keep(part *Report) error {
	here, there := part.Machine, r.Machine
	there.Load = here.Load
	if !reflect.DeepEqual(here, there) || part.Rounds != r.Rounds {
		return errors.New("the newest result is of another machine, server or number of rounds: make a complete one")
	}
	for _, t := range part.Tables {
		if !t.whole {
			return fmt.Errorf("not all rows of %s were measured", t.Service)
		}
		t.Apart = fmt.Sprintf("%s, in %s, by `%s`; load before the run %s",
			part.Began.Format(time.DateOnly), part.Took, part.Command, short(part.Machine.Load))
		i := slices.IndexFunc(r.Tables, func(old Table) bool { return old.Service == t.Service })
		if i < 0 {
			r.Tables = append(r.Tables, t)
		} else {
			r.Tables[i] = t
		}
	}
	return nil
}

// Missed returns the results that do not reach their bars, even where those are
// generous by a factor.
func (r *Report) Missed(generous float64) (missed []Result) {
	for _, t := range r.Tables {
		for _, result := range t.Results {
			if !result.within(generous) {
				missed = append(missed, result)
			}
		}
	}
	return missed
}

// Summary is the last line of a run.
func (r *Report) Summary() string {
	rows := 0
	for _, t := range r.Tables {
		rows += len(t.Results)
	}
	return fmt.Sprintf("%d of %d bars met, in %s.", rows-len(r.Missed(1)), rows, r.Took)
}

// Text is the table for a terminal.
func (t Table) Text() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s\n", t.Service)
	for _, grid := range t.grids() {
		widths := make([]int, len(grid[0]))
		for _, line := range grid {
			for i, cell := range line {
				widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			}
		}
		for _, line := range grid {
			for i, cell := range line {
				gap := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
				if i == 0 {
					out.WriteString("  " + cell + gap)
				} else if isNumber := i >= grid.texts(); isNumber {
					out.WriteString("  " + gap + cell)
				} else {
					out.WriteString("  " + cell + gap)
				}
			}
			out.WriteString("\n")
		}
		out.WriteString("\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// Markdown is the table for a page.
func (t Table) Markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, "## %s\n", t.Service)
	if t.Apart != "" {
		fmt.Fprintf(&out, "\nMeasured apart from the rest: %s.\n", t.Apart)
	}
	for _, grid := range t.grids() {
		out.WriteString("\n")
		for i, line := range grid {
			fmt.Fprintf(&out, "| %s |\n", strings.Join(line, " | "))
			if i == 0 {
				n := grid.texts()
				out.WriteString(strings.Repeat("|---", n) + strings.Repeat("|--:", len(line)-n) + "|\n")
			}
		}
	}
	return out.String()
}

// grid is cells by line and column; the first line is the header.
type grid [][]string

// texts returns how many columns hold words.
func (g grid) texts() int {
	if g[0][1] == "against" {
		return 2
	}
	return 1
}

// grids are the results, those of the same columns together.
func (t Table) grids() (grids []grid) {
	for _, r := range t.Results {
		header, line := []string{"work"}, []string{r.Work}
		if r.Control != "" {
			header, line = append(header, "against"), append(line, r.Control)
		}
		for _, f := range r.Figures {
			header, line = append(header, f.Name), append(line, f.String())
		}
		if r.Of != "" {
			header = append(header, r.Of, "min–max")
			line = append(line, short(r.Value), short(r.Min)+"–"+short(r.Max))
		}
		sign, met := "≥ ", "met"
		if r.AtMost {
			sign = "≤ "
		}
		if !r.Met() {
			met = "MISSED"
		}
		unit := ""
		if r.Of == "" {
			unit = r.Figures[0].Unit
		}
		header, line = append(header, "bar", ""), append(line, sign+Figure{Value: r.Bar, Unit: unit}.String(), met)
		if n := len(grids); n > 0 && slices.Equal(grids[n-1][0], header) {
			grids[n-1] = append(grids[n-1], line)
		} else {
			grids = append(grids, grid{header, line})
		}
	}
	return grids
}

// String writes a figure in at most a handful of characters.
func (f Figure) String() string {
	switch {
	case f.Unit == "/s" && f.Value >= 1e6:
		return short(f.Value/1e6) + "M/s"
	case f.Unit == "/s" && f.Value >= 1e3:
		return short(f.Value/1e3) + "k/s"
	case f.Unit == "/s", f.Unit == "%", f.Unit == "":
		return short(f.Value) + f.Unit
	}
	return short(f.Value) + " " + f.Unit
}

// short writes three digits or so.
func short(v float64) string {
	digits := 0
	switch a := math.Abs(v); {
	case a == math.Trunc(a) && a != 0 && a < 1e6:
	case a == 0:
	case a < 10:
		digits = 2
	case a < 100:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// grouped writes 10000 as 10,000.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// writeDocs writes the page of the newest result in dir to path.
func writeDocs(dir, path string) error {
	r, err := newest(dir)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(r.Page()), 0o644)
}

// Page is the report for people. Every figure in it was measured.
func (r *Report) Page() string {
	var out strings.Builder
	m := r.Machine
	memory := ""
	if m.MemoryGiB > 0 {
		memory = fmt.Sprintf(", %.0f GiB of memory", m.MemoryGiB)
	}
	var settings []string
	for _, name := range slices.Sorted(maps.Keys(m.Settings)) {
		settings = append(settings, fmt.Sprintf("`%s=%s`", name, m.Settings[name]))
	}
	fmt.Fprintf(&out, `# Benchmarks

<!-- Written by make bench-docs from the newest file in bench/results. Change bench/report.go, not this. -->

What howdah's calls cost beside the best raw SQL for the same effect, or beside
what one would use instead. Each figure is a **ratio against a control in the same
run**: both sides take turns on one server, %d times after a round for warming up,
with a vacuum between; a ratio is the median of the rounds, with the least and the
greatest beside it. Rates are there for orientation: they are this machine's, and
not stable even there.

| | |
|---|---|
| measured | %s, in %s, by `+"`%s`"+` |
| machine | %s, %d cores%s, %s; clients and server share it; load before the run %s |
| PostgreSQL | %s, durable: %s |
| Go | %s |

A bar is what a row has to reach. `+"`make bench`"+` repeats all of it on a PostgreSQL
that it starts, or on BENCH_DATABASE_URL; `+"`make bench-quick`"+` takes some minutes, with smaller sizes.
`, r.Rounds, r.Began.Format(time.DateOnly), cmp.Or(r.Took, "some minutes"), r.Command,
		m.CPU, m.Cores, memory, m.OS, short(m.Load), m.PostgreSQL, strings.Join(settings, " "), strings.TrimPrefix(m.Go, "go"))
	for _, t := range r.Tables {
		out.WriteString("\n" + t.Markdown())
	}
	return out.String()
}
