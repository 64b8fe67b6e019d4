package changes_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// rivalTick is a transaction that numbers what has committed, and takes its time.
func rivalTick(t *testing.T, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.WithoutCancel(t.Context())) })
	if _, err := tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock(1752135524, 1)`); err != nil {
		t.Fatal(err)
	}
	return tx
}

// Who asks how far behind a consumer is waits for another who numbers what has
// committed: the other may have begun too early.
func TestBehindUnderARivalTick(t *testing.T) {
	t.Parallel()
	_, l, pool := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "*")
	for ask, of := range map[string]func() ([]changes.Status, error){
		"Consumers": func() ([]changes.Status, error) { return l.Consumers(t.Context()) },
		"Consumer": func() ([]changes.Status, error) {
			s, err := l.Consumer(t.Context(), "c")
			return []changes.Status{s}, err
		},
	} {
		exec(t, pool, `TRUNCATE a; INSERT INTO a VALUES (1, 1)`)
		want := 1 + status(t, l, "c").Lag
		rival := rivalTick(t, pool)
		exec(t, pool, `UPDATE a SET v = 2`)
		var answered atomic.Bool
		answer := make(chan []changes.Status, 1)
		go func() {
			defer answered.Store(true)
			all, err := of()
			if err != nil {
				t.Error(err)
			}
			answer <- all
		}()
		eventually(t, ask+" waits, or answers", func() bool { return answered.Load() || waits(t, pool) })
		if err := rival.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if all := pgtest.Receive(t, answer, "the answer"); len(all) != 1 || all[0].Lag != want {
			t.Errorf("%s() = %+v, want a lag of %d", ask, all, want)
		}
	}
}

// What is kept of a consumer may be changed while something is being handled: only other
// patterns wait for that, and nobody waits for who does.
func TestOnlyPatternsWaitForABatch(t *testing.T) {
	t.Parallel()
	_, l, pool := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "public.a")
	batch, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Rollback(context.WithoutCancel(t.Context()))
	if _, err := batch.Exec(t.Context(), `SELECT pg_advisory_xact_lock(hashtextextended('howdah.consumer c 0', 0))`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := l.Save(ctx, changes.ConsumerConfig{Name: "c"}, []string{"public.a"}, changes.Sink{Notify: true}); err != nil {
		t.Fatalf("Save, with another sink: %v", err)
	}
	if s := status(t, l, "c"); s.Sink != "notify" {
		t.Errorf("%+v", s)
	}
	// Where it gives up waiting nothing is changed, of the shards neither.
	waiting, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	changed := make(chan error, 1)
	go func() {
		changed <- l.Save(waiting, changes.ConsumerConfig{Name: "c", Shards: 3}, []string{"public.b"}, effectSink("c"))
	}()
	eventually(t, "Save waits for the batch", func() bool { return waits(t, pool) })
	for _, err := range []error{l.Pause(ctx, "c", ""), l.Resume(ctx, "c")} {
		if err != nil {
			t.Errorf("while Save waits: %v", err)
		}
	}
	giveUp()
	if err := <-changed; !errors.Is(err, context.Canceled) {
		t.Errorf("Save: %v", err)
	}
	if s := status(t, l, "c"); s.NextShards != 0 || s.Patterns[0] != "public.a" || s.Sink != "notify" {
		t.Errorf("after Save gave up: %+v", s)
	}
}

// Who has paused a consumer in a transaction of his own can move it there, too, whoever
// else is about to: the other gives the shards back while he waits for the row.
func TestPausedAndMovedInOneTransaction(t *testing.T) {
	t.Parallel()
	for name, own := range map[string]bool{"another by itself": false, "another in a transaction": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, l, pool := consumed(t)
			saved(t, l, changes.ConsumerConfig{Name: "c"}, "*")
			exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
			if _, err := l.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			begin := func() pgx.Tx {
				t.Helper()
				tx, err := pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return tx
			}
			mine, theirs := begin(), begin()
			var other error
			done := make(chan struct{})
			defer func() {
				mine.Rollback(context.WithoutCancel(t.Context()))
				<-done
				theirs.Rollback(context.WithoutCancel(t.Context()))
			}()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := mine.Exec(ctx, `SET LOCAL deadlock_timeout = '20ms'`)
			if err == nil {
				err = l.WithTx(mine).Pause(ctx, "c", "it is moved")
			}
			go func() {
				defer close(done)
				if !own {
					other = l.Seek(ctx, "c", "start")
				} else if other = l.WithTx(theirs).Seek(ctx, "c", "start"); other == nil {
					other = theirs.Commit(ctx)
				}
			}()
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the other waits", func() bool { return waits(t, pool) })
			if err := l.WithTx(mine).Seek(ctx, "c", "1"); err != nil {
				t.Fatalf("Seek after Pause: %v", err)
			}
			if err := mine.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			<-done
			if other != nil {
				t.Errorf("the other's Seek: %v", other)
			}
			if s := status(t, l, "c"); s.State != "paused" || s.Position.Commit != 0 {
				t.Errorf("%+v, want it paused at the start, where the other has moved it", s)
			}
		})
	}
}
