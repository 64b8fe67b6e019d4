package changes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// startRunner runs a Runner, which opens its pool with open, until the test ends or it is
// stopped.
func startRunner(t testing.TB, l *changes.Log, pool *pgxpool.Pool, open func(ctx context.Context) (*pgxpool.Pool, error)) (r *changes.Runner, stop func()) {
	t.Helper()
	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	r = changes.NewRunner(l, hub, open)
	r.Hurry()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var background sync.WaitGroup
	background.Go(func() { hub.Run(ctx) })
	background.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); background.Wait() })
	t.Cleanup(stop)
	return r, stop
}

// opener opens the pool of a Runner.
func opener(url string) func(ctx context.Context) (*pgxpool.Pool, error) {
	return func(ctx context.Context) (*pgxpool.Pool, error) {
		return pg.Open(ctx, pg.Config{URL: url, MaxConns: 4})
	}
}

// effectSink is what effect does, as a Sink.
func effectSink(name string) changes.Sink {
	return changes.Sink{SQL: `INSERT INTO public.effects (consumer, position, key) SELECT '` + name + `', c->>'position', c->'key' FROM (SELECT $1::jsonb AS c) s`}
}

// save keeps a consumer or ends the test.
func save(t testing.TB, l *changes.Log, cfg changes.ConsumerConfig, sink changes.Sink, patterns ...string) {
	t.Helper()
	if err := l.Save(t.Context(), cfg, patterns, sink); err != nil {
		t.Fatal(err)
	}
}

// gotEffects waits until so many changes have come to a consumer's effects.
func gotEffects(t testing.TB, pool *pgxpool.Pool, name string, want int) {
	t.Helper()
	eventually(t, name+" is handed all", func() bool { return len(effectsOf(t, pool, name)) == want })
}

