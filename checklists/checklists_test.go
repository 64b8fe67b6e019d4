package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestItemsGoOnAndOffAList(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)

	if n, err := s.Insert(ctx, "downloads", "c", "a", "b", "a"); n != 3 || err != nil {
		t.Fatalf("Insert = %d, %v, want 3", n, err)
	}
	if n, err := s.Increment(ctx, "downloads", "a", "c", "a", "unknown"); n != 2 || err != nil {
		t.Fatalf("Increment = %d, %v, want 2", n, err)
	}
	if n, err := s.Increment(ctx, "downloads", "a"); n != 1 || err != nil {
		t.Fatalf("Increment of one = %d, %v, want 1", n, err)
	}
	// What is there keeps its attempts.
	if n, err := s.Insert(ctx, "downloads", "a", "d"); n != 1 || err != nil {
		t.Fatalf("Insert again = %d, %v, want 1", n, err)
	}
	got, err := s.Page(ctx, "downloads", nil, 10)
	want := []checklists.Item{
		{Name: "a", Attempts: 2, State: checklists.StateReady}, {Name: "b", State: checklists.StateReady},
		{Name: "c", Attempts: 1, State: checklists.StateReady}, {Name: "d", State: checklists.StateReady},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Page: %v\n%s", err, diff)
	}
	if item, err := s.Get(ctx, "downloads", "c"); err != nil || item.Name != "c" || item.Attempts != 1 || item.State != checklists.StateReady {
		t.Errorf("Get(c) = %+v, %v", item, err)
	}
	if n, err := s.Delete(ctx, "downloads", "c", "unknown", "c"); n != 1 || err != nil {
		t.Errorf("Delete = %d, %v, want 1", n, err)
	}
	if _, err := s.Get(ctx, "downloads", "c"); !errors.Is(err, checklists.ErrNoItem) || !errors.Is(err, fault.NotFound) {
		t.Errorf("Get of a deleted item: %v, want ErrNoItem", err)
	}
	if n, err := s.Delete(ctx, "downloads", "a"); n != 1 || err != nil {
		t.Errorf("Delete of one = %d, %v, want 1", n, err)
	}
	if got := names(t, s, "downloads"); !slices.Equal(got, []string{"b", "d"}) {
		t.Errorf("left: %q", got)
	}
	if got := names(t, s, "no such list"); len(got) != 0 {
		t.Errorf("an unknown list has %q", got)
	}
}

func TestNothingToDoTouchesNothing(t *testing.T) {
	t.Parallel()
	s := checklists.New(nil, checklists.Config{}) // would panic if it asked the database
	for name, do := range map[string]func(context.Context, string, ...string) (int64, error){
		"Insert": s.Insert, "Increment": s.Increment, "Delete": s.Delete,
	} {
		if n, err := do(t.Context(), "downloads"); n != 0 || err != nil {
			t.Errorf("%s() = %d, %v, want 0", name, n, err)
		}
	}
}

