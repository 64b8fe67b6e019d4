package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/howdah-db/howdah/counters"
)

// A plot fits into its columns and lines, whatever the numbers are.
func TestPlotsFit(t *testing.T) {
	t.Parallel()
	numbers := map[string]func(i int) string{
		"none": func(int) string { return "0" }, "one": func(int) string { return "1e-9" },
		"small": func(i int) string { return []string{"1e-30", "2e-30", "-1e-30"}[i%3] },
		"large": func(i int) string { return []string{"1e100", "0", "-1e99", "12345678901234567890"}[i%4] },
		"bytes": func(i int) string { return []string{"203023", "171717", "9999999"}[i%3] },
		"close": func(i int) string { return []string{"1000000", "1000001"}[i%2] },
	}
	for _, points := range []int{1, 2, 24, 500} {
		for _, size := range [][2]int{{80, 20}, {40, 10}, {200, 60}} {
			series := &counters.Series{}
			for i := range points {
				text := ""
				for name, number := range numbers {
					text += `,"` + name + `":` + number(i)
				}
				v, err := counters.ParseValues([]byte("{" + text[1:] + "}"))
				if err != nil {
					t.Fatal(err)
				}
				series.At, series.Values = append(series.At, time.Unix(int64(3600*i), 0).UTC()), append(series.Values, v)
			}
			for name := range numbers {
				for _, paths := range [][]string{{name}, {name, "bytes", "a rather long path that is nowhere"}} {
					text, err := plot(series, paths, size[0], size[1], false)
					if err != nil {
						t.Fatal(err)
					}
					lines := strings.Split(text, "\n")
					if len(lines) > size[1] {
						t.Errorf("%s of %d points in %v: %d lines\n%s", paths, points, size, len(lines), text)
					}
					for _, line := range lines {
						if n := utf8.RuneCountInString(line); n > size[0] {
							t.Errorf("%s of %d points in %v: %d columns\n%s", paths, points, size, n, text)
							break
						}
					}
				}
			}
		}
	}
}

// A watch draws again what has changed, until it is interrupted or fails.
func TestPlotsAreRedrawn(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	c := &cli{out: &out}
	drawn := []string{"one", "one", "two"}
	draw := func() (string, error) {
		text := drawn[0]
		if drawn = drawn[1:]; len(drawn) == 0 {
			cancel()
			return "three", ctx.Err()
		}
		return text, nil
	}
	if err := c.redraw(ctx, time.Millisecond, draw); err != nil {
		t.Errorf("%v, want nothing of an interrupt", err)
	}
	if want := "\x1b[H\x1b[2Jone\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	gone := errors.New("gone")
	if err := c.redraw(t.Context(), time.Millisecond, func() (string, error) { return "", gone }); !errors.Is(err, gone) {
		t.Errorf("%v, want what ended it", err)
	}
}
