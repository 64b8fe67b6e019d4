package checklists_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

const md5OfRows = `SELECT md5(string_agg(list || E'\t' || item || E'\t' || attempts, E'\n' ORDER BY list COLLATE "C", item COLLATE "C")) FROM iidy.lists`

// layout is all that the catalogs say of a table's columns, keys and comments.
func layout(t *testing.T, pool *pgxpool.Pool) (text string) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `
		SELECT string_agg(format('%s %s %s %s', attname, atttypid::regtype, attcollation, attnotnull), E'\n' ORDER BY attnum)
			|| E'\n' || (SELECT string_agg(pg_get_constraintdef(oid), E'\n' ORDER BY conname) FROM pg_constraint WHERE conrelid = 'iidy.lists'::regclass)
			|| E'\n' || coalesce(obj_description('iidy.lists'::regclass), 'no comment')
		FROM pg_attribute
		WHERE attrelid = 'iidy.lists'::regclass AND attnum > 0`).Scan(&text)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestATableOfTheOriginalIsAdoptedUnchanged(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	pgtest.Restore(t, url, "testdata/compat/end.sql.gz")
	pool := pgtest.Pool(t, url)
	before := layout(t, pool)

	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	if after := layout(t, pool); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	var md5 string
	if err := pool.QueryRow(ctx, md5OfRows).Scan(&md5); err != nil || md5 != "e327430c2eabc087f87829dab3a70ac0" {
		t.Errorf("rows: %s, %v", md5, err)
	}
	if item, err := s.Get(ctx, "big", "f001000.bin"); err != nil || item.Attempts != 3 {
		t.Errorf("Get = %+v, %v", item, err)
	}
	lists, err := s.Lists(ctx, nil, 100)
	if err != nil || len(lists) != 7 {
		t.Errorf("Lists: %d, %v, want 7", len(lists), err)
	}
}

func TestAMissingTableIsMadeLikeTheOriginals(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	up(t, pool, checklists.New(pool, checklists.Config{}))
	got := layout(t, pool)
	for _, want := range []string{"list text", "item text", "attempts integer", "PRIMARY KEY (list, item)", "Made by howdah"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestTablesByTheSide(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	long := strings.Repeat("é", 31)
	for i, table := range []pgx.Identifier{
		nil, {"todo"}, {"Other Schema", `li"sts`},
		// In one schema: no name of an index is taken twice.
		{"iidy", "list"}, {"iidy", "todo"}, {"iidy", "{{.lists}}"}, {"iidy", `$1'"`}, {"iidy", long}, {"iidy", long + "x"}, {"todo2"}, {"lists"},
	} {
		s := checklists.New(pool, checklists.Config{Table: table})
		up(t, pool, s)
		up(t, pool, s)
		insert(t, s, "l", fmt.Sprint(i))
		if got := names(t, s, "l"); len(got) != 1 || got[0] != fmt.Sprint(i) {
			t.Errorf("table %q has %q", table, got)
		}
		if c, err := s.Claim(t.Context(), "l", "w", 1, time.Minute); err != nil || len(c.Items) != 1 {
			t.Errorf("table %q: %+v, %v, want a claim", table, c, err)
		}
	}
	var indexes []string
	if err := pool.QueryRow(t.Context(), `
		SELECT array_agg(indexrelid::regclass::text ORDER BY indexrelid::regclass::text)
		FROM pg_index
		WHERE indrelid IN ('iidy.lists'::regclass, 'iidy.todo'::regclass)`).Scan(&indexes); err != nil {
		t.Fatal(err)
	}
	if want := []string{"iidy.list_pk", "iidy.lists_due", "iidy.lists_lease", "iidy.todo_due", "iidy.todo_lease", "iidy.todo_pkey"}; !slices.Equal(indexes, want) {
		t.Errorf("indexes %q, want %q", indexes, want)
	}
}

func TestATableThatIsNoChecklistIsRefused(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE shopping (list text, thing text)`); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"shopping"}})
	err := migrate.Up(t.Context(), pool.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations())
	if err == nil || !strings.Contains(err.Error(), "no column item, attempts") || !strings.Contains(err.Error(), "name another table") {
		t.Errorf("%v, want what is missing and what to do", err)
	}
	var pgErr interface{ SQLState() string }
	if !errors.As(err, &pgErr) {
		t.Errorf("%T hides the server's error", err)
	}
}
