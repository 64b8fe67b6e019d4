package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// quiet is a worker's configuration for a test.
func quiet(cfg checklists.WorkerConfig) checklists.WorkerConfig {
	cfg.List = "l"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// tally is what handlers did.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

func (t *tally) add(item string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == nil {
		t.count = map[string]int{}
	}
	t.count[item]++
}

func TestAWorkerDoesEachItemOnce(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	const total = 5000
	insert(t, s, "l", numbered(total)...)
	var did tally
	var now, most atomic.Int64
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{Parallel: 16, UntilEmpty: true, Do: func(_ context.Context, item checklists.Item) error {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		did.add(item.Name)
		return nil
	}}))
	if err := w.Run(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	for item, n := range did.count {
		if n != 1 {
			t.Errorf("%s was done %d times", item, n)
		}
	}
	if got := progress(t, s, "l"); len(did.count) != total || got.Done != total || got.Left != 0 {
		t.Errorf("%d done, %+v", len(did.count), got)
	}
	if most.Load() > 16 {
		t.Errorf("%d at the same time", most.Load())
	}
	mustNotDrift(t, pool)
}

// Each way to end an attempt, and what is on record then.
func TestWhatBecomesOfAttempts(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	cause := errors.New("the cause")
	insert(t, s, "l", "dead", "ends its goroutine", "error", "fine", "panics", "put off", "soon")
	ctx, stop := context.WithCancel(within(t, patience))
	defer stop()
	var did tally
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{Do: func(_ context.Context, item checklists.Item) error {
		did.add(item.Name)
		switch item.Name {
		case "dead":
			return fmt.Errorf("wrapped: %w", checklists.Dead(cause))
		case "ends its goroutine":
			runtime.Goexit()
		case "error":
			return cause
		case "panics":
			panic(cause)
		case "put off":
			return checklists.Release(cause)
		case "soon":
			return checklists.RetryIn(time.Hour, cause)
		}
		return nil
	}}))
	var group sync.WaitGroup
	group.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "all are on record", func() bool {
		p := progress(t, s, "l")
		return p.Leased == 0 && p.Done == 1 && p.Dead == 1
	})
	stop()
	group.Wait()
	for item, want := range map[string]struct {
		state    checklists.State
		attempts int
		error    string
		from, to time.Duration
	}{
		"dead":               {checklists.StateDead, 1, "wrapped: the cause", 0, 0},
		"ends its goroutine": {checklists.StateWaiting, 1, "the handler ended its goroutine", time.Second, 12 * time.Second},
		"error":              {checklists.StateWaiting, 1, "the cause", time.Second, 12 * time.Second},
		"panics":             {checklists.StateWaiting, 1, "panic: the cause", time.Second, 12 * time.Second},
		"put off":            {checklists.StateWaiting, 0, "the cause", time.Second, 11 * time.Second},
		"soon":               {checklists.StateWaiting, 1, "the cause", 50 * time.Minute, time.Hour},
	} {
		got := get(t, s, "l", item)
		if got.State != want.state || got.Attempts != want.attempts || got.Error != want.error {
			t.Errorf("%s: %+v", item, got)
		}
		if wait := time.Until(got.Due); want.to > 0 && (wait < want.from-30*time.Second || wait > want.to) {
			t.Errorf("%s: waits %v", item, wait)
		}
		if did.count[item] != 1 {
			t.Errorf("%s was tried %d times", item, did.count[item])
		}
	}
	if !errors.Is(checklists.Dead(cause), cause) || checklists.RetryIn(1, nil).Error() == "" {
		t.Error("what Do returned is hidden")
	}
	if got := progress(t, s, "l"); got.Failed != 5 { // all but fine and put off
		t.Errorf("%+v", got)
	}
	mustNotDrift(t, pool)
}

