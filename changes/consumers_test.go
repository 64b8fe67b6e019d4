package changes_test

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// all handles everything with an effect of the name.
func all(name string) func(*changes.Consumer) {
	return func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", effect(name))
	}
}

// sorted are the positions that a consumer was handed, in the order of the feed.
func sorted(positions []string) []string {
	slices.SortFunc(positions, inFeedOrder)
	return positions
}

// A paused consumer stands still and loses nothing.
func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	start(t, url, changes.ConsumerConfig{Name: "c", Shards: 2}, all("c"))
	handled(t, l, "c")
	if err := l.Pause(t.Context(), "c", "prices"); err != nil {
		t.Fatal(err)
	}
	if s := status(t, l, "c"); s.State != "paused" || s.Reason != "prices" {
		t.Errorf("%+v", s)
	}
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2)`)
	end, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := l.Wait(short, "c", end); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fault.Unavailable) {
		t.Errorf("Wait: %v", err)
	}
	if s := status(t, l, "c"); s.Lag != 1 || s.Behind <= 0 {
		t.Errorf("%+v", s)
	}
	if err := l.Resume(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "c")
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), sorted(effectsOf(t, pool, "c"))); diff != "" {
		t.Error(diff)
	}
	if s := status(t, l, "c"); s.State != "running" || s.Reason != "" || s.Lag != 0 || s.Behind != 0 {
		t.Errorf("%+v", s)
	}
}

// A consumer that stands still is behind what has committed, though nobody has read it.
func TestBehindWhatNobodyHasRead(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	r := start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) { c.Handle("*", effect("c")) })
	handled(t, l, "c")
	r.stop()
	for i := range 3 {
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, i)
	}
	s, err := l.Consumer(t.Context(), "c")
	if err != nil || s.Lag != 3 || s.Behind <= 0 {
		t.Errorf("Consumer() = %+v, %v, want a lag of 3", s, err)
	}
	if all, err := l.Consumers(t.Context()); err != nil || len(all) != 1 || all[0].Lag != 3 {
		t.Errorf("Consumers() = %+v, %v, want a lag of 3", all, err)
	}
}

// To ask how consumers stand is not worth compiling a statement; a transaction of the
// caller's goes on as it was.
func TestConsumersAreNotCompiled(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	// What is read of a consumer tells what is set meanwhile.
	exec(t, pool, consumerSQL+`; ALTER TABLE howdah.change_consumer RENAME TO kept;
		CREATE VIEW howdah.change_consumer AS
		SELECT name, 'paused' AS state, current_setting('jit') AS reason, shards, next_shards, patterns, sink, seen_at FROM howdah.kept;
		ALTER TABLE howdah.change_parked RENAME TO aside;
		CREATE VIEW howdah.change_parked AS
		SELECT 'slow' AS consumer, 0 AS shard, true AS head, current_setting('jit') = 'off' AS dead, '' AS error, now() AS next_at`)
	for _, was := range []string{"on", "off"} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		var is string
		if err := tx.QueryRow(t.Context(), `SELECT set_config('jit', $1, true)`, was).Scan(&is); err != nil {
			t.Fatal(err)
		}
		s, err := l.WithTx(tx).Consumer(t.Context(), "slow")
		if err != nil || s.Reason != "off" {
			t.Errorf("jit is %q meanwhile, %v", s.Reason, err)
		}
		v, err := l.WithTx(tx).Vitals(t.Context())
		if err != nil || len(v.Shards) != 1 || v.Shards[0].Dead != 1 {
			t.Errorf("Vitals() = %+v, %v; jit is not off meanwhile", v.Shards, err)
		}
		if err := tx.QueryRow(t.Context(), `SELECT current_setting('jit')`).Scan(&is); err != nil || is != was {
			t.Errorf("jit was %s and is %s, %v", was, is, err)
		}
	}
}

// While it is paused its patterns may change.
func TestPatternsChangeInAPause(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	old := start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) { c.Hurry(); c.Handle("public.a", effect("c")) })
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	handled(t, l, "c")
	if err := l.Pause(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	start(t, url, changes.ConsumerConfig{Name: "c"}, func(c *changes.Consumer) { c.Hurry(); c.Handle("public.b", effect("c")) })
	if err := pgtest.Receive(t, old.done, "the end of Run"); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), `c has the patterns ["public.b"], this one ["public.a"]`) {
		t.Errorf("the old one ended with %v", err)
	}
	if err := l.Resume(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `INSERT INTO a VALUES (2, 1)`)
	exec(t, pool, `INSERT INTO b VALUES (1, 1)`)
	handled(t, l, "c")
	feed := positions(t, l, changes.Filter{})
	if diff := cmp.Diff([]string{feed[0], feed[2]}, effectsOf(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}

// Moved back it is handed the same again, moved forth never what lies between, and
// what is parked goes with the place.
func TestSeek(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	for i := range 4 {
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, i)
	}
	p := startPatient(t, url, changes.ConsumerConfig{Name: "c", Shards: 2}, badKey(`{"id":2}`))
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	eventually(t, "the others are handled", func() bool { return len(effectsOf(t, pool, "c")) == 3 })
	feed := positions(t, l, changes.Filter{})
	if err := l.Seek(t.Context(), "c", feed[2]); err != nil { // behind the parked one
		t.Fatal(err)
	}
	if n := status(t, l, "c").Parked; n != 1 {
		t.Errorf("%d parked", n)
	}
	p.cure()
	if err := l.Seek(t.Context(), "c", "start"); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "c")
	got := sorted(effectsOf(t, pool, "c"))
	// Once or twice, as the first move may have been before the fourth was handled again.
	if got = slices.Compact(got); !slices.Equal(got, feed) || status(t, l, "c").Parked != 0 {
		t.Errorf("handled %q of %q, %+v", got, feed, status(t, l, "c"))
	}

	if err := l.Pause(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{``, `INSERT INTO b VALUES (1, 1)`} { // the first move waits for what is being handled
		exec(t, pool, sql)
		if err := l.Seek(t.Context(), "c", "now"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Resume(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `INSERT INTO b VALUES (2, 1)`)
	handled(t, l, "c")
	feed = positions(t, l, changes.Filter{Patterns: patterns(t, "public.b")})
	if got := effectsByKey(t, pool, "c"); !slices.Contains(got[`{"id":2}`], feed[1]) || slices.Contains(got[`{"id":1}`], feed[0]) {
		t.Errorf("%q of %q", got, feed)
	}

	exec(t, pool, `UPDATE howdah.change_state SET floor = 2`)
	for to, want := range map[string]error{"1": changes.ErrExpired, "99": changes.ErrAhead, "x": fault.Invalid} {
		if err := l.Seek(t.Context(), "c", to); !errors.Is(err, want) {
			t.Errorf("Seek to %s: %v, want %v", to, err, want)
		}
	}
}

// One that has expired, or whose place is gone, stands still until it is moved.
func TestF9ExpiredConsumer(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	exec(t, pool, `INSERT INTO a VALUES (2, 1)`)
	if _, err := l.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, all("c"))
	handled(t, l, "c")
	r.stop()
	exec(t, pool, `UPDATE howdah.change_checkpoint SET n = 0`)
	exec(t, pool, `UPDATE howdah.change_state SET floor = 1`)
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, all("c"))
	eventually(t, "it has expired", func() bool { return status(t, l, "c").State == "expired" })
	if s := status(t, l, "c"); !strings.Contains(s.Reason, "the position has expired") || s.Parked != 0 {
		t.Errorf("%+v", s)
	}
	for what, do := range map[string]func() error{
		"Pause":  func() error { return l.Pause(t.Context(), "c", "") },
		"Resume": func() error { return l.Resume(t.Context(), "c") },
		"Wait":   func() error { return l.Wait(t.Context(), "c", changes.Position{Commit: 2}) },
	} {
		if err := do(); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "seek") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := l.Seek(t.Context(), "c", "1"); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "c")
	feed := []string{"1.1", "2.2", "2.2"}
	if diff := cmp.Diff(feed, sorted(effectsOf(t, pool, "c"))); diff != "" {
		t.Error(diff)
	}
}

// A consumer in the middle of a transaction is behind by the rest of it.
func TestBehindInTheMiddle(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2)`)
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 1}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", changes.Each(func(_ context.Context, _ pgx.Tx, change changes.Change) error {
			if string(change.Key) == `{"id":2}` {
				return changes.Stop(errors.New("two is too many"))
			}
			return nil
		}))
	})
	eventually(t, "it is paused in the middle", func() bool {
		s, err := l.Consumer(t.Context(), "c")
		return err == nil && s.State == "paused"
	})
	if s, err := l.Consumer(t.Context(), "c"); err != nil || s.Position.ID == 0 || s.Lag != 1 || s.Behind == 0 {
		t.Errorf("at %s, behind by %d commits and %v s, %v; want the rest of the first", s.Position, s.Lag, s.Behind, err)
	}
}

