package checklists_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
)

var errBroken = errors.New("the disk is gone")

// numbered are n names in order.
func numbered(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("item-%05d", i)
	}
	return all
}

// breaking yields items by name, and then an error.
func breaking(names ...string) iter.Seq2[checklists.Item, error] {
	return func(yield func(checklists.Item, error) bool) {
		for item := range source(names...) {
			if !yield(item, nil) {
				return
			}
		}
		yield(checklists.Item{}, errBroken)
	}
}

// bookmarks are the imports that have not come to their end, in words.
func bookmarks(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `
		SELECT format('%s %s: %s, added %s, skipped %s', list, id, items, added, skipped)
		FROM howdah.checklist_import
		WHERE relation = 'lists'::regclass
		ORDER BY 1`)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestImportGoesOn(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	opt := checklists.ImportOptions{ID: "/data/urls.txt"}.InChunksOf(10)
	all := numbered(45)
	insert(t, s, "l", all[7])

	got, err := s.Import(ctx, "l", breaking(all[:35]...), opt)
	if want := (checklists.Imported{Added: 29, Skipped: 1}); !errors.Is(err, errBroken) || got != want {
		t.Fatalf("Import = %+v, %v, want %+v", got, err, want)
	}
	if got, want := bookmarks(t, pool), "l /data/urls.txt: 30, added 29, skipped 1"; len(got) != 1 || got[0] != want {
		t.Errorf("kept: %q, want %q", got, want)
	}
	if _, err := s.Delete(ctx, "l", all[:3]...); err != nil {
		t.Fatal(err)
	}
	// Another list, another ID: nothing to go on with.
	for list, id := range map[string]string{"other": opt.ID, "l": "/data/other.txt"} {
		other := opt
		other.ID = id
		if got, err := s.Import(ctx, list, source("x"), other); err != nil || got != (checklists.Imported{Added: 1}) {
			t.Errorf("Import into %s of %s = %+v, %v", list, id, got, err)
		}
	}

	got, err = s.Import(ctx, "l", source(all...), opt)
	if want := (checklists.Imported{Added: 15, Resumed: 30}); err != nil || got != want {
		t.Errorf("Import = %+v, %v, want %+v", got, err, want)
	}
	if got, want := names(t, s, "l"), append(slices.Clone(all[3:]), "x"); !slices.Equal(got, want) {
		t.Errorf("on the list: %q, want %q", got, want)
	}
	if got := bookmarks(t, pool); len(got) > 0 {
		t.Errorf("after the end: %q", got)
	}
	// It has come to its end: the next one is another.
	got, err = s.Import(ctx, "l", source(all...), opt)
	if want := (checklists.Imported{Added: 3, Skipped: 42}); err != nil || got != want {
		t.Errorf("once more: %+v, %v, want %+v", got, err, want)
	}
}

// It came to the end of the source, and nobody was told.
func TestImportGoesOnAtTheEnd(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	opt := checklists.ImportOptions{ID: "id"}.InChunksOf(10)
	if _, err := s.Import(t.Context(), "l", breaking(numbered(20)...), opt); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	got, err := s.Import(t.Context(), "l", source(numbered(20)...), opt)
	if want := (checklists.Imported{Resumed: 20}); err != nil || got != want || len(bookmarks(t, pool)) > 0 {
		t.Errorf("Import = %+v, %v, want %+v", got, err, want)
	}
}

func TestImportOfAnotherSourceIsRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	opt := checklists.ImportOptions{ID: "/data/urls.txt"}.InChunksOf(10)
	all := numbered(25)
	if _, err := s.Import(ctx, "l", breaking(all...), opt); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	changed := slices.Clone(all)
	changed[19] = "another"
	for name, tc := range map[string]struct {
		src  []string
		want string
	}{
		"changed": {changed, "the source changed before item 21; import it again from the start"},
		"shorter": {all[:19], "the source ends after item 19, and an earlier import came to item 20; import it again from the start"},
		"empty":   {nil, "the source ends after item 0"},
	} {
		got, err := s.Import(ctx, "l", source(tc.src...), opt)
		if !errors.Is(err, checklists.ErrChanged) || !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), tc.want) || got != (checklists.Imported{}) {
			t.Errorf("%s: %+v, %v, want %q", name, got, err, tc.want)
		}
	}
	if got := names(t, s, "l"); !slices.Equal(got, all[:20]) {
		t.Errorf("on the list: %q", got)
	}
	// What follows may well be others: only what was committed counts.
	again := opt
	again.Again = true
	got, err := s.Import(ctx, "l", source(changed...), again)
	if want := (checklists.Imported{Added: 6, Skipped: 19}); err != nil || got != want || len(bookmarks(t, pool)) > 0 {
		t.Errorf("again: %+v, %v, want %+v", got, err, want)
	}
}

