package checklists_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A list that was just put on, of which the planner knows nothing: it takes it for
// a list of one item, and reading all of it for as cheap as finding one. No
// statement gives it the choice.
func TestPlansOfAListThatNobodyHasAnalyzed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t)) // in which howdah's own tables hold nothing of others
	s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"public", "lists"}})
	up(t, pool, s)
	const token = "00000000-0000-4000-8000-000000000001"
	for _, sql := range []string{
		`ALTER TABLE lists SET (autovacuum_enabled = false)`,
		// Leased, so that the index by lease is no better for being smaller.
		`INSERT INTO lists (list, item, due, lease) SELECT 'list-' || i, 'item', now() + interval '1 hour', gen_random_uuid() FROM generate_series(1, 500) AS i`,
		`ANALYZE lists`,
		`INSERT INTO lists (list, item, due, lease)
		SELECT 'new', 'item-' || to_char(i, 'FM00000'),
			CASE WHEN i <= 200 THEN now() + interval '1 hour' WHEN i <= 400 THEN 'infinity' ELSE now() - interval '1 hour' END,
			CASE WHEN i <= 200 THEN '` + token + `'::uuid END
		FROM generate_series(1, 10000) AS i`,
	} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	second(s.Page(ctx, "new", nil, 1)) // the look at the table is not to be explained
	held, dead, some := make([]string, 100), make([]string, 100), make([]string, 100)
	for i := range 100 {
		held[i], dead[i], some[i] = fmt.Sprintf("item-%05d", 2*i+1), fmt.Sprintf("item-%05d", 2*i+201), fmt.Sprintf("item-%05d", 90*i+500)
	}
	l := checklists.Lease{List: "new", Token: token}
	failures := make([]checklists.Failure, len(held))
	for i, item := range held {
		failures[i].Item = item
	}
	explained := pgtest.Explain(t, pool)
	for name, do := range map[string]func(context.Context, *checklists.Store) error{
		"Get":  func(ctx context.Context, in *checklists.Store) error { return second(in.Get(ctx, "new", some[0])) },
		"Page": func(ctx context.Context, in *checklists.Store) error { return second(in.Page(ctx, "new", nil, 100)) },
		"Page after": func(ctx context.Context, in *checklists.Store) error {
			return second(in.Page(ctx, "new", &some[9], 100))
		},
		"Insert": func(ctx context.Context, in *checklists.Store) error { return second(in.Insert(ctx, "new", some...)) },
		"Increment of one": func(ctx context.Context, in *checklists.Store) error {
			return second(in.Increment(ctx, "new", some[0]))
		},
		"Increment": func(ctx context.Context, in *checklists.Store) error {
			return second(in.Increment(ctx, "new", some...))
		},
		"Delete of one": func(ctx context.Context, in *checklists.Store) error { return second(in.Delete(ctx, "new", some[0])) },
		"Delete":        func(ctx context.Context, in *checklists.Store) error { return second(in.Delete(ctx, "new", some...)) },
		"Claim": func(ctx context.Context, in *checklists.Store) error {
			return second(in.Claim(ctx, "new", "w", 100, time.Minute))
		},
		"Done":           func(ctx context.Context, in *checklists.Store) error { return second(in.Done(ctx, l, held...)) },
		"Done of all":    func(ctx context.Context, in *checklists.Store) error { return second(in.Done(ctx, l)) },
		"Release of all": func(ctx context.Context, in *checklists.Store) error { return second(in.Release(ctx, l)) },
		"Fail":           func(ctx context.Context, in *checklists.Store) error { return second(in.Fail(ctx, l, failures...)) },
		"Release":        func(ctx context.Context, in *checklists.Store) error { return second(in.Release(ctx, l, held...)) },
		"Extend":         func(ctx context.Context, in *checklists.Store) error { return second(in.Extend(ctx, l, time.Minute)) },
		"tell":           func(ctx context.Context, in *checklists.Store) error { return second(in.Tell(ctx, l, held...)) },
		"extendAll": func(ctx context.Context, in *checklists.Store) error {
			return second(in.ExtendAll(ctx, "new", time.Minute, token))
		},
		"anyLeft": func(ctx context.Context, in *checklists.Store) error { return second(in.AnyLeft(ctx, "new")) },
		"Kill":    func(ctx context.Context, in *checklists.Store) error { return second(in.Kill(ctx, "new", "", some...)) },
		"Redrive": func(ctx context.Context, in *checklists.Store) error {
			return second(in.Redrive(ctx, "new", checklists.Query{Items: dead}))
		},
		"Progress": func(ctx context.Context, in *checklists.Store) error { return second(in.Progress(ctx, "new")) },
		"Rename":   func(ctx context.Context, in *checklists.Store) error { return second(in.Rename(ctx, "new", "old")) },
		"Drop":     func(ctx context.Context, in *checklists.Store) error { return second(in.Drop(ctx, "new")) },
	} {
		for _, mode := range []string{"custom", "generic"} {
			in, err := explained.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := in.Conn().Exec(ctx, `SET LOCAL plan_cache_mode = force_`+mode+`_plan`); err != nil {
				t.Fatal(err)
			}
			if err := do(ctx, s.WithTx(in)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			plan := explained.Plan()
			if n := wasted(plan); n > 1000 {
				t.Errorf("%s by a %s plan reads %d rows in vain:\n%s", name, mode, n, plan)
			}
			if err := in.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

var removed = regexp.MustCompile(`actual rows=(\d+) loops=(\d+)|Rows Removed by (?:Join )?Filter: (\d+)`)

// wasted is how many rows a plan throws away.
func wasted(plan string) (n int) {
	loops := 1
	for _, line := range strings.Split(plan, "\n") {
		m := removed.FindStringSubmatch(line)
		switch {
		case m == nil:
		case m[3] == "":
			_, _ = fmt.Sscan(m[2], &loops)
		default:
			var each int
			_, _ = fmt.Sscan(m[3], &each)
			n += each * loops // PostgreSQL shows the mean of the loops
		}
	}
	return n
}
