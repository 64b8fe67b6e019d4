package changes_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/howdah-db/howdah/changes"
)

// What compact makes of the JSON that PostgreSQL writes is what the standard
// library makes of any.
func FuzzCompact(f *testing.F) {
	for _, text := range []string{
		`{}`, `[]`, `{"a": 1, "b": [1, 2.50, -3e10], "c": {"d": null}}`, `""`, `" "`, `{" a ": " b, c : d "}`,
		`{"q": "\" , \\", "r": "\\\\ \" x"}`, `{"\\": " ", "é ü": "\u0020  \" :"}`, `[true, false, null]`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var want bytes.Buffer
		if json.Compact(&want, text) != nil || bytes.ContainsAny(text, "\t\r\n") {
			return // PostgreSQL writes no such thing
		}
		if got := changes.Compact(bytes.Clone(text)); !bytes.Equal(got, want.Bytes()) {
			t.Errorf("compact(%s) = %s, want %s", text, got, want.Bytes())
		}
	})
	if got := changes.Compact(nil); got != nil {
		f.Errorf("compact(nil) = %q", got)
	}
}

// C4: meta may be any text. Where no jsonb can be made of it, it is a JSON string to every sink.
func TestMetaIsJSONToAllSinks(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	exec(t, s.pool, `CREATE TABLE said (n bigint GENERATED ALWAYS AS IDENTITY, meta jsonb)`)
	for i, c := range []struct{ meta, want string }{
		{` {"a" : [1.50, "\u00e9\\u0000"]}`, `{"a": [1.50, "é\\u0000"]}`},
		{`{"a":"\u0000"}`, `"{\"a\":\"\\u0000\"}"`},
		{`["\udc00"]`, `"[\"\\udc00\"]"`},
		{`{"a":1e200000}`, `"{\"a\":1e200000}"`},
		{`1e-20000`, `"1e-20000"`},
		{`[1`, `"[1"`},
	} {
		cs := s.write(t, `WITH m AS (SELECT set_config('howdah.meta', $1, true)) INSERT INTO shop.orders SELECT $2::int, set_config FROM m`, c.meta, i)
		s.mustHand(t, changes.SQL(`INSERT INTO said (meta) SELECT $1::jsonb -> 'meta'`), cs)
		var got string
		if err := s.pool.QueryRow(t.Context(), `SELECT meta::text FROM said ORDER BY n DESC LIMIT 1`).Scan(&got); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.meta, got, err, c.want)
		}
	}

	// A statement has $1 where PostgreSQL takes it for a parameter, and else nothing.
	cs := s.write(t, `INSERT INTO shop.orders VALUES (100, '')`)
	for _, stmt := range []string{`INSERT INTO said (meta) VALUES ('"it costs $1"')`, `INSERT INTO said DEFAULT VALUES -- not $1`} {
		h := changes.SQL(stmt)
		s.mustHand(t, h, cs)
		s.mustHand(t, h, cs)
	}
	var costs, nothing int
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE meta = '"it costs $1"'), count(*) FILTER (WHERE meta IS NULL) FROM said`).Scan(&costs, &nothing); err != nil || costs != 2 || nothing != 2 {
		t.Errorf("without a parameter: %d and %d times, %v, want 2", costs, nothing, err)
	}
}
