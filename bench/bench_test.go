package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestGuard notices a collapse: the quick set, with bars half as high. A row that
// misses is measured once more before it counts.
func TestGuard(t *testing.T) {
	opt := Options{Quick: true, Progress: newProgress(os.Stderr)}
	report, err := Measure(t.Context(), suite, opt, func(table Table) { t.Log("\n" + table.Text()) })
	if err != nil {
		t.Fatal(err)
	}
	missed := report.Missed(2)
	if len(missed) == 0 {
		return
	}
	t.Logf("once more, because of %+v", missed)
	again, err := Measure(t.Context(), suite, opt, func(table Table) { t.Log("\n" + table.Text()) })
	if err != nil {
		t.Fatal(err)
	}
	for _, second := range again.Missed(2) {
		for _, first := range missed {
			if first.Work == second.Work && first.Control == second.Control {
				t.Errorf("%s against %q: %.2f and %.2f, bar %.2f", first.Work, first.Control, first.Value, second.Value, first.Bar)
			}
		}
	}
}

// twice is a row whose other side does half of the work.
var twice = Ratio{Work: "count", Control: "half", Bar: 1.5, Open: func(context.Context, *Lab) (Side, Side, error) {
	side := func(units int) Side {
		return Side{Run: func(ctx context.Context) (int, error) {
			select {
			case <-time.After(50 * time.Millisecond):
				return units, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}}
	}
	return side(1000), side(20_000), nil
}}

func TestARunIsReportedSavedAndWritten(t *testing.T) {
	suite := []Service{{"first", []Row{twice}}, {"second", []Row{twice}}}
	report, err := Measure(t.Context(), suite, Options{Rounds: 2}, func(Table) {})
	if err != nil {
		t.Fatal(err)
	}
	r := report.Tables[0].Results[0]
	if r.Min > r.Value || r.Value > r.Max || !r.Met() || len(report.Missed(1)) != 0 {
		t.Errorf("result %+v", r)
	}
	if err := belowBars(report, Options{}); err != nil {
		t.Error(err)
	}
	missed := &Report{Tables: []Table{{Results: []Result{{Value: 1, Bar: 2}}}}}
	if belowBars(missed, Options{}) == nil || belowBars(missed, Options{Quick: true}) != nil {
		t.Error("a bar that is missed is an error, but of the quick sizes")
	}
	if report.Machine.PostgreSQL == "" || report.Machine.Settings["fsync"] != "on" {
		t.Errorf("machine %+v", report.Machine)
	}

	dir := t.TempDir()
	for _, name := range []string{"2026-01-02.json", "2026-01-03.json"} {
		if err := report.Save(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		report.Command = "the newest"
	}
	page := filepath.Join(dir, "page.md")
	if err := writeDocs(dir, page); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"the newest", "## second", "| count | half |", "PostgreSQL " + "| " + report.Machine.PostgreSQL} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestAServiceIsPutIntoTheNewestResult(t *testing.T) {
	whole := []Service{{"first", []Row{twice}}, {"second", []Row{twice, twice}}}
	report, err := Measure(t.Context(), whole, Options{Rounds: 1}, func(Table) {})
	if err != nil {
		t.Fatal(err)
	}
	again := func(only string) *Report {
		t.Helper()
		part, err := Measure(t.Context(), whole, Options{Rounds: 1, Only: regexp.MustCompile(only)}, func(Table) {})
		if err != nil {
			t.Fatal(err)
		}
		return part
	}
	second := again("^second/")
	if err := report.keep(second); err != nil {
		t.Fatal(err)
	}
	if len(report.Tables) != 2 || report.Tables[0].Apart != "" || !strings.Contains(report.Tables[1].Apart, "go run . -keep -run '^second/'") {
		t.Errorf("%+v", report.Tables)
	}
	if !strings.Contains(report.Page(), "Measured apart from the rest") {
		t.Error("the page does not say so")
	}
	second.Tables[0].whole = false
	if err := report.keep(second); err == nil {
		t.Error("a part of a service was kept")
	}
	second.Tables[0].whole, second.Machine.CPU = true, "another"
	if err := report.keep(second); err == nil {
		t.Error("figures of another machine were kept")
	}
}

func TestAnInterruptLeavesNothingBehind(t *testing.T) {
	left := func() int {
		dirs, err := filepath.Glob("/var/tmp/howdah-bench-*")
		if err != nil {
			t.Fatal(err)
		}
		return len(dirs)
	}
	before := left()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	row := Ratio{Work: "interrupted", Open: func(ctx context.Context, lab *Lab) (Side, Side, error) {
		cancel()
		return Side{}, Side{}, lab.Exec(ctx, "SELECT pg_sleep(600)")
	}}
	if _, err := Measure(ctx, []Service{{"any", []Row{row}}}, Options{}, nil); err == nil {
		t.Error("no error")
	}
	if now := left(); now > before {
		t.Errorf("%d directories before, %d now", before, now)
	}
}

func TestResultsAgainstTheirBars(t *testing.T) {
	for _, c := range []struct {
		value, bar float64
		atMost     bool
		met, half  bool
	}{
		{1, 1, false, true, true},
		{0.6, 1, false, false, true},
		{0.4, 1, false, false, false},
		{2, 2, true, true, true},
		{3, 2, true, false, true},
		{5, 2, true, false, false},
		{1, 0, true, false, false}, // a deadlock is one too many
	} {
		r := Result{Value: c.value, Bar: c.bar, AtMost: c.atMost}
		if r.Met() != c.met || r.within(2) != c.half {
			t.Errorf("%+v: met %v, within half %v", c, r.Met(), r.within(2))
		}
	}
}

// A bar of each ten times as much is one for as many tens as were measured.
func TestABarOfTenfoldGrowth(t *testing.T) {
	for want, g := range map[float64]Growth{1.5: {Bar: 1.5, Tenfold: true}, 2: {Bar: 2}} {
		if got := g.bar([]int{10_000, 100_000}); got < want-0.001 || got > want+0.001 {
			t.Errorf("%+v: %v, want %v", g, got, want)
		}
	}
	if got := (Growth{Bar: 1.5, Tenfold: true}).bar([]int{10_000, 100_000, 10_000_000}); got < 3.374 || got > 3.376 {
		t.Errorf("of three tens: %v, want 1.5³", got)
	}
}

func TestFigures(t *testing.T) {
	for want, f := range map[string]Figure{
		"1.52M/s": {Value: 1_520_000, Unit: "/s"},
		"92.5k/s": {Value: 92_512, Unit: "/s"},
		"412/s":   {Value: 412.4, Unit: "/s"},
		"0.63":    {Value: 0.631},
		"5%":      {Value: 5, Unit: "%"},
		"1374 µs": {Value: 1373.8, Unit: "µs"},
		"0":       {},
	} {
		if got := f.String(); got != want {
			t.Errorf("%+v = %q, want %q", f, got, want)
		}
	}
	if got := median([]float64{3, 1, 2}); got != 2 {
		t.Errorf("median = %v, want 2", got)
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("median = %v, want 2.5", got)
	}
	if got := grouped(1234567); got != "1,234,567" {
		t.Errorf("grouped = %q", got)
	}
}
