package pg_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// raise makes the server raise an error.
func raise(ctx context.Context, tx pgx.Tx, state string) error {
	_, err := tx.Exec(ctx, fmt.Sprintf("DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '%s'; END $$", state))
	return err
}

func TestBatcherRepeatsWhatPasses(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg := newLogbook(t, pool)
	flushes := map[string]int{}
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		state := batch.Entries[0].Key
		if err := flushLogbook(ctx, tx, batch); err != nil {
			return err
		}
		if flushes[state]++; flushes[state] == 1 {
			return pg.Wrap("wrapped", raise(ctx, tx, state))
		}
		return nil
	}
	b := pg.NewBatcher(cfg)
	run(t, b)
	states := []string{"40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "08006", "25006"}
	for _, state := range states {
		if n, err := b.Put(soon(t), state, "x"); n != 1 || err != nil {
			t.Errorf("Put after %s = %d, %v, want 1", state, n, err)
		}
	}
	if s := b.Stats(); s.Retries != uint64(len(states)) || s.Halvings != 0 {
		t.Errorf("Stats = %+v, want %d repeats", s, len(states))
	}
	for _, state := range []string{"23505", "22012", "42P01", "57014", "P0001"} {
		flushes[state] = 0
		if _, err := b.Put(soon(t), state, "x"); err == nil {
			t.Errorf("Put after %s = nil, want the error", state)
		}
	}
}

func TestBatcherGivesUpAfterRetryFor(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg := newLogbook(t, pool)
	cfg.RetryFor = time.Millisecond
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, _ logbookBatch) error { return raise(ctx, tx, "40001") }
	b := pg.NewBatcher(cfg)
	run(t, b)
	_, err := b.Put(soon(t), "k", "x")
	if !errors.Is(err, fault.Unavailable) || errors.Is(err, pg.ErrOutcomeUnknown) {
		t.Errorf("Put = %v, want Unavailable, not written", err)
	}
}

// What fails only at COMMIT is blamed like any other.
func TestBatcherBlamesAtCommit(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg := newLogbook(t, pool)
	if _, err := pool.Exec(soon(t), `
		CREATE TABLE known (key text PRIMARY KEY);
		INSERT INTO known VALUES ('a'), ('c');
		ALTER TABLE journal ADD FOREIGN KEY (key) REFERENCES known DEFERRABLE INITIALLY DEFERRED`); err != nil {
		t.Fatal(err)
	}
	b := pg.NewBatcher(cfg)
	keys := []string{"a", "b", "c"}
	var answers []<-chan answer
	for i, k := range keys {
		answers = append(answers, put(soon(t), b, k, "x"))
		taken(t, b, i+1)
	}
	run(t, b)
	for i, k := range keys {
		if got := answered(t, answers[i]); errors.Is(got.err, fault.Conflict) != (k == "b") {
			t.Errorf("Put(%s) = %v", k, got)
		}
	}
}

func TestBatcherNoticesAFlushThatHidesAnError(t *testing.T) {
	t.Parallel()
	cfg := newLogbook(t, pgtest.Schema(t))
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		if batch.Entries[0].Key == "commits" {
			return tx.Commit(ctx)
		}
		_ = raise(ctx, tx, "22012")
		return nil
	}
	b := pg.NewBatcher(cfg)
	run(t, b)
	for _, k := range []string{"hides", "commits"} {
		if _, err := b.Put(soon(t), k, "x"); err == nil || errors.Is(err, pg.ErrOutcomeUnknown) {
			t.Errorf("Put(%s) = %v, want an error", k, err)
		}
	}
}

func TestBatcherDoesNotWaitForWhatIsHopeless(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	cfg := newLogbook(t, pgtest.Pool(t, url))
	closed, err := pgxpool.New(soon(t), url)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	elsewhere, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.ConnConfig.Database = "nowhere"
	nowhere, err := pgxpool.NewWithConfig(soon(t), elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nowhere.Close)
	for _, pool := range []*pgxpool.Pool{closed, nowhere} {
		cfg.Pool = pool
		b := pg.NewBatcher(cfg)
		run(t, b)
		if _, err := b.Put(soon(t), "k", "x"); !errors.Is(err, fault.Unavailable) {
			t.Errorf("Put = %v, want Unavailable", err)
		}
	}
}

