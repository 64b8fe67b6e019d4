package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// callers is how many write at the same time, and keysEach how many rows each
// of them writes to.
const (
	callers  = 64
	keysEach = 256
)

var batcherRows = []Row{
	batcherRow("64 callers, keys of their own", "one unnest after the other, as many rows each", 0.5, (*sums).oneStatement, ownKey),
	batcherRow("64 callers, keys of their own", "64 connections, an upsert each", 3, (*sums).singly, ownKey),
	batcherRow("64 callers, one hot key", "one summing unnest after the other, as many values each", 0.5, (*sums).oneStatement, hotKey),
	batcherRow("64 callers, one hot key", "64 connections, an upsert each", 3, (*sums).singly, hotKey),
}

// batcherRow compares the Batcher with another way to add to counters; key says
// to which one the i-th value of a caller goes.
func batcherRow(work, control string, bar float64, way func(*sums, context.Context) (int, error), key func(caller int) int64) Row {
	return Ratio{Work: work, Control: control, Bar: bar,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			c := &sums{lab: lab, key: key, duration: time.Duration(lab.N(2000, 500)) * time.Millisecond}
			c.batch.Store(callers)
			if c.pool, err = lab.OpenPool(ctx, callers); err != nil {
				return control, ours, err
			}
			err = lab.Exec(ctx,
				`CREATE TABLE counters (key bigint PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50)`,
				fmt.Sprintf(`INSERT INTO counters SELECT i, 0 FROM generate_series(0, %d) i`, callers*keysEach-1))
			return Side{Run: func(ctx context.Context) (int, error) { return way(c, ctx) }}, Side{Run: c.batched}, err
		},
	}
}

func ownKey(caller int) int64 { return int64(caller*keysEach + rand.IntN(keysEach)) }

func hotKey(int) int64 { return 0 }

// sums is a table of sums, and the ways to add to them for a while.
type sums struct {
	lab      *Lab
	pool     *pgxpool.Pool // of a connection for each caller
	key      func(caller int) int64
	duration time.Duration
	batch    atomic.Int64 // values in a batch of the last round of batched
}

// upsert adds values, which may be several to a row, in the order of their keys.
const upsert = `
	INSERT INTO counters AS c (key, n)
	SELECT key, sum(n)
	FROM unnest($1::bigint[], $2::bigint[]) AS v (key, n)
	GROUP BY key
	ORDER BY key
	ON CONFLICT (key) DO UPDATE SET n = c.n + EXCLUDED.n`

// batched is howdah's way: every caller puts a value and waits for its commit.
func (c *sums) batched(ctx context.Context) (int, error) {
	b := pg.NewBatcher(pg.BatcherConfig[int64, int64, struct{}]{
		Pool:    c.lab.Pool,
		Compare: cmp.Compare[int64],
		Flush: func(ctx context.Context, tx pgx.Tx, batch pg.Batch[int64, int64, struct{}]) error {
			keys := make([]int64, len(batch.Entries))
			sums := make([]int64, len(batch.Entries))
			for i, e := range batch.Entries {
				keys[i] = e.Key
				for _, n := range e.Values {
					sums[i] += n
				}
			}
			_, err := tx.Exec(ctx, `
				INSERT INTO counters AS c (key, n)
				SELECT *
				FROM unnest($1::bigint[], $2::bigint[])
				ON CONFLICT (key) DO UPDATE SET n = c.n + EXCLUDED.n`, keys, sums)
			return err
		},
	})
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.Run(running) }()
	n, err := c.callers(ctx, func(caller int) error {
		_, err := b.Put(ctx, c.key(caller), 1)
		return err
	})
	stop()
	err = errors.Join(err, <-ended)
	if s := b.Stats(); s.Flushes > 0 {
		c.batch.Store(int64((s.Written + s.Flushes/2) / s.Flushes))
	}
	return n, err
}

// singly is a connection for each caller.
func (c *sums) singly(ctx context.Context) (int, error) {
	return c.callers(ctx, func(caller int) error {
		_, err := c.pool.Exec(ctx, `
			INSERT INTO counters AS c (key, n)
			VALUES ($1, $2)
			ON CONFLICT (key) DO UPDATE SET n = c.n + EXCLUDED.n`, c.key(caller), 1)
		return err
	})
}

// callers lets every caller do one thing after the other for a while and
// returns how many were done.
func (c *sums) callers(ctx context.Context, do func(caller int) error) (int, error) {
	var sum atomic.Int64
	errs := make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for began := time.Now(); time.Since(began) < c.duration; sum.Add(1) {
				if errs[i] = do(i); errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return int(sum.Load()), errors.Join(errs...)
}

// oneStatement is the limit: one connection that always has a full batch and
// waits for nobody.
func (c *sums) oneStatement(ctx context.Context) (sum int, err error) {
	n := int(c.batch.Load())
	keys, values := make([]int64, n), slices.Repeat([]int64{1}, n)
	for began := time.Now(); time.Since(began) < c.duration; sum += n {
		for i := range keys {
			keys[i] = c.key(i % callers)
		}
		if _, err := c.pool.Exec(ctx, upsert, keys, values); err != nil {
			return sum, err
		}
	}
	return sum, nil
}
