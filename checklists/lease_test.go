package checklists_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
)

// claim takes items or ends the test.
func claim(t testing.TB, s *checklists.Store, list string, n int) checklists.Claim {
	t.Helper()
	c, err := s.Claim(t.Context(), list, "w", n, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func claimed(c checklists.Claim) []string {
	got := []string{}
	for _, item := range c.Items {
		got = append(got, item.Name)
	}
	return got
}

// shift moves when items are due, which ends leases and waiting without waiting.
func shift(t testing.TB, pool *pgxpool.Pool, by string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `UPDATE lists SET due = due + $1::text::interval WHERE due < 'infinity'`, by); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s *checklists.Store, list, item string) checklists.Item {
	t.Helper()
	got, err := s.Get(t.Context(), list, item)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestClaimHandsOutEachItemOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "c", "a", "b", "d")
	first := claim(t, s, "l", 3)
	if len(first.Items) != 3 || first.Items[0].Attempts != 1 || first.Until.Before(time.Now().Add(-time.Hour)) || first.Paused {
		t.Errorf("claim: %+v", first)
	}
	second := claim(t, s, "l", 3)
	if all := slices.Sorted(slices.Values(append(claimed(first), claimed(second)...))); !slices.Equal(all, []string{"a", "b", "c", "d"}) {
		t.Errorf("claimed: %q", all)
	}
	if none := claim(t, s, "l", 3); len(none.Items) != 0 || none.Items == nil || none.Token != "" {
		t.Errorf("nothing is left, and yet: %+v", none)
	}
	item := get(t, s, "l", first.Items[0].Name)
	if item.State != checklists.StateLeased || !item.Due.Equal(first.Until) || item.Worker != "w" || item.Tried.IsZero() {
		t.Errorf("leased: %+v", item)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 4, Left: 4, Leased: 4}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n, err := s.Done(ctx, first.Lease, claimed(first)[0]); n != 1 || err != nil {
		t.Errorf("Done = %d, %v", n, err)
	}
	if n, err := s.Done(ctx, first.Lease); n != 2 || err != nil {
		t.Errorf("Done of the rest = %d, %v", n, err)
	}
	if n, err := s.Done(ctx, first.Lease); n != 0 || !errors.Is(err, checklists.ErrLost) || !errors.Is(err, fault.Conflict) {
		t.Errorf("Done again = %d, %v, want ErrLost", n, err)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 4, Left: 1, Leased: 1, Done: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	mustNotDrift(t, pool)
}

func TestClaimsGoByPriorityThenDue(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	insert(t, s, "l", "late", "early", "urgent", "no hurry", "not yet")
	if _, err := pool.Exec(t.Context(), `
		UPDATE lists SET priority = CASE item WHEN 'urgent' THEN 5 WHEN 'no hurry' THEN -5 WHEN 'not yet' THEN 5 ELSE 0 END,
			due = CASE item WHEN 'not yet' THEN now() + interval '1 hour' WHEN 'early' THEN '-infinity' ELSE due END`); err != nil {
		t.Fatal(err)
	}
	if got, want := claimed(claim(t, s, "l", 10)), []string{"urgent", "early", "late", "no hurry"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE lists SET priority = 6`); err == nil {
		t.Error("a priority that would never be claimed is stored")
	}
}

// What comes in below the low-water mark is found by the repetition.
func TestMarksHideNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	for i := range 50 {
		insert(t, s, "l", fmt.Sprint(i))
	}
	claim(t, s, "l", 20)
	if _, err := pool.Exec(ctx, `INSERT INTO lists (list, item, due) VALUES ('l', 'below', '-infinity')`); err != nil {
		t.Fatal(err)
	}
	c := claim(t, s, "l", 100)
	if !slices.Contains(claimed(c), "below") || len(c.Items) != 31 {
		t.Errorf("%q", claimed(c))
	}
	if n, err := s.Release(ctx, c.Lease); n != 31 || err != nil {
		t.Fatalf("Release = %d, %v", n, err)
	}
	if c = claim(t, s, "l", 100); len(c.Items) != 31 || c.Items[0].Attempts != 1 {
		t.Errorf("released: %d items, %+v", len(c.Items), c.Items[0])
	}
	mustNotDrift(t, pool)
}

func TestALeaseThatEndedIsAnothers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b")
	old := claim(t, s, "l", 2)
	shift(t, pool, "-2 minutes")
	// As long as nobody has it, its holder may finish.
	if n, err := s.Done(ctx, old.Lease, "b"); n != 1 || err != nil {
		t.Errorf("Done = %d, %v", n, err)
	}
	c := claim(t, s, "l", 2)
	if want := []checklists.Item{{Name: "a", Attempts: 2, Error: "lease expired"}}; !cmp.Equal(want, c.Items) {
		t.Errorf("%+v, want %+v", c.Items, want)
	}
	for name, err := range map[string]error{
		"Done":        second(s.Done(ctx, old.Lease, "a")),
		"Done of all": second(s.Done(ctx, old.Lease)),
		"Fail":        second(s.Fail(ctx, old.Lease, checklists.Failure{Item: "a", Error: "x"})),
		"Release":     second(s.Release(ctx, old.Lease, "a")),
		"Extend":      second(s.Extend(ctx, old.Lease, time.Hour)),
		"other list":  second(s.Done(ctx, checklists.Lease{List: "m", Token: c.Token}, "a")),
	} {
		if !errors.Is(err, checklists.ErrLost) {
			t.Errorf("%s: %v, want ErrLost", name, err)
		}
	}
	if n, err := s.Done(ctx, c.Lease, "a", "b", "z"); n != 1 || err == nil || !strings.Contains(err.Error(), "lost 2 of 3") {
		t.Errorf("Done = %d, %v, want 1 and what was lost", n, err)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 2, Done: 2, Failed: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestFailuresWaitAndEnd(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if err := s.Set(ctx, "l", checklists.Settings{MaxAttempts: 3, Backoff: time.Minute, BackoffMax: 90 * time.Second}); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "l", "a", "b", "c")
	c := claim(t, s, "l", 3)
	n, err := s.Fail(ctx, c.Lease,
		checklists.Failure{Item: "a", Error: "no"}, checklists.Failure{Item: "a", Error: "503"},
		checklists.Failure{Item: "b", RetryIn: time.Hour}, checklists.Failure{Item: "c", Error: "404", RetryIn: -1})
	if n != 3 || err != nil {
		t.Fatalf("Fail = %d, %v", n, err)
	}
	for _, tc := range []struct {
		item, text  string
		state       checklists.State
		least, most time.Duration
	}{
		{"a", "503", checklists.StateWaiting, 50 * time.Second, 67 * time.Second},
		{"b", "", checklists.StateWaiting, 59 * time.Minute, time.Hour + time.Second},
		{"c", "404", checklists.StateDead, 0, 0},
	} {
		item := get(t, s, "l", tc.item)
		if wait := item.Due.Sub(item.Tried); item.State != tc.state || item.Error != tc.text || item.Attempts != 1 ||
			tc.state == checklists.StateWaiting && (wait < tc.least || wait > tc.most+time.Minute) {
			t.Errorf("%s: %+v waits %v", tc.item, item, wait)
		}
	}
	for range 2 {
		shift(t, pool, "-2 hours")
		c = claim(t, s, "l", 1)
		if _, err := s.Fail(ctx, c.Lease, checklists.Failure{Item: c.Items[0].Name, Error: "again"}); err != nil {
			t.Fatal(err)
		}
		shift(t, pool, "-2 hours")
		if _, err := pool.Exec(ctx, `UPDATE lists SET due = now() + interval '1 day' WHERE item = 'b'`); err != nil {
			t.Fatal(err)
		}
	}
	mustNotDrift(t, pool)
	shift(t, pool, "-3 days")
	eventually(t, "no attempt is left", func() bool {
		c = claim(t, s, "l", 5)
		shift(t, pool, "-3 days") // nobody ever says what became of them
		return len(c.Items) == 0
	})
	for _, item := range []string{"a", "b", "c"} {
		if got := get(t, s, "l", item); got.State != checklists.StateDead || item != "c" && got.Attempts != 3 {
			t.Errorf("%+v, want dead", got)
		}
	}
	if got := progress(t, s, "l"); got.Dead != 3 || got.Left != 0 || got.Leased != 0 {
		t.Errorf("%+v, want all dead", got)
	}
	mustNotDrift(t, pool)
}

func TestAFailureNeverFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a")
	if _, err := pool.Exec(ctx, `UPDATE lists SET attempts = $1`, math.MaxInt32); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(ctx, "l", checklists.Settings{BackoffMax: time.Hour, Backoff: time.Second}); err != nil {
		t.Fatal(err)
	}
	c := claim(t, s, "l", 1)
	if n, err := s.Fail(ctx, c.Lease, checklists.Failure{Item: "a", Error: "\x00\xff" + strings.Repeat("é", 5000)}); n != 1 || err != nil {
		t.Fatalf("Fail = %d, %v", n, err)
	}
	item := get(t, s, "l", "a")
	if item.Attempts != math.MaxInt32 || item.State != checklists.StateWaiting || len(item.Error) < 1990 || len(item.Error) > 2000 || !utf8.ValidString(item.Error) {
		t.Errorf("%d attempts, %s, %d bytes of error", item.Attempts, item.State, len(item.Error))
	}
}

func TestExtendKillAndRedrive(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a", "b", "c")
	c := claim(t, s, "l", 2)
	if n, err := s.Extend(ctx, c.Lease, time.Hour); n != 2 || err != nil {
		t.Errorf("Extend = %d, %v", n, err)
	}
	if got := get(t, s, "l", "a"); got.Due.Before(c.Until.Add(50 * time.Minute)) {
		t.Errorf("extended: %+v", got)
	}
	if n, err := s.Kill(ctx, "l", "gone for good", "a", "c", "unknown", "a"); n != 2 || err != nil {
		t.Errorf("Kill = %d, %v", n, err)
	}
	if n, err := s.Kill(ctx, "l", "again", "a"); n != 0 || err != nil {
		t.Errorf("Kill again = %d, %v", n, err)
	}
	if n, err := s.Done(ctx, c.Lease, "a", "b"); n != 1 || !errors.Is(err, checklists.ErrLost) {
		t.Errorf("Done = %d, %v", n, err)
	}
	find := func(q checklists.Query) (got []string) {
		t.Helper()
		for item, err := range s.Find(ctx, "l", q) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, item.Name)
		}
		return got
	}
	if got := find(checklists.Query{State: checklists.StateDead, Error: "for good"}); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("dead: %q", got)
	}
	if got := find(checklists.Query{After: new("a"), Limit: 5}); !slices.Equal(got, []string{"c"}) {
		t.Errorf("after a: %q", got)
	}
	for _, state := range []checklists.State{checklists.StateReady, checklists.StateLeased, checklists.StateWaiting, checklists.StateDone} {
		if got := find(checklists.Query{State: state}); len(got) != 0 {
			t.Errorf("%s: %q", state, got)
		}
	}
	if n, err := s.Delete(ctx, "l", "c"); n != 1 || err != nil { // leaves uncounted
		t.Errorf("Delete = %d, %v", n, err)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 2, Dead: 1, Done: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n, err := s.Redrive(ctx, "l", checklists.Query{Error: "other"}); n != 0 || err != nil {
		t.Errorf("Redrive of another error = %d, %v", n, err)
	}
	if n, err := s.Redrive(ctx, "l", checklists.Query{Error: "gone"}); n != 1 || err != nil {
		t.Errorf("Redrive = %d, %v", n, err)
	}
	if got := get(t, s, "l", "a"); got.State != checklists.StateReady || got.Attempts != 0 || got.Error != "gone for good" {
		t.Errorf("redriven: %+v", got)
	}
	mustNotDrift(t, pool)
}

func TestDoneItemsAreKeptWhereTheListSaysSo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	keep := checklists.DefaultSettings
	keep.KeepDone = true
	if err := s.Set(ctx, "l", keep); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "l", "a", "b", "c")
	c := claim(t, s, "l", 1)
	done := claimed(c)[0]
	if _, err := s.Done(ctx, c.Lease); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, "l", done); got.State != checklists.StateDone || got.Attempts != 1 || got.Worker != "w" {
		t.Errorf("done: %+v", got)
	}
	if n, err := s.Insert(ctx, "l", "a", "b", "c", "d"); n != 1 || err != nil {
		t.Errorf("Insert = %d, %v, want d alone", n, err)
	}
	if got, err := s.Import(ctx, "l", source(done, "e"), checklists.ImportOptions{}); got.Added != 1 || err != nil {
		t.Errorf("Import = %+v, %v, want e alone", got, err)
	}
	if n, err := s.Redrive(ctx, "l", checklists.Query{State: checklists.StateDone}); n != 1 || err != nil {
		t.Errorf("Redrive = %d, %v", n, err)
	}
	if got := get(t, s, "l", done); got.State != checklists.StateReady || got.Attempts != 0 {
		t.Errorf("again: %+v", got)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 5, Left: 5}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	mustNotDrift(t, pool)
}

func TestBadLeasesAreRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	insert(t, s, "l", "a")
	for name, err := range map[string]error{
		"claim of none":   second(s.Claim(ctx, "l", "w", 0, time.Minute)),
		"claim of 10,001": second(s.Claim(ctx, "l", "w", 10_001, time.Minute)),
		"lease of 0":      second(s.Claim(ctx, "l", "w", 1, 0)),
		"lease of 25 h":   second(s.Claim(ctx, "l", "w", 1, 25*time.Hour)),
		"worker with NUL": second(s.Claim(ctx, "l", "\x00", 1, time.Minute)),
		"token":           second(s.Done(ctx, checklists.Lease{List: "l", Token: "1"}, "a")),
		"no token":        second(s.Extend(ctx, checklists.Lease{List: "l"}, time.Minute)),
		"item":            second(s.Kill(ctx, "l", "", "a\xff")),
		"state":           second(s.Redrive(ctx, "l", checklists.Query{State: "gone"})),
		"ready":           second(s.Redrive(ctx, "l", checklists.Query{State: checklists.StateReady})),
		"rate":            s.Set(ctx, "l", checklists.Settings{Rate: math.NaN()}),
		"backoff":         s.Set(ctx, "l", checklists.Settings{Backoff: time.Hour}),
		"attempts":        s.Set(ctx, "l", checklists.Settings{MaxAttempts: -1}),
	} {
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if got, want := get(t, s, "l", "a"), (checklists.Item{Name: "a", State: checklists.StateReady}); !cmp.Equal(got, want) {
		t.Errorf("something was written: %+v", got)
	}
}

func TestJSONOfLeases(t *testing.T) {
	t.Parallel()
	for want, v := range map[string]any{
		`{"item":"a","attempts":1}`:   checklists.Item{Name: "a", Attempts: 1, State: checklists.StateReady},
		`{"paused":false,"items":[]}`: checklists.Claim{Lease: checklists.Lease{List: "l"}, Items: []checklists.Item{}},
		`{"total":1,"left":1,"leased":0,"dead":0,"done":0,"failed":0,"rate":0,"eta_seconds":null,"paused":false}`:             checklists.Progress{Total: 1, Left: 1},
		`{"paused":false,"max_attempts":10,"backoff":"10s","backoff_max":"1h0m0s","keep_done":false,"max_leased":0,"rate":0}`: checklists.DefaultSettings,
	} {
		if got, err := json.Marshal(v); string(got) != want || err != nil {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
}

func TestATickInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a")
	c := claim(t, s, "l", 1)
	rolledBack := errors.New("rolled back")
	for _, want := range []error{rolledBack, nil} {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := s.WithTx(tx).Done(ctx, c.Lease, "a"); err != nil {
				return err
			}
			return want
		})
		if !errors.Is(err, want) {
			t.Fatal(err)
		}
		mustNotDrift(t, pool)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 1, Done: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestAPlainTableHasNoLeases(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if _, err := pool.Exec(ctx, `DROP TABLE lists; CREATE TABLE lists (list text NOT NULL, item text NOT NULL, attempts integer NOT NULL DEFAULT 0, PRIMARY KEY (list, item))`); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "l", "a")
	l := checklists.Lease{List: "l", Token: "0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e"}
	var found error
	for _, err := range s.Find(ctx, "l", checklists.Query{}) {
		found = err
	}
	for name, err := range map[string]error{
		"Claim": second(s.Claim(ctx, "l", "w", 1, time.Minute)), "Done": second(s.Done(ctx, l)), "Fail": second(s.Fail(ctx, l, checklists.Failure{Item: "a"})),
		"Release": second(s.Release(ctx, l)), "Extend": second(s.Extend(ctx, l, time.Minute)), "Kill": second(s.Kill(ctx, "l", "", "a")),
		"Redrive": second(s.Redrive(ctx, "l", checklists.Query{})), "Settings": second(s.Settings(ctx, "l")), "Set": s.Set(ctx, "l", checklists.DefaultSettings),
		"Pause": s.Pause(ctx, "l", true), "Find": found,
	} {
		if !errors.Is(err, checklists.ErrPlain) {
			t.Errorf("%s: %v, want ErrPlain", name, err)
		}
	}
	if _, err := s.Fail(context.WithoutCancel(ctx), l); err == nil {
		t.Error("a failure of nothing on a plain table")
	}
}
