package changes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
)

// C4: whoever may write a jsonb can nest it deeper than most that reads JSON takes. What
// tells of it goes without the row, and without such a key; nothing stands still for it.
func TestRowsNestedTooDeep(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE deep (id int PRIMARY KEY, v jsonb); CREATE TABLE keyed (v jsonb, n int)`)
	capture(t, l, changes.Capture{Table: "public.deep", Payload: changes.PayloadFull}, changes.Capture{Table: "public.keyed", Key: []string{"v"}})
	nested := func(n int) string { return strings.Repeat(`[`, n) + strings.Repeat(`]`, n) }
	brackets := `["` + strings.Repeat(`[\"\\`, 10_000) + `",` + strings.Repeat(`[],`, 10_000) + `1]`
	exec(t, pool, `INSERT INTO deep VALUES (1, $1)`, nested(8_999))
	exec(t, pool, `INSERT INTO deep VALUES (2, $1)`, brackets)
	exec(t, pool, `INSERT INTO deep VALUES (3, $1)`, nested(9_000))
	exec(t, pool, `UPDATE deep SET v = '1' WHERE id = 3`)
	exec(t, pool, `INSERT INTO keyed VALUES ($1, 1), ('1', 1)`, nested(12_000))

	check := func(page []changes.Change, want ...string) {
		t.Helper()
		var got []string
		for _, c := range page {
			if len(c.New) > 100 {
				c.New = json.RawMessage(`"large"`)
			}
			got = append(got, string(c.Op)+string(c.Key)+string(c.Old)+string(c.New)+map[bool]string{true: " trimmed"}[c.Trimmed])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	page, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	check(page, `insert{"id":1}"large"`, `insert{"id":2}"large"`, `insert{"id":3} trimmed`, `update{"id":3} trimmed`, `insert trimmed`, `insert{"v":1}{"n":1,"v":1}`)

	var lines bytes.Buffer
	written := start(t, url, changes.ConsumerConfig{Name: "lines", From: "start"}, func(c *changes.Consumer) { c.Handle("*", changes.Lines(&lines)) })
	var reads []changes.Change
	read := start(t, url, changes.ConsumerConfig{Name: "reads", Backfill: []string{"public.deep"}}, func(c *changes.Consumer) {
		c.Handle("*", func(_ context.Context, _ pgx.Tx, cs []changes.Change) error { reads = append(reads, cs...); return nil })
	})
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			if slices.ContainsFunc(cs, func(c changes.Change) bool { return c.Op == changes.Insert && c.Trimmed }) {
				return errors.New("it has no row")
			}
			return effect("c")(ctx, tx, cs)
		})
	})
	handled(t, l, "lines")
	written.stop()
	handled(t, l, "reads")
	read.stop()
	if n := bytes.Count(lines.Bytes(), []byte("\n")); n != len(page) {
		t.Errorf("%d lines of %d changes", n, len(page))
	}
	check(reads, `read{"id":1}"large"`, `read{"id":2}"large"`, `read{"id":3}{"v":1,"id":3}`)
	eventually(t, "all are handled or parked", func() bool { return len(parked(t, l, "c")) == 3 && len(effectsOf(t, pool, "c")) == 3 })
}
