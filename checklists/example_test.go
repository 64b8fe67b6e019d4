package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// open returns a pool and a store on a database of the example's own; a program has
// its own database, which howdah migrate has prepared.
func open(ctx context.Context) (*pgxpool.Pool, *checklists.Store, func()) {
	url, drop := pgtest.ForExample()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{})
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
		log.Fatal(err)
	}
	return pool, s, func() { pool.Close(); drop() }
}

// A worker does items until nothing is left. What fails it tries again, up to ten
// times; what cannot ever work says so.
func ExampleWorker() {
	ctx := context.Background()
	_, s, done := open(ctx)
	defer done()
	if _, err := s.Insert(ctx, "downloads", "a.txt", "b.txt", "gone.txt"); err != nil {
		log.Fatal(err)
	}

	download := func(ctx context.Context, name string) error {
		if name == "gone.txt" {
			return errors.New("410 Gone")
		}
		return nil
	}
	w := checklists.NewWorker(s, checklists.WorkerConfig{
		List: "downloads",
		Do: func(ctx context.Context, item checklists.Item) error {
			if err := download(ctx, item.Name); err != nil {
				return checklists.Dead(err) // or err, or checklists.RetryIn(time.Hour, err)
			}
			return nil
		},
		UntilEmpty: true,
	})
	if err := w.Run(ctx); err != nil {
		log.Fatal(err)
	}

	p, err := s.Progress(ctx, "downloads")
	fmt.Println(p.Done, "done,", p.Dead, "dead,", p.Left, "left", err)
	for item, err := range s.Find(ctx, "downloads", checklists.Query{State: checklists.StateDead}) {
		fmt.Println(item.Name, item.Error, err)
	}
	// Output:
	// 2 done, 1 dead, 0 left <nil>
	// gone.txt 410 Gone <nil>
}

// An effect in the same database and the tick are one transaction: the effect of an
// item that is done is there exactly once, whatever crashes.
func ExampleWorker_inATransaction() {
	ctx := context.Background()
	pool, s, done := open(ctx)
	defer done()
	if _, err := pool.Exec(ctx, `CREATE TABLE parcels (id text, label text)`); err != nil {
		log.Fatal(err)
	}
	if _, err := s.Insert(ctx, "to pack", "book", "piano"); err != nil {
		log.Fatal(err)
	}

	w := checklists.NewWorker(s, checklists.WorkerConfig{
		List:     "to pack",
		Parallel: 2,
		DoTx: func(ctx context.Context, tx pgx.Tx, item checklists.Item) error {
			_, err := tx.Exec(ctx, `INSERT INTO parcels VALUES ($1, 'fragile')`, item.Name)
			return err
		},
		UntilEmpty: true,
	})
	if err := w.Run(ctx); err != nil {
		log.Fatal(err)
	}

	var parcels int
	err := pool.QueryRow(ctx, `SELECT count(*) FROM parcels`).Scan(&parcels)
	fmt.Println(parcels, "parcels", err)
	// Output: 2 parcels <nil>
}

// Without a worker the same is a claim, and Done in the caller's own transaction.
func ExampleStore_Done() {
	ctx := context.Background()
	pool, s, done := open(ctx)
	defer done()
	if _, err := pool.Exec(ctx, `CREATE TABLE counters (n int); INSERT INTO counters VALUES (0)`); err != nil {
		log.Fatal(err)
	}
	if _, err := s.Insert(ctx, "orders", "4711"); err != nil {
		log.Fatal(err)
	}

	claim, err := s.Claim(ctx, "orders", "packer", 1, time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	count := func(final error) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `UPDATE counters SET n = n + 1`); err != nil {
				return err
			}
			if _, err := s.WithTx(tx).Done(ctx, claim.Lease, "4711"); err != nil {
				return err
			}
			return final
		})
	}
	for _, final := range []error{errors.New("rolled back"), nil} {
		err := count(final)
		var n int
		if err := pool.QueryRow(ctx, `SELECT n FROM counters`).Scan(&n); err != nil {
			log.Fatal(err)
		}
		p, _ := s.Progress(ctx, "orders")
		fmt.Println(err, "- counted", n, "- done", p.Done)
	}
	// Output:
	// rolled back - counted 0 - done 0
	// <nil> - counted 1 - done 1
}
