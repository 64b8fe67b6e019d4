package checklists_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
)

func upsert(t *testing.T, s *checklists.Store, wantAdded, wantChanged int64, items ...checklists.Item) {
	t.Helper()
	added, changed, err := s.Upsert(t.Context(), "l", items...)
	if err != nil || added != wantAdded || changed != wantChanged {
		t.Errorf("Upsert(%v) = %d, %d, %v, want %d, %d", items, added, changed, err, wantAdded, wantChanged)
	}
}

// all are the items of list l.
func all(t *testing.T, s *checklists.Store) (items []checklists.Item) {
	t.Helper()
	for item, err := range s.All(t.Context(), "l") {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
	return items
}

func TestUpsertAddsAndChanges(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	soon := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	insert(t, s, "l", "a", "b")
	upsert(t, s, 1, 1,
		checklists.Item{Name: "c", Payload: json.RawMessage(`1`)}, // the last of a name counts
		checklists.Item{Name: "a", Payload: json.RawMessage(`{"x": 1}`), Priority: 2},
		checklists.Item{Name: "b"}, // as it is
		checklists.Item{Name: "c", Payload: json.RawMessage(` null `), Due: soon, Attempts: 7, Error: "not looked at"})
	want := []checklists.Item{
		{Name: "a", Priority: 2, State: "ready", Payload: json.RawMessage(`{"x": 1}`)},
		{Name: "b", State: "ready"},
		{Name: "c", State: "waiting", Due: soon},
	}
	if diff := cmp.Diff(want, all(t, s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	upsert(t, s, 0, 0, checklists.Item{Name: "a", Payload: json.RawMessage(`{"x":1}`), Priority: 2}, checklists.Item{Name: "c"})
	// What is not given is taken away, the due time excepted.
	upsert(t, s, 0, 2, checklists.Item{Name: "a"}, checklists.Item{Name: "c", Priority: -5})
	want[0].Priority, want[0].Payload, want[2].Priority = 0, nil, -5
	if diff := cmp.Diff(want, all(t, s)); diff != "" {
		t.Errorf("taken away (-want +got):\n%s", diff)
	}
	upsert(t, s, 0, 1, checklists.Item{Name: "c", Priority: -5, Due: soon.Add(-2 * time.Hour)})
	if item, err := s.Get(t.Context(), "l", "c"); err != nil || item.State != checklists.StateReady {
		t.Errorf("c: %+v, %v, want ready", item, err)
	}
	upsert(t, s, 0, 0)
	mustNotDrift(t, pool)
}

// An item that a worker has, or had last, or that is dead keeps its time: another
// would put it into two hands, or bring it back uncounted.
func TestUpsertLeavesLeasesAndDeadAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "dead", "expired", "leased")
	if _, err := s.Kill(ctx, "l", "gone", "dead"); err != nil {
		t.Fatal(err)
	}
	c, err := s.Claim(ctx, "l", "w", 2, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `UPDATE lists SET due = due - interval '2 hours' WHERE item = 'expired'`); err != nil {
		t.Fatal(err)
	}
	before := all(t, s)
	past, payload := time.Now().Add(-time.Hour), json.RawMessage(`"p"`)
	var given []checklists.Item
	for i, name := range []string{"dead", "expired", "leased"} {
		given = append(given, checklists.Item{Name: name, Due: past, Payload: payload, Priority: 1})
		before[i].Payload, before[i].Priority = payload, 1
	}
	upsert(t, s, 0, 3, given...)
	if diff := cmp.Diff(before, all(t, s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	upsert(t, s, 0, 0, given...)
	if n, err := s.Done(ctx, c.Lease); err != nil || n != 2 {
		t.Errorf("Done = %d, %v, want 2", n, err)
	}
	mustNotDrift(t, pool)
}

func TestKeptDoneItemsAreNotPutOnAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if err := s.Set(ctx, "l", checklists.Settings{KeepDone: true, BackoffMax: time.Hour}); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "l", "a")
	if _, err := s.Delete(ctx, "l", "a"); err != nil {
		t.Fatal(err)
	}
	given := []checklists.Item{{Name: "a", Priority: 1}, {Name: "b", Priority: 1}}
	if n, err := s.InsertItems(ctx, "l", given...); err != nil || n != 1 {
		t.Errorf("InsertItems = %d, %v, want 1", n, err)
	}
	upsert(t, s, 0, 0, given...)
	if item, err := s.Get(ctx, "l", "a"); err != nil || item.State != checklists.StateDone || item.Priority != 0 {
		t.Errorf("a: %+v, %v, want as it was done", item, err)
	}
	mustNotDrift(t, pool)
}

func TestInsertItemsSkipsWhatIsThere(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	insert(t, s, "l", "a")
	later := time.Now().Add(time.Hour)
	n, err := s.InsertItems(ctx, "l", checklists.Item{Name: "a", Priority: 5}, checklists.Item{Name: "b", Priority: 5, Payload: json.RawMessage(`[]`)},
		checklists.Item{Name: "b", Priority: 1}, checklists.Item{Name: "c", Due: later, Priority: 5})
	if err != nil || n != 2 {
		t.Errorf("InsertItems = %d, %v, want 2", n, err)
	}
	if n, err := s.InsertItems(ctx, "l", checklists.Item{Name: "d"}, checklists.Item{Name: "a"}); err != nil || n != 1 {
		t.Errorf("bare: %d, %v, want 1", n, err)
	}
	c, err := s.Claim(ctx, "l", "w", 10, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	want := []checklists.Item{{Name: "b", Attempts: 1, Priority: 5, Payload: json.RawMessage(`[]`)}, {Name: "a", Attempts: 1}, {Name: "d", Attempts: 1}}
	if diff := cmp.Diff(want, c.Items); diff != "" {
		t.Errorf("claimed (-want +got):\n%s", diff)
	}
}

func TestWhatItemsSayIsRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	for _, tc := range []struct {
		item checklists.Item
		want string
	}{
		{checklists.Item{Priority: 6}, "items[1].priority: 6; want -5 to 5"},
		{checklists.Item{Priority: -70000}, "items[1].priority: -70000; want -5 to 5"},
		{checklists.Item{Due: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, "items[1].due: in the year 10000"},
		{checklists.Item{Due: time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)}, "items[1].due: in the year -1"},
		{checklists.Item{Payload: json.RawMessage(`{"a":`)}, "items[1].payload: no JSON"},
		{checklists.Item{Payload: json.RawMessage(`1 2`)}, "items[1].payload: no JSON"},
		{checklists.Item{Payload: json.RawMessage(`"\u0000"`)}, `items[1].payload: \u0000 in a string`},
		{checklists.Item{Payload: json.RawMessage(`{"x\\\u0000":1}`)}, `items[1].payload: \u0000 in a string`},
		{checklists.Item{Payload: json.RawMessage(`"\ud800"`)}, "items[1].payload: half a surrogate pair"},
		{checklists.Item{Payload: json.RawMessage("\"\xff\"")}, "items[1].payload: invalid UTF-8"},
		{checklists.Item{Payload: json.RawMessage(`"` + strings.Repeat("x", checklists.MaxPayload) + `"`)}, "items[1].payload: 1,048,578 bytes; want at most 1,048,576"},
		{checklists.Item{Name: strings.Repeat("x", 2600), Priority: 1}, "items[1]: 2,601 bytes; list and item together"},
		{checklists.Item{Name: "\x00", Priority: 1}, "items[1]: a NUL byte"},
	} {
		items := []checklists.Item{{Name: "a"}, tc.item}
		_, insertErr := s.InsertItems(ctx, "l", items...)
		_, _, upsertErr := s.Upsert(ctx, "l", append(items, checklists.Item{})...) // the same name again, perhaps
		for _, err := range []error{insertErr, upsertErr} {
			if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%.60v: %v, want %q", tc.item, err, tc.want)
			}
		}
	}
	if got := names(t, s, "l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
	upsert(t, s, 1, 0, checklists.Item{Name: "a", Payload: json.RawMessage(`"\\u0000 \\\\u0000"`)}) // six letters after a backslash
}
