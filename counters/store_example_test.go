package counters_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// open returns a pool on a database that has been migrated.
func open(ctx context.Context, url string) *pgxpool.Pool {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), counters.New(pool, counters.Config{}).Migrations()); err != nil {
		log.Fatal(err)
	}
	return pool
}

// The session of the original's documentation.
func ExampleStore_Inc() {
	url, drop := pgtest.ForExample() // a program has its own
	defer drop()
	ctx := context.Background()
	pool := open(ctx, url)
	defer pool.Close()
	s := counters.New(pool, counters.Config{})

	get := func() {
		values, err := s.Get(ctx, []counters.Key{{"test", "now"}})
		text, _ := json.Marshal(values[0])
		fmt.Println(string(text), err)
	}
	inc := func(v counters.Values) {
		if _, err := s.Inc(ctx, []counters.Key{{"test", "now"}}, v); err != nil {
			log.Fatal(err)
		}
	}
	get()
	inc(counters.Values{"count": 1, "success": 1, "error": 0})
	get()
	inc(counters.Values{"count": 1, "success": 0, "error": 1, "account": counters.Values{"count": 1}})
	get()
	// Output:
	// {} <nil>
	// {"count":1,"error":0,"success":1} <nil>
	// {"account":{"count":1},"count":2,"error":1,"success":1} <nil>
}

// An order and its counters, in one transaction: both are written or neither is.
func ExampleStore_Track() {
	url, drop := pgtest.ForExample() // a program has its own
	defer drop()
	ctx := context.Background()
	pool := open(ctx, url)
	defer pool.Close()
	s := counters.New(pool, counters.Config{})
	if _, err := pool.Exec(ctx, `CREATE TABLE orders (id text PRIMARY KEY, price numeric)`); err != nil {
		log.Fatal(err)
	}

	at := time.Date(2025, 5, 6, 9, 15, 0, 0, time.UTC)
	order := func(id, price string, paid bool) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1, $2)`, id, price); err != nil {
				return err
			}
			if err := s.WithTx(tx).Track(ctx, "orders", at, counters.Values{"count": 1, "revenue": json.Number(price)}); err != nil {
				return err
			}
			if !paid {
				return errors.New("not paid")
			}
			return nil
		})
	}
	fmt.Println(order("a book", "12.50", true))
	fmt.Println(order("a piano", "30000", false))
	fmt.Println(order("a pen", "0.10", true))

	series, err := s.Values(ctx, counters.Query{Key: "orders", From: at, To: at, Granularity: "1d"})
	text, _ := json.Marshal(series)
	fmt.Println(string(text), err)
	// Output:
	// <nil>
	// not paid
	// <nil>
	// {"at":["2025-05-06T00:00:00Z"],"values":[{"count":2,"revenue":12.6}]} <nil>
}

// Events of many goroutines share transactions.
func ExampleWriter() {
	url, drop := pgtest.ForExample() // a program has its own
	defer drop()
	ctx := context.Background()
	pool := open(ctx, url)
	defer pool.Close()
	s := counters.New(pool, counters.Config{})
	w := counters.NewWriter(s, counters.WriterConfig{})
	running, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- w.Run(running) }()

	at := time.Date(2025, 5, 6, 9, 15, 0, 0, time.UTC)
	var callers sync.WaitGroup
	for range 100 {
		callers.Go(func() {
			if err := w.Track(ctx, "orders", at, counters.Values{"count": 1, "revenue": 0.1}); err != nil {
				log.Print(err) // nothing of it was counted
			}
		})
	}
	callers.Wait() // all are committed
	stop()
	if err := <-ran; err != nil {
		log.Fatal(err)
	}
	series, err := s.Values(ctx, counters.Query{Key: "orders", From: at, To: at, Granularity: "1d"})
	text, _ := json.Marshal(series.Values)
	fmt.Println(string(text), err)
	// Output:
	// [{"count":100,"revenue":10}] <nil>
}

// A Fast Writer does not let callers wait for the disk; Flush does.
func ExampleWriter_Flush() {
	url, drop := pgtest.ForExample() // a program has its own
	defer drop()
	ctx := context.Background()
	pool := open(ctx, url)
	defer pool.Close()
	s := counters.New(pool, counters.Config{})
	w := counters.NewWriter(s, counters.WriterConfig{Fast: true})
	running, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- w.Run(running) }()

	at := time.Date(2025, 5, 6, 9, 15, 0, 0, time.UTC)
	for i := range 10_000 {
		if err := w.Track(ctx, "visits", at, counters.Values{"count": 1, "last": counters.Put(i)}); err != nil {
			log.Fatal(err)
		}
	}
	if err := w.Flush(ctx); err != nil { // says how many were not counted, and why
		log.Fatal(err)
	}
	series, err := s.Values(ctx, counters.Query{Key: "visits", From: at, To: at, Granularity: "1d"})
	text, _ := json.Marshal(series.Values)
	fmt.Println(string(text), err)
	stop()
	fmt.Println(<-ran)
	// Output:
	// [{"count":10000,"last":9999}] <nil>
	// <nil>
}