func TestImportRefusesAnIDThatCannotBeKept(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	for id, want := range map[string]string{"a\x00": "id: a NUL byte", "\xff": "id: invalid UTF-8", strings.Repeat("x", 2600): "id: 2,601 bytes; list and id together may have 2,600"} {
		if _, err := s.Import(t.Context(), "l", source("a"), checklists.ImportOptions{ID: id}); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if got := names(t, s, "l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
}

// The example of a bad day: the chunks before the bad line stay, and the next run
// goes on from there, with it left out.
func TestImportGoesOnPastABadLine(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	lines := numbered(50_000)
	lines[40_000] = strings.Repeat("x", 2601)
	lines[45_000] = "a\x00b"
	read := func() iter.Seq2[checklists.Item, error] {
		return checklists.ReadItems(strings.NewReader(strings.Join(lines, "\n")), checklists.Text)
	}
	opt := checklists.ImportOptions{ID: "id"}.InChunksOf(10_000)
	got, err := s.Import(t.Context(), "l", read(), opt)
	if want := (checklists.Imported{Added: 40_000}); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "line 40,001: 2,601 bytes; list and item together may have 2,600") || got != want {
		t.Errorf("Import = %+v, %v, want %+v", got, err, want)
	}
	var told []string
	opt.SkipBad = func(err error) { told = append(told, err.Error()) }
	got, err = s.Import(t.Context(), "l", read(), opt)
	if want := (checklists.Imported{Added: 9998, Resumed: 40_000, Bad: 2}); err != nil || got != want {
		t.Errorf("Import = %+v, %v, want %+v", got, err, want)
	}
	if len(told) != 2 || !strings.HasPrefix(told[0], "line 40,001: 2,601 bytes") || !strings.HasPrefix(told[1], "line 45,001: a NUL byte at byte 1") {
		t.Errorf("told %q", told)
	}
	if n := len(names(t, s, "l")); n != 49_998 {
		t.Errorf("%d items, want 49998", n)
	}
}

// What is bad is left out; what breaks the source is the end all the same, and so
// is what is wrong with the whole of it.
func TestSkipBadSkipsItemsOnly(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	var told []string
	opt := checklists.ImportOptions{SkipBad: func(err error) { told = append(told, err.Error()) }}
	got, err := s.Import(t.Context(), "l", these(checklists.Item{Name: "a"}, checklists.Item{Name: "b", Priority: 6}, checklists.Item{Name: strings.Repeat("x", 2600)}, checklists.Item{Name: "c"}), opt)
	if want := (checklists.Imported{Added: 2, Bad: 2}); err != nil || got != want || !slices.Equal(told, []string{"item 2: priority 6; want -5 to 5", "item 3: 2,601 bytes; list and item together may have 2,600"}) {
		t.Errorf("Import = %+v, %v, told %q, want %+v", got, err, told, want)
	}
	told = nil
	if _, err := s.Import(t.Context(), "l", breaking("d"), opt); !errors.Is(err, errBroken) {
		t.Errorf("a source that breaks: %v", err)
	}
	for format, in := range map[checklists.Format]string{checklists.CSV: "name\na\n", checklists.Text: gzipped(t, "some text\n")[:20], "xml": ""} {
		if _, err := s.Import(t.Context(), "l", checklists.ReadItems(strings.NewReader(in), format), opt); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", format, err)
		}
	}
	if len(told) > 0 {
		t.Errorf("left out: %q", told)
	}
	if got := names(t, s, "l"); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("on the list: %q", got)
	}
}