// A worker that is stopped starts nothing more, finishes what runs, and gives
// back the rest as if it had never been claimed.
func TestAWorkerThatIsStopped(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	insert(t, s, "l", numbered(20)...)
	ctx, stop := context.WithCancel(within(t, patience))
	began := make(chan string, 20)
	finish := make(chan struct{})
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{Parallel: 2, Batch: 10, Grace: time.Minute, Do: func(ctx context.Context, item checklists.Item) error {
		began <- item.Name
		<-finish
		return ctx.Err()
	}}))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	running := []string{pgtest.Receive(t, began, "an attempt begins"), pgtest.Receive(t, began, "another begins")}
	stop()
	eventually(t, "the rest is given back", func() bool { return progress(t, s, "l").Leased == 2 })
	close(finish)
	if err := pgtest.Receive(t, ended, "the end of Run"); err != nil {
		t.Error(err)
	}
	if got := progress(t, s, "l"); got.Done != 2 || got.Left != 18 || got.Leased != 0 || len(began) != 0 {
		t.Errorf("%+v, %d more began", got, len(began))
	}
	for item, err := range s.All(t.Context(), "l") {
		if err != nil || item.Attempts != 0 || item.State != checklists.StateReady || slices.Contains(running, item.Name) {
			t.Errorf("%+v, %v", item, err)
		}
	}
}

// When Grace is over what runs is told to end; what does is given back, what
// does not keeps its lease.
func TestAWorkerWhoseGraceIsOver(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	insert(t, s, "l", "deaf", "listens")
	ctx, stop := context.WithCancel(within(t, patience))
	began := make(chan string, 2)
	finish := make(chan struct{})
	var deaf sync.WaitGroup
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{Grace: -1, Do: func(ctx context.Context, item checklists.Item) error {
		if item.Name == "deaf" {
			deaf.Add(1)
			defer deaf.Done()
			began <- item.Name
			<-finish
			return nil
		}
		began <- item.Name
		<-ctx.Done()
		return ctx.Err()
	}}))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	pgtest.Receive(t, began, "an attempt begins")
	pgtest.Receive(t, began, "an attempt begins")
	stop()
	err := pgtest.Receive(t, ended, "the end of Run")
	if err == nil || !strings.Contains(err.Error(), "1 of the attempts under way did not end") {
		t.Errorf("Run: %v", err)
	}
	if item := get(t, s, "l", "listens"); item.State != checklists.StateReady || item.Attempts != 0 || item.Error != "" {
		t.Errorf("%+v", item)
	}
	if item := get(t, s, "l", "deaf"); item.State != checklists.StateLeased {
		t.Errorf("%+v", item)
	}
	close(finish)
	deaf.Wait()
}

// Items that take longer than a lease stay with their worker; those that it
// loses end there.
func TestAWorkerExtendsItsLeases(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	insert(t, s, "l", "killed", "long", "taken")
	ctx := within(t, patience)
	var did tally
	var causes sync.Map
	began := make(chan string, 3)
	finish := make(chan struct{})
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{Lease: 3 * time.Second, UntilEmpty: true, Do: func(ctx context.Context, item checklists.Item) error {
		did.add(item.Name)
		began <- item.Name
		if item.Name == "long" {
			<-finish
			return nil
		}
		<-ctx.Done()
		causes.Store(item.Name, context.Cause(ctx))
		return ctx.Err()
	}}))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	for range 3 {
		pgtest.Receive(t, began, "an attempt begins")
	}
	first := get(t, s, "l", "long").Due
	if n, err := s.Kill(ctx, "l", "by hand", "killed"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := pool.Exec(ctx, `UPDATE lists SET lease = gen_random_uuid() WHERE item = 'taken'`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both have ended", func() bool {
		_, killed := causes.Load("killed")
		_, taken := causes.Load("taken")
		return killed && taken
	})
	eventually(t, "the lease is longer than it was", func() bool { return get(t, s, "l", "long").Due.Sub(first) > 3*time.Second })
	if _, err := s.Delete(ctx, "l", "taken"); err != nil {
		t.Fatal(err)
	}
	close(finish)
	if err := pgtest.Receive(t, ended, "the end of Run"); err != nil {
		t.Error(err)
	}
	for item, cause := range causes.Range {
		if !errors.Is(cause.(error), checklists.ErrLost) {
			t.Errorf("%s: %v", item, cause)
		}
	}
	if did.count["long"] != 1 {
		t.Errorf("%v", did.count)
	}
	if got := get(t, s, "l", "killed"); got.State != checklists.StateDead || got.Error != "by hand" {
		t.Errorf("%+v", got)
	}
}

