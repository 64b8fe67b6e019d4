package main

import (
	"context"
	"fmt"
	"os"

	"iidy/pgstore"
)

func main() {
	ctx := context.Background()
	var store pgstore.Store
	pg, err := pgstore.NewPgStore(os.Args[1])
	if err != nil {
		panic(err)
	}
	store = pg
	files := []string{"e.txt", "d.txt", "c.txt", "b.txt", "a.txt"}
	added, err := store.InsertBatch(ctx, "downloads", files)
	if err != nil {
		panic(err)
	}
	fmt.Println("added", added)
	for start := ""; ; {
		entries, err := store.GetBatch(ctx, "downloads", start, 2)
		if err != nil {
			panic(err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			start = e.Item
			if e.Item != "b.txt" && e.Item != "e.txt" {
				store.DeleteOne(ctx, "downloads", e.Item)
				fmt.Println(e.Item + ": done")
				continue
			}
			store.IncrementBatch(ctx, "downloads", []string{e.Item})
			attempts, _, _ := store.GetOne(ctx, "downloads", e.Item)
			fmt.Printf("%s: failed, %d attempts\n", e.Item, attempts)
		}
	}
	_, err = store.InsertOne(ctx, "downloads", "b.txt")
	fmt.Println("again:", err)
	left, err := store.GetBatch(ctx, "downloads", "", 10)
	if err != nil {
		panic(err)
	}
	fmt.Println("left:", left)
}
