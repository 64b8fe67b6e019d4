package changes_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
)

// Over many pages, whose ends lie inside of transactions, and with failures between,
// each change is handed over once and in order.
func TestC1C3PagesReadAhead(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE seen (id int, n bigserial)`)
	const transactions, each = 8, 700
	for i := range transactions {
		exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series($1::int, $2::int) g`, i*each+1, (i+1)*each)
	}
	var failures atomic.Int32
	r := start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 300}, on(func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		if first := cs[0].Position.Commit; len(cs) > 1 && (first == 2 || first == 5) && failures.Add(1) <= 2 {
			return errors.New("not now") // one by one, then
		}
		var keys []string
		for _, c := range cs {
			keys = append(keys, string(c.Key))
		}
		_, err := tx.Exec(ctx, `
			INSERT INTO public.seen (id)
			SELECT (k.key::jsonb->>'id')::int
			FROM unnest($1::text[]) WITH ORDINALITY AS k(key, place)
			ORDER BY k.place`, keys)
		return err
	}))
	handled(t, l, "c")
	r.stop()
	var rows, last, turned int
	err := pool.QueryRow(t.Context(), `
		SELECT count(*), max(id), count(*) FILTER (WHERE id <= before)
		FROM (SELECT id, lag(id) OVER (ORDER BY n) AS before FROM seen) s`).Scan(&rows, &last, &turned)
	if err != nil {
		t.Fatal(err)
	}
	if rows != transactions*each || last != rows || turned != 0 || failures.Load() < 2 {
		t.Errorf("%d changes up to %d, %d of them out of order; want %d. %d failures", rows, last, turned, transactions*each, failures.Load())
	}
}
