package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// openGrowth makes a table with size items on ten lists, and returns the core
// operations on one of them that has nearly all.
func openGrowth(ctx context.Context, lab *Lab, size int) ([]Op, error) {
	s, err := openStore(ctx, lab, pgx.Identifier{fmt.Sprintf("of_%d", size), "lists"})
	if err != nil {
		return nil, err
	}
	if err := s.refill(size)(ctx); err != nil {
		return nil, err
	}
	for i := range 9 {
		if _, err := s.Insert(ctx, fmt.Sprint("other ", i), "a"); err != nil {
			return nil, err
		}
	}
	// Every operation goes through the list in the same random order.
	names := shuffled(size)
	turn := func() func(n int) []string {
		at := 0
		return func(n int) []string {
			at = (at + n) % (len(names) - n)
			return names[at : at+n]
		}
	}
	one, page, some, gone, back := turn(), turn(), turn(), turn(), turn()
	return []Op{
		{"Get", func(ctx context.Context) error {
			_, err := s.Get(ctx, list, one(1)[0])
			return err
		}},
		{"Page of 100", func(ctx context.Context) error {
			_, err := s.Page(ctx, list, &page(1)[0], 100)
			return err
		}},
		{"Increment of 100", func(ctx context.Context) error {
			return changed(s.Increment(ctx, list, some(100)...))
		}},
		{"Delete of 100", func(ctx context.Context) error {
			return changed(s.Delete(ctx, list, gone(100)...))
		}},
		{"Insert of 100", func(ctx context.Context) error { // those that were just deleted
			return changed(s.Insert(ctx, list, back(100)...))
		}},
		{"Lists", func(ctx context.Context) error {
			_, err := s.Lists(ctx, nil, 100)
			return err
		}},
	}, nil
}

func changed(n int64, err error) error {
	if err == nil && n != 100 {
		return fmt.Errorf("%d of 100 items were changed", n)
	}
	return err
}