// In a caller's transaction there is nothing to go on with: it commits or not.
func TestImportInATransactionKeepsNoBookmark(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	opt := checklists.ImportOptions{ID: "id"}.InChunksOf(10)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		got, err := s.WithTx(tx).Import(t.Context(), "l", breaking(numbered(35)...), opt)
		if !errors.Is(err, errBroken) || got != (checklists.Imported{}) {
			t.Errorf("Import = %+v, %v", got, err)
		}
		return nil // the transaction goes on, without a part of it
	})
	if err != nil || len(bookmarks(t, pool)) > 0 || len(names(t, s, "l")) > 0 {
		t.Errorf("%v, kept %q, on the list %q", err, bookmarks(t, pool), names(t, s, "l"))
	}
}

// An import that began before another with its ID had got anywhere, and comes
// after it, puts nothing back that was done meanwhile.
func TestImportComesTooLate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	all := numbered(30)
	opt := checklists.ImportOptions{ID: "id"}.InChunksOf(10)
	for _, begun := range []int{0, 10} { // items of the first import that the late one knew of
		list := fmt.Sprint("l", begun)
		if begun > 0 {
			if _, err := s.Import(ctx, list, breaking(all[:begun]...), opt); !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
		}
		got, err := s.Import(ctx, list, func(yield func(checklists.Item, error) bool) {
			if _, err := s.Import(ctx, list, breaking(all[:20]...), opt); !errors.Is(err, errBroken) {
				t.Error(err)
			}
			if _, err := s.Delete(ctx, list, all[15]); err != nil {
				t.Error(err)
			}
			source(all...)(yield)
		}, opt)
		if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), `another import with the id "id" has gone on meanwhile`) || got.Added != 0 {
			t.Errorf("from item %d: %+v, %v", begun, got, err)
		}
		if got := names(t, s, list); len(got) != 19 || slices.Contains(got, all[15]) {
			t.Errorf("from item %d: on the list %q", begun, got)
		}
	}
	if got := bookmarks(t, pool); len(got) != 2 {
		t.Errorf("kept: %q", got)
	}
}

// Two imports with one ID: each chunk is committed by one of them, the other ends
// with Conflict, and together they put on what one would have.
func TestImportsWithOneIDAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	const importers, rounds = 4, 5
	all := numbered(1000)
	for round := range rounds {
		list := fmt.Sprint("l", round)
		var mu sync.Mutex
		var group sync.WaitGroup
		ended, added := 0, int64(0)
		for range importers {
			group.Go(func() {
				got, err := s.Import(ctx, list, source(all...), checklists.ImportOptions{ID: "id"}.InChunksOf(100))
				mu.Lock()
				defer mu.Unlock()
				added += got.Added
				if err == nil {
					ended++
				} else if !errors.Is(err, fault.Conflict) || errors.Is(err, checklists.ErrChanged) || !strings.Contains(err.Error(), "another import with the id") {
					t.Errorf("%v, want Conflict", err)
				}
			})
		}
		group.Wait()
		if ended == 0 || added != int64(len(all)) || len(names(t, s, list)) != len(all) {
			t.Errorf("%d came to the end, added %d, on the list %d; want %d", ended, added, len(names(t, s, list)), len(all))
		}
	}
	if got := bookmarks(t, pool); len(got) > 0 {
		t.Errorf("after the end: %q", got)
	}
}

// What is known of an import goes while it runs, as when its list is dropped: it
// does not go on as if nothing had been.
func TestImportEndsWithoutItsBookmark(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	opt := checklists.ImportOptions{ID: "id", Progress: func(checklists.Imported) {
		if _, err := pool.Exec(t.Context(), `DELETE FROM howdah.checklist_import WHERE relation = 'lists'::regclass; DELETE FROM lists`); err != nil {
			t.Error(err)
		}
	}}.InChunksOf(10)
	got, err := s.Import(t.Context(), "l", source(numbered(30)...), opt)
	if want := (checklists.Imported{Added: 10}); !errors.Is(err, fault.Conflict) || got != want {
		t.Errorf("Import = %+v, %v, want %+v and Conflict", got, err, want)
	}
	if got := names(t, s, "l"); len(got) > 0 {
		t.Errorf("on the list: %q", got)
	}
}
