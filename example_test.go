package howdah_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A checklist and a table of the program's own, in one transaction: both are
// written or neither is.
func ExampleClient_Transact() {
	url, drop := pgtest.ForExample() // a program has its own
	defer drop()
	ctx := context.Background()
	c, err := howdah.Open(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	if _, err := c.Pool.Exec(ctx, `CREATE TABLE orders (id text PRIMARY KEY, weight int CHECK (weight < 30))`); err != nil {
		log.Fatal(err)
	}

	order := func(id string, weight int) error {
		return c.Transact(ctx, func(tx pgx.Tx, s howdah.Services) error {
			if _, err := s.Checklists.Insert(ctx, "to pack", id); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO orders (id, weight) VALUES ($1, $2)`, id, weight)
			return err
		})
	}
	fmt.Println("committed:", order("a book", 1))
	fmt.Println("rolled back:", errors.Is(order("a piano", 300), howdah.ErrInvalid))

	items, err := c.Checklists.Page(ctx, "to pack", nil, 10)
	fmt.Println("to pack:", items[0].Name, err)
	// Output:
	// committed: <nil>
	// rolled back: true
	// to pack: a book <nil>
}

// Many goroutines, each with an item at a time, that share commits.
func Example_writer() {
	url, drop := pgtest.ForExample()
	defer drop()
	ctx := context.Background()
	c, err := howdah.Open(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	var background, callers errgroup.Group

	w := checklists.NewWriter(c.Checklists, checklists.WriterConfig{})
	background.Go(func() error { return w.Run(running) }) // until its context is done
	for i := range 1000 {
		callers.Go(func() error {
			_, err := w.Insert(ctx, "downloads", fmt.Sprintf("https://example.com/%d", i))
			return err
		})
	}

	fmt.Println("callers:", callers.Wait())
	stop()
	fmt.Println("writer:", background.Wait())
	p, err := c.Checklists.Progress(ctx, "downloads")
	fmt.Println("left:", p.Left, err)
	// Output:
	// callers: <nil>
	// writer: <nil>
	// left: 1000 <nil>
}