// A consumer that is saved runs, with what was changed of it since, until it is
// forgotten; and then it is gone.
func TestRunner(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE other (id int PRIMARY KEY)`)
	capture(t, l, changes.Capture{Table: "public.other"})
	r, _ := startRunner(t, l, pool, opener(url))
	save(t, l, changes.ConsumerConfig{Name: "c", From: "start"}, effectSink("first"), "public.a")
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	exec(t, pool, `INSERT INTO b VALUES (1, 1)`)
	handled(t, l, "c")
	gotEffects(t, pool, "first", 1)

	save(t, l, changes.ConsumerConfig{Name: "c", From: "start"}, effectSink("second"), "public.a", "public.b") // its place stays
	exec(t, pool, `INSERT INTO b VALUES (2, 2)`)
	gotEffects(t, pool, "second", 1)
	for _, shards := range []int{4, 1} {
		exec(t, pool, `INSERT INTO a SELECT g, g FROM generate_series((SELECT max(id) + 1 FROM a), (SELECT max(id) + 10 FROM a)) g`)
		exec(t, pool, `INSERT INTO other VALUES ($1)`, shards)
		handled(t, l, "c")
		if err := l.Pause(t.Context(), "c", ""); err != nil {
			t.Fatal(err)
		}
		// One of the shards has a way to go, so that the old ones go on for a while.
		exec(t, pool, `UPDATE howdah.change_checkpoint SET n = n - 1 WHERE consumer = 'c' AND shard = 0`)
		save(t, l, changes.ConsumerConfig{Name: "c", Shards: shards}, effectSink("second"), "public.a", "public.b")
		eventually(t, "it is run with the new number of shards", func() bool { return r.Shards("c") == shards })
		if err := l.Resume(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it has the new number of shards", func() bool {
			s, err := l.Consumer(t.Context(), "c")
			return err == nil && s.Shards == shards && s.NextShards == 0
		})
	}
	gotEffects(t, pool, "second", 21)
	if n := len(effectsOf(t, pool, "first")); n != 1 {
		t.Errorf("the first sink was handed %d changes, want 1", n)
	}
	var count int64 // through all numbers of shards
	if err := pool.QueryRow(t.Context(), `SELECT sum(handled)::bigint FROM howdah.change_checkpoint`).Scan(&count); err != nil || count != 22 {
		t.Errorf("%d changes are counted, %v, want 22", count, err)
	}

	if err := l.Forget(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Runner has let it go", func() bool { return len(r.Running()) == 0 })
	if all, err := l.Consumers(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("Consumers = %+v, %v, want none: it was forgotten", all, err)
	}
	// One of the same name begins where it is told to, and not where the other was.
	exec(t, pool, `INSERT INTO b VALUES (3, 3)`)
	save(t, l, changes.ConsumerConfig{Name: "c"}, effectSink("third"), "public.b")
	exec(t, pool, `INSERT INTO b VALUES (4, 4)`)
	gotEffects(t, pool, "third", 1)
}

// What is saved while a consumer is paused stays as it was saved, whoever ran it before.
func TestRunnerChangesInAPause(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	startRunner(t, l, pool, opener(url))
	startRunner(t, l, pool, opener(url))
	save(t, l, changes.ConsumerConfig{Name: "c", From: "start"}, effectSink("c"), "public.a")
	handled(t, l, "c")
	for range 5 {
		if err := l.Pause(t.Context(), "c", "it is changed"); err != nil {
			t.Fatal(err)
		}
		for _, patterns := range [][]string{{"public.b"}, {"public.a", "public.b"}} {
			save(t, l, changes.ConsumerConfig{Name: "c"}, effectSink("c"), patterns...)
			exec(t, pool, `SELECT pg_notify('howdah_changes', '')`)
		}
		if err := l.Resume(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		exec(t, pool, `INSERT INTO a SELECT coalesce(max(id), 0) + 1, 1 FROM a`)
		exec(t, pool, `INSERT INTO b SELECT coalesce(max(id), 0) + 1, 1 FROM b`)
		handled(t, l, "c")
		s, err := l.Consumer(t.Context(), "c")
		if diff := cmp.Diff([]string{"public.a", "public.b"}, s.Patterns); diff != "" || err != nil {
			t.Fatalf("%v\n%s", err, diff)
		}
	}
	gotEffects(t, pool, "c", 10)
}

// Runners take turns: each change is handled once, and in order, while they come and go.
func TestC5TwoRunners(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	save(t, l, changes.ConsumerConfig{Name: "c", From: "start", Batch: 2}, effectSink("c"), "*")
	_, stop := startRunner(t, l, pool, opener(url))
	for i := range 6 {
		_, next := startRunner(t, l, pool, opener(url))
		for j := range 10 {
			exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, 10*i+j)
		}
		stop()
		stop = next
	}
	handled(t, l, "c")
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}

// A Runner whose database goes away goes on when it is back.
func TestRunnerOutlivesItsConnections(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	away := make(chan struct{})
	startRunner(t, l, pool, func(ctx context.Context) (*pgxpool.Pool, error) {
		select {
		case <-away:
			return opener(url)(ctx)
		default:
			return nil, errors.Join(fault.Unavailable, errors.New("the database is away"))
		}
	})
	save(t, l, changes.ConsumerConfig{Name: "c", From: "start"}, effectSink("c"), "public.a")
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	close(away)
	gotEffects(t, pool, "c", 1)
	for id := range 5 {
		exec(t, pool, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		pool.Reset()
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, id+2)
		gotEffects(t, pool, "c", id+2)
	}
}

func TestSaveRefuses(t *testing.T) {
	t.Parallel()
	_, l, pool := consumed(t)
	webhook := changes.Sink{Webhook: &changes.WebhookConfig{URL: "https://example.com/hook"}}
	own := changes.NewConsumer(pgtest.Pool(t, withConns(pool.Config().ConnString(), 8)), nil, changes.ConsumerConfig{Name: "own"})
	own.Handle("*", effect("own"))
	if err := own.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	save(t, l, changes.ConsumerConfig{Name: "kept"}, webhook, "*")
	for _, test := range []struct {
		cfg      changes.ConsumerConfig
		patterns []string
		sink     changes.Sink
		kind     fault.Kind
		says     string
	}{
		{changes.ConsumerConfig{Name: "c"}, []string{"*"}, changes.Sink{}, fault.Invalid, "sink: 0 kinds"},
		{changes.ConsumerConfig{Name: "c"}, []string{"*"}, changes.Sink{Notify: true, SQL: "SELECT 1"}, fault.Invalid, "sink: 2 kinds"},
		{changes.ConsumerConfig{Name: "c"}, []string{"*"}, changes.Sink{SQL: "SELECT \x00"}, fault.Invalid, "sql: "},
		{changes.ConsumerConfig{Name: "c"}, []string{"*"}, changes.Sink{Webhook: &changes.WebhookConfig{URL: "gopher://x"}}, fault.Invalid, "webhook.url: "},
		{changes.ConsumerConfig{Name: "c"}, []string{"*"}, changes.Sink{Webhook: &changes.WebhookConfig{URL: "https://example.com", Secrets: []string{"short"}}}, fault.Invalid, "webhook.secrets[0]: "},
		{changes.ConsumerConfig{Name: "C"}, []string{"*"}, webhook, fault.Invalid, "name: "},
		{changes.ConsumerConfig{Name: "c"}, nil, webhook, fault.Invalid, "handlers: "},
		{changes.ConsumerConfig{Name: "c"}, []string{"users"}, webhook, fault.Invalid, "pattern: "},
		{changes.ConsumerConfig{Name: "c", From: "yesterday"}, []string{"*"}, webhook, fault.Invalid, "from: "},
		{changes.ConsumerConfig{Name: "c", Backfill: []string{"public.no"}}, []string{"*"}, webhook, fault.Invalid, "backfill: "},
		{changes.ConsumerConfig{Name: "own"}, []string{"*"}, webhook, fault.Conflict, `"own" is run by a program of its own`},
	} {
		if err := l.Save(t.Context(), test.cfg, test.patterns, test.sink); !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("Save(%+v, %q, %v) = %v, want %q", test.cfg, test.patterns, test.sink, err, test.says)
		}
	}
	// And the other way round: a program would hand its changes to something else.
	own = changes.NewConsumer(pgtest.Pool(t, withConns(pool.Config().ConnString(), 8)), nil, changes.ConsumerConfig{Name: "kept"})
	own.Handle("*", effect("own"))
	if err := own.Register(t.Context()); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "kept is saved, and run by servers") {
		t.Errorf("Register of one that is saved: %v, want Conflict", err)
	}

	// What cannot be resharded keeps the sink that it has.
	exec(t, pool, `
		INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head, attempts, error)
		VALUES ('kept', 0, 1, 1, 1, 'public.a', false, '{}', true, 1, 'no')`)
	err := l.Save(t.Context(), changes.ConsumerConfig{Name: "kept", Shards: 2}, []string{"public.a"}, effectSink("c"))
	s, statusErr := l.Consumer(t.Context(), "kept")
	if !errors.Is(err, fault.Conflict) || statusErr != nil || !strings.HasPrefix(s.Sink, "webhook ") || s.Patterns[0] != "*" || s.NextShards != 0 {
		t.Errorf("Save with other shards while changes are parked: %v, and then %+v, %v", err, s, statusErr)
	}
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return l.WithTx(tx).Save(t.Context(), changes.ConsumerConfig{Name: "c"}, []string{"*"}, webhook)
	})
	if !errors.Is(err, changes.ErrInTx) {
		t.Errorf("Save in a transaction: %v, want ErrInTx", err)
	}
	if all, err := l.Consumers(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v: something was written", all, err)
	}
}

// What is secret of a sink is where it is needed, and is shown nowhere: a URL has it in
// its path as often as in a password.
func TestSinkSecretsAreNotShown(t *testing.T) {
	url, l, pool := consumed(t)
	var logged bytes.Buffer
	was := slog.Default()
	defer slog.SetDefault(was)
	slog.SetDefault(slog.New(slog.NewTextHandler(&lockedWriter{w: &logged}, nil)))
	sink := changes.Sink{Webhook: &changes.WebhookConfig{
		URL:     "http://user:hidden1@127.0.0.1:9/hooks/hidden2?token=hidden3#hidden4",
		Secrets: []string{"whsec_aGlkZGVuNWhpZGRlbjVoaWRkZW41aGlkZGVuNQ=="}, AllowPrivate: true,
	}}
	_, stop := startRunner(t, l, pool, opener(url))
	save(t, l, changes.ConsumerConfig{Name: "c", From: "start"}, sink, "*")
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	eventually(t, "it is parked", func() bool {
		s, err := l.Consumer(t.Context(), "c")
		return err == nil && s.Parked == 1
	})
	s, err := l.Consumer(t.Context(), "c")
	if err != nil || s.Sink != "webhook http://127.0.0.1:9" {
		t.Errorf("Sink = %q, %v", s.Sink, err)
	}
	parked, err := l.Parked(t.Context(), "c", changes.Position{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	text, err := json.Marshal([]any{s, parked})
	if err != nil {
		t.Fatal(err)
	}
	statement := changes.Sink{SQL: "\n SELECT http.post($1, 'hidden1')"}
	save(t, l, changes.ConsumerConfig{Name: "statement"}, statement, "public.b")
	all, err := l.Consumers(t.Context())
	if err != nil || all[1].Sink != "sql SELECT http.post …" || all[1].Sink != statement.String() {
		t.Errorf("Consumers = %+v, %v", all, err)
	}
	if s, err := l.Consumer(t.Context(), "statement"); err != nil || s.Sink != "sql "+statement.SQL {
		t.Errorf("Sink = %q, %v: not all of it for who asks for it", s.Sink, err)
	}
	for what, shown := range map[string]string{"the status": string(text), "the log": logged.String(), "the sink": sink.String()} {
		if strings.Contains(shown, "hidden") || strings.Contains(shown, "aGlkZGVu") {
			t.Errorf("%s shows a secret: %s", what, shown)
		}
	}
	if !strings.Contains(logged.String(), "consumer=c") {
		t.Errorf("it was not logged that it runs: %s", logged.String())
	}
}

// lockedWriter is a Writer for many.
type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}