// A consumer that is forgotten while it runs ends, and nothing stays of it.
func TestForget(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (3, 1)`)
	r := start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Shards: 2}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", changes.Each(func(_ context.Context, _ pgx.Tx, c changes.Change) error { return badKey(`{"id":3}`)(c) }))
	})
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	if err := l.Forget(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := pgtest.Receive(t, r.done, "the end of Run"); !errors.Is(err, changes.ErrNoConsumer) {
		t.Errorf("Run: %v, want ErrNoConsumer", err)
	}
	var left int
	if err := pool.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM howdah.change_consumer) + (SELECT count(*) FROM howdah.change_checkpoint) + (SELECT count(*) FROM howdah.change_parked)`).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Errorf("%d rows are left", left)
	}
}

func TestThereIsNoSuchConsumer(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	in := l.WithTx(tx) // of the caller's, which is not spoilt
	for what, do := range map[string]func() error{
		"Consumer": func() error { _, err := in.Consumer(t.Context(), "c"); return err },
		"Pause":    func() error { return in.Pause(t.Context(), "c", "") },
		"Resume":   func() error { return in.Resume(t.Context(), "c") },
		"Seek":     func() error { return in.Seek(t.Context(), "c", "start") },
		"Forget":   func() error { return in.Forget(t.Context(), "c") },
		"Wait":     func() error { return in.Wait(t.Context(), "c", changes.Position{}) },
		"Parked":   func() error { _, err := in.Parked(t.Context(), "c", changes.Position{}, 1); return err },
		"Retry":    func() error { _, err := in.Retry(t.Context(), "c"); return err },
		"Skip":     func() error { _, err := in.Skip(t.Context(), "c"); return err },
		"Reshard":  func() error { return in.Reshard(t.Context(), "c", 2) },
	} {
		if err := do(); !errors.Is(err, changes.ErrNoConsumer) || !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), `"c"`) {
			t.Errorf("%s: %v, want ErrNoConsumer", what, err)
		}
	}
	if all, err := in.Consumers(t.Context()); len(all) != 0 || err != nil {
		t.Errorf("Consumers: %v, %v", all, err)
	}
	if err := l.Pause(t.Context(), "c", "a\x00"); !errors.Is(err, fault.Invalid) {
		t.Errorf("Pause: %v", err)
	}
	if err := l.Reshard(t.Context(), "c", 65); !errors.Is(err, fault.Invalid) {
		t.Errorf("Reshard: %v", err)
	}
	if _, err := l.Parked(t.Context(), "c", changes.Position{}, 1001); !errors.Is(err, fault.Invalid) {
		t.Errorf("Parked: %v", err)
	}
}