// The effect and the tick of DoTx are one.
func TestAWorkerInTransactions(t *testing.T) {
	t.Parallel()
	_, pool := newStore(t)
	ctx := within(t, patience)
	if _, err := pool.Exec(ctx, `CREATE TABLE effects (item text)`); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(wide(t, pool), checklists.Config{Table: tableOf(t, pool)})
	insert(t, s, "l", numbered(50)...)
	set := checklists.DefaultSettings
	set.MaxAttempts, set.Backoff = 2, 0
	if err := s.Set(ctx, "l", set); err != nil {
		t.Fatal(err)
	}
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{UntilEmpty: true, DoTx: func(ctx context.Context, tx pgx.Tx, item checklists.Item) error {
		_, err := tx.Exec(ctx, `INSERT INTO effects VALUES ($1)`, item.Name)
		switch {
		case err != nil:
			return err
		case strings.HasSuffix(item.Name, "7"):
			return errors.New("sevens are not done")
		case strings.HasSuffix(item.Name, "8") && item.Attempts < 2:
			panic("eights need two attempts")
		}
		return nil
	}}))
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	var effects, items int
	if err := pool.QueryRow(ctx, `SELECT count(*), count(DISTINCT item) FROM effects`).Scan(&effects, &items); err != nil {
		t.Fatal(err)
	}
	if got := progress(t, s, "l"); effects != 45 || items != 45 || got.Done != 45 || got.Dead != 5 || got.Failed != 15 {
		t.Errorf("%d effects of %d items, %+v", effects, items, got)
	}
	mustNotDrift(t, pool)
}

func TestWorkersThatCannotBe(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	do := func(context.Context, checklists.Item) error { return nil }
	doTx := func(context.Context, pgx.Tx, checklists.Item) error { return nil }
	for what, cfg := range map[string]checklists.WorkerConfig{
		"nothing to do": {},
		"both":          {Do: do, DoTx: doTx},
		"parallel":      {Do: do, Parallel: -1},
		"batch":         {Do: do, Batch: 10_001},
		"lease":         {Do: do, Lease: time.Millisecond},
		"name":          {Do: do, Name: "a\x00b"},
		"too many":      {DoTx: doTx, Parallel: 1000},
	} {
		if err := checklists.NewWorker(s, quiet(cfg)).Run(t.Context()); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	cfg := quiet(checklists.WorkerConfig{Do: do})
	cfg.List = "\xff"
	if err := checklists.NewWorker(s, cfg).Run(t.Context()); !errors.Is(err, fault.Invalid) {
		t.Errorf("list: %v", err)
	}
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return checklists.NewWorker(s.WithTx(tx), quiet(checklists.WorkerConfig{Do: do})).Run(t.Context())
	})
	if !errors.Is(err, fault.Invalid) {
		t.Errorf("in a transaction: %v", err)
	}
}

// An idle worker is woken by the bell, however long it would have slept.
func TestTheBellWakesAWorker(t *testing.T) {
	t.Parallel()
	s, _, hub := newHeard(t)
	ctx, stop := context.WithCancel(within(t, patience))
	did := make(chan string)
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{Hub: hub, Do: func(_ context.Context, item checklists.Item) error {
		did <- item.Name
		return nil
	}}))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	for i := range 20 {
		insert(t, s, "l", fmt.Sprint(i))
		if got := pgtest.Receive(t, did, "an attempt"); got != fmt.Sprint(i) {
			t.Errorf("%d: %s", i, got)
		}
	}
	stop()
	if err := pgtest.Receive(t, ended, "the end of Run"); err != nil {
		t.Error(err)
	}
}

