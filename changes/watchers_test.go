package changes_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// statements counts what a pool asks its server, and tells whoever waits for it.
type statements struct {
	n     atomic.Int64
	asked chan struct{} // one signal: there was another
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.add(1)
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	s.add(b.Batch.Len())
	return ctx
}

func (s *statements) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (s *statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (s *statements) add(n int) {
	s.n.Add(int64(n))
	select {
	case s.asked <- struct{}{}:
	default:
	}
}

// countedTail is a running Tail that looks at the feed when its bell rings and
// hardly ever otherwise, and what it has asked. It ends when the test does.
func countedTail(t *testing.T, url string) (*changes.Tail, *statements) {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	sent := &statements{asked: make(chan struct{}, 1)}
	cfg.ConnConfig.Tracer = sent
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	hub := pg.NewHub(pg.HubConfig{Conn: pgtest.Pool(t, url).Config().ConnConfig})
	tail := changes.NewTail(changes.New(pool, changes.Config{Idle: time.Hour}), hub)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{"hub": hub.Run, "tail": tail.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	t.Cleanup(func() { stop(); running.Wait(); pool.Close() })
	return tail, sent
}

// crowd lets n watchers see rows changes, written one by one, each once all have
// seen the one before, and returns how many statements that took.
func crowd(t *testing.T, n, rows int) int64 {
	t.Helper()
	url, l, pool := watched(t)
	tail, sent := countedTail(t, url)
	from, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	seen := make(chan struct{}, n)
	var watching sync.WaitGroup
	for range n {
		watching.Go(func() {
			count := 0
			for _, err := range tail.Watch(ctx, from, changes.Filter{}) {
				if err != nil {
					t.Error(err)
					return
				}
				seen <- struct{}{}
				if count++; count == 1+rows {
					return
				}
			}
		})
	}
	var before int64
	for i := range 1 + rows {
		if i == 1 { // whoever has seen the first reads from the ring
			before = sent.n.Load()
		}
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, i)
		for range n {
			select {
			case <-seen:
			case <-ctx.Done():
				t.Fatalf("%d watchers: change %d did not get to all", n, i)
			}
		}
	}
	watching.Wait()
	return sent.n.Load() - before
}

// A Tail reads the feed once, however many watch it.
func TestManyWatchersCostWhatOneCosts(t *testing.T) {
	t.Parallel()
	const rows = 100
	one, many := crowd(t, 1, rows), crowd(t, 300, rows)
	t.Logf("%d changes one by one: %d statements for a watcher, %d for 300", rows, one, many)
	// The bell of the writer and that of the tick may be heard as one or as two, and
	// there are more looks between on a slow machine; one for each watcher would be
	// 300 times as many.
	if many > 10*one {
		t.Errorf("%d statements for 300 watchers, %d for one", many, one)
	}
}

// A Tail that nobody watches asks nothing, be it before the first watcher or after
// the last.
func TestTailWithoutWatchersAsksNothing(t *testing.T) {
	t.Parallel()
	url, l, pool := watched(t)
	tail, sent := countedTail(t, url)
	ring := func(from int) {
		t.Helper()
		other, _ := countedTail(t, url) // which is rung by the same bells
		at, err := l.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, from+i)
		}
		if got := watch(t, other, at, changes.Filter{}, 20); len(got) != 20 {
			t.Fatalf("%d changes", len(got))
		}
	}
	ring(0)
	if n := sent.n.Load(); n != 0 {
		t.Errorf("before the first watcher: %d statements", n)
	}

	if got := watch(t, tail, changes.Position{}, changes.Filter{}, 20); len(got) != 20 {
		t.Fatalf("%d changes", len(got))
	}
	// Nobody watches any more. The look that it was at is its last, which the bell
	// lets it find out.
	ring(100)
	settled := sent.n.Load()
	eventually(t, "nobody looks any more", func() bool {
		select {
		case <-sent.asked:
		default:
		}
		ring(1000 + int(settled)*100)
		now := sent.n.Load()
		quiet := now == settled
		settled = now
		return quiet
	})
	ring(500)
	if n := sent.n.Load(); n != settled {
		t.Errorf("after the last watcher: %d statements", n-settled)
	}
}
