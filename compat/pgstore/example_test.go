package pgstore_test

import (
	"context"
	"fmt"

	"github.com/howdah-db/howdah/compat/pgstore"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A program written for the original, with another import path.
func Example() {
	connectionURL, drop := pgtest.ForExample()
	defer drop()

	ctx := context.Background()
	s, err := pgstore.NewPgStore(connectionURL)
	if err != nil {
		panic(err)
	}
	defer s.Close()

	files := []string{"a.txt", "b.txt", "c.txt", "d.txt", "e.txt"}
	added, err := s.InsertBatch(ctx, "downloads", files)
	fmt.Println("added", added, err)

	startID := ""
	for {
		entries, err := s.GetBatch(ctx, "downloads", startID, 2)
		if err != nil {
			panic(err)
		}
		if len(entries) == 0 {
			break
		}
		for _, entry := range entries {
			if entry.Item == "c.txt" { // could not be downloaded
				s.IncrementOne(ctx, "downloads", entry.Item)
				continue
			}
			s.DeleteOne(ctx, "downloads", entry.Item)
		}
		startID = entries[len(entries)-1].Item
	}
	attempts, ok, err := s.GetOne(ctx, "downloads", "c.txt")
	fmt.Println("c.txt", attempts, ok, err)
	// Output:
	// added 5 <nil>
	// c.txt 1 true <nil>
}
