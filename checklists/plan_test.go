package checklists_test

import (
	"context"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// A million items in a thousand lists and in one: every statement finds its way
// by the key, and reads no more than it returns.
func TestPlansUseTheKey(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if _, err := pool.Exec(ctx, `
		INSERT INTO lists (list, item)
		SELECT 'big', 'item-' || to_char(i, 'FM0000000') FROM generate_series(1, 900000) AS i
		UNION ALL
		SELECT 'list-' || to_char(i % 1000, 'FM0000'), 'item-' || i FROM generate_series(1, 100000) AS i`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `VACUUM ANALYZE lists`); err != nil {
		t.Fatal(err)
	}
	explained := pgtest.Explain(t, pool)
	in := s.WithTx(explained)
	some := []string{"item-0000001", "item-0450000", "item-0900000"}
	for name, do := range map[string]func(context.Context) error{
		"Page":              func(ctx context.Context) error { return second(in.Page(ctx, "big", nil, 100)) },
		"Page after":        func(ctx context.Context) error { return second(in.Page(ctx, "big", new("item-0800000"), 100)) },
		"Get":               func(ctx context.Context) error { return second(in.Get(ctx, "big", "item-0450001")) },
		"Insert":            func(ctx context.Context) error { return second(in.Insert(ctx, "big", some...)) },
		"Increment of one":  func(ctx context.Context) error { return second(in.Increment(ctx, "big", some[0])) },
		"Increment of some": func(ctx context.Context) error { return second(in.Increment(ctx, "big", some...)) },
		"Delete of one":     func(ctx context.Context) error { return second(in.Delete(ctx, "big", some[0])) },
		"Delete of some":    func(ctx context.Context) error { return second(in.Delete(ctx, "big", some...)) },
		"Lists":             func(ctx context.Context) error { return second(in.Lists(ctx, nil, 10)) },
		"Lists after":       func(ctx context.Context) error { return second(in.Lists(ctx, new("list-0500"), 10)) },
	} {
		if err := do(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		plan := explained.Plan()
		usesKey := strings.Contains(plan, "using list_pk") || strings.Contains(plan, "on list_pk") || name == "Insert" // the arbiter of ON CONFLICT is not shown
		if !usesKey || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Rows Removed by Filter") {
			t.Errorf("%s:\n%s", name, plan)
		}
	}
}
