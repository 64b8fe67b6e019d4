package howdah_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A checklist and a table of the program's own, in one transaction: both are
// written or neither is.
func ExampleClient_Transact() {
	ctx := context.Background()
	url, drop := pgtest.ForExample() // a program has its own
	defer drop()

	c, err := howdah.Open(ctx, url)
	if err != nil {
		panic(err)
	}
	defer c.Close()
	if err := c.Migrate(ctx); err != nil {
		panic(err)
	}
	c.Pool.Exec(ctx, `CREATE TABLE orders (id text PRIMARY KEY)`)

	order := func(id string, last error) error {
		return c.Transact(ctx, func(tx pgx.Tx, s howdah.Services) error {
			if _, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1)`, id); err != nil {
				return err
			}
			if _, err := s.Checklists.Insert(ctx, "to pack", id); err != nil {
				return err
			}
			return last
		})
	}
	fmt.Println(order("order-1", nil))
	fmt.Println(order("order-2", errors.New("the card was refused")))

	items, err := c.Checklists.Page(ctx, "to pack", nil, 10)
	fmt.Println(items, err)
	var orders int
	err = c.Pool.QueryRow(ctx, `SELECT count(*) FROM orders`).Scan(&orders)
	fmt.Println(orders, err)
	// Output:
	// <nil>
	// the card was refused
	// [{order-1 0}] <nil>
	// 1 <nil>
}
