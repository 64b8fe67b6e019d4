package changes_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// All of it works through a pooler in transaction mode, opened as --pooler says and
// without a direct connection: by looking instead of listening, which is said once.
func TestThroughAPooler(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	logOf(t, url) // migrations want a session of their own
	cfg := pg.Config{URL: pgtest.NewPooler(t, url, 5).URL(), Pooler: true, MaxConns: 8}
	pool, err := pg.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	conn, err := cfg.Direct()
	if err != nil {
		t.Fatal(err)
	}
	var said lockedBuffer
	hub := pg.NewHub(pg.HubConfig{Conn: conn, Log: slog.New(slog.NewTextHandler(&said, nil))})
	l := changes.New(pool, changes.Config{Direct: conn})

	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"}, changes.Capture{Table: "public.b", Payload: changes.PayloadFull})
	effects(t, pool)
	exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series(1, 20) g`)

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	t.Cleanup(func() { stop(); background.Wait() })
	tail := changes.NewTail(l, hub)
	c := changes.NewConsumer(pool, hub, changes.ConsumerConfig{Name: "c", Shards: 2, Batch: 7, Chunk: 6, Backfill: []string{"public.a"}})
	c.Handle("*", effect("c"))
	for _, run := range []func(context.Context) error{hub.Run, tail.Run, c.Run} {
		background.Go(func() {
			if err := run(running); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the hub knows that it does not hear", func() bool { return hub.State() == pg.HubPolling })
	eventually(t, "the rows are read", func() bool {
		s, err := l.Consumer(ctx, "c")
		return err == nil && len(s.Backfill) == 0
	})

	// A watcher, a waiter and a checkpoint, beside many writers.
	end, err := l.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var watched []string
	seen := make(chan struct{})
	background.Go(func() {
		defer close(seen)
		for c, err := range tail.Watch(running, end, changes.Filter{}) {
			if err != nil {
				t.Errorf("Watch: %v", err)
				return
			}
			if watched = append(watched, c.Position.String()); c.Op == changes.Message {
				return
			}
		}
	})
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for i := range 20 {
				if _, err := pool.Exec(ctx, `INSERT INTO b VALUES ($1, 0), ($1 + 1, 0)`, w*1000+2*i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return l.WithTx(tx).Emit(ctx, "over", 1) }); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "c")
	pgtest.Receive(t, seen, "the watcher has seen all")
	feed, head := readAll(t, l, end, 50, changes.Filter{})
	var want []string
	for _, c := range feed {
		want = append(want, c.Position.String())
	}
	if diff := cmp.Diff(want, watched); diff != "" || len(want) != 121 {
		t.Errorf("%d changes, watched: %s", len(want), diff)
	}
	if s := status(t, l, "c"); s.Position != head || s.Lag != 0 || s.Parked != 0 {
		t.Errorf("c stands at %+v, want %s", s, head)
	}
	done := effectsOf(t, pool, "c")
	if reads := len(done) - len(want); reads != 20 {
		t.Errorf("%d rows of a were read, want 20", reads)
	}
	done = slices.DeleteFunc(done, func(p string) bool { return !strings.Contains(p, ".") })
	slices.SortFunc(done, inFeedOrder)
	if diff := cmp.Diff(want, done); diff != "" {
		t.Errorf("handled: %s", diff)
	}
	findings, err := l.Doctor(ctx)
	if err != nil || !slices.ContainsFunc(findings, func(f changes.Finding) bool { return f.Code == "doorbell-silent" }) {
		t.Errorf("Doctor: %+v, %v, want doorbell-silent", findings, err)
	}
	stop()
	background.Wait()
	if text := said.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "subscribers poll") {
		t.Errorf("the hub said %q, want one warning", text)
	}
}

// lockedBuffer keeps what several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