// Where statements cannot be prepared, as behind a pooler, all of it works too.
func TestAWorkerThroughAPooler(t *testing.T) {
	t.Parallel()
	_, pool := newStore(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		cfg := pool.Config()
		cfg.ConnConfig.DefaultQueryExecMode = mode
		unprepared, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer unprepared.Close()
		s := checklists.New(unprepared, checklists.Config{Table: tableOf(t, pool)})
		insert(t, s, "l", "dead", "fine", "later")
		var tries atomic.Int64
		w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{Lease: time.Second, UntilEmpty: true, Do: func(_ context.Context, item checklists.Item) error {
			switch {
			case item.Name == "dead":
				return checklists.Dead(errors.New("dead"))
			case item.Name == "later" && tries.Add(1) == 1:
				return checklists.RetryIn(time.Second, errors.New("later")) // an extension comes between
			}
			return nil
		}}))
		if err := w.Run(within(t, patience)); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
		if n, err := s.Redrive(t.Context(), "l", checklists.Query{}); n != 1 || err != nil {
			t.Errorf("%v: Redrive = %d, %v", mode, n, err)
		}
		if n, err := s.Release(t.Context(), claim(t, s, "l", 1).Lease); n != 1 || err != nil {
			t.Errorf("%v: Release = %d, %v", mode, n, err)
		}
		if n, err := s.Delete(t.Context(), "l", "dead"); n != 1 || err != nil {
			t.Errorf("%v: Delete = %d, %v", mode, n, err)
		}
	}
}

// An attempt that takes longer than it may has failed, says so, and holds up nothing;
// what it says of itself holds.
func TestAttemptsThatTakeTooLong(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	insert(t, s, "l", "dead", "hangs", "well")
	hang := func(ctx context.Context, item checklists.Item) error {
		if item.Name == "well" {
			return nil
		}
		<-ctx.Done()
		if item.Name == "dead" {
			return checklists.Dead(errors.New("no use"))
		}
		return checklists.RetryIn(time.Hour, ctx.Err())
	}
	for i, cfg := range []checklists.WorkerConfig{
		{Do: hang},
		{DoTx: func(ctx context.Context, _ pgx.Tx, item checklists.Item) error { return hang(ctx, item) }},
	} {
		ctx, stop := context.WithCancel(within(t, patience))
		cfg.Parallel, cfg.Batch, cfg.Timeout = 1, 3, 50*time.Millisecond
		var run sync.WaitGroup
		run.Go(func() {
			if err := checklists.NewWorker(s, quiet(cfg)).Run(ctx); err != nil {
				t.Error(err)
			}
		})
		eventually(t, "both have failed", func() bool {
			return get(t, s, "l", "dead").State == checklists.StateDead && get(t, s, "l", "hangs").State == checklists.StateWaiting
		})
		stop()
		run.Wait()
		for name, want := range map[string]struct {
			state checklists.State
			error string
		}{
			"dead":  {checklists.StateDead, "took longer than 50ms: no use"},
			"hangs": {checklists.StateWaiting, "took longer than 50ms: context deadline exceeded"},
		} {
			if item, err := s.Get(t.Context(), "l", name); err != nil || item.State != want.state || item.Error != want.error {
				t.Errorf("%s: %+v, %v, want %s, %q", name, item, err, want.state, want.error)
			}
		}
		if i == 0 {
			if _, err := s.Delete(t.Context(), "l", "dead", "hangs"); err != nil {
				t.Fatal(err)
			}
			insert(t, s, "l", "dead", "hangs", "well")
		}
	}
}
