package checklists_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
)

// Whether a chunk is copied or merged, items come with all that is theirs, and of
// several with one name the first counts. What became of them elsewhere does not.
func TestImportOfMoreThanNames(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	due := time.Date(2999, 1, 2, 3, 4, 5, 678901000, time.UTC)
	src := these(
		checklists.Item{Name: "low", Priority: -5},
		checklists.Item{Name: "bare"},
		checklists.Item{Name: "high", Priority: 5, Payload: json.RawMessage(`{"n":[1,"é"]}`)},
		checklists.Item{Name: "high", Priority: 1},
		checklists.Item{Name: "waits", Due: due},
		checklists.Item{Name: "past", Due: due.AddDate(-1000, 0, 0)},
		checklists.Item{Name: "null", Payload: json.RawMessage(`null`)},
		checklists.Item{Name: "dead", State: checklists.StateDead, Attempts: 7, Error: "gone", Worker: "w", Tried: due},
		checklists.Item{Name: "leased", State: checklists.StateLeased, Due: due, Attempts: 1},
	)
	want := []checklists.Item{
		{Name: "bare", State: checklists.StateReady},
		{Name: "dead", State: checklists.StateReady},
		{Name: "high", State: checklists.StateReady, Priority: 5, Payload: json.RawMessage(`{"n": [1, "é"]}`)},
		{Name: "leased", State: checklists.StateReady},
		{Name: "low", State: checklists.StateReady, Priority: -5},
		{Name: "null", State: checklists.StateReady},
		{Name: "past", State: checklists.StateReady},
		{Name: "waits", State: checklists.StateWaiting, Due: due},
	}
	for list, known := range map[string]int64{"copied": 0, "merged": 1} {
		if known > 0 {
			insert(t, s, list, "bare")
		}
		for _, wanted := range []checklists.Imported{{Added: 8 - known, Skipped: 1 + known}, {Skipped: 9}} {
			got, err := s.Import(ctx, list, src, checklists.ImportOptions{})
			if err != nil || got != wanted {
				t.Errorf("%s: Import = %+v, %v, want %+v", list, got, err, wanted)
			}
		}
		page, err := s.Page(ctx, list, nil, 100)
		if diff := cmp.Diff(want, page); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", list, err, diff)
		}
		claim, err := s.Claim(ctx, list, "w", 100, time.Minute)
		if err != nil || len(claim.Items) != 7 || claim.Items[0].Name != "high" || claim.Items[1].Name != "past" || claim.Items[6].Name != "low" {
			t.Errorf("%s: %v, claimed %+v", list, err, claim.Items)
		}
	}
	// A later list does not inherit what an earlier chunk had.
	got, err := s.Import(ctx, "chunks", src, checklists.ImportOptions{}.InChunksOf(3))
	if want := (checklists.Imported{Added: 8, Skipped: 1}); err != nil || got != want {
		t.Errorf("Import = %+v, %v, want %+v", got, err, want)
	}
	page, err := s.Page(ctx, "chunks", nil, 100)
	if diff := cmp.Diff(want, page); err != nil || diff != "" {
		t.Errorf("in chunks: %v (-want +got):\n%s", err, diff)
	}
}

func TestImportRefusesWhatCannotBeStored(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	for name, tc := range map[string]struct {
		item checklists.Item
		want string
	}{
		"priority":    {checklists.Item{Priority: 6}, "item 2: priority 6; want -5 to 5"},
		"low":         {checklists.Item{Priority: -6}, "item 2: priority -6; want -5 to 5"},
		"long ago":    {checklists.Item{Due: time.Date(-5000, 1, 1, 0, 0, 0, 0, time.UTC)}, "item 2: due in the year -5000; want 1 to 9999"},
		"never":       {checklists.Item{Due: time.Unix(1<<60, 0)}, "item 2: due in the year"},
		"no JSON":     {checklists.Item{Payload: json.RawMessage(`{"a":`)}, "item 2: payload: no JSON (unexpected end of JSON input)"},
		"two":         {checklists.Item{Payload: json.RawMessage(`1 2`)}, "item 2: payload: no JSON"},
		"NUL":         {checklists.Item{Payload: json.RawMessage(`{"a\u0000":1}`)}, `item 2: payload: \u0000 in a string; PostgreSQL cannot store it`},
		"UTF-8":       {checklists.Item{Payload: json.RawMessage("\"\xff\"")}, "item 2: payload: invalid UTF-8 at byte 1"},
		"a surrogate": {checklists.Item{Payload: json.RawMessage(`"\udc00"`)}, "item 2: payload: half a surrogate pair at byte 1"},
		"large":       {checklists.Item{Payload: json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)}, "item 2: payload: 1,048,578 bytes; want at most 1,048,576"},
		"a number":    {checklists.Item{Payload: json.RawMessage(`[1e1001]`)}, "item 2: payload: the number at byte 1 is too long or too large"},
	} {
		tc.item.Name = "b"
		got, err := s.Import(t.Context(), "l", these(checklists.Item{Name: "a"}, tc.item), checklists.ImportOptions{})
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) || got != (checklists.Imported{}) {
			t.Errorf("%s: %+v, %v, want %q", name, got, err, tc.want)
		}
	}
	if got := names(t, s, "l"); len(got) > 0 {
		t.Errorf("written: %q", got)
	}
}

