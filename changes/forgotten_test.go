package changes_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// serve runs the consumers that are saved, until the test ends.
func serve(t testing.TB, l *changes.Log, url string) *changes.Runner {
	t.Helper()
	hub := pg.NewHub(pg.HubConfig{Conn: pgtest.Pool(t, url).Config().ConnConfig})
	r := changes.NewRunner(l, hub, func(ctx context.Context) (*pgxpool.Pool, error) {
		return pgxpool.New(ctx, withConns(url, 8))
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var background sync.WaitGroup
	background.Go(func() { hub.Run(ctx) })
	background.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); background.Wait() })
	return r
}

// saved saves a consumer of everything whose effects have its name.
func saved(t testing.TB, l *changes.Log, cfg changes.ConsumerConfig, patterns ...string) {
	t.Helper()
	sql := `INSERT INTO public.effects (consumer, position, key) SELECT '` + cfg.Name + `', c->>'position', c->'key' FROM (SELECT $1::jsonb AS c) s`
	if err := l.Save(t.Context(), cfg, patterns, changes.Sink{SQL: sql}); err != nil {
		t.Fatal(err)
	}
}

// runs waits until a server runs a consumer.
func runs(t testing.TB, r *changes.Runner, name string, is bool) {
	t.Helper()
	eventually(t, name+" runs, or no more", func() bool { return slices.Contains(r.Running(), name) == is })
}

// One that is forgotten stays away, although servers run it at that moment: else the log
// would be kept for a consumer that nobody runs.
func TestForgottenIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c", From: "start"}, "*")
	r := serve(t, l, url)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	handled(t, l, "c")
	if err := l.Forget(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	runs(t, r, "c", false)
	if _, err := l.Consumer(t.Context(), "c"); !errors.Is(err, changes.ErrNoConsumer) {
		t.Errorf("Consumer after Forget: %v", err)
	}
	saved(t, l, changes.ConsumerConfig{Name: "c", From: "start"}, "*")
	handled(t, l, "c")
	if all := effectsOf(t, pool, "c"); len(all) != 2 {
		t.Errorf("handled %q, want one change twice", all)
	}
}

// A program has no part in a consumer that servers run: it would do something else with
// its changes.
func TestSavedConsumerIsNotAProgramsOwn(t *testing.T) {
	t.Parallel()
	url, l, _ := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "*")
	c := changes.NewConsumer(pgtest.Pool(t, url), nil, changes.ConsumerConfig{Name: "c"})
	c.Handle("*", effect("other"))
	if err := c.Register(t.Context()); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "saved") {
		t.Errorf("Register: %v", err)
	}
	// Nor where it had one of the name, which was forgotten meanwhile.
	if err := l.Forget(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	running := start(t, url, changes.ConsumerConfig{Name: "c"}, all("other"))
	handled(t, l, "c")
	exec(t, pgtest.Pool(t, url), `UPDATE howdah.change_consumer SET sink = 'notify'`)
	if err := pgtest.Receive(t, running.done, "the end of Run"); !errors.Is(err, fault.Conflict) {
		t.Errorf("Run: %v", err)
	}
}

// Servers have enough connections for the shards that there are until there are fewer.
func TestSavedWithFewerShards(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c", From: "start", Shards: 6}, "*")
	exec(t, pool, `INSERT INTO b SELECT g, 1 FROM generate_series(1, 20) AS g`)
	end, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `UPDATE howdah.change_checkpoint SET n = $1 WHERE shard = 5`, end.Commit) // the others have a way to go
	saved(t, l, changes.ConsumerConfig{Name: "c", Shards: 2}, "*")
	serve(t, l, url)
	eventually(t, "there are two shards", func() bool { return status(t, l, "c").Shards == 2 })
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	handled(t, l, "c")
}

