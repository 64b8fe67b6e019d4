package changes_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// C4: what is parked while the shards come to where they are to stop holds up its key alone,
// and the new number of shards, which comes once it has been seen to.
func TestC4ReshardBehindPoison(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a SELECT g, 1 FROM generate_series(1, 6) g`)
	var poison atomic.Bool
	poison.Store(true)
	var batches atomic.Int64
	old := start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 1}, func(c *changes.Consumer) {
		c.Hurry()
		c.Failpoint(func(b changes.Batch) {
			if b.Step == "committed" && batches.Add(1) == 2 { // within the transaction, at the end of which they are to stop
				if err := l.Reshard(context.WithoutCancel(t.Context()), "c", 2); err != nil {
					t.Error(err)
				}
			}
		})
		c.Handle("*", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
			if field(t, c.Key, "id") == "5" && poison.Load() {
				return errors.New("poison")
			}
			return effect("c")(ctx, tx, []changes.Change{c})
		}))
	})
	eventually(t, "it is parked", func() bool { return registered(l, "c") && len(parked(t, l, "c")) == 1 })
	for i := range 3 {
		exec(t, pool, `INSERT INTO a VALUES (7 + $1, 1)`, i)
	}
	eventually(t, "all others are handled", func() bool { return len(effectsOf(t, pool, "c")) == 8 })
	if s := status(t, l, "c"); s.State != "running" || s.Shards != 1 || s.NextShards != 2 {
		t.Errorf("%+v, want 1 shard, and to have 2", s)
	}
	poison.Store(false)
	if _, err := l.Retry(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := pgtest.Receive(t, old.done, "the end of Run"); !errors.Is(err, fault.Conflict) {
		t.Fatalf("the old one ended with %v", err)
	}
	exec(t, pool, `UPDATE a SET v = 2`)
	start(t, url, changes.ConsumerConfig{Name: "c", Shards: 2}, all("c"))
	handled(t, l, "c")
	feed, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	if diff := cmp.Diff(byKey(feed), effectsByKey(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}