func TestAnyNameIsAName(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	odd := []string{"", " ", "a\nb", "we/ird \"'; -- ✓", "日本", "😀", "\t", `\`, "$1", "{lists}"}
	for _, list := range odd {
		insert(t, s, list, odd...)
		if got, want := names(t, s, list), slices.Sorted(slices.Values(odd)); !slices.Equal(got, want) {
			t.Errorf("list %q has %q, want %q", list, got, want)
		}
	}
	lists, err := s.Lists(t.Context(), nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]string, len(lists))
	for i, l := range lists {
		got[i] = l.Name
	}
	if want := slices.Sorted(slices.Values(odd)); !slices.Equal(got, want) {
		t.Errorf("Lists = %q, want %q", got, want)
	}
}

func TestPagesPassTheEmptyItem(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	insert(t, s, "l", "", "a", "b")
	var got []string
	var after *string
	for range 4 {
		page, err := s.Page(t.Context(), "l", after, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range page {
			got = append(got, item.Name)
			after = &item.Name
		}
	}
	if want := []string{"", "a", "b"}; !slices.Equal(got, want) {
		t.Errorf("pages of one: %q, want %q", got, want)
	}
}

func TestAttemptsStayAtTheMaximum(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b")
	if _, err := pool.Exec(ctx, `UPDATE lists SET attempts = $1 WHERE item = 'a'`, math.MaxInt32); err != nil {
		t.Fatal(err)
	}
	for _, items := range [][]string{{"a"}, {"a", "b"}} {
		if n, err := s.Increment(ctx, "l", items...); n != int64(len(items)) || err != nil {
			t.Errorf("Increment(%q) = %d, %v", items, n, err)
		}
	}
	got, err := s.Page(ctx, "l", nil, 10)
	want := []checklists.Item{{Name: "a", Attempts: math.MaxInt32, State: checklists.StateReady}, {Name: "b", Attempts: 1, State: checklists.StateReady}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestInvalidInputIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	long := strings.Repeat("x", 5000)
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"NUL in an item":      {second(s.Insert(ctx, "l", "ok", "a\x00b")), "items[1]: a NUL byte at byte 1"},
		"NUL in the item":     {second(s.Increment(ctx, "l", "a\x00")), "item: a NUL byte at byte 1"},
		"NUL in the list":     {second(s.Delete(ctx, "l\x00", "a")), "list: a NUL byte at byte 1"},
		"invalid UTF-8":       {second(s.Insert(ctx, "l", "ok", "a\xff")), "items[1]: invalid UTF-8 at byte 1"},
		"invalid UTF-8 (get)": {second(s.Get(ctx, "l\xc3(", "a")), "list: invalid UTF-8 at byte 1"},
		"too long":            {second(s.Insert(ctx, "l", "ok", long)), "items[1]: 5,001 bytes; list and item together may have 2,600"},
		"page of none":        {second(s.Page(ctx, "l", nil, 0)), "limit: 0; want 1 to 10,000"},
		"page of -1":          {second(s.Page(ctx, "l", nil, -1)), "limit: -1; want 1 to 10,000"},
		"page of 10^12":       {second(s.Page(ctx, "l", nil, 1e12)), "limit: 1000000000000; want 1 to 10,000"},
		"after with NUL":      {second(s.Page(ctx, "l", new("\x00"), 1)), "after: a NUL byte at byte 0"},
		"lists of none":       {second(s.Lists(ctx, nil, 0)), "limit: 0; want 1 to 10,000"},
	} {
		if !errors.Is(tc.err, fault.Invalid) || !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%s: %v, want Invalid with %q", name, tc.err, tc.want)
		}
	}
	if got := names(t, s, "l"); len(got) != 0 {
		t.Errorf("something was written: %q", got)
	}
	// The longest allowed is stored, whatever it is made of.
	random := make([]byte, (checklists.MaxName-1)/2)
	for i := range random {
		random[i] = byte(rand.IntN(256))
	}
	insert(t, s, "l", fmt.Sprintf("%x", random))
}

func TestLongerItemsOfTheOriginalCanBeWorked(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	long := strings.Repeat("x", 5000) // compresses, so it fits the index
	if _, err := pool.Exec(ctx, `INSERT INTO lists (list, item) VALUES ('l', $1)`, long); err != nil {
		t.Fatal(err)
	}
	if item, err := s.Get(ctx, "l", long); err != nil || item.Name != long {
		t.Errorf("Get: %v", err)
	}
	if n, err := s.Increment(ctx, "l", long); n != 1 || err != nil {
		t.Errorf("Increment = %d, %v", n, err)
	}
	if n, err := s.Delete(ctx, "l", long); n != 1 || err != nil {
		t.Errorf("Delete = %d, %v", n, err)
	}
}

func TestABadTableIsToldByEveryMethod(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, table := range []pgx.Identifier{{}, {""}, {"iidy", strings.Repeat("l", 64)}, {"a\x00b"}} {
		s := checklists.New(nil, checklists.Config{Table: table})
		for name, err := range map[string]error{
			"Insert": second(s.Insert(ctx, "l", "a")), "Increment": second(s.Increment(ctx, "l", "a")),
			"Delete": second(s.Delete(ctx, "l", "a")), "Get": second(s.Get(ctx, "l", "a")),
			"Page": second(s.Page(ctx, "l", nil, 1)), "Lists": second(s.Lists(ctx, nil, 1)),
			"Import": second(s.Import(ctx, "l", source("a"), checklists.ImportOptions{})),
		} {
			if !errors.Is(err, fault.Invalid) {
				t.Errorf("%s on table %q: %v, want Invalid", name, table, err)
			}
		}
	}
}

// The original deadlocks in more than half of these calls.
func TestOverlappingIncrementsAndDeletesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	overlapsDoNotDeadlock(t, s, pool)
}

func overlapsDoNotDeadlock(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) {
	all := make([]string, 1000)
	for i := range all {
		all[i] = fmt.Sprintf("f%04d", i)
	}
	insert(t, s, "l", all...)
	var group errgroup.Group
	for worker := range 8 {
		group.Go(func() error {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 40 {
				some := make([]string, 200)
				for i := range some {
					some[i] = all[random.IntN(len(all))]
				}
				// In a transaction, so that nothing is retried in silence.
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					if _, err := s.WithTx(tx).Increment(t.Context(), "l", some...); err != nil {
						return err
					}
					return nil
				})
				if err != nil {
					return err
				}
				if _, err := s.Delete(t.Context(), "l", some[:3]...); err != nil {
					return err
				}
				if _, err := s.Insert(t.Context(), "l", some[:3]...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestWithTxIsTheCallersTransaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a")
	rolledBack := errors.New("rolled back")
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		in := s.WithTx(tx)
		if n, err := in.Insert(ctx, "l", "a", "b"); n != 1 || err != nil {
			t.Errorf("Insert = %d, %v, want 1", n, err)
		}
		if n, err := in.Delete(ctx, "l", "a", "b"); n != 2 || err != nil {
			t.Errorf("Delete = %d, %v, want 2", n, err)
		}
		// Refused and missing are answers: the transaction goes on.
		if _, err := in.Get(ctx, "l", "a"); !errors.Is(err, checklists.ErrNoItem) {
			t.Errorf("Get: %v, want ErrNoItem", err)
		}
		if _, err := in.Insert(ctx, "l", "\x00"); !errors.Is(err, fault.Invalid) {
			t.Errorf("Insert: %v, want Invalid", err)
		}
		if n, err := in.Insert(ctx, "l", "c"); n != 1 || err != nil {
			t.Errorf("Insert = %d, %v, want 1", n, err)
		}
		return rolledBack
	})
	if !errors.Is(err, rolledBack) {
		t.Fatal(err)
	}
	if got := names(t, s, "l"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("after the rollback: %q, want [a]", got)
	}
}

func TestAMissingTableSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := checklists.New(pgtest.Schema(t), checklists.Config{Table: pgx.Identifier{"no such schema", "lists"}})
	_, err := s.Insert(t.Context(), "l", "a")
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "howdah migrate") {
		t.Errorf("Insert: %v, want Unavailable and what to do", err)
	}
}

// second drops the answer of a call whose error is wanted.
func second[T any](_ T, err error) error { return err }
