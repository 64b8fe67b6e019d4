package changes_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// patient is a handler that fails on what is bad, notes what it is called with, and
// writes an effect of what is well.
type patient struct {
	mu    sync.Mutex
	bad   func(changes.Change) error
	calls map[string]int // by position
}

// startPatient runs a hurried consumer of the name with a patient.
func startPatient(t testing.TB, url string, cfg changes.ConsumerConfig, bad func(changes.Change) error) *patient {
	t.Helper()
	p := &patient{bad: bad, calls: map[string]int{}}
	cfg.From = "start"
	start(t, url, cfg, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
			p.mu.Lock()
			p.calls[c.Position.String()]++
			err := p.bad(c)
			p.mu.Unlock()
			return errors.Join(effect(cfg.Name)(ctx, tx, []changes.Change{c}), err) // what it wrote is undone
		}))
	})
	return p
}

// cure makes all well from now on.
func (p *patient) cure() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bad = func(changes.Change) error { return nil }
}

func (p *patient) called(position string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[position]
}

func badKey(key string) func(changes.Change) error {
	return func(c changes.Change) error {
		if string(c.Key) == key {
			return errors.New("no such customer")
		}
		return nil
	}
}

func parked(t testing.TB, l *changes.Log, name string) []changes.Parked {
	t.Helper()
	all, err := l.Parked(t.Context(), name, changes.Position{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func status(t testing.TB, l *changes.Log, name string) changes.Status {
	t.Helper()
	s, err := l.Consumer(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// byKey are the positions of a sequence of changes or effects, by their key.
func byKey(all []changes.Change) map[string][]string {
	keys := map[string][]string{}
	for _, c := range all {
		keys[string(c.Key)] = append(keys[string(c.Key)], c.Position.String())
	}
	return keys
}

// A change that cannot be handled waits with those of its key; nothing else does.
// Nothing but a person takes it away, and once it can be handled it is, and what
// waited behind it after it.
func TestC4PoisonHoldsUpItsKeyAlone(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	for i := range 40 {
		exec(t, pool, `INSERT INTO a VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, i%5, i)
	}
	p := startPatient(t, url, changes.ConsumerConfig{Name: "c"}, badKey(`{"id":3}`))
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) || !errors.Is(err, fault.Conflict) {
		t.Errorf("Wait: %v, want ErrParked", err)
	}
	eventually(t, "all others are handled", func() bool { return len(effectsOf(t, pool, "c")) == 32 })
	eventually(t, "it is given up", func() bool { return status(t, l, "c").Dead == 1 })
	feed, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	keys := byKey(feed)
	put := parked(t, l, "c")
	var places []string
	for _, q := range put {
		places = append(places, q.Change.Position.String())
	}
	if diff := cmp.Diff(keys[`{"id":3}`], places); diff != "" {
		t.Errorf("parked: %s", diff)
	}
	if diff := cmp.Diff(feed[3], put[0].Change); diff != "" {
		t.Errorf("the parked change is not the change: %s", diff)
	}
	if q := put[0]; q.Waits || !q.Dead || q.Attempts != 20 || q.Error != "no such customer" || !q.Next.IsZero() {
		t.Errorf("%+v", q)
	}
	if q := put[1]; !q.Waits || q.Dead || q.Attempts != 0 || q.Error != "" {
		t.Errorf("%+v", q)
	}
	// In the batch, alone, three times more, and then as a parked one.
	if n := p.called(places[0]); n != 21 {
		t.Errorf("handed over %d times, want 21", n)
	}
	if n := p.called(places[1]); n > 1 { // in the batch
		t.Errorf("what waits was handed over %d times", n)
	}
	s := status(t, l, "c")
	if s.State != "running" || s.Parked != 8 || s.Lag != 0 {
		t.Errorf("%+v", s)
	}

	// A page of them.
	some, err := l.Parked(t.Context(), "c", put[2].Change.Position, 3)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(put[3:6], some); diff != "" {
		t.Error(diff)
	}

	exec(t, pool, `UPDATE a SET v = 0 WHERE id = 3`) // one more, while it is dead
	p.cure()
	if n, err := l.Retry(t.Context(), "c"); n != 1 || err != nil {
		t.Errorf("Retry = %d, %v", n, err)
	}
	eventually(t, "nothing is parked", func() bool { return status(t, l, "c").Parked == 0 })
	handled(t, l, "c")
	feed, _ = readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	if diff := cmp.Diff(byKey(feed), effectsByKey(t, pool, "c")); diff != "" {
		t.Errorf("feed and effects: %s", diff)
	}
}

// effectsByKey are the positions that a consumer was handed, in order, by key.
func effectsByKey(t testing.TB, pool interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, name string) map[string][]string {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `SELECT replace(coalesce(key::text, ''), ' ', ''), position FROM effects WHERE consumer = $1 ORDER BY n`, name)
	keys := map[string][]string{}
	var key, position string
	if _, err := pgx.ForEachRow(rows, []any{&key, &position}, func() error { keys[key] = append(keys[key], position); return nil }); err != nil {
		t.Fatal(err)
	}
	return keys
}

// What is skipped is never handled, and what waited behind it is.
func TestC4SkippedByAPerson(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	for i := range 6 {
		exec(t, pool, `INSERT INTO a VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, i%2, i)
	}
	startPatient(t, url, changes.ConsumerConfig{Name: "c"}, func(c changes.Change) error {
		if string(c.New) == `{"v":1,"id":1}` {
			return errors.New("never")
		}
		return nil
	})
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	eventually(t, "two wait", func() bool { return status(t, l, "c").Parked == 3 })
	put := parked(t, l, "c")
	// One that waits may go as well as one that is waited for.
	if n, err := l.Skip(t.Context(), "c", put[1].Change.Position, changes.Position{Commit: 99}); n != 1 || err != nil {
		t.Errorf("Skip = %d, %v", n, err)
	}
	if n, err := l.Skip(t.Context(), "c", put[0].Change.Position); n != 1 || err != nil {
		t.Errorf("Skip = %d, %v", n, err)
	}
	eventually(t, "the last one is handled", func() bool { return status(t, l, "c").Parked == 0 })
	want := []string{put[2].Change.Position.String()}
	if diff := cmp.Diff(want, effectsByKey(t, pool, "c")[`{"id":1}`]); diff != "" {
		t.Error(diff)
	}
}

// A TRUNCATE waits for what is parked of its table, and what follows of the table
// for the TRUNCATE; other tables do not.
func TestC3TruncateBehindPoison(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2), (3, 3)`)
	exec(t, pool, `TRUNCATE a`)
	exec(t, pool, `INSERT INTO a VALUES (1, 4), (2, 5)`)
	exec(t, pool, `UPDATE a SET v = 6 WHERE id = 1`)
	exec(t, pool, `INSERT INTO b VALUES (7, 7)`)
	p := startPatient(t, url, changes.ConsumerConfig{Name: "c"}, badKey(`{"id":3}`))
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	eventually(t, "the feed has been gone through", func() bool { return status(t, l, "c").Lag == 0 })
	all := positions(t, l, changes.Filter{})
	if diff := cmp.Diff([]string{all[0], all[1], all[7]}, effectsOf(t, pool, "c")); diff != "" {
		t.Errorf("handled: %s", diff)
	}
	var waits []bool
	for _, q := range parked(t, l, "c") {
		waits = append(waits, q.Waits)
	}
	if diff := cmp.Diff([]bool{false, true, true, true, true}, waits); diff != "" {
		t.Error(diff)
	}
	p.cure()
	eventually(t, "nothing is parked", func() bool { return status(t, l, "c").Parked == 0 })
	got := effectsOf(t, pool, "c")[3:]
	// Key 1 and key 2 go each its own way after the TRUNCATE.
	if !slices.Equal(got[:2], all[2:4]) || slices.Index(got, all[4]) > slices.Index(got, all[6]) || len(got) != 5 {
		t.Errorf("handled afterwards %q of %q", got, all)
	}
}

// When nothing succeeds, the handler's other end is away: three changes are parked and
// not one more, however long it takes; then it goes on by itself, in order.
func TestOutageParksThree(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	var down atomic.Bool
	down.Store(true)
	var tries atomic.Int64
	startPatient(t, url, changes.ConsumerConfig{Name: "c"}, func(changes.Change) error {
		tries.Add(1)
		if down.Load() {
			return errors.New("connection refused")
		}
		return nil
	})
	for i := range 60 {
		exec(t, pool, `INSERT INTO a VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, i%20, i)
	}
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Fatal(err)
	}
	eventually(t, "it stalls", func() bool { return status(t, l, "c").State == "stalled" })
	before := tries.Load()
	eventually(t, "it has been tried more often than a change may", func() bool { return tries.Load() > before+3*20 })
	if s := status(t, l, "c"); s.Parked != 3 || s.Dead != 0 || s.Lag < 50 || s.State != "stalled" || s.Reason != "connection refused" {
		t.Errorf("%+v", s)
	}
	if err := wait(t, l, "c"); !errors.Is(err, changes.ErrParked) {
		t.Errorf("Wait: %v", err)
	}
	down.Store(false)
	eventually(t, "nothing is parked", func() bool { s := status(t, l, "c"); return s.Parked == 0 && s.Lag == 0 })
	handled(t, l, "c")
	feed, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	if diff := cmp.Diff(byKey(feed), effectsByKey(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
	if s := status(t, l, "c"); s.State != "running" || s.Reason != "" {
		t.Errorf("%+v", s)
	}
}

// However a handler fails: what it wrote is undone, the change is parked, and why is
// told.
func TestHowHandlersFail(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE owed (id int REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
		INSERT INTO parents VALUES (1);
		CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'too late' USING ERRCODE = 'undefined_table'; END $$;
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON owed DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION late()`)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	type does = func(ctx context.Context, tx pgx.Tx) error
	run := func(sql string) does {
		return func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		}
	}
	for name, test := range map[string]struct {
		does does
		says string
	}{
		"error":    {func(context.Context, pgx.Tx) error { return errors.New("no\x00such") }, "no\uFFFDsuch"},
		"long":     {func(context.Context, pgx.Tx) error { return errors.New(strings.Repeat("ä", 5000)) }, "ää"},
		"panic":    {func(context.Context, pgx.Tx) error { panic("oops") }, "handler panicked: oops\ngoroutine"},
		"sql":      {run(`SELECT 1/0`), "division by zero"},
		"commit":   {func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }, "handler ended its transaction"},
		"quietly":  {func(ctx context.Context, tx pgx.Tx) error { tx.Commit(ctx); return nil }, "handler ended its transaction"},
		"rollback": {func(ctx context.Context, tx pgx.Tx) error { tx.Rollback(ctx); return nil }, "handler ended its transaction"},
		"by-sql":   {run(`ROLLBACK`), "handler ended its transaction"},
		"another":  {run(`ROLLBACK; BEGIN`), "handler ended its transaction"},
		"swallowed": {func(ctx context.Context, tx pgx.Tx) error {
			run(`SELECT 1/0`)(ctx, tx)
			return nil
		}, "handler returned nil after a statement had failed"},
		"open-rows": {func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Query(ctx, `SELECT generate_series(1, 3)`)
			return err
		}, "left rows open"},
		"deferred": {run(`INSERT INTO owed VALUES (99)`), "violates foreign key constraint"},
		"trigger":  {run(`INSERT INTO owed VALUES (1)`), "too late"}, // with what elsewhere is the database's own trouble
		"slow": {func(ctx context.Context, _ pgx.Tx) error {
			<-ctx.Done()
			return ctx.Err()
		}, "handler took longer than 300ms: context deadline exceeded"},
		"slow-sql": {run(`SELECT pg_sleep(60)`), "handler took longer than 300ms: "},
		"deaf": {func(ctx context.Context, tx pgx.Tx) error {
			eventually(t, "it was cut off", func() (gone bool) {
				err := pool.QueryRow(context.WithoutCancel(ctx), `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, tx.Conn().PgConn().PID()).Scan(&gone)
				return err != nil || gone
			})
			return nil
		}, "handler took longer than 300ms: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limit := time.Minute
			if strings.Contains(test.says, "longer than 300ms") {
				limit = 300 * time.Millisecond
			}
			start(t, url, changes.ConsumerConfig{Name: name, From: "start", Timeout: limit}, func(c *changes.Consumer) {
				c.Hurry()
				if limit < time.Minute {
					c.Grace(500 * time.Millisecond)
				}
				c.Handle("*", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
					if err := effect(name)(context.WithoutCancel(ctx), tx, []changes.Change{c}); err != nil { // not this is to take long
						return err
					}
					return test.does(ctx, tx)
				}))
			})
			if err := wait(t, l, name); !errors.Is(err, changes.ErrParked) {
				t.Fatal(err)
			}
			put := parked(t, l, name)
			if len(put) != 1 || put[0].Attempts < 4 || !strings.Contains(put[0].Error, test.says) || len(put[0].Error) > 4096 {
				t.Errorf("%+v", put)
			}
			if got := effectsOf(t, pool, name); len(got) != 0 {
				t.Errorf("effects %q of what failed", got)
			}
		})
	}
}

