package changes_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// The same for a consumer's batch: its statements are sent in another order, or in two
// transactions, and what it does must show it; and beside the same obstacles the batch as
// it is does well.
func TestConsumerMutations(t *testing.T) {
	t.Parallel()
	for fault, script := range map[string]func(t *testing.T, planted bool) []string{
		"read before lock": movedBeforeTheLock,
		"two commits":      cutBeforeTheCheckpoint,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			broken := script(t, true)
			if len(broken) == 0 {
				t.Error("nobody noticed")
			}
			t.Log(broken)
			report(t, script(t, false))
		})
	}
}

// movedBeforeTheLock: an instance halts before it locks its shard, and another moves it
// meanwhile. With the fault it has read by then where the shard stands.
func movedBeforeTheLock(t *testing.T, planted bool) []string {
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	cfg := changes.ConsumerConfig{Name: "c", From: "start"}
	var mu sync.Mutex
	handed := map[string]int{}
	handle := func(c *changes.Consumer) { // not in a hurry: nobody is to fail for want of time
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range cs {
				handed[c.Position.String()]++
			}
			return effect("c")(ctx, tx, cs)
		})
	}
	halted, moved := make(chan struct{}), make(chan struct{})
	var once sync.Once
	first := start(t, url, cfg, func(c *changes.Consumer) {
		handle(c)
		c.Failpoint(func(b changes.Batch) {
			once.Do(func() { *b.Tx = &lockingLate{*b.Tx, planted, func() { close(halted); <-moved }} })
		})
	})
	select {
	case <-halted:
	case <-time.After(patience):
		t.Fatal("a batch begins otherwise now: it does not halt")
	}
	second := start(t, url, cfg, handle)
	handled(t, l, "c")
	second.stop() // which could have the lock just when the first one comes for it, and what it was cut off in, a moment longer
	pgtest.UntilSQL(t, pool, "no shard is held", `SELECT NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE l.locktype = 'advisory' AND d.datname = current_database())`)
	close(moved)
	exec(t, pool, `INSERT INTO a VALUES (2, 1)`)
	handled(t, l, "c")
	first.stop()

	mu.Lock()
	defer mu.Unlock()
	var broken []string
	for position, n := range handed {
		if n != 1 {
			broken = append(broken, fmt.Sprintf("C5: %s was handed over %d times, though nobody failed", position, n))
		}
	}
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
		broken = append(broken, "C1: "+diff)
	}
	return broken
}

// lockingLate is a transaction that halts before it locks a shard; with reading, it has
// read where the shard stands before.
type lockingLate struct {
	pgx.Tx
	reading bool
	halt    func()
}

func (t *lockingLate) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if !strings.Contains(b.QueuedQueries[0].SQL, "pg_try_advisory_xact_lock") {
		return t.Tx.SendBatch(ctx, b) // a handler's
	}
	if t.reading {
		read := pgx.Batch{QueuedQueries: b.QueuedQueries[1:]}
		if err := t.Tx.SendBatch(ctx, &read).Close(); err != nil {
			panic(err)
		}
		b = &pgx.Batch{QueuedQueries: slices.Clone(b.QueuedQueries[:1])}
	}
	t.halt()
	return t.Tx.SendBatch(ctx, b)
}

// cutBeforeTheCheckpoint: the connection is cut when the handler is done. With the fault
// what it did has been committed by then.
func cutBeforeTheCheckpoint(t *testing.T, planted bool) []string {
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 1)`)
	var once sync.Once
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Handle("*", effect("c"))
		c.Failpoint(func(b changes.Batch) {
			if b.Step != "called" {
				return
			}
			once.Do(func() {
				if planted {
					if _, err := (*b.Tx).Exec(context.Background(), `COMMIT`); err != nil {
						t.Error(err)
					}
				}
				(*b.Tx).Conn().PgConn().Conn().Close()
			})
		})
	})
	handled(t, l, "c")
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
		return []string{"C1: " + diff}
	}
	return nil
}
