package counters_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// What counters_add has become adds as it did at first, digit for digit, and refuses
// what it refused, in the same words.
func TestAddIsWhatItWas(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := newPool(t)
	first, err := os.ReadFile("migrations/001_counters.sql")
	if err != nil {
		t.Fatal(err)
	}
	function := regexp.MustCompile(`(?s)CREATE FUNCTION howdah\.counters_add\(.*?END \$\$;`).FindString(string(first))
	if _, err := pool.Exec(ctx, strings.Replace(function, "howdah.counters_add(", "first_add(", 1)); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	numbers := []string{"0", "-0", "1", "-17", "0.1", "4.50", "-0.05", "1e2", "1E-3", "12345678901234567890.5", "1e100", "-1e-100"}
	texts := []string{`"0.15e1"`, `"-7"`, `" 1"`, `"x"`, `"NaN"`, `true`, `[1]`, `{"a": 1}`, `null`, `null`, `null`}
	object := func(fields int, odd bool) string {
		all := map[string]json.RawMessage{}
		for range fields {
			leaf := numbers[random.IntN(len(numbers))]
			if odd && random.IntN(4) == 0 {
				leaf = texts[random.IntN(len(texts))]
			}
			name := fmt.Sprintf("f%d", random.IntN(14))
			if random.IntN(10) == 0 {
				name = []string{"", `"`, `\`, "a.b", "ä", " ", "NULL", "{}", strings.Repeat("w", 700)}[random.IntN(9)]
			}
			all[name] = json.RawMessage(leaf)
		}
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var olds, news []string
	for i := range 4000 {
		olds, news = append(olds, object(random.IntN(16), false)), append(news, object(i%11, false))
	}
	var same, differ int
	err = pool.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE was = is_now), count(*) FILTER (WHERE was IS DISTINCT FROM is_now)
		FROM (
			SELECT first_add(old, new)::text AS was, howdah.counters_add(old, new)::text AS is_now
			FROM unnest($1::jsonb[], $2::jsonb[]) AS pairs(old, new)
			OFFSET 0) AS sums`, olds, news).Scan(&same, &differ)
	if err != nil || same != 4000 || differ != 0 {
		t.Errorf("%d the same, %d not, %v", same, differ, err)
	}
	refused := 0
	for i := range 300 {
		old, added := object(3+i%8, true), object(1+i%10, false)
		answer := func(function string) string {
			var text string
			err := pool.QueryRow(ctx, `SELECT `+function+`($1::jsonb, $2::jsonb)::text`, old, added).Scan(&text)
			var refusal *pgconn.PgError
			if errors.As(err, &refusal) {
				refused++
				return refusal.Code + " " + refusal.Message + " " + refusal.Detail + " " + refusal.ColumnName
			} else if err != nil {
				t.Fatal(err)
			}
			return text
		}
		if was, is := answer("first_add"), answer("howdah.counters_add"); was != is {
			t.Errorf("%s and %s were %s, and are %s", old, added, was, is)
		}
	}
	if refused < 50 {
		t.Errorf("only %d were refused", refused)
	}
}