// The number of shards changes under load: each change is handled once, those of a key
// in order, and who still has the old number ends.
func TestC1C3Reshard(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer stop()
	for w := range 2 {
		writing.Go(func() {
			for i := w; ctx.Err() == nil; i += 3 {
				exec(t, pool, `INSERT INTO a SELECT g, 0 FROM generate_series($1::int, $1 + 1) g ON CONFLICT (id) DO UPDATE SET v = a.v + 1`, i%20)
			}
		})
	}
	present := start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 3}, all("c"))
	handled(t, l, "c")
	for _, n := range []int{4, 2, 3} {
		if err := l.Reshard(t.Context(), "c", n); err != nil {
			t.Fatal(err)
		}
		// The one with the new number helps until all have come as far, and then goes on.
		next := start(t, url, changes.ConsumerConfig{Name: "c", Batch: 3, Shards: n}, all("c"))
		if err := pgtest.Receive(t, present.done, "the end of Run"); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), ", this one ") {
			t.Fatalf("the old one ended with %v", err)
		}
		present = next
		if s := status(t, l, "c"); s.Shards != n {
			t.Fatalf("%+v, want %d shards", s, n)
		}
		handled(t, l, "c")
	}
	// Nobody runs it.
	present.stop()
	if err := l.Reshard(t.Context(), "c", 1); err != nil {
		t.Fatal(err)
	}
	stop()
	writing.Wait()
	start(t, url, changes.ConsumerConfig{Name: "c", Batch: 3}, all("c"))
	handled(t, l, "c")
	feed, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	if diff := cmp.Diff(byKey(feed), effectsByKey(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}

// A network that stalls in the middle of a batch: another instance goes on within the
// batch's time, and the first does nothing twice when it is back.
func TestC5CutOffInTheMiddle(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	proxy := pgtest.NewProxy(t, url)
	called, goOn := make(chan struct{}, 1), make(chan struct{}) // it may be called before we wait for that
	cfg := changes.ConsumerConfig{Name: "c", From: "start", Timeout: 500 * time.Millisecond}
	start(t, proxy.URL(), cfg, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			if err := effect("c")(ctx, tx, cs); err != nil {
				return err
			}
			select {
			case called <- struct{}{}:
			default:
			}
			<-goOn
			return nil
		})
	})
	pgtest.Receive(t, called, "the handler is called")
	proxy.Stall(true)
	start(t, url, cfg, all("c"))
	handled(t, l, "c")
	close(goOn)
	proxy.Stall(false)
	exec(t, pool, `INSERT INTO a VALUES (2, 1)`)
	handled(t, l, "c")
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
	if s := status(t, l, "c"); s.Parked != 0 {
		t.Errorf("%+v", s)
	}
}