// Where many changes at once take too long, fewer are handed over from then on.
func TestSlowHandlerIsHandedLess(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	for i := range 40 {
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, i)
	}
	var late, calls atomic.Int64
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 8, Timeout: time.Second}, on(func(ctx context.Context, _ pgx.Tx, cs []changes.Change) error {
		if calls.Add(1); len(cs) > 3 {
			late.Add(1)
			<-ctx.Done()
		}
		return ctx.Err()
	}))
	handled(t, l, "c")
	if late.Load() > 3 || calls.Load() > 35 {
		t.Errorf("%d of %d calls were late, want two or three", late.Load(), calls.Load())
	}
}

// A handler that says so has its consumer stand still; resumed it is handed the same.
func TestHandlerStopsItsConsumer(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2)`)
	p := startPatient(t, url, changes.ConsumerConfig{Name: "c"}, func(changes.Change) error { return fmt.Errorf("hook: %w", changes.Stop(errors.New("410 Gone"))) })
	eventually(t, "it is paused", func() bool { return registered(l, "c") && status(t, l, "c").State == "paused" })
	if s := status(t, l, "c"); s.Reason == "" || !strings.Contains(s.Reason, "410 Gone") || s.Parked != 0 {
		t.Errorf("%+v", s)
	}
	p.cure()
	if err := l.Resume(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "c")
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
}

func registered(l *changes.Log, name string) bool {
	_, err := l.Consumer(context.Background(), name)
	return err == nil
}

// A handler that knows when to try again is not tried before.
func TestHandlerKnowsWhen(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1), (2, 2)`)
	p := startPatient(t, url, changes.ConsumerConfig{Name: "c"}, func(c changes.Change) error {
		if string(c.Key) == `{"id":1}` {
			return changes.Later(errors.New("429"), time.Hour)
		}
		return nil
	})
	eventually(t, "it is parked", func() bool { return registered(l, "c") && status(t, l, "c").Parked == 1 })
	eventually(t, "the other is handled", func() bool { return len(effectsOf(t, pool, "c")) == 1 })
	put := parked(t, l, "c")
	if q := put[0]; q.Attempts != 1 || time.Until(q.Next) < 50*time.Minute || p.called(q.Change.Position.String()) != 2 {
		t.Errorf("%+v", q)
	}
}

