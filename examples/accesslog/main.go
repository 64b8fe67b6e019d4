// Command accesslog counts the lines of a web server's access log in PostgreSQL, and
// prints the requests of each day with the median size of their answers:
//
//	DATABASE_URL=postgres://… go run ./examples/accesslog access.log
//
// Run again with the same file, or with the same file grown, it counts what is new.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg/migrate"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: accesslog FILE")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Stdout, os.Getenv("DATABASE_URL"), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "accesslog:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, database, path string) error {
	log, err := os.Open(path)
	if err != nil {
		return err
	}
	defer log.Close()
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return err
	}
	defer pool.Close()
	store := counters.New(pool, counters.Config{})
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.Default(), store.Migrations()); err != nil {
		return err
	}

	// The first and the last time are those of what is read.
	var first, last time.Time
	lines := func(yield func(counters.Event, error) bool) {
		for line, err := range counters.ReadAccess(log, "web") {
			if err == nil && (first.IsZero() || line.At.Before(first)) {
				first = line.At
			}
			if err == nil && line.At.After(last) {
				last = line.At
			}
			line.Granularities = []counters.Granularity{"1h", "1d"}
			if !yield(line, err) {
				return
			}
		}
	}
	done, err := store.ApplyAll(ctx, lines, counters.ApplyOptions{
		Once:    filepath.Base(path),
		Refused: func(err error) { fmt.Fprintln(os.Stderr, "left out:", err) },
	})
	fmt.Fprintf(out, "%d lines are new, %d were counted before\n", done.Applied, done.Duplicates)
	if err != nil || first.IsZero() {
		return err
	}

	days, err := store.Values(ctx, counters.Query{Key: "web", From: first, To: last, Granularity: "1d"})
	if err != nil {
		return err
	}
	requests, err := days.Aggregate(counters.FnSum, "requests", len(days.At)) // a slice for each day
	if err != nil {
		return err
	}
	sizes, err := days.Quantile(0.5, "size", len(days.At))
	if err != nil {
		return err
	}
	for i, day := range days.At {
		fmt.Fprintf(out, "%s  %6s requests, half of them up to %s bytes\n", day.Format(time.DateOnly), requests[i], sizes[i])
	}
	return nil
}