// What is just small enough is stored.
func TestImportOfTheLargest(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	deep := strings.Repeat(`{"a":[`, 500) + strings.Repeat("]}", 500)
	got, err := s.Import(t.Context(), "l", these(
		checklists.Item{Name: strings.Repeat("x", 2599), Priority: 5},
		checklists.Item{Name: "large", Payload: json.RawMessage(`"` + strings.Repeat("x", 1<<20-2) + `"`)},
		checklists.Item{Name: "deep", Payload: json.RawMessage(deep)},
		checklists.Item{Name: "number", Payload: json.RawMessage(`[1e1000,-1e-1000,` + strings.Repeat("9", 1000) + `]`)},
		checklists.Item{Name: "first", Due: time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)},
		checklists.Item{Name: "last", Due: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
	), checklists.ImportOptions{})
	if want := (checklists.Imported{Added: 6}); err != nil || got != want {
		t.Errorf("Import = %+v, %v, want %+v", got, err, want)
	}
}

// A table that was there has names only: what is more is refused, not lost.
func TestImportIntoAPlainTable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, pool := newStore(t)
	if _, err := pool.Exec(ctx, `DROP TABLE lists; CREATE TABLE lists (list text, item text, attempts int DEFAULT 0, PRIMARY KEY (list, item))`); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{Table: tableOf(t, pool)})
	opt := checklists.ImportOptions{ID: "id"}.InChunksOf(2)
	src := these(checklists.Item{Name: "a"}, checklists.Item{Name: "b"}, checklists.Item{Name: "c", Priority: 1})
	got, err := s.Import(ctx, "l", src, opt)
	if !errors.Is(err, checklists.ErrPlain) || got != (checklists.Imported{Added: 2}) {
		t.Errorf("Import = %+v, %v, want ErrPlain", got, err)
	}
	got, err = s.Import(ctx, "l", source("a", "b", "c"), opt)
	if want := (checklists.Imported{Added: 1, Resumed: 2}); err != nil || got != want {
		t.Errorf("Import = %+v, %v, want %+v", got, err, want)
	}
}

// Any items, put on a list, exported and put on another: the same.
func TestExportedItemsAreImported(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t)
	n := 0
	page := func(t *rapid.T, list string) []checklists.Item {
		items, err := s.Page(ctx, list, nil, 1000)
		if err != nil {
			t.Fatal(err)
		}
		return items
	}
	rapid.Check(t, func(t *rapid.T) {
		n++
		from, to := fmt.Sprint("from ", n), fmt.Sprint("to ", n)
		format := checklists.Format(rapid.SampledFrom(checklists.Formats).Draw(t, "format"))
		put := rapid.SliceOf(anyItem).Draw(t, "items")
		size := rapid.IntRange(1, 20).Draw(t, "chunk")
		if _, err := s.Import(ctx, from, these(put...), checklists.ImportOptions{}.InChunksOf(size)); err != nil {
			t.Fatal(err)
		}
		var exported bytes.Buffer
		err := checklists.WriteItems(&exported, format, s.Export(ctx, from, ""))
		if err != nil && errors.Is(err, fault.Invalid) && (format == checklists.Text || format == checklists.CSV) {
			return // it says that it cannot
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Import(ctx, to, checklists.ReadItems(&exported, format), checklists.ImportOptions{}.InChunksOf(size)); err != nil {
			t.Fatal(err)
		}
		want, got := page(t, from), page(t, to)
		if format == checklists.Text || format == checklists.NUL {
			for i := range want {
				want[i] = checklists.Item{Name: want[i].Name, State: checklists.StateReady}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", format, diff)
		}
	})
}

// An export is of a state where that is asked for, page after page.
func TestExportByState(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if _, err := pool.Exec(ctx, `
		INSERT INTO lists (list, item, due, lease)
		SELECT 'l', to_char(i, 'FM00000'),
			CASE i % 4 WHEN 0 THEN '-infinity' WHEN 1 THEN 'infinity' ELSE now() + interval '1 hour' END,
			CASE i % 4 WHEN 3 THEN gen_random_uuid() END
		FROM generate_series(0, 8003) AS i`); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(ctx, "kept", func() checklists.Settings { set := checklists.DefaultSettings; set.KeepDone = true; return set }()); err != nil {
		t.Fatal(err)
	}
	insert(t, s, "kept", "a", "b")
	if _, err := s.Delete(ctx, "kept", "a"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		list  string
		state checklists.State
		want  int
	}{
		{"l", "", 8004}, {"l", checklists.StateReady, 2001}, {"l", checklists.StateDead, 2001}, {"l", checklists.StateWaiting, 2001},
		{"l", checklists.StateLeased, 2001}, {"l", checklists.StateLeft, 6003}, {"l", checklists.StateDone, 0},
		{"kept", checklists.StateDone, 1}, {"kept", "", 1}, {"none", checklists.StateLeft, 0},
	} {
		seen, last := 0, ""
		for item, err := range s.Export(ctx, tc.list, tc.state) {
			if err != nil {
				t.Fatal(err)
			}
			if tc.state != "" && tc.state != checklists.StateLeft && item.State != tc.state || item.Name <= last {
				t.Fatalf("%s of %s: %+v after %q", tc.state, tc.list, item, last)
			}
			seen, last = seen+1, item.Name
		}
		if seen != tc.want {
			t.Errorf("%s of %s: %d items, want %d", tc.state, tc.list, seen, tc.want)
		}
	}
	for range s.Export(ctx, "l", checklists.StateLeft) {
		break // leaves no connection taken
	}
	for _, err := range s.Export(ctx, "l", "lost") {
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("%v, want Invalid", err)
		}
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		in := s.WithTx(tx)
		for item, err := range in.Export(ctx, "kept", checklists.StateLeft) {
			if err != nil {
				return err
			}
			if _, err := in.Increment(ctx, "kept", item.Name); err != nil { // the loop may use the connection
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