// The answer to a COMMIT is lost: whether it was done is read, not guessed.
func TestC1AnswerToCommitIsLost(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	proxy := pgtest.NewProxy(t, url)
	// Not prepared, so that the proxy finds it.
	start(t, proxy.URL()+"?default_query_exec_mode=cache_describe", changes.ConsumerConfig{Name: "c", Batch: 1}, all("c"))
	handled(t, l, "c")
	for i := range 20 {
		switch i % 4 {
		case 1:
			proxy.CutOn([]byte("COMMIT"))
		case 3:
			proxy.Drop([]byte("COMMIT"))
		}
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, i)
		handled(t, l, "c")
	}
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}

// What a batch reads does not grow with what is parked, and neither do the ends that
// people look at.
func TestCostWithManyParked(t *testing.T) {
	t.Parallel()
	_, _, pool := consumed(t)
	exec(t, pool, `INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('c', 1, '{*}')`)
	exec(t, pool, `INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n) SELECT 'c', 0, g, g FROM generate_series(1, 20000) g`)
	// A hot key with all its later changes behind it, and many others.
	exec(t, pool, `
		INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head, attempts, next_at)
		SELECT 'c', 0, g, g, howdah.change_lane('public', 'a', k), 'public.a', false,
			json_build_object('position', g || '.' || g, 'op', 'update', 'schema', 'public', 'table', 'a', 'key', k, 'at', now()), g % 2 = 0 OR g = 1, 0, now() + g * interval '1 s'
		FROM generate_series(1, 20000) g, jsonb_build_object('id', CASE WHEN g % 2 = 1 THEN 0 ELSE g END) k`)
	exec(t, pool, `INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head) SELECT 'other', 0, g, g, g, 'public.a', false, '{}', true FROM generate_series(1, 60000) g`)
	exec(t, pool, `ANALYZE`)
	e := pgtest.Explain(t, pool)
	change := changes.Change{Position: changes.Position{Commit: 30_000, ID: 30_000}, Op: changes.Update, Schema: "public", Table: "a", Key: []byte(`{"id":0}`)}
	if err := changes.Statements(t.Context(), pool, e, change, 1); err != nil {
		t.Fatal(err)
	}
	in := changes.New(e, changes.Config{})
	if err := in.Wait(t.Context(), "c", changes.Position{}); err != nil {
		t.Fatal(err)
	}
	plan := e.Plan()
	if whole := regexp.MustCompile(`Seq Scan on change_(parked|checkpoint).*|rows=\d{3,} loops.*|JIT`).FindAllString(plan, -1); whole != nil {
		t.Errorf("more is read than is wanted: %q in\n%s", whole, plan)
	}
}

// Through a pooler in transaction mode, where no statement is prepared: all that a
// consumer does, it does there too.
func TestConsumerWithoutPreparedStatements(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2), (3, 3)`)
	exec(t, pool, `UPDATE a SET v = 0`)
	p := startPatient(t, withConns(url, 8)+"&default_query_exec_mode=cache_describe", changes.ConsumerConfig{Name: "c"}, badKey(`{"id":2}`))
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	eventually(t, "the others are handled", func() bool { return len(effectsOf(t, pool, "c")) == 4 })
	p.cure()
	eventually(t, "nothing is parked", func() bool { return status(t, l, "c").Parked == 0 })
	feed, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	if diff := cmp.Diff(byKey(feed), effectsByKey(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}
