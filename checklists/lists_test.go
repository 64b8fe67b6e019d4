package checklists_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// paused gives a list settings of its own.
func paused(t *testing.T, s *checklists.Store, list string) {
	t.Helper()
	if err := s.Pause(t.Context(), list, true); err != nil {
		t.Fatal(err)
	}
}

func listNames(t *testing.T, s *checklists.Store, after *string, n int) []string {
	t.Helper()
	lists, err := s.Lists(t.Context(), after, n)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, l := range lists {
		got = append(got, l.Name)
	}
	return got
}

func TestListsPageByPage(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	for _, list := range []string{"", "a", "b", "d"} {
		insert(t, s, list, "x", "y")
	}
	for _, list := range []string{"b", "c", "e"} { // two of them without items
		paused(t, s, list)
	}
	for _, tc := range []struct {
		after *string
		n     int
		want  []string
	}{
		{nil, 10, []string{"", "a", "b", "c", "d", "e"}},
		{nil, 2, []string{"", "a"}},
		{new(""), 2, []string{"a", "b"}},
		{new("aa"), 10, []string{"b", "c", "d", "e"}},
		{new("b"), 1, []string{"c"}},
		{new("e"), 10, []string{}},
	} {
		if got := listNames(t, s, tc.after, tc.n); !slices.Equal(got, tc.want) {
			t.Errorf("Lists(%v, %d) = %q, want %q", tc.after, tc.n, got, tc.want)
		}
	}
}