// While the server is away callers that give up are gone: nothing of theirs is
// written when it comes back, and what was posted is.
func TestBatcherOutage(t *testing.T) {
	t.Parallel()
	cfg, proxy, direct := proxied(t, pgtest.Database(t))
	var flushes atomic.Int32
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		flushes.Add(1)
		return flushLogbook(ctx, tx, batch)
	}
	b := pg.NewBatcher(cfg)
	stop := run(t, b)
	if _, err := b.Put(soon(t), "k", "1"); err != nil {
		t.Fatal(err)
	}
	proxy.Refuse(true)
	proxy.Cut()
	ctx, cancel := context.WithCancel(soon(t))
	impatient := put(ctx, b, "k", "2")
	eventually(t, "a repeat", func() bool { return b.Stats().Retries > 0 })
	for i := range 100 {
		if err := b.Post(soon(t), "k", fmt.Sprint(i%10)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	// It may be asked to leave in the moment between two repeats, or not; what it
	// is told is true.
	got := answered(t, impatient)
	proxy.Refuse(false)
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	want := "1" + strings.Repeat("0123456789", 10)
	row := logged(t, direct)["k"]
	if errors.Is(got.err, pg.ErrOutcomeUnknown) {
		row = strings.Replace(row, "12012", "1012", 1)
	}
	if row != want {
		t.Errorf("k = %q after %v, want %q", row, got, want)
	}
}

func TestBatcherDrains(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg := newLogbook(t, pool)
	cfg.Every, cfg.MaxBatch, cfg.MaxPending = time.Hour, 2, 5
	b := pg.NewBatcher(cfg)
	ctx := soon(t)
	var answers []<-chan answer
	for i := range 7 { // two find no room
		answers = append(answers, put(ctx, b, "k", fmt.Sprint(i)))
		eventually(t, "taken or blocked", func() bool { s := b.Stats(); return s.Pending+s.Blocked == i+1 })
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Run(ended); err != nil {
		t.Errorf("Run = %v", err)
	}
	for i, a := range answers {
		if got := answered(t, a); got != (answer{i + 1, nil}) {
			t.Errorf("Put %d = %v", i, got)
		}
	}
	if got := logged(t, pool)["k"]; got != "0123456" {
		t.Errorf("k = %q", got)
	}
	if _, err := b.Put(ctx, "k", "x"); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Put after Run = %v, want Unavailable", err)
	}
	if err := b.Post(ctx, "k", "x"); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Post after Run = %v, want Unavailable", err)
	}
	if err := b.Sync(ctx); err != nil {
		t.Errorf("Sync after Run = %v", err)
	}
	if err := b.Run(ctx); err == nil {
		t.Error("a second Run = nil, want an error")
	}
}

func TestBatcherSaysWhatItCouldNotDrain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg, g := newLogbook(t, pool), newGate()
	cfg.Flush, cfg.DrainFor, cfg.MaxBatch, cfg.MaxPending = g.flush, 10*time.Millisecond, 2, 4
	b := pg.NewBatcher(cfg)
	ctx := soon(t)
	var answers []<-chan answer
	for i := range 5 {
		answers = append(answers, put(ctx, b, "k", fmt.Sprint(i)))
		eventually(t, "taken or blocked", func() bool { s := b.Stats(); return s.Pending+s.Blocked == i+1 })
	}
	posted := make(chan error, 1)
	go func() { posted <- b.Post(ctx, "k", "5") }()
	eventually(t, "blocked", func() bool { return b.Stats().Blocked == 2 })
	stop := run(t, b)
	g.next(t)
	err := stop()
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(fmt.Sprint(err), "values were not written") {
		t.Errorf("Run = %v, want how many were not written", err)
	}
	for i, a := range answers {
		if got := answered(t, a); !errors.Is(got.err, fault.Unavailable) || errors.Is(got.err, pg.ErrOutcomeUnknown) {
			t.Errorf("Put %d = %v, want Unavailable and known", i, got)
		}
	}
	pgtest.Receive(t, posted, "the end of Post") // refused, or taken in the last moment and then told to Failed
	if got := logged(t, pool); len(got) != 0 {
		t.Errorf("rows = %v, want none", got)
	}
}

// What Flush leaves out fails alone, in one transaction with the others, and whoever
// is to hear of it has heard when Sync returns.
func TestBatcherFlushLeavesOut(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg := newLogbook(t, pool)
	refused := errors.New("not this one")
	var heard []string
	cfg.Failed = func(key, value string, err error) { heard = append(heard, fmt.Sprint(key, value, " ", err)) }
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		kept := logbookBatch{}
		for _, e := range batch.Entries {
			if e.Key == "b" {
				for i := range e.Values {
					e.Errors[i] = refused
				}
				continue
			}
			kept.Entries = append(kept.Entries, e)
		}
		return flushLogbook(ctx, tx, kept)
	}
	b := pg.NewBatcher(cfg)
	keys := []string{"a", "b", "c"}
	var answers []<-chan answer
	for i, k := range keys {
		answers = append(answers, put(soon(t), b, k, "x"))
		taken(t, b, i+1)
	}
	if err := b.Post(soon(t), "b", "y"); err != nil {
		t.Fatal(err)
	}
	run(t, b)
	for i, k := range keys {
		if got := answered(t, answers[i]); k == "b" && got.err != refused || k != "b" && (got.err != nil || got.n != 1) {
			t.Errorf("Put(%q) = %+v", k, got)
		}
	}
	if err := b.Sync(soon(t)); err != nil {
		t.Fatal(err)
	}
	if want := []string{"by not this one"}; !slices.Equal(heard, want) {
		t.Errorf("Failed heard %q, want %q", heard, want)
	}
	if s := b.Stats(); s.Flushes != 1 || s.Written != 2 || s.Failed != 2 || s.Halvings != 0 {
		t.Errorf("Stats = %+v, want one flush with 2 of 4 written", s)
	}
}
