package pg_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

type (
	// A logbook appends texts to rows: what was written, how often and in what
	// order can be read off a row. The result of a put is the row's length after it.
	logbook       = pg.Batcher[string, string, int]
	logbookConfig = pg.BatcherConfig[string, string, int]
	logbookBatch  = pg.Batch[string, string, int]
)

// newLogbook makes the table and returns a configuration that writes to it. The
// server refuses texts that contain "poison", and a text "panic" is not survived.
func newLogbook(t testing.TB, pool *pgxpool.Pool) logbookConfig {
	t.Helper()
	if _, err := pool.Exec(soon(t), `
		CREATE TABLE journal (
			key text COLLATE "C" PRIMARY KEY,
			val text NOT NULL CONSTRAINT wholesome CHECK (val NOT LIKE '%poison%'))`); err != nil {
		t.Fatal(err)
	}
	return logbookConfig{
		Name:    "journal",
		Pool:    pool,
		Compare: cmp.Compare[string],
		Flush:   flushLogbook,
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func flushLogbook(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
	keys := make([]string, len(batch.Entries))
	vals := make([]string, len(batch.Entries))
	for i, e := range batch.Entries {
		keys[i], vals[i] = e.Key, strings.Join(e.Values, "")
		if slices.Contains(e.Values, "panic") {
			panic("cannot write panic")
		}
	}
	rows, _ := tx.Query(ctx, `
		INSERT INTO journal SELECT * FROM unnest($1::text[], $2::text[])
		ON CONFLICT (key) DO UPDATE SET val = journal.val || EXCLUDED.val
		RETURNING length(val)`, keys, vals)
	lengths, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return err
	}
	for i, e := range batch.Entries {
		n := lengths[i] - len(vals[i])
		for j, v := range e.Values {
			n += len(v)
			e.Results[j] = n
		}
	}
	return nil
}

// logged returns the rows of the journal.
func logged(t testing.TB, pool *pgxpool.Pool) map[string]string {
	t.Helper()
	rows, err := pool.Query(soon(t), "SELECT key, val FROM journal")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	var k, v string
	if _, err := pgx.ForEachRow(rows, []any{&k, &v}, func() error { got[k] = v; return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

// run runs b; stop ends it and returns what Run returned. The test ends it too.
func run(t testing.TB, b interface{ Run(context.Context) error }) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	done := make(chan struct{})
	go func() { defer close(done); err = b.Run(ctx) }()
	stop = func() error { cancel(); pgtest.Receive(t, done, "the end of Run"); return err }
	t.Cleanup(func() { _ = stop() })
	return stop
}

// soon bounds a step of a test on a machine that may be very busy.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

var eventually = pgtest.Until

// gate is a Flush that can be held: it says that it has begun and waits.
type gate struct {
	begun chan logbookBatch
	open  chan struct{}
}

func newGate() *gate { return &gate{make(chan logbookBatch, 100), make(chan struct{}, 100)} }

func (g *gate) flush(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
	g.begun <- batch
	select {
	case <-g.open:
	case <-ctx.Done():
		return ctx.Err()
	}
	return flushLogbook(ctx, tx, batch)
}

func (g *gate) next(t testing.TB) logbookBatch {
	t.Helper()
	return pgtest.Receive(t, g.begun, "a flush begins")
}

type answer struct {
	n   int
	err error
}

// put puts in the background.
func put(ctx context.Context, b *logbook, k, v string) <-chan answer {
	c := make(chan answer, 2)
	go func() {
		n, err := b.Put(ctx, k, v)
		c <- answer{n, err}
	}()
	return c
}

// answered waits for the answer to a put.
func answered(t testing.TB, c <-chan answer) answer {
	t.Helper()
	return pgtest.Receive(t, c, "the answer to a Put")
}

// taken waits until b holds n values.
func taken(t testing.TB, b *logbook, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d pending", n), func() bool { return b.Stats().Pending == n })
}

func TestBatcherGroupsWhatCameMeanwhile(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg, g := newLogbook(t, pool), newGate()
	cfg.Flush = g.flush
	b := pg.NewBatcher(cfg)
	run(t, b)

	ctx := soon(t)
	first := put(ctx, b, "b", "1")
	if got := g.next(t); len(got.Entries) != 1 {
		t.Fatalf("first batch = %v, want a single entry", got.Entries)
	}
	var answers []<-chan answer
	for i, kv := range [][2]string{{"c", "2"}, {"b", "3"}, {"a", "4"}, {"b", "56"}} {
		answers = append(answers, put(ctx, b, kv[0], kv[1]))
		taken(t, b, i+2)
	}
	if got, want := fmt.Sprint(b.Pending("b")), "[1 3 56]"; got != want {
		t.Errorf("Pending = %s, want %s", got, want)
	}
	g.open <- struct{}{}
	if got := answered(t, first); got != (answer{1, nil}) {
		t.Errorf("first Put = %v", got)
	}
	var got []string
	for _, e := range g.next(t).Entries {
		got = append(got, e.Key+fmt.Sprint(e.Values))
	}
	if want := []string{"a[4]", "b[3 56]", "c[2]"}; !slices.Equal(got, want) {
		t.Errorf("second batch = %v, want %v", got, want)
	}
	g.open <- struct{}{}
	for i, want := range []int{1, 2, 1, 4} {
		if got := answered(t, answers[i]); got != (answer{want, nil}) {
			t.Errorf("Put %d = %v, want %d", i, got, want)
		}
	}
	if s := b.Stats(); s.Flushes != 2 || s.Written != 5 || s.Largest != 4 || s.Pending != 0 || s.Retries+s.Halvings+s.Failed != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

func TestBatcherBlamesOnlyThePoisoned(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	b := pg.NewBatcher(newLogbook(t, pool))
	ctx := soon(t)
	values := []string{"1", "2", "poison", "3", "panic", "4", "\x00", "5"}
	var answers []<-chan answer
	for i, v := range values {
		answers = append(answers, put(ctx, b, "k", v))
		taken(t, b, 2*i+1)
		answers = append(answers, put(ctx, b, "other"+v[:1], "x"))
		taken(t, b, 2*i+2)
	}
	run(t, b)
	for i, a := range answers {
		got, bad := answered(t, a), false
		if i%2 == 0 {
			bad = slices.Contains([]string{"poison", "panic", "\x00"}, values[i/2])
		} else if values[i/2] == "\x00" {
			bad = true // its key has it too
		}
		if (got.err != nil) != bad {
			t.Errorf("Put %d (%q) = %v, want an error: %v", i, values[i/2], got, bad)
		}
		if got.err != nil && errors.Is(got.err, pg.ErrOutcomeUnknown) {
			t.Errorf("Put %d = %v: known to be unwritten", i, got.err)
		}
	}
	rows := logged(t, pool)
	if rows["k"] != "12345" {
		t.Errorf("k = %q, want 12345", rows["k"])
	}
	if s := b.Stats(); s.Failed != 4 || s.Written != 12 {
		t.Errorf("Stats = %+v, want 4 failed and 12 written", s)
	}
}

func TestBatcherErrorHasKindAndName(t *testing.T) {
	t.Parallel()
	b := pg.NewBatcher(newLogbook(t, pgtest.Schema(t)))
	run(t, b)
	_, err := b.Put(soon(t), "k", "poison")
	if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(fmt.Sprint(err), "journal: ") {
		t.Errorf("Put(poison) = %v, want journal: … of kind Invalid", err)
	}
}

func TestBatcherWithdrawsWhatNoFlushCarries(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg, g := newLogbook(t, pool), newGate()
	cfg.Flush = g.flush
	b := pg.NewBatcher(cfg)
	run(t, b)

	ctx, cancel := context.WithCancel(soon(t))
	flying := put(ctx, b, "k", "flying")
	g.next(t)
	waiting := put(ctx, b, "k", "waiting")
	taken(t, b, 2)
	cancel()
	if got := answered(t, flying); !errors.Is(got.err, context.Canceled) || !errors.Is(got.err, pg.ErrOutcomeUnknown) {
		t.Errorf("Put in a flush = %v, want canceled and outcome unknown", got.err)
	}
	if got := answered(t, waiting); !errors.Is(got.err, context.Canceled) || errors.Is(got.err, pg.ErrOutcomeUnknown) {
		t.Errorf("Put outside a flush = %v, want canceled, not written", got.err)
	}
	g.open <- struct{}{}
	if err := b.Sync(soon(t)); err != nil {
		t.Fatal(err)
	}
	if got := logged(t, pool)["k"]; got != "flying" {
		t.Errorf("k = %q, want flying", got)
	}
	if _, err := b.Put(ctx, "k", "late"); !errors.Is(err, context.Canceled) {
		t.Errorf("Put with a context that has ended = %v", err)
	}
	if s := b.Stats(); s.Withdrawn != 1 || s.Pending != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

func TestBatcherBlocksWhenFull(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg := newLogbook(t, pool)
	cfg.Size = func(_, v string) int { return len(v) }
	cfg.MaxPending, cfg.MaxPendingBytes, cfg.MaxBatchBytes = 3, 10, 8
	b := pg.NewBatcher(cfg)
	if _, err := b.Put(soon(t), "k", "123456789"); !errors.Is(err, fault.Exhausted) {
		t.Errorf("Put of 9 bytes = %v, want Exhausted", err)
	}
	ctx, cancel := context.WithCancel(soon(t))
	for range 3 {
		if err := b.Post(ctx, "k", "ab"); err != nil {
			t.Fatal(err)
		}
	}
	blocked := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprint(n, " blocked"), func() bool { return b.Stats().Blocked == n })
	}
	given := put(ctx, b, "k", "given up")
	blocked(1)
	posted := make(chan error, 1)
	go func() { posted <- b.Post(ctx, "k", "up too") }()
	blocked(2)
	cancel()
	if got := answered(t, given); !errors.Is(got.err, context.Canceled) {
		t.Errorf("blocked Put = %v, want canceled", got.err)
	}
	if err := pgtest.Receive(t, posted, "the end of Post"); !errors.Is(err, context.Canceled) {
		t.Errorf("blocked Post = %v, want canceled", err)
	}
	ctx = soon(t)
	large := put(ctx, b, "k", "CDEFGHIJ") // room for three, but not for this many bytes
	blocked(1)
	go func() { posted <- b.Post(ctx, "k", "k") }()
	blocked(2)
	run(t, b)
	if got := answered(t, large); got != (answer{14, nil}) {
		t.Errorf("Put = %v, want 14", got)
	}
	if err := pgtest.Receive(t, posted, "the end of Post"); err != nil {
		t.Errorf("Post = %v", err)
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := logged(t, pool)["k"]; got != "abababCDEFGHIJk" {
		t.Errorf("k = %q, want abababCDEFGHIJk", got)
	}
}

func TestBatcherWaitsForCompany(t *testing.T) {
	t.Parallel()
	cfg := newLogbook(t, pgtest.Schema(t))
	cfg.Every, cfg.MaxBatch = time.Hour, 3
	b := pg.NewBatcher(cfg)
	run(t, b)
	ctx := soon(t)
	for _, v := range []string{"1", "2"} {
		if err := b.Post(ctx, "k", v); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := b.Put(ctx, "k", "3"); n != 3 || err != nil { // the batch is full
		t.Errorf("Put = %d, %v, want 3", n, err)
	}
	if err := b.Post(ctx, "k", "4"); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(ctx); err != nil {
		t.Errorf("Sync = %v", err)
	}
	if s := b.Stats(); s.Flushes != 2 || s.Written != 4 {
		t.Errorf("Stats = %+v, want 4 values in 2 flushes", s)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Post(ctx, "k", "5"); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Sync = %v, want canceled", err)
	}
}

func TestBatcherFlushesAfterEvery(t *testing.T) {
	t.Parallel()
	cfg := newLogbook(t, pgtest.Schema(t))
	cfg.Every = time.Millisecond
	b := pg.NewBatcher(cfg)
	run(t, b)
	for want := 1; want <= 3; want++ {
		if n, err := b.Put(soon(t), "k", "x"); n != want || err != nil {
			t.Errorf("Put = %d, %v, want %d", n, err, want)
		}
	}
}

func TestBatcherTellsOfPostsThatFailed(t *testing.T) {
	t.Parallel()
	cfg := newLogbook(t, pgtest.Schema(t))
	var mu sync.Mutex
	var failed []string
	cfg.Failed = func(_, v string, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, fmt.Sprint(v, errors.Is(err, fault.Invalid)))
	}
	b := pg.NewBatcher(cfg)
	ctx := soon(t)
	for _, v := range []string{"1", "poison", "2", "poison too", "3"} {
		if err := b.Post(ctx, "k", v); err != nil {
			t.Fatal(err)
		}
	}
	run(t, b)
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"poisontrue", "poison tootrue"}; !slices.Equal(failed, want) {
		t.Errorf("Failed heard of %q, want %q", failed, want)
	}
}

func TestBatcherNeverFliesAKeyTwice(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg, g := newLogbook(t, pool), newGate()
	cfg.Flush, cfg.Parallel = g.flush, 2
	b := pg.NewBatcher(cfg)
	run(t, b)
	ctx := soon(t)
	put(ctx, b, "a", "1")
	g.next(t)
	put(ctx, b, "a", "2")
	taken(t, b, 2)
	put(ctx, b, "b", "3")
	if got := g.next(t); len(got.Entries) != 1 || got.Entries[0].Key != "b" {
		t.Errorf("beside a flush of a runs %v, want b alone", got.Entries)
	}
	select {
	case got := <-g.begun:
		t.Errorf("a third flush: %v", got.Entries)
	default:
	}
	for range 3 {
		g.open <- struct{}{}
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := logged(t, pool); got["a"] != "12" || got["b"] != "3" {
		t.Errorf("rows = %v, want a 12, b 3", got)
	}
}