func TestListsSayHowFarTheyAre(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	insert(t, s, "a", "x", "y", "z")
	insert(t, s, "b", "x")
	if _, err := s.Delete(ctx, "a", "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(ctx, "a", "w", 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	set := checklists.Settings{Paused: true, MaxAttempts: 3, Backoff: time.Second, BackoffMax: time.Minute, KeepDone: true, MaxLeased: 7, Rate: 1.5}
	if err := s.Set(ctx, "c", set); err != nil {
		t.Fatal(err)
	}
	want := []checklists.List{
		{Name: "a", Settings: &checklists.DefaultSettings, Progress: &checklists.Progress{Total: 3, Left: 2, Leased: 1, Done: 1}},
		{Name: "b", Settings: &checklists.DefaultSettings, Progress: &checklists.Progress{Total: 1, Left: 1}},
		{Name: "c", Settings: &set, Progress: &checklists.Progress{Paused: true}},
	}
	got, err := s.Lists(ctx, nil, 10)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// The order is the table's, also of lists that have settings and no items.
func TestListsInTheOrderOfTheTable(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	if _, err := pool.Exec(t.Context(), `ALTER TABLE lists ALTER COLUMN list TYPE text COLLATE "und-x-icu"`); err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{"A", "b", "c"} {
		insert(t, s, list, "x")
	}
	for _, list := range []string{"a", "B", "C"} {
		paused(t, s, list)
	}
	want := []string{"a", "A", "b", "B", "c", "C"}
	if got := listNames(t, s, nil, 10); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	var got []string
	for after := (*string)(nil); ; after = &got[len(got)-1] {
		page := listNames(t, s, after, 1)
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("one by one: %q, want %q", got, want)
	}
}

func TestRenameTakesEverythingAlong(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	set := checklists.Settings{MaxAttempts: 1, BackoffMax: time.Hour, KeepDone: true}
	if err := s.Set(ctx, "l", set); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "l", "a", "b", "c", "d")
	c, err := s.Claim(ctx, "l", "w", 3, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Done(ctx, c.Lease, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fail(ctx, c.Lease, checklists.Failure{Item: "b", Error: "no"}); err != nil {
		t.Fatal(err)
	}
	before := progress(t, s, "l")
	if want := (checklists.Progress{Total: 4, Left: 2, Leased: 1, Dead: 1, Done: 1, Failed: 1}); before != want {
		t.Fatalf("%+v, want %+v", before, want)
	}
	if n, err := s.Rename(ctx, "l", "m"); err != nil || n != 3 {
		t.Errorf("Rename = %d, %v, want 3", n, err)
	}
	if got := progress(t, s, "m"); got != before {
		t.Errorf("m: %+v, want %+v", got, before)
	}
	if got, err := s.Settings(ctx, "m"); err != nil || got != set {
		t.Errorf("m: %+v, %v, want %+v", got, err, set)
	}
	if item, err := s.Get(ctx, "m", "a"); err != nil || item.State != checklists.StateDone {
		t.Errorf("a: %+v, %v, want done", item, err)
	}
	mustBeUnknown(t, s, "l")
	if _, err := s.Done(ctx, c.Lease, "c"); !errors.Is(err, checklists.ErrLost) {
		t.Errorf("Done by the old name: %v, want ErrLost", err)
	}
	mustNotDrift(t, pool)
}

// mustBeUnknown checks that nothing is left of a list.
func mustBeUnknown(t *testing.T, s *checklists.Store, list string) {
	t.Helper()
	ctx := t.Context()
	if got := progress(t, s, list); got != (checklists.Progress{}) {
		t.Errorf("%s: %+v, want nothing", list, got)
	}
	if _, err := s.Settings(ctx, list); !errors.Is(err, checklists.ErrNoList) {
		t.Errorf("Settings(%q): %v, want ErrNoList", list, err)
	}
	if _, err := s.Drop(ctx, list); !errors.Is(err, checklists.ErrNoList) || !errors.Is(err, fault.NotFound) {
		t.Errorf("Drop(%q): %v, want ErrNoList", list, err)
	}
	if _, err := s.Rename(ctx, list, "another"); !errors.Is(err, checklists.ErrNoList) {
		t.Errorf("Rename(%q): %v, want ErrNoList", list, err)
	}
	if got := listNames(t, s, nil, 100); slices.Contains(got, list) {
		t.Errorf("%q among %q", list, got)
	}
}

func TestRenameOntoAnother(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b")
	insert(t, s, "m", "c")
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	if _, err := s.WithTx(tx).Rename(ctx, "l", "m"); !errors.Is(err, checklists.ErrExists) || !errors.Is(err, fault.Conflict) {
		t.Errorf("onto a list with items: %v, want ErrExists", err)
	}
	if _, err := s.WithTx(tx).Rename(ctx, "l", "l"); !errors.Is(err, fault.Invalid) {
		t.Errorf("onto itself: %v, want Invalid", err)
	}
	if got := names(t, s.WithTx(tx), "l"); len(got) != 2 { // the transaction goes on
		t.Errorf("l: %q", got)
	}
	// Of one that is through, the past stays; settings of the renamed count.
	if _, err := s.Delete(ctx, "m", "c"); err != nil {
		t.Fatal(err)
	}
	paused(t, s, "m")
	if n, err := s.Rename(ctx, "l", "m"); err != nil || n != 2 {
		t.Errorf("onto a list without items: %d, %v, want 2", n, err)
	}
	if got, want := progress(t, s, "m"), (checklists.Progress{Total: 3, Left: 2, Done: 1, Paused: true}); got != want {
		t.Errorf("m: %+v, want %+v", got, want)
	}
	paused(t, s, "n")
	if err := s.Set(ctx, "m", checklists.Settings{MaxAttempts: 7, BackoffMax: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rename(ctx, "m", "n"); err != nil {
		t.Error(err)
	}
	if got, err := s.Settings(ctx, "n"); err != nil || got.MaxAttempts != 7 || got.Paused {
		t.Errorf("n: %+v, %v, want those of m", got, err)
	}
	mustNotDrift(t, pool)
}

func TestRenameToANameThatItemsDoNotFit(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	long := strings.Repeat("x", 2590)
	insert(t, s, "l", long, "a")
	_, err := s.Rename(ctx, "l", "a longer name")
	if want := "checklists: rename: to: 13 bytes, and an item has 2,590; list and item together may have 2,600"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if n, err := s.Rename(ctx, "l", "0123456789"); err != nil || n != 2 {
		t.Errorf("to one that fits: %d, %v", n, err)
	}
	for _, to := range []string{"\x00", "\xff", long + "0123456789x"} {
		if _, err := s.Rename(ctx, "0123456789", to); !errors.Is(err, fault.Invalid) {
			t.Errorf("Rename to %.20q: %v, want Invalid", to, err)
		}
	}
}

func TestDropLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if err := s.Set(ctx, "l", checklists.Settings{KeepDone: true, BackoffMax: time.Hour}); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "l", "a", "b", "c", "d")
	insert(t, s, "m", "a")
	if _, err := s.Delete(ctx, "l", "d"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Kill(ctx, "l", "", "c"); err != nil {
		t.Fatal(err)
	}
	c, err := s.Claim(ctx, "l", "w", 1, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Drop(ctx, "l"); err != nil || n != 3 {
		t.Errorf("Drop = %d, %v, want 3", n, err)
	}
	mustBeUnknown(t, s, "l")
	if _, err := s.Get(ctx, "l", "d"); !errors.Is(err, checklists.ErrNoItem) {
		t.Errorf("d is kept: %v", err)
	}
	if _, err := s.Done(ctx, c.Lease); !errors.Is(err, checklists.ErrLost) {
		t.Errorf("Done: %v, want ErrLost", err)
	}
	if got := progress(t, s, "m"); got.Left != 1 {
		t.Errorf("m: %+v", got)
	}
	var rows int
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM howdah.checklist_count WHERE relation = 'lists'::regclass AND list = 'l'`).Scan(&rows); err != nil || rows > 0 {
		t.Errorf("%d rows of counts are left, %v", rows, err)
	}
	mustNotDrift(t, pool)
	// One that is through is known by what was done, until it is dropped.
	if _, err := s.Delete(ctx, "m", "a"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Drop(ctx, "m"); err != nil || n != 0 {
		t.Errorf("Drop of a list that is through = %d, %v, want 0", n, err)
	}
	mustBeUnknown(t, s, "m")
}

// What a transaction of the caller's takes back was never dropped or renamed, and
// in one whose snapshot is of its start the counts are right as well.
func TestDropAndRenameInATransaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b")
	insert(t, s, "m", "c")
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
		if err != nil {
			t.Fatal(err)
		}
		in := s.WithTx(tx)
		if n, err := in.Rename(ctx, "l", "n"); err != nil || n != 2 {
			t.Errorf("%s: Rename = %d, %v", level, n, err)
		}
		if n, err := in.Drop(ctx, "m"); err != nil || n != 1 {
			t.Errorf("%s: Drop = %d, %v", level, n, err)
		}
		if got := progress(t, in, "m"); got != (checklists.Progress{}) {
			t.Errorf("%s: m: %+v, want nothing", level, got)
		}
		insert(t, in, "l", "x")
		if got := progress(t, in, "l"); got != (checklists.Progress{Total: 1, Left: 1}) {
			t.Errorf("%s: l: %+v", level, got)
		}
		if differs, err := drift(ctx, tx); differs != "" || err != nil {
			t.Errorf("%s: counts: %s %v", level, differs, err)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := listNames(t, s, nil, 10); !slices.Equal(got, []string{"l", "m"}) {
		t.Errorf("after rollbacks: %q", got)
	}
	mustNotDrift(t, pool)
}

// What imports have noted goes with its list.
func TestDropAndRenameTakeImportsAlong(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	if _, err := pool.Exec(ctx, `INSERT INTO howdah.checklist_import (relation, list, id, items, digest)
		SELECT 'iidy.lists'::regclass, list, id, n, '' FROM (VALUES ('l', 'x', 1), ('l', 'y', 2), ('m', 'y', 3), ('m', 'z', 4)) AS v(list, id, n)`); err != nil {
		t.Fatal(err)
	}
	noted := func() (got []string) {
		t.Helper()
		rows, _ := pool.Query(ctx, `SELECT list || ' ' || id || ' ' || items FROM howdah.checklist_import ORDER BY list, id`)
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	insert(t, s, "l", "a")
	if _, err := s.Rename(ctx, "l", "m"); err != nil {
		t.Fatal(err)
	}
	if got, want := noted(), []string{"m x 1", "m y 2", "m z 4"}; !slices.Equal(got, want) {
		t.Errorf("renamed: %q, want %q", got, want)
	}
	if _, err := s.Drop(ctx, "m"); err != nil {
		t.Fatal(err)
	}
	if got := noted(); len(got) > 0 {
		t.Errorf("dropped: %q", got)
	}
}

// A plain table has names only, and lists that can be renamed and dropped.
func TestListsOfAPlainTable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	if _, err := pool.Exec(ctx, `CREATE SCHEMA iidy; CREATE TABLE iidy.lists (list text NOT NULL, item text NOT NULL,
		attempts integer NOT NULL DEFAULT 0, CONSTRAINT list_pk PRIMARY KEY (list, item))`); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	insert(t, s, "a", "x", "y")
	insert(t, s, "b", "x")
	lists, err := s.Lists(ctx, nil, 10)
	if diff := cmp.Diff([]checklists.List{{Name: "a"}, {Name: "b"}}, lists); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if got := listNames(t, s, new("a"), 10); !slices.Equal(got, []string{"b"}) {
		t.Errorf("after a: %q", got)
	}
	if _, err := s.Rename(ctx, "a", "b"); !errors.Is(err, checklists.ErrExists) {
		t.Errorf("Rename onto another: %v, want ErrExists", err)
	}
	if n, err := s.Rename(ctx, "a", "c"); err != nil || n != 2 {
		t.Errorf("Rename = %d, %v, want 2", n, err)
	}
	if n, err := s.Drop(ctx, "c"); err != nil || n != 2 {
		t.Errorf("Drop = %d, %v, want 2", n, err)
	}
	for name, err := range map[string]error{"Rename": second(s.Rename(ctx, "a", "d")), "Drop": second(s.Drop(ctx, "c"))} {
		if !errors.Is(err, checklists.ErrNoList) {
			t.Errorf("%s of none: %v, want ErrNoList", name, err)
		}
	}
	item := checklists.Item{Name: "x", Priority: 1}
	_, _, upsertErr := s.Upsert(ctx, "b", item)
	_, changeErr := s.Change(ctx, "b", func(*checklists.Settings) {})
	for name, err := range map[string]error{"Upsert": upsertErr, "Change": changeErr, "InsertItems": second(s.InsertItems(ctx, "b", item))} {
		if !errors.Is(err, checklists.ErrPlain) {
			t.Errorf("%s: %v, want ErrPlain", name, err)
		}
	}
	if n, err := s.InsertItems(ctx, "b", checklists.Item{Name: "x"}, checklists.Item{Name: "z"}); err != nil || n != 1 {
		t.Errorf("InsertItems of names = %d, %v, want 1", n, err)
	}
}

// Of several who change different settings at once each finds his change.
func TestChangesOfSettingsAreNotLost(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	pool = wide(t, pool)
	s = checklists.New(pool, checklists.Config{Table: pgx.Identifier{"lists"}})
	changes := []func(*checklists.Settings){
		func(set *checklists.Settings) { set.MaxAttempts++ },
		func(set *checklists.Settings) { set.MaxLeased++ },
		func(set *checklists.Settings) { set.Rate++ },
		func(set *checklists.Settings) { set.BackoffMax += time.Second },
	}
	var group errgroup.Group
	for _, change := range changes {
		group.Go(func() error {
			for range 10 {
				if _, err := s.Change(ctx, "l", change); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	want := checklists.DefaultSettings
	want.MaxAttempts, want.MaxLeased, want.Rate, want.BackoffMax = 20, 10, 10, want.BackoffMax+10*time.Second
	if got, err := s.Settings(ctx, "l"); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if _, err := s.Change(ctx, "new", func(set *checklists.Settings) { set.Rate = -1 }); !errors.Is(err, fault.Invalid) {
		t.Errorf("a rate of -1: %v, want Invalid", err)
	}
	mustBeUnknown(t, s, "new")
}

func TestWatchTellsWhatChanged(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithTimeout(t.Context(), pgtest.Patience)
	defer stop()
	s, _ := newStore(t)
	var seen []int64
	for p, err := range s.Watch(ctx, "l", time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, p.Total)
		switch p.Total {
		case 0:
			insert(t, s, "l", "a", "b")
		case 2:
			insert(t, s, "l", "c")
		case 3:
			stop() // which is no error
		}
	}
	if want := []int64{0, 2, 3}; !slices.Equal(seen, want) {
		t.Errorf("seen %v, want %v", seen, want)
	}
	for _, err := range s.Watch(t.Context(), "\x00", 0) {
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("a list that cannot be: %v, want Invalid", err)
		}
	}
}
