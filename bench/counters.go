package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

// countersRows are of events in four granularities, with three fields. A unit is an
// event.
var countersRows = []Row{
	Ratio{
		Work: "apply 1,000 events, 4 granularities, 3 fields, rows all distinct", Control: "an upsert of the 4,000 rows that replaces data", Bar: 0.35,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			s, err := openWithoutSystem(ctx, lab)
			events, rows := manyEvents(), manyRows(lab.Pool)
			return Side{nil, repeat(lab, rows.replace)}, Side{nil, repeat(lab, func(ctx context.Context) (int, error) { return s.Apply(ctx, events...) })}, err
		},
	},
	Ratio{
		Work: "apply 1,000 events, 4 granularities, 3 fields, rows all distinct", Control: "the original's: a transaction of 4 jsonb_set upserts an event", Bar: 10,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			s, err := openWithoutSystem(ctx, lab)
			events, rows := manyEvents(), manyRows(lab.Pool)
			next := 0
			return Side{nil, repeat(lab, func(ctx context.Context) (int, error) {
					next = (next + 4) % len(rows.keys)
					return 1, rows.track(ctx, rows.keys[next:next+4])
				})}, Side{nil, repeat(lab, func(ctx context.Context) (int, error) { return s.Apply(ctx, events...) })},
				err
		},
	},
	Ratio{
		Work: "one hot key, 64 callers of a durable Writer", Control: "the original's: a transaction of 4 jsonb_set upserts an event, 8 connections", Bar: 15,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			s, err := openWithoutSystem(ctx, lab)
			rows := manyRows(lab.Pool)
			return Side{nil, func(ctx context.Context) (int, error) {
					return together(lab, 8, func() error { return rows.track(ctx, rows.keys[:4]) })
				}}, Side{nil, func(ctx context.Context) (n int, err error) {
					err = withWriter(ctx, s, counters.WriterConfig{}, func(w *counters.Writer) error {
						n, err = together(lab, 64, func() error { return w.Track(ctx, "hot", began, values) })
						return err
					})
					return n, err
				}}, err
		},
	},
	Ratio{
		Work: "one hot key, a Fast Writer", Control: "an upsert of 4,000 rows that replaces data, for 1,000 events", Bar: 4,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			s, err := openWithoutSystem(ctx, lab)
			rows := manyRows(lab.Pool)
			return Side{nil, repeat(lab, rows.replace)}, Side{nil, func(ctx context.Context) (n int, err error) {
				err = withWriter(ctx, s, counters.WriterConfig{Fast: true}, func(w *counters.Writer) error {
					n, err = together(lab, 2, func() error { return w.Track(ctx, "hot", began, values) })
					return errors.Join(err, w.Flush(ctx))
				})
				return n, err
			}}, err
		},
	},
}

var (
	values        = counters.Values{"count": 1, "bytes": 1234, "revenue": 12.5}
	began         = time.Now()
	granularities = []counters.Granularity{"1m", "1h", "1d", "1mo"}
)

// openWithoutSystem returns a store without system rows.
func openWithoutSystem(ctx context.Context, lab *Lab) (*counters.Store, error) {
	s := counters.New(lab.Pool, counters.Config{System: counters.Off, Granularities: granularities})
	direct, err := (pg.Config{URL: lab.URL}).Direct()
	if err == nil {
		err = migrate.Up(ctx, direct, slog.New(slog.DiscardHandler), s.Migrations())
	}
	if err == nil {
		err = lab.Exec(ctx, `CREATE TABLE original (key varchar(255) PRIMARY KEY, data jsonb NOT NULL DEFAULT '{}') WITH (fillfactor = 70)`)
	}
	return s, err
}

// manyEvents are 1,000 events of as many metrics.
func manyEvents() []counters.Event {
	events := make([]counters.Event, 1000)
	for i := range events {
		events[i] = counters.Event{Key: fmt.Sprintf("metric-%04d", i), At: began, Values: values}
	}
	return events
}

// originals are the rows of such events, as they are written without howdah.
type originals struct {
	pool *pgxpool.Pool
	keys []string
	data []string
}

func manyRows(pool *pgxpool.Pool) originals {
	rows := originals{pool: pool}
	calendar := counters.Calendar{}
	for i := range 1000 {
		for _, g := range granularities {
			rows.keys = append(rows.keys, fmt.Sprintf("metric-%04d::%s::%d", i, g, calendar.Floor(g, began).Unix()))
			rows.data = append(rows.data, `{"bytes":1234,"count":1,"revenue":12.5}`)
		}
	}
	slices.Sort(rows.keys)
	return rows
}

// replace is what PostgreSQL can do at most: it does not even add.
func (o originals) replace(ctx context.Context) (int, error) {
	_, err := o.pool.Exec(ctx, `
		INSERT INTO original (key, data)
		SELECT * FROM unnest($1::text[], $2::jsonb[])
		ON CONFLICT (key) DO UPDATE SET data = EXCLUDED.data`, o.keys, o.data)
	return len(o.keys) / len(granularities), err
}

// track counts an event as the original does.
func (o originals) track(ctx context.Context, keys []string) error {
	return pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		for _, key := range keys {
			_, err := tx.Exec(ctx, `
				INSERT INTO original AS t (key, data) VALUES ($1, '{"bytes":1234,"count":1,"revenue":12.5}')
				ON CONFLICT (key) DO UPDATE SET data = jsonb_set(jsonb_set(jsonb_set(to_jsonb(t.data),
					'{bytes}', (COALESCE(t.data ->> 'bytes', '0')::numeric + 1234)::text::jsonb),
					'{count}', (COALESCE(t.data ->> 'count', '0')::numeric + 1)::text::jsonb),
					'{revenue}', (COALESCE(t.data ->> 'revenue', '0')::numeric + 12.5)::text::jsonb)`, key)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// repeat does something for a while.
func repeat(lab *Lab, do func(context.Context) (int, error)) func(context.Context) (int, error) {
	return func(ctx context.Context) (sum int, err error) {
		for began := time.Now(); time.Since(began) < awhile(lab); {
			n, err := do(ctx)
			if err != nil {
				return sum, err
			}
			sum += n
		}
		return sum, nil
	}
}

func awhile(lab *Lab) time.Duration { return time.Duration(lab.N(2000, 500)) * time.Millisecond }

// together lets callers do something for a while, and returns how often they did.
func together(lab *Lab, callers int, do func() error) (int, error) {
	var sum atomic.Int64
	errs := make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for began := time.Now(); time.Since(began) < awhile(lab); sum.Add(1) {
				if errs[i] = do(); errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return int(sum.Load()), errors.Join(errs...)
}

// withWriter runs a Writer while fn does.
func withWriter(ctx context.Context, s *counters.Store, cfg counters.WriterConfig, fn func(*counters.Writer) error) error {
	w := counters.NewWriter(s, cfg)
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(run) }()
	err := fn(w)
	stop()
	return errors.Join(err, <-ended)
}
