package main

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/counters"
)

// counterHot are of what many write to at once.
var counterHot = []Row{
	Ratio{
		Work: "track, 10,000 metrics in existence, 8 connections, system deferred and folded", Control: "system off", Bar: 0.6,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			metrics := lab.N(10_000, 2000)
			track := func(cfg counters.System) (Side, error) {
				s, err := openCounters(ctx, lab, string(cfg), counters.Config{System: cfg, Granularities: granularities})
				for first := 0; first < metrics && err == nil; first += 1000 {
					events := make([]counters.Event, 1000)
					for i := range events {
						events[i] = counters.Event{Key: fmt.Sprint("metric ", first+i), At: began, Values: values}
					}
					_, err = s.Apply(ctx, events...)
				}
				if err == nil {
					_, err = s.Fold(ctx)
				}
				return Side{nil, func(ctx context.Context) (int, error) {
					n, err := together(lab, 8, func() error {
						return s.Track(ctx, fmt.Sprint("metric ", rand.IntN(metrics)), began, values)
					})
					if err == nil { // what a Keeper does every ten seconds
						_, err = s.Fold(ctx)
					}
					return n, err
				}}, err
			}
			if control, err = track(counters.Off); err == nil {
				ours, err = track(counters.Deferred)
			}
			return control, ours, err
		},
	},
	Ratio{
		Work: "a striped name in 16 transactions of 5 ms", Control: "a name that is not striped", Bar: 6,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			cfg := counters.Config{System: counters.Off, Granularities: granularities, Striped: []string{"striped"}}
			if _, err = openCounters(ctx, lab, "trifle_stats", cfg); err != nil {
				return control, ours, err
			}
			// Half a minute ago, when whoever counts has come to know of it.
			err = lab.Exec(ctx, `UPDATE howdah.counter_tables SET settings = settings || '{"striped_at": 1}'`)
			s := counters.New(lab.Pool, counters.Config{})
			transactions := func(name string) Side {
				return Side{nil, func(ctx context.Context) (int, error) {
					return together(lab, 16, func() error {
						return pgx.BeginFunc(ctx, lab.Pool, func(tx pgx.Tx) error {
							if err := s.WithTx(tx).Track(ctx, name, began, values); err != nil {
								return err
							}
							_, err := tx.Exec(ctx, `SELECT pg_sleep(0.005)`)
							return err
						})
					})
				}}
			}
			return transactions("plain"), transactions("striped"), err
		},
	},
}
