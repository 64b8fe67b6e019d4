package pg_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

func TestNamesAreQuoted(t *testing.T) {
	t.Parallel()
	n := pg.NewNames(map[string]pgx.Identifier{"lists": {"my schema", `li"sts`}, "list": {"x"}})
	if err := n.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := n.SQL(`SELECT '{}', {list} FROM {lists} WHERE a = $1`), `SELECT '{}', "x" FROM "my schema"."li""sts" WHERE a = $1`; got != want {
		t.Errorf("SQL = %s, want %s", got, want)
	}
	want := map[string]any{"lists": `"my schema"."li""sts"`, "lists_text": `'"my schema"."li""sts"'`, "list": `"x"`, "list_text": `'"x"'`}
	if diff := cmp.Diff(want, n.Data()); diff != "" {
		t.Errorf("Data:\n%s", diff)
	}
}

func TestNamesThatCannotBe(t *testing.T) {
	t.Parallel()
	for _, id := range []pgx.Identifier{nil, {}, {""}, {"a", ""}, {strings.Repeat("é", 32)}, {"a\x00"}, {"a", "b", "c"}} {
		if err := pg.NewNames(map[string]pgx.Identifier{"table": id}).Err(); !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "table: ") {
			t.Errorf("%q: %v, want Invalid for table", id, err)
		}
	}
	if err := pg.NewNames(map[string]pgx.Identifier{"table": {strings.Repeat("x", 63)}}).Err(); err != nil {
		t.Errorf("63 bytes: %v", err)
	}
}

// Whatever the text, the literal is that text to the server.
func TestLiteralsMeanTheirText(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	rapid.Check(t, func(rt *rapid.T) {
		want := rapid.StringOf(rapid.RuneFrom([]rune(`ab'"\$;-é😀`+"\n"))).Draw(rt, "text")
		var got string
		if err := pool.QueryRow(t.Context(), `SELECT `+pg.Literal(want), pgx.QueryExecModeExec).Scan(&got); err != nil || got != want {
			rt.Fatalf("Literal(%q) means %q, %v", want, got, err)
		}
	})
}

func TestCheckText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":               "",
		"日本 😀\n\ufffd":   "",
		"ab\x00":         "item: a NUL byte at byte 2; PostgreSQL cannot store it",
		"é\xff":          "item: invalid UTF-8 at byte 2",
		"\xed\xa0\x80":   "item: invalid UTF-8 at byte 0", // a surrogate
		"\ufffd\xc0\x80": "item: invalid UTF-8 at byte 3", // an overlong NUL
	} {
		err := pg.CheckText("item", text)
		if want == "" && err != nil || want != "" && (!errors.Is(err, fault.Invalid) || err.Error() != want) {
			t.Errorf("CheckText(%q) = %v, want %q", text, err, want)
		}
	}
}
