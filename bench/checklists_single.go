package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/checklists"
)

// singleRows are of calls about one item, by many callers.
var singleRows = []Row{
	Ratio{
		Work: "insert one a call, 16 connections", Control: "the same into the table without triggers", Bar: 0.45,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			ours, err = insertOnes(ctx, lab, "ours")
			if err != nil {
				return control, ours, err
			}
			control, err = insertOnes(ctx, lab, "bare", `ALTER TABLE bare.lists DISABLE TRIGGER USER`)
			return control, ours, err
		},
	},
	Ratio{
		Work: "insert one a call, 16 connections", Control: "the same, counted in a row for each list", Bar: 2,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			ours, err = insertOnes(ctx, lab, "ours")
			if err != nil {
				return control, ours, err
			}
			control, err = insertOnes(ctx, lab, "counted", `ALTER TABLE counted.lists DISABLE TRIGGER USER`, `
				CREATE TABLE counted.counter (list text PRIMARY KEY, items bigint NOT NULL) WITH (fillfactor = 50)`, `
				CREATE FUNCTION counted.count() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN
					INSERT INTO counted.counter AS c (list, items)
					SELECT list, count(*) FROM howdah_new GROUP BY list
					ON CONFLICT (list) DO UPDATE SET items = c.items + EXCLUDED.items;
					RETURN NULL;
				END $$`, `
				CREATE TRIGGER counted AFTER INSERT ON counted.lists
				REFERENCING NEW TABLE AS howdah_new FOR EACH STATEMENT EXECUTE FUNCTION counted.count()`)
			return control, ours, err
		},
	},
	Ratio{
		Work: "insert one a call, 64 callers of a Writer", Control: "64 connections, an Insert each", Bar: 3,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			s, err := openStore(ctx, lab, pgx.Identifier{"iidy", "lists"})
			if err != nil {
				return control, ours, err
			}
			pool, err := lab.OpenPool(ctx, callers)
			if err != nil {
				return control, ours, err
			}
			each := checklists.New(pool, checklists.Config{})
			control = Side{s.truncate, func(ctx context.Context) (int, error) { return ones(ctx, lab, callers, each.Insert) }}
			return control, Side{s.truncate, func(ctx context.Context) (n int, err error) {
				w := checklists.NewWriter(s.Store, checklists.WriterConfig{})
				running, stop := context.WithCancel(ctx)
				ended := make(chan error, 1)
				go func() { ended <- w.Run(running) }()
				n, err = ones(ctx, lab, callers, w.Insert)
				stop()
				return n, errors.Join(err, <-ended)
			}}, nil
		},
	},
}

// insertOnes returns the side of 16 connections that insert into a table of lists
// in a schema of its own.
func insertOnes(ctx context.Context, lab *Lab, schema string, and ...string) (Side, error) {
	s, err := openStore(ctx, lab, pgx.Identifier{schema, "lists"})
	if err != nil {
		return Side{}, err
	}
	return Side{s.truncate, func(ctx context.Context) (int, error) { return ones(ctx, lab, 16, s.Insert) }}, lab.Exec(ctx, and...)
}

// ones lets callers insert new items, one a call, for a while, and returns how many.
func ones(ctx context.Context, lab *Lab, callers int, insert batchFunc) (int, error) {
	var sum, next atomic.Int64
	first := rand.Int64N(10_000_000_000_000)
	duration := time.Duration(lab.N(2000, 500)) * time.Millisecond
	errs := make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for began := time.Now(); time.Since(began) < duration; sum.Add(1) {
				name := itemName(int(first+next.Add(1)*6_180_339_887_499) % 10_000_000_000_000)
				if errs[i] = one(insert(ctx, list, name)); errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return int(sum.Load()), errors.Join(errs...)
}

func one(n int64, err error) error {
	if err == nil && n != 1 {
		return fmt.Errorf("%d items were changed, want 1", n)
	}
	return err
}
