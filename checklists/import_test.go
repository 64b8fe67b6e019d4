package checklists_test

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// source yields items by name.
func source(names ...string) iter.Seq2[checklists.Item, error] {
	return func(yield func(checklists.Item, error) bool) {
		for _, name := range names {
			if !yield(checklists.Item{Name: name}, nil) {
				return
			}
		}
	}
}

// these are items as a source.
func these(items ...checklists.Item) iter.Seq2[checklists.Item, error] {
	return func(yield func(checklists.Item, error) bool) {
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

func TestImportIsIdempotent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	insert(t, s, "l", "b")
	if _, err := s.Increment(ctx, "l", "b"); err != nil {
		t.Fatal(err)
	}
	var told []checklists.Imported
	opt := checklists.ImportOptions{Progress: func(sum checklists.Imported) { told = append(told, sum) }}
	for _, want := range []checklists.Imported{{Added: 2, Skipped: 2}, {Added: 0, Skipped: 4}} {
		got, err := s.Import(ctx, "l", source("c", "a", "b", "a"), opt)
		if err != nil || got != want {
			t.Errorf("Import = %+v, %v, want %+v", got, err, want)
		}
		if !slices.Equal(told, []checklists.Imported{want}) {
			t.Errorf("told %+v, want %+v", told, want)
		}
		told = nil
	}
	if item, err := s.Get(ctx, "l", "b"); err != nil || item.Attempts != 1 {
		t.Errorf("an item that was there: %+v, %v", item, err)
	}
	if got, err := s.Import(ctx, "l", source(), checklists.ImportOptions{}); err != nil || got != (checklists.Imported{}) {
		t.Errorf("Import of nothing = %+v, %v", got, err)
	}
}

func TestImportInChunks(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	chunk := pgtest.Size(250_000, 2500) // the default
	n := 2*chunk + 1
	shuffled := rand.New(rand.NewPCG(1, 2)).Perm(n)
	src := func(yield func(checklists.Item, error) bool) {
		for _, i := range shuffled {
			if !yield(checklists.Item{Name: fmt.Sprintf("item-%07d", i)}, nil) {
				return
			}
		}
	}
	// Nothing of the first chunk is known, one of the second, and nothing of the third.
	insert(t, s, "l", fmt.Sprintf("item-%07d", shuffled[chunk+1000]))
	chunks := 0
	opt := checklists.ImportOptions{Progress: func(checklists.Imported) { chunks++ }}
	if chunk != 250_000 {
		opt = opt.InChunksOf(chunk)
	}
	got, err := s.Import(t.Context(), "l", src, opt)
	if want := (checklists.Imported{Added: int64(n) - 1, Skipped: 1}); err != nil || got != want || chunks != 3 {
		t.Errorf("Import = %+v in %d chunks, %v, want %+v in 3", got, chunks, err, want)
	}
}

// Whether a chunk is copied or merged, it is claimed in the order given, to the
// millisecond.
func TestImportKeepsTheOrder(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	const n = 3000
	for _, list := range []string{"copied", "merged"} {
		want := make([]string, n)
		for i := range want {
			want[i] = fmt.Sprintf("item-%04d", n-i)
		}
		if list == "merged" {
			insert(t, s, list, "item-0000")
		}
		if _, err := s.Import(t.Context(), list, source(append(want, "item-0000")...), checklists.ImportOptions{}); err != nil {
			t.Fatal(err)
		}
		claimed := 0
		for claimed < n {
			lease, err := s.Claim(t.Context(), list, "w", 100, time.Minute)
			if err != nil || len(lease.Items) == 0 {
				t.Fatalf("%s: %d of %d were claimed, and then none: %v", list, claimed, n, err)
			}
			for _, item := range lease.Items {
				if item.Name == "item-0000" {
					continue
				}
				// A millisecond is a thousand items.
				if at := slices.Index(want, item.Name); at < claimed-1000 || at > claimed+1000 {
					t.Fatalf("%s: number %d was claimed as number %d", list, at, claimed)
				}
				claimed++
			}
		}
	}
}

func TestImportEndsAtABadItem(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	for name, tc := range map[string]struct {
		src  iter.Seq2[checklists.Item, error]
		want string
	}{
		"NUL":      {source("a", "b\x00"), "item 2: a NUL byte"},
		"UTF-8":    {source("a", "b", "\xff"), "item 3: invalid UTF-8"},
		"too long": {source(strings.Repeat("x", 2600)), "item 1: 2,601 bytes; list and item together may have 2,600"},
	} {
		got, err := s.Import(t.Context(), "l", tc.src, checklists.ImportOptions{})
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) || got != (checklists.Imported{}) {
			t.Errorf("%s: %+v, %v, want %q", name, got, err, tc.want)
		}
	}
	broken := errors.New("the disk is gone")
	_, err := s.Import(t.Context(), "l", func(yield func(checklists.Item, error) bool) {
		if yield(checklists.Item{Name: "a"}, nil) {
			yield(checklists.Item{}, broken)
		}
	}, checklists.ImportOptions{})
	if !errors.Is(err, broken) {
		t.Errorf("an error of the source: %v", err)
	}
	if got := names(t, s, "l"); len(got) != 0 {
		t.Errorf("a chunk that failed left %q", got)
	}
}

func TestImportInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	rolledBack := errors.New("rolled back")
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		for _, want := range []checklists.Imported{{Added: 2}, {Skipped: 2}} { // twice in one transaction
			got, err := s.WithTx(tx).Import(ctx, "l", source("a", "b"), checklists.ImportOptions{})
			if err != nil || got != want {
				t.Errorf("Import = %+v, %v, want %+v", got, err, want)
			}
		}
		return rolledBack
	})
	if !errors.Is(err, rolledBack) {
		t.Fatal(err)
	}
	if got := names(t, s, "l"); len(got) != 0 {
		t.Errorf("after the rollback: %q", got)
	}
}

func TestImportsOfTheSameItemsMeet(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	const importers = 4
	n := pgtest.Size(20_000, 2000)
	var group errgroup.Group
	added := make([]int64, importers)
	for i := range importers {
		group.Go(func() error {
			shuffled := rand.New(rand.NewPCG(3, uint64(i))).Perm(n)
			items := make([]string, n)
			for j, k := range shuffled {
				items[j] = fmt.Sprintf("item-%05d", k)
			}
			got, err := s.Import(t.Context(), "l", source(items...), checklists.ImportOptions{})
			added[i] = got.Added
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, a := range added {
		sum += a
	}
	if sum != int64(n) || len(names(t, s, "l")) != n {
		t.Errorf("added %v, together %d, on the list %d; want %d", added, sum, len(names(t, s, "l")), n)
	}
}
