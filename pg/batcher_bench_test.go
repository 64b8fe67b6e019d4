package pg_test

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

const addSQL = `
	INSERT INTO sums SELECT * FROM unnest($1::text[], $2::bigint[])
	ON CONFLICT (key) DO UPDATE SET n = sums.n + EXCLUDED.n`

// BenchmarkBatcher adds 1 to one row ("hot") or to 10,000 ("spread"), one
// operation an addition: put by 64 callers through a Batcher; raw, as
// transactions of 64 additions each, with nobody waiting for anybody, which is
// as far as group commit could get; and single, by 64 connections that send one
// addition each.
func BenchmarkBatcher(b *testing.B) {
	const callers = 64
	cfg, err := pgxpool.ParseConfig(pgtest.Database(b))
	if err != nil {
		b.Fatal(err)
	}
	cfg.MaxConns = callers
	pool, err := pgxpool.NewWithConfig(soon(b), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	if _, err := pool.Exec(soon(b), "CREATE TABLE sums (key text COLLATE \"C\" PRIMARY KEY, n bigint NOT NULL)"); err != nil {
		b.Fatal(err)
	}
	for _, spread := range []struct {
		name string
		keys int
	}{{"hot", 1}, {"spread", 10_000}} {
		keys := make([]string, spread.keys)
		for i := range keys {
			keys[i] = fmt.Sprintf("key %05d", i)
		}
		var next atomic.Int64
		key := func() string { return keys[int(next.Add(7919))%len(keys)] }
		// each runs add b.N times in all, on 64 goroutines.
		each := func(b *testing.B, add func(key string) error) {
			var callersDone sync.WaitGroup
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			for range callers {
				callersDone.Go(func() {
					for left.Add(-1) >= 0 {
						if err := add(key()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			callersDone.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "adds/s")
		}
		ctx := context.Background()
		b.Run(spread.name+"/put", func(b *testing.B) {
			b.ReportAllocs()
			batcher := newSums(pool)
			stop := run(b, batcher)
			each(b, func(k string) error { _, err := batcher.Put(ctx, k, 1); return err })
			if err := stop(); err != nil {
				b.Error(err)
			}
			s := batcher.Stats()
			b.ReportMetric(float64(s.Written)/float64(max(s.Flushes, 1)), "adds/batch")
		})
		b.Run(spread.name+"/raw", func(b *testing.B) {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Release()
			b.ResetTimer()
			for left := b.N; left > 0; left -= callers {
				ks, ns := []string{key()}, []int64{callers}
				if spread.keys > 1 {
					ks, ns = nil, nil
					for range min(left, callers) {
						ks, ns = append(ks, key()), append(ns, 1)
					}
				}
				tx, err := conn.Begin(ctx)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := tx.Exec(ctx, addSQL, ks, ns); err != nil {
					b.Fatal(err)
				}
				if err := tx.Commit(ctx); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "adds/s")
		})
		b.Run(spread.name+"/single", func(b *testing.B) {
			each(b, func(k string) error {
				_, err := pool.Exec(ctx, "INSERT INTO sums VALUES ($1, 1) ON CONFLICT (key) DO UPDATE SET n = sums.n + 1", k)
				return err
			})
		})
	}
}

func newSums(pool *pgxpool.Pool) *pg.Batcher[string, int64, struct{}] {
	return pg.NewBatcher(pg.BatcherConfig[string, int64, struct{}]{
		Name:    "sums",
		Pool:    pool,
		Compare: cmp.Compare[string],
		Flush: func(ctx context.Context, tx pgx.Tx, batch pg.Batch[string, int64, struct{}]) error {
			keys := make([]string, len(batch.Entries))
			sums := make([]int64, len(batch.Entries))
			for i, e := range batch.Entries {
				keys[i] = e.Key
				for _, n := range e.Values {
					sums[i] += n
				}
			}
			_, err := tx.Exec(ctx, addSQL, keys, sums)
			return err
		},
	})
}
