package checklists_test

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Rows of the parts of a table have the same places: of a table of others that has
// parts, only what is named is counted and deleted.
func TestATableWithParts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for name, sql := range map[string]string{
		"partitioned": `
			CREATE TABLE lists (list text, item text, attempts integer NOT NULL DEFAULT 0, PRIMARY KEY (list, item)) PARTITION BY HASH (item);
			CREATE TABLE lists_0 PARTITION OF lists FOR VALUES WITH (MODULUS 3, REMAINDER 0);
			CREATE TABLE lists_1 PARTITION OF lists FOR VALUES WITH (MODULUS 3, REMAINDER 1);
			CREATE TABLE lists_2 PARTITION OF lists FOR VALUES WITH (MODULUS 3, REMAINDER 2)`,
		"inherited": `
			CREATE TABLE lists (list text, item text, attempts integer NOT NULL DEFAULT 0, PRIMARY KEY (list, item));
			CREATE TABLE more () INHERITS (lists);
			INSERT INTO more SELECT 'other', 'x' || n FROM generate_series(1, 30) AS n`,
	} {
		pool := pgtest.Schema(t)
		execute(t, pool, sql)
		s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"lists"}})
		insert(t, s, "l", numbered(30)...)
		insert(t, s, "other", "y")
		some := numbered(30)[10:15]
		if n, err := s.Increment(ctx, "l", some...); err != nil || n != 5 {
			t.Errorf("%s: Increment = %d, %v, want 5", name, n, err)
		}
		var tried []string
		for item, err := range s.All(ctx, "l") {
			if err != nil {
				t.Fatal(err)
			}
			if item.Attempts > 0 {
				tried = append(tried, item.Name)
			}
		}
		if !slices.Equal(tried, some) {
			t.Errorf("%s: attempts of %q, want of %q", name, tried, some)
		}
		others := len(names(t, s, "other"))
		if n, err := s.Delete(ctx, "l", some...); err != nil || n != 5 {
			t.Errorf("%s: Delete = %d, %v, want 5", name, n, err)
		}
		if left, rest := names(t, s, "l"), len(names(t, s, "other")); len(left) != 25 || rest != others {
			t.Errorf("%s: %d of 25 are left, and of another list %d of %d", name, len(left), rest, others)
		}
	}
}
