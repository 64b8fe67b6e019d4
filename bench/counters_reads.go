package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

// counterReads are of series, and of what calls cost as the table grows.
var counterReads = []Row{
	Ratio{
		Work: "a series of 1,000 points of 3 fields", Control: "the same statement, read into maps", Bar: 1 / 1.6,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			return openSeries(ctx, lab, 1000, 1000, 200)
		},
	},
	Ratio{
		Work: "a series of 100,000 stored points, blanks skipped", Control: "the same statement, read into maps", Bar: 1 / 1.6,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			n := lab.N(100_000, 20_000)
			return openSeries(ctx, lab, n, 10*n, 1)
		},
	},
	Growth{
		Work: "cost by rows of the table", Bar: 1.5, Tenfold: true, Times: 50,
		Sizes: func(lab *Lab) []int {
			if lab.Quick {
				return []int{10_000, 100_000}
			}
			return []int{10_000, 100_000, 1_000_000, 10_000_000}
		},
		Open: openCounterGrowth,
	},
	Count{
		Work: "size of a row that a million events were counted in", Control: "one that few were", Unit: "MiB", Bar: 1,
		Open: func(ctx context.Context, lab *Lab) (control, ours func(context.Context) (float64, error), err error) {
			s, err := openCounters(ctx, lab, "trifle_stats", counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1d"}})
			sizeAfter := func(n int) func(context.Context) (float64, error) {
				return func(ctx context.Context) (mib float64, err error) {
					if err = s.hot(ctx, n); err == nil {
						err = lab.Pool.QueryRow(ctx, `SELECT pg_table_size('trifle_stats') / 1048576.0`).Scan(&mib)
					}
					return mib, err
				}
			}
			return sizeAfter(8), sizeAfter(lab.N(1_000_000, 50_000)), err
		},
	},
}

// counterTable is a table of counters in a lab.
type counterTable struct {
	*counters.Store
	lab   *Lab
	table string
}

// openCounters makes a table of counters.
func openCounters(ctx context.Context, lab *Lab, table string, cfg counters.Config) (counterTable, error) {
	cfg.Table = pgx.Identifier{table}
	s := counterTable{counters.New(lab.Pool, cfg), lab, cfg.Table.Sanitize()}
	direct, err := (pg.Config{URL: lab.URL}).Direct()
	if err != nil {
		return s, err
	}
	if err := migrate.Up(ctx, direct, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
		return s, err
	}
	return s, s.Setup(ctx)
}

// The first minute of the series that are measured.
var counterStart = time.Date(2025, 5, 6, 0, 0, 0, 0, time.UTC)

// fill puts n rows of a metric into the table: one in so many minutes.
func (s counterTable) fill(ctx context.Context, metric string, n, every int) error {
	return s.lab.Exec(ctx, fmt.Sprintf(`
		INSERT INTO %s (key, data)
		SELECT '%s::1m::' || %d + 60 * i * %d, jsonb_build_object('count', i %% 17, 'revenue', i * 0.25, 'account.count', i %% 5)
		FROM generate_series(0, %d - 1) AS i`, s.table, metric, counterStart.Unix(), every, n))
}

// openSeries makes both sides read a series of so many minutes, so many times.
func openSeries(ctx context.Context, lab *Lab, rows, minutes, times int) (control, ours Side, err error) {
	s, err := openCounters(ctx, lab, "trifle_stats", counters.Config{System: counters.Off})
	if err == nil {
		err = s.fill(ctx, "orders", rows, minutes/rows)
	}
	q := counters.Query{
		Key: "orders", From: counterStart, To: counterStart.Add(time.Duration(minutes-1) * time.Minute), Granularity: "1m", SkipBlanks: rows < minutes,
	}
	first, last := "orders::1m::"+strconv.FormatInt(q.From.Unix(), 10), "orders::1m::"+strconv.FormatInt(q.To.Unix(), 10)
	return Side{nil, func(ctx context.Context) (int, error) {
			for range times {
				found, _ := lab.Pool.Query(ctx, `
					SELECT key, data
					FROM trifle_stats
					WHERE key COLLATE "C" >= $1 AND key COLLATE "C" <= $2
					ORDER BY key COLLATE "C"`, first, last)
				var key string
				var data map[string]any
				n := 0
				if _, err := pgx.ForEachRow(found, []any{&key, &data}, func() error { n++; data = nil; return nil }); err != nil {
					return 0, err
				}
				if n != rows {
					return 0, fmt.Errorf("%d of %d rows", n, rows)
				}
			}
			return times * rows, nil
		}}, Side{nil, func(ctx context.Context) (int, error) {
			for range times {
				series, err := s.Values(ctx, q)
				if err != nil {
					return 0, err
				}
				if len(series.At) != rows {
					return 0, fmt.Errorf("%d of %d points", len(series.At), rows)
				}
			}
			return times * rows, nil
		}}, err
}

// openCounterGrowth makes a table of size rows, 100 of each metric, and returns the
// core calls on any of them.
func openCounterGrowth(ctx context.Context, lab *Lab, size int) ([]Op, error) {
	s, err := openCounters(ctx, lab, fmt.Sprint("of_", size), counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1m"}})
	if err != nil {
		return nil, err
	}
	const each, page = 100, 100
	metrics := size / each
	err = lab.Exec(ctx, fmt.Sprintf(`
		INSERT INTO %s (key, data)
		SELECT format('metric %%s::1m::%%s', lpad((i / %[2]d)::text, 6, '0'), %[3]d + 60 * (i %% %[2]d)), jsonb_build_object('count', i %% 17, 'revenue', i * 0.25)
		FROM generate_series(0, %[4]d - 1) AS i`, s.table, each, counterStart.Unix(), size))
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(1, uint64(size)))
	metric := func() string { return fmt.Sprintf("metric %06d", random.IntN(metrics)) }
	return []Op{
		{"Track", func(ctx context.Context) error {
			return s.Track(ctx, metric(), counterStart.Add(time.Duration(random.IntN(each))*time.Minute), counters.Values{"count": 1, "revenue": 0.25})
		}},
		{"Values of 100", func(ctx context.Context) error {
			series, err := s.Values(ctx, counters.Query{Key: metric(), From: counterStart, To: counterStart.Add(99 * time.Minute), Granularity: "1m"})
			if err == nil && len(series.Values[99]) == 0 {
				err = fmt.Errorf("a blank")
			}
			return err
		}},
		{"Page of 100", func(ctx context.Context) error {
			after := ""
			if first := random.IntN(metrics - page + 1); first > 0 {
				after = fmt.Sprintf("metric %06d", first-1)
			}
			keys, err := s.Page(ctx, after, page)
			if err == nil && len(keys) != page {
				err = fmt.Errorf("%d metrics after %q", len(keys), after)
			}
			return err
		}},
	}, nil
}

// hot counts n events in one row, eight at a time. How soon they are durable has
// nothing to do with how much room they leave behind, so it does not wait for that.
func (s counterTable) hot(ctx context.Context, n int) error {
	hurried := pgx.Identifier{s.lab.Pool.Config().ConnConfig.Database}.Sanitize()
	if err := s.lab.Exec(ctx, "ALTER DATABASE "+hurried+" SET synchronous_commit = off"); err != nil {
		return err
	}
	const callers = 8
	pool, err := s.lab.OpenPool(ctx, callers)
	if err != nil {
		return err
	}
	store := counters.New(pool, counters.Config{})
	group, ctx := errgroup.WithContext(ctx)
	for range callers {
		group.Go(func() error {
			for range n / callers {
				if err := store.Track(ctx, "hot", counterStart, counters.Values{"count": 1}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