// What is refused changes nothing, however little of it is.
func TestSavedWholeOrNot(t *testing.T) {
	t.Parallel()
	_, l, pool := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c", Shards: 2}, "public.a")
	exec(t, pool, `INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head)
		VALUES ('c', 0, 1, 1, 1, 'public.a', false, '{}', true)`)
	for field, err := range map[string]error{
		"parked":  l.Save(t.Context(), changes.ConsumerConfig{Name: "c", Shards: 3}, []string{"public.b"}, changes.Sink{Notify: true}),
		"timeout": l.Save(t.Context(), changes.ConsumerConfig{Name: "c", Shards: 2, Timeout: time.Second}, []string{"public.b"}, changes.Sink{Webhook: &changes.WebhookConfig{URL: "https://example.com"}}),
	} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("Save: %v, want one of %s", err, field)
		}
	}
	if s := status(t, l, "c"); s.Patterns[0] != "public.a" || s.Shards != 2 || s.NextShards != 0 || !strings.HasPrefix(s.Sink, "sql") {
		t.Errorf("%+v", s)
	}
	// As many as there are call off what is under way, though something is parked.
	exec(t, pool, `UPDATE howdah.change_consumer SET next_shards = 5, stop_at = 7`)
	saved(t, l, changes.ConsumerConfig{Name: "c", Shards: 2}, "public.b")
	if s := status(t, l, "c"); s.NextShards != 0 || s.Patterns[0] != "public.b" {
		t.Errorf("%+v", s)
	}
	// One request has the time that it may take, where nothing else is said.
	if err := l.Save(t.Context(), changes.ConsumerConfig{Name: "c", Shards: 2}, []string{"*"}, changes.Sink{Webhook: &changes.WebhookConfig{URL: "https://example.com", Timeout: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	var timeout time.Duration
	if err := pool.QueryRow(t.Context(), `SELECT (sink->'timeout')::bigint FROM howdah.change_sink`).Scan((*int64)(&timeout)); err != nil || timeout < time.Minute {
		t.Errorf("a handler has %v, %v", timeout, err)
	}
}

// Where the patterns name a table no more, its rows are wanted no more either.
func TestBackfillOfWhatNobodyWantsAnyMore(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a SELECT g, 1 FROM generate_series(1, 20) AS g; INSERT INTO b VALUES (1, 1)`)
	saved(t, l, changes.ConsumerConfig{Name: "c", Backfill: []string{"public.a", "public.b"}}, "*")
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "public.b")
	serve(t, l, url)
	handled(t, l, "c")
	if all := effectsOf(t, pool, "c"); len(all) != 1 {
		t.Errorf("%d rows were read, want that of b", len(all))
	}
}

// A handler that takes its time does not keep retention from the log.
func TestHandlersHoldNoLeaf(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE held (leaf text)`)
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, on(changes.SQL(`
		INSERT INTO public.held
		SELECT relation::regclass::text
		FROM pg_locks
		WHERE pid = pg_backend_pid() AND relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'howdah.change'::regclass)`)))
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	handled(t, l, "c")
	var held []string
	if err := pool.QueryRow(t.Context(), `SELECT coalesce(array_agg(DISTINCT leaf), '{}') FROM held`).Scan(&held); err != nil {
		t.Fatal(err)
	}
	if len(held) > 0 {
		t.Errorf("the handler's transaction has locks of %q", held)
	}
}

