package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A million items in a thousand lists and in one: every statement finds its way
// by the key, and reads no more than it returns.
func TestPlansUseTheKey(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t)) // in which howdah's own tables hold nothing of others
	s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"public", "lists"}})
	up(t, pool, s)
	if _, err := pool.Exec(ctx, `
		INSERT INTO lists (list, item)
		SELECT 'big', 'item-' || to_char(i, 'FM0000000') FROM generate_series(1, 9 * $1) AS i
		UNION ALL
		SELECT 'list-' || to_char(i % 1000, 'FM0000'), 'item-' || i FROM generate_series(1, $1) AS i`, pgtest.Size(100_000, 10_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `VACUUM ANALYZE lists`); err != nil {
		t.Fatal(err)
	}
	second(s.Page(ctx, "big", nil, 1)) // the look at the table is not to be explained
	explained := pgtest.Explain(t, pool)
	in := s.WithTx(explained)
	some := []string{"item-0000001", "item-0045000", "item-0090000"}
	for name, do := range map[string]func(context.Context) error{
		"Page":              func(ctx context.Context) error { return second(in.Page(ctx, "big", nil, 100)) },
		"Page after":        func(ctx context.Context) error { return second(in.Page(ctx, "big", new("item-0080000"), 100)) },
		"Get":               func(ctx context.Context) error { return second(in.Get(ctx, "big", "item-0045001")) },
		"Insert":            func(ctx context.Context) error { return second(in.Insert(ctx, "big", some...)) },
		"Increment of one":  func(ctx context.Context) error { return second(in.Increment(ctx, "big", some[0])) },
		"Increment of some": func(ctx context.Context) error { return second(in.Increment(ctx, "big", some...)) },
		"Delete of one":     func(ctx context.Context) error { return second(in.Delete(ctx, "big", some[0])) },
		"Delete of some":    func(ctx context.Context) error { return second(in.Delete(ctx, "big", some...)) },
		"Lists":             func(ctx context.Context) error { return second(in.Lists(ctx, nil, 10)) },
		"InsertItems": func(ctx context.Context) error {
			return second(in.InsertItems(ctx, "big", checklists.Item{Name: some[0], Priority: 1}))
		},
		"Upsert": func(ctx context.Context) error {
			_, _, err := in.Upsert(ctx, "big", checklists.Item{Name: some[0], Priority: 1}, checklists.Item{Name: some[1], Due: time.Now()})
			return err
		},
		"Progress":    func(ctx context.Context) error { return second(in.Progress(ctx, "big")) },
		"Settings":    func(ctx context.Context) error { return second(in.Settings(ctx, "big")) },
		"Rename":      func(ctx context.Context) error { return second(in.Rename(ctx, "list-0501", "a longer name")) },
		"Drop":        func(ctx context.Context) error { return second(in.Drop(ctx, "list-0502")) },
		"Doctor":      func(ctx context.Context) error { return second(in.Doctor(ctx)) },
		"Lists after": func(ctx context.Context) error { return second(in.Lists(ctx, new("list-0500"), 10)) },
	} {
		if err := do(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		plan := explained.Plan()
		usesKey := strings.Contains(plan, "using list_pk") || strings.Contains(plan, "on list_pk") ||
			name == "Insert" || name == "InsertItems" || name == "Upsert" || // the arbiter of ON CONFLICT is not shown
			strings.Contains(plan, "using lists_due") && (strings.HasPrefix(name, "Lists") || name == "Settings") || // begins with the list too, and is smaller
			name == "Progress" && strings.Contains(plan, "lists_lease")
		wasted := strings.Contains(plan, "Rows Removed by Filter") && name != "Rename" && name != "Drop" && name != "Doctor" // counts that there are none of; what is well
		if !usesKey || wasted || strings.Contains(plan, "Seq Scan on lists") {
			t.Errorf("%s:\n%s", name, plan)
		}
	}
	// How far a list is costs the same for a hundred items and for a million.
	pages := map[string]int{}
	for _, list := range []string{"list-0500", "big"} {
		if _, err := in.Progress(ctx, list); err != nil {
			t.Fatal(err)
		}
		for _, n := range regexp.MustCompile(`(?:hit|read)=(\d+)`).FindAllStringSubmatch(strings.SplitN(explained.Plan(), "->", 2)[0], -1) {
			read, err := strconv.Atoi(n[1])
			if err != nil {
				t.Fatal(err)
			}
			pages[list] += read
		}
	}
	if pages["big"] == 0 || pages["big"] > pages["list-0500"]+5 {
		t.Errorf("progress reads %v pages", pages)
	}
}

// The same for leases, where a tenth of a million items is leased to a thousand
// holders and some are dead: claims find what is due, and holders what they hold.
func TestPlansOfLeasesUseTheirIndexes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if _, err := pool.Exec(ctx, `
		INSERT INTO lists (list, item, due, lease)
		SELECT 'big', 'item-' || to_char(i, 'FM0000000'),
			CASE WHEN i % 10 = 0 THEN now() + interval '1 hour' WHEN i % 1000 = 1 THEN 'infinity' ELSE now() - i * interval '1 ms' END,
			CASE WHEN i % 10 = 0 THEN ('00000000-0000-4000-8000-' || lpad((i % 9990)::text, 12, '0'))::uuid END
		FROM generate_series(1, $1) AS i`, pgtest.Size(1_000_000, 100_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `VACUUM ANALYZE lists`); err != nil {
		t.Fatal(err)
	}
	second(s.Page(ctx, "big", nil, 1)) // the look at the table is not to be explained
	explained := pgtest.Explain(t, pool)
	in := s.WithTx(explained)
	l := checklists.Lease{List: "big", Token: "00000000-0000-4000-8000-000000000010"}
	for _, tc := range []struct {
		name, index string
		do          func() error
	}{
		{"Claim", "using lists_due", func() error { return second(in.Claim(ctx, "big", "w", 100, time.Minute)) }},
		{"Extend", "lists_lease", func() error { return second(in.Extend(ctx, l, time.Minute)) }},
		{"Release", "list_pk", func() error { return second(in.Release(ctx, l, "item-0000010")) }},
		{"Fail", "list_pk", func() error { return second(in.Fail(ctx, l, checklists.Failure{Item: "item-0009990"})) }},
		{"Done of all", "lists_lease", func() error { return ignoreLost(second(in.Done(ctx, l))) }},
		{"tell", "using list_pk", func() error { return second(in.Tell(ctx, l, "item-0000010", "item-0009990", "item-0000020")) }},
		{"extendAll", "lists_lease", func() error { return second(in.ExtendAll(ctx, "big", time.Minute, l.Token)) }},
		{"anyLeft", "using lists_due", func() error { return second(in.AnyLeft(ctx, "big")) }},
		{"Export of what is left", "using list_pk", func() error {
			for _, err := range in.Find(ctx, "big", checklists.Query{State: checklists.StateLeft, After: new("item-0050000"), Limit: 1000}) {
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"Kill", "list_pk", func() error { return second(in.Kill(ctx, "big", "", "item-0000020", "item-0000030")) }},
	} {
		if err := ignoreLost(tc.do()); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		plan := explained.Plan()
		if tc.name == "tell" && strings.Contains(plan, "lists_lease") { // all that a lease holds, for each item
			t.Errorf("%s:\n%s", tc.name, plan)
		}
		if !strings.Contains(plan, tc.index) && !(tc.index == "list_pk" && strings.Contains(plan, "lists_lease")) || strings.Contains(plan, "Seq Scan on lists") {
			t.Errorf("%s:\n%s", tc.name, plan)
		}
	}
	mustPlanWriter(t, s, explained, l.Token)
}

// A Writer finds the items of a batch one by one, those of a large lease too.
func mustPlanWriter(t *testing.T, s *checklists.Store, explained *pgtest.Explainer, token string) {
	t.Helper()
	items, tokens := make([]string, 200), make([]string, 200)
	for i := range items {
		items[i], tokens[i] = fmt.Sprintf("item-%07d", 10+9990*i), token
	}
	ones, none := make([]int, 200), make([]string, 200)
	for name, args := range map[string][]any{
		"increment": {"big", items, ones}, "delete": {"big", items}, "done": {"big", items, tokens},
		"fail": {"big", items, tokens, none, make([]int64, 200)},
	} {
		rows, err := explained.Query(t.Context(), s.WriterStatements()[name], args...)
		if err != nil {
			t.Fatal(err)
		}
		rows.Close()
		plan := explained.Plan()
		if !strings.Contains(plan, "using list_pk") || strings.Contains(plan, "lists_lease") || strings.Contains(plan, "Seq Scan on lists") {
			t.Errorf("a Writer's %s:\n%s", name, plan)
		}
	}
}

func ignoreLost(err error) error {
	if errors.Is(err, checklists.ErrLost) {
		return nil
	}
	return err
}
