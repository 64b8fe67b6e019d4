package changes_test

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
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

// A batch does not wait, with its connection in hand, for one that what is read ahead has
// not got: the others might all be with batches that do the same.
func TestBatchesDoNotWaitForConnections(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series(1, 2500) g`) // three pages
	cfg, err := pgxpool.ParseConfig(withConns(url, 3))
	if err != nil {
		t.Fatal(err)
	}
	var held atomic.Int64
	cfg.PrepareConn = func(ctx context.Context, _ *pgx.Conn) (bool, error) {
		if strings.Contains(string(debug.Stack()), "readAhead") {
			held.Add(1)
			<-ctx.Done()
		}
		return true, nil
	}
	runOn(t, cfg, effect, changes.ConsumerConfig{Name: "c", From: "start", Batch: 500, Timeout: 10 * time.Minute})
	handled(t, l, "c")
	if n := len(effectsOf(t, pool, "c")); n != 2500 || held.Load() == 0 {
		t.Errorf("%d changes were handed over, want 2500; %d connections were held back", n, held.Load())
	}
}

// Consumers of one process share a pool of no more connections than there are consumers,
// and read tables and pages beside each other: nobody waits with what all others want.
func TestManyConsumersOnASmallPool(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	const consumers = 4
	exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series(1, 40) g`)
	cfg, err := pgxpool.ParseConfig(withConns(url, consumers))
	if err != nil {
		t.Fatal(err)
	}
	var all []changes.ConsumerConfig
	for n := range consumers {
		all = append(all, changes.ConsumerConfig{Name: fmt.Sprintf("c%d", n), Backfill: []string{"public.a"}, Chunk: 3, Timeout: 10 * time.Minute})
	}
	runOn(t, cfg, effect, all...)
	for _, c := range all {
		handled(t, l, c.Name)
		if n := len(effectsOf(t, pool, c.Name)); n != 40 {
			t.Errorf("%s was handed %d rows, want 40", c.Name, n)
		}
	}
}

// runOn runs consumers that handle all changes, all on one pool, until the
// test ends.
func runOn(t *testing.T, cfg *pgxpool.Config, handle func(name string) changes.Handler, all ...changes.ConsumerConfig) {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	hub := pg.NewHub(pg.HubConfig{Conn: cfg.ConnConfig})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { hub.Run(ctx) })
	for _, cfg := range all {
		c := changes.NewConsumer(pool, hub, cfg)
		on(handle(cfg.Name))(c)
		running.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		stop()
		running.Wait()
		pool.Close()
	})
}
