package changes_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// A connection that leads nowhere any more, and of which nobody is told, is given up, and
// another is taken: the database is well.
func TestConnectionThatHangs(t *testing.T) {
	t.Parallel()
	const tick = "howdah.change_tick("
	for name, is := range map[string]struct {
		on   string // the statement that gets no answer
		does func(ctx context.Context, t *testing.T, pool *pgxpool.Pool, hub *pg.Hub, far, near *changes.Log)
	}{
		"a consumer that is registered": {"change_consumer", isHanded}, "a consumer": {tick, isHanded},
		"Tail": {tick, sees}, "a watcher": {"howdah.change_commit", sees},
		"Keeper": {tick, func(ctx context.Context, _ *testing.T, _ *pgxpool.Pool, _ *pg.Hub, far, _ *changes.Log) {
			far.Kept(ctx)
		}},
		"Keeper, when it has numbered what there is": {"pg_try_advisory_xact_lock(1752135524, 2)",
			func(ctx context.Context, _ *testing.T, _ *pgxpool.Pool, _ *pg.Hub, far, _ *changes.Log) {
				far.Kept(ctx)
			}},
		"Runner": {"sink IS NOT NULL", runsSaved},
		"a consumer that is to stop": {"change_consumer WHERE name = $1 FOR UPDATE", func(_ context.Context, t *testing.T, pool *pgxpool.Pool, hub *pg.Hub, _, near *changes.Log) {
			c := changes.NewConsumer(pool, hub, changes.ConsumerConfig{Name: "c", From: "start", Timeout: 300 * time.Millisecond})
			c.Hurry()
			c.Grace(500 * time.Millisecond)
			c.Handle("*", func(context.Context, pgx.Tx, []changes.Change) error { return changes.Stop(errors.New("410 Gone")) })
			alongside(t, c.Run, hub.Run)
			eventually(t, "it is paused", func() bool { return registered(near, "c") && status(t, near, "c").State == "paused" })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, near, pool := consumed(t)
			exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
			proxy := pgtest.NewProxy(t, url)
			through := pgtest.Pool(t, withConns(proxy.URL(), 8))
			t.Cleanup(proxy.Cut) // or the pool waits for it to be closed
			far := changes.New(through, changes.Config{})
			far.Impatient(200 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			proxy.HangOn([]byte(is.on))
			is.does(ctx, t, through, pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig}), far, near)
			if ctx.Err() != nil {
				t.Error("it waited in vain")
			}
			if !proxy.Hung() {
				t.Error("no connection hung")
			}
		})
	}
}

// alongside runs what runs until the test ends.
func alongside(t *testing.T, run ...func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var background sync.WaitGroup
	for _, run := range run {
		background.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(func() { stop(); background.Wait() })
}

// isHanded waits until a consumer is handed what there is, which nobody else numbers.
func isHanded(_ context.Context, t *testing.T, pool *pgxpool.Pool, hub *pg.Hub, _, _ *changes.Log) {
	c := changes.NewConsumer(pool, hub, changes.ConsumerConfig{Name: "c", From: "start"})
	c.Hurry()
	c.Impatient(200 * time.Millisecond)
	handed := make(chan struct{}, 100)
	c.Handle("*", func(context.Context, pgx.Tx, []changes.Change) error { handed <- struct{}{}; return nil })
	alongside(t, c.Run, hub.Run)
	pgtest.Receive(t, handed, "a change")
}

// runsSaved waits until a Runner runs a consumer that is saved. The first pool it opens hangs.
func runsSaved(_ context.Context, t *testing.T, pool *pgxpool.Pool, hub *pg.Hub, far, near *changes.Log) {
	saved(t, near, changes.ConsumerConfig{Name: "c"}, "*")
	open, opened := opener(pool.Config().ConnString()), false
	r := changes.NewRunner(far, hub, func(ctx context.Context) (*pgxpool.Pool, error) {
		if !opened {
			opened = true
			<-ctx.Done()
		}
		return open(ctx)
	})
	r.Hurry()
	alongside(t, r.Run, hub.Run)
	runs(t, r, "c", true)
}

// sees waits until a watcher sees what there is.
func sees(ctx context.Context, t *testing.T, _ *pgxpool.Pool, hub *pg.Hub, far, _ *changes.Log) {
	tail := changes.NewTail(far, hub)
	alongside(t, tail.Run, hub.Run)
	for _, err := range tail.Watch(ctx, changes.Position{}, changes.Filter{}) {
		if err != nil {
			t.Error(err)
		}
		return
	}
}

// Doctor ends soon after its context, whatever the connection does on which it listened.
func TestDoctorBesideAConnectionThatHangs(t *testing.T) {
	t.Parallel()
	_, _, pool := consumed(t)
	proxy := pgtest.NewProxy(t, pool.Config().ConnString())
	t.Cleanup(proxy.Cut)
	direct, err := pgx.ParseConfig(proxy.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy.HangOn([]byte("UNLISTEN"))
	ended := make(chan error, 1)
	go func() {
		_, err := changes.New(pool, changes.Config{Direct: direct}).Doctor(t.Context())
		ended <- err
	}()
	if err := pgtest.Receive(t, ended, "the end of Doctor"); err != nil {
		t.Error(err)
	}
}

// What is said to fail is said to be over, too.
func TestConsumerSaysThatItIsRegistered(t *testing.T) {
	url, _, pool := consumed(t)
	var logged bytes.Buffer
	out := &lockedWriter{w: &logged}
	was := slog.Default()
	defer slog.SetDefault(was)
	slog.SetDefault(slog.New(slog.NewTextHandler(out, nil)))
	says := func(what string) {
		t.Helper()
		eventually(t, "it says that "+what, func() bool {
			out.mu.Lock()
			defer out.mu.Unlock()
			for line := range strings.Lines(logged.String()) {
				if strings.Contains(line, "consumer=registered") && strings.Contains(line, what) {
					return true
				}
			}
			return false
		})
	}
	exec(t, pool, `ALTER TABLE howdah.change_consumer RENAME TO away`)
	start(t, url, changes.ConsumerConfig{Name: "registered"}, func(c *changes.Consumer) { c.Handle("*", effect("c")) })
	says("cannot be registered")
	exec(t, pool, `ALTER TABLE howdah.away RENAME TO change_consumer`)
	says("changes go on")
}

// Numbering that takes longer than an answer is waited for is waited for longer the next
// time, also where it is another's turn now and then.
func TestConsumersHaveMorePatienceEachTime(t *testing.T) {
	t.Parallel()
	url, _, pool := consumed(t)
	exec(t, pool, `
		CREATE SEQUENCE asked;
		ALTER FUNCTION howdah.change_tick(boolean, boolean) RENAME TO change_tick_quick;
		CREATE FUNCTION howdah.change_tick(wait boolean, export boolean DEFAULT false) RETURNS bigint LANGUAGE plpgsql AS $$
			BEGIN
				IF nextval('public.asked') % 2 = 0 THEN
					RETURN NULL; -- it is another's turn
				END IF;
				PERFORM pg_sleep(0.5); -- so much has to be numbered
				RETURN howdah.change_tick_quick(wait, export);
			END $$;
		INSERT INTO a VALUES (1, 1)`)
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Impatient(100 * time.Millisecond)
		c.Handle("*", effect("c"))
	})
	eventually(t, "it is handed what was numbered", func() bool { return len(effectsOf(t, pool, "c")) == 1 })
}
