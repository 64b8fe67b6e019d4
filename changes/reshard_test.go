package changes_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// C1: a change fails for the last time, and before it is set aside the consumer is to have
// another number of shards, and to stop before it: it is handled by the new ones alone.
func TestC1ReshardBetweenAFailureAndItsParking(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	var ids []int // of shard 0 of two, and one of shard 1
	if err := pool.QueryRow(t.Context(), `
		SELECT array_agg(id ORDER BY shard, id)
		FROM (SELECT id, shard, row_number() OVER (PARTITION BY shard ORDER BY id) AS nth
			FROM generate_series(1, 100) AS id
			CROSS JOIN LATERAL (SELECT abs(howdah.change_lane('public', 'a', jsonb_build_object('id', id)) % 2) AS shard) s) s
		WHERE nth <= 2 - shard`).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, id)
	}
	var tries atomic.Int64 // of the second alone, by shard 0
	resharded := make(chan struct{})
	var once sync.Once
	old := start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Shards: 2, Batch: 1}, func(c *changes.Consumer) {
		c.Hurry()
		c.Failpoint(func(b changes.Batch) {
			switch {
			case b.Step != "begun":
			case b.Shard == 1: // it has handled nothing when that happens
				<-resharded
			case tries.Load() == 4: // this is to set the change aside
				once.Do(func() {
					if err := l.Reshard(context.WithoutCancel(t.Context()), "c", 3); err != nil {
						t.Error(err)
					}
					close(resharded)
				})
			}
		})
		c.Handle("*", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
			if field(t, c.Key, "id") == fmt.Sprint(ids[1]) && tries.Load() < 4 {
				tries.Add(1)
				return errors.New("not yet")
			}
			return effect("c")(ctx, tx, []changes.Change{c})
		}))
	})
	if err := pgtest.Receive(t, old.done, "the end of Run"); !errors.Is(err, fault.Conflict) {
		t.Fatalf("the old one ended with %v", err)
	}
	start(t, url, changes.ConsumerConfig{Name: "c", Shards: 3}, all("c"))
	handled(t, l, "c")
	if got := effectsOf(t, pool, "c"); len(got) != len(ids) {
		t.Errorf("%d changes were handled %d times: %v", len(ids), len(got), got)
	}
}