// A consumer that ends while a handler is at it has not failed.
func TestEndIsNoFailure(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	called := make(chan struct{}, 100)
	r := start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Handle("*", func(ctx context.Context, _ pgx.Tx, _ []changes.Change) error {
			called <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		})
	})
	pgtest.Receive(t, called, "the handler is called")
	r.stop()
	if s := status(t, l, "c"); s.Parked != 0 || s.Position != (changes.Position{}) || len(called) != 0 {
		t.Errorf("%+v", s)
	}
	// What was done when the end came is committed.
	r = start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			err := effect("c")(ctx, tx, cs)
			called <- struct{}{}
			<-ctx.Done()
			return err
		})
	})
	pgtest.Receive(t, called, "the handler is called")
	r.stop()
	if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
		t.Error(diff)
	}
	handled(t, l, "c")
}

// However many parked changes are due, the feed goes on.
func TestParkedDoNotHoldUpTheFeed(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	// Each of these takes as long as a handler may, and is due again when all have been tried.
	for i := range 10 {
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, 2*i)
		exec(t, pool, `INSERT INTO a VALUES ($1, 1)`, 2*i+1) // never three in a row
	}
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 1, Timeout: 50 * time.Millisecond}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
			if id := field(t, c.Key, "id"); strings.ContainsAny(id[len(id)-1:], "02468") && c.Table == "a" {
				<-ctx.Done()
				return ctx.Err()
			}
			return effect("c")(ctx, tx, []changes.Change{c})
		}))
	})
	for i := range 20 {
		exec(t, pool, `INSERT INTO b VALUES ($1, 1)`, i)
	}
	eventually(t, "the others are handled", func() bool { return len(effectsOf(t, pool, "c")) == 30 })
	if s := status(t, l, "c"); s.Parked != 10 || s.Lag != 0 {
		t.Errorf("%+v", s)
	}
}