// Who moves a consumer while it is found to be too far behind has moved it.
func TestSeekAndTendAtOnce(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	now := m.sync(t)
	m.consumerAt(t, "c", changes.Position{})
	exec(t, m.pool, `UPDATE howdah.change_tick SET at = at - interval '8 days'`)
	tx, err := m.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if err := m.log.WithTx(tx).Seek(t.Context(), "c", now.String()); err != nil {
		t.Fatal(err)
	}
	tended := make(chan error, 1)
	go func() { tended <- m.log.Tend(t.Context()) }()
	ended := false
	eventually(t, "Tend waits, or has ended", func() bool {
		select {
		case err := <-tended:
			if err != nil {
				t.Error(err)
			}
			ended = true
			return true
		default:
			return waits(t, m.pool)
		}
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !ended {
		if err := pgtest.Receive(t, tended, "the end of Tend"); err != nil {
			t.Error(err)
		}
	}
	if s := status(t, m.log, "c"); s.State != "running" {
		t.Errorf("it was moved, and is %+v", s)
	}
}

// Who skips a change sees what was parked behind it while that waited, whatever isolation
// transactions have by default.
func TestSkipUnderAnotherIsolation(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	in, out := make(chan struct{}), make(chan struct{})
	bad := errors.New("bad")
	start(t, url, changes.ConsumerConfig{Name: "c"}, on(changes.Each(func(_ context.Context, _ pgx.Tx, c changes.Change) error {
		switch string(c.Key) {
		case `{"id":1}`:
			return bad
		case `{"id":2}`:
			in <- struct{}{}
			<-out
		}
		return nil
	})))
	handled(t, l, "c")
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	eventually(t, "it is parked", func() bool { return len(parked(t, l, "c")) == 1 })
	exec(t, pool, `UPDATE howdah.change_parked SET next_at = '2100-01-01'`)
	first := parked(t, l, "c")[0].Change.Position
	exec(t, pool, `BEGIN; INSERT INTO a VALUES (2, 1); UPDATE a SET v = 2 WHERE id = 1; COMMIT`)
	pgtest.Receive(t, in, "the handler is called") // a batch that is going to park the second change of 1 behind the first
	cfg := pool.Config()
	cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = "repeatable read"
	strict, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(strict.Close)
	skipped := make(chan error, 1)
	go func() {
		_, err := changes.New(strict, changes.Config{}).Skip(context.WithoutCancel(t.Context()), "c", first)
		skipped <- err
	}()
	eventually(t, "it waits for the shard", func() bool { return waits(t, pool) })
	out <- struct{}{}
	if err := pgtest.Receive(t, skipped, "the end of Skip"); err != nil {
		t.Error(err)
	}
	eventually(t, "the second is parked", func() bool {
		left := parked(t, l, "c")
		return len(left) == 1 && left[0].Change.Position != first
	})
	if left := parked(t, l, "c"); left[0].Waits {
		t.Errorf("%+v waits for nothing", left[0])
	}
}

// What was skipped tells of no outage any more: one more change that cannot be handled
// is parked, and those after it are handled.
func TestC4SkippedIsNoOutage(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	for i := range 4 {
		exec(t, pool, `INSERT INTO a VALUES ($1, 0)`, i)
	}
	startPatient(t, url, changes.ConsumerConfig{Name: "c"}, func(c changes.Change) error {
		if c.Table == "a" {
			return errors.New("never")
		}
		return nil
	})
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	eventually(t, "it stalls", func() bool { return status(t, l, "c").State == "stalled" })
	exec(t, pool, `INSERT INTO b VALUES (1, 1)`)
	if n, err := l.Skip(t.Context(), "c"); n != 3 || err != nil {
		t.Fatalf("Skip = %d, %v", n, err)
	}
	eventually(t, "the last is handled", func() bool { return len(effectsOf(t, pool, "c")) == 1 })
	if s := status(t, l, "c"); s.Parked != 1 || s.State != "running" {
		t.Errorf("%+v", s)
	}
}

// A batch that is under way is of the patterns that it began with, and passes over what
// they do not name, however late that was committed: other patterns wait for its end.
func TestPatternsChangeBetweenBatches(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	own := func(pattern string) error {
		c := changes.NewConsumer(pgtest.Pool(t, withConns(url, 4)), nil, changes.ConsumerConfig{Name: "own"})
		c.Handle(pattern, effect("own"))
		return c.Register(t.Context())
	}
	if err := own("public.a"); err != nil {
		t.Fatal(err)
	}
	saved(t, l, changes.ConsumerConfig{Name: "saved"}, "public.a")
	if err := l.Pause(t.Context(), "own", ""); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		"own": func() error { return own("public.b") },
		"saved": func() error {
			return l.Save(t.Context(), changes.ConsumerConfig{Name: "saved"}, []string{"public.b"}, effectSink("saved"))
		},
	} {
		batch, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer batch.Rollback(context.WithoutCancel(t.Context()))
		if _, err := batch.Exec(t.Context(), `SELECT pg_advisory_xact_lock(hashtextextended('howdah.consumer ' || $1 || ' 0', 0))`, name); err != nil {
			t.Fatal(err)
		}
		changed := make(chan error, 1)
		go func() { changed <- change() }()
		eventually(t, "it waits for the batch", func() bool {
			select {
			case err := <-changed:
				t.Fatalf("the patterns of %s are others, in the middle of a batch (%v)", name, err)
			default:
			}
			return waits(t, pool)
		})
		if err := batch.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := pgtest.Receive(t, changed, "the end of the change"); err != nil {
			t.Error(err)
		}
		if s := status(t, l, name); s.Patterns[0] != "public.b" {
			t.Errorf("%s has the patterns %q", name, s.Patterns)
		}
	}
}

// waits reports whether a statement in the database of the pool waits for a lock.
func waits(t testing.TB, pool *pgxpool.Pool) (is bool) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&is); err != nil {
		t.Fatal(err)
	}
	return is
}

// One that is saved under the name of another that was just forgotten does not run beside
// it: it waits for its end.
func TestSavedAnewWaitsForTheOld(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	beginning, begun := make(chan struct{}), make(chan struct{}, 2)
	var once sync.Once
	r := changes.NewRunner(l, pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig}), opener(url))
	defer r.Close()
	r.Begun(func() {
		begun <- struct{}{}
		once.Do(func() { <-beginning }) // the first takes its time, also to end
	})
	ctx, cancel := context.WithCancel(t.Context())
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	begin := sync.OnceFunc(func() { close(beginning) })
	defer begin()
	look := func() {
		t.Helper()
		if err := r.Look(ctx, &background); err != nil {
			t.Fatal(err)
		}
	}
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "public.a")
	look()
	pgtest.Receive(t, begun, "the first")
	if err := l.Forget(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	look()
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "public.b")
	look()
	select {
	case <-begun:
		t.Error("two of one name run beside each other")
	case <-time.After(100 * time.Millisecond): // where it does not wait it is there at once
		begin()
		pgtest.Receive(t, begun, "the second")
	}
	if err := l.Forget(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended, and is let go", func() bool { look(); return len(r.Running()) == 0 })
}
