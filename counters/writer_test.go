package counters_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// counting is what a Store and a Writer have in common.
type counting interface {
	Apply(ctx context.Context, events ...counters.Event) (int, error)
	Track(ctx context.Context, key string, at time.Time, v counters.Values) error
	Assert(ctx context.Context, key string, at time.Time, v counters.Values) error
}

var (
	_ counting = (*counters.Store)(nil)
	_ counting = (*counters.Writer)(nil)
)

// running runs a Writer until stop is called, at the end of the test if not before.
func running(t testing.TB, w *counters.Writer) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return pgtest.Receive(t, ran, "the end of Run") })
	t.Cleanup(func() { stop() })
	pgtest.Until(t, "it runs", w.Running)
	return stop
}

// What 64 goroutines add through a Writer is what the rows hold: with the Store beside
// it, which counts as many.
func TestWriterCountsAll(t *testing.T) {
	t.Parallel()
	for _, fast := range []bool{false, true} {
		t.Run(fmt.Sprint("fast ", fast), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, _ := newStore(t, counters.Config{})
			w := counters.NewWriter(s, counters.WriterConfig{Fast: fast, MaxEvents: 100})
			stop := running(t, w)
			var callers errgroup.Group
			for c := range 64 {
				callers.Go(func() error {
					for i := range 25 {
						var by counting = w
						if c == 0 {
							by = s
						}
						if err := by.Track(ctx, []string{"hot", "other"}[i%2], at, counters.Values{"n": 1, "half": 0.5, "max": counters.Max(c)}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := callers.Wait(); err != nil {
				t.Fatal(err)
			}
			if !fast { // what was answered is there
				if got := hour(t, s, "__system__key__")["count"]; !got.(counters.Number).Equal(number(1600)) {
					t.Errorf("%v events, want 1600", got)
				}
			}
			if err := stop(); err != nil { // what was taken is there after Run
				t.Fatal(err)
			}
			if diff := cmp.Diff(counters.Values{"n": number(13 * 64), "half": number(13 * 32), "max": number(63)}, hour(t, s, "hot")); diff != "" {
				t.Error(diff)
			}
			if got := w.Stats(); got.Written != 63*25 || got.Flushes >= got.Written || got.Pending != 0 {
				t.Errorf("Stats = %+v", got)
			}
		})
	}
}

// D4: what is wrong with some fails no other, whether a row or an event before it is to
// blame, and no transaction is divided for it.
func TestWriterFailsTheBadAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h"}})
	if err := s.Assert(ctx, "k", at, counters.Values{"note": "text", "list": []any{}, "other": true}); err != nil {
		t.Fatal(err)
	}
	one := func(op counters.Op, v counters.Values) []counters.Event {
		return []counters.Event{{Op: op, Key: "k", At: at, Values: v}}
	}
	calls := []struct {
		events []counters.Event
		want   string
	}{
		{one(counters.OpAdd, counters.Values{"n": 1}), ""},
		{one(counters.OpAdd, counters.Values{"n": 1, "note": 1}), `values.note: k::1h::1746522000 holds "text", which is no number`},
		{one(counters.OpAdd, counters.Values{"list": counters.Max(1)}), `values.list: k::1h::1746522000 holds [], which`},
		{one(counters.OpPut, counters.Values{"word": "x"}), ""},
		{one(counters.OpAdd, counters.Values{"n": 1, "word": 1}), `values.word: the text "x"`},
		{append(one(counters.OpAdd, counters.Values{"n": 100}), one(counters.OpAdd, counters.Values{"other": 1})...), `events[1].values.other: k::1h::1746522000 holds true`},
		{one(counters.OpPut, counters.Values{"note": 5}), ""},
		{one(counters.OpAdd, counters.Values{"note": 1, "n": 1}), ""},
	}
	w := counters.WriterOf(s, counters.WriterConfig{}, 100)
	together(ctx, t, w, len(calls), func(i int) {
		n, err := w.Apply(ctx, calls[i].events...)
		switch want := calls[i].want; {
		case want == "":
			if n != 1 || err != nil {
				t.Errorf("%d: %d, %v", i, n, err)
			}
		case n != 0 || !errors.Is(err, counters.ErrNotNumber) || !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "counters: apply: "+want):
			t.Errorf("%d: %d, %v; want %s", i, n, err, want)
		}
	})
	if diff := cmp.Diff(counters.Values{"n": number(2), "note": number(6), "list": []any{}, "other": true, "word": "x"}, hour(t, s, "k")); diff != "" {
		t.Error(diff)
	}
	if got := w.Stats(); got.Flushes != 1 || got.Halvings != 0 || got.Written != 4 || got.Failed != 4 {
		t.Errorf("Stats = %+v, want one transaction", got)
	}
}

// D16: an ID that several in one transaction have is that of the first who is not
// refused, and is given back by who is.
func TestWriterIDs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{System: counters.Off})
	if err := s.Assert(ctx, "k", at, counters.Values{"note": "text"}); err != nil {
		t.Fatal(err)
	}
	event := func(id, hash, field string) counters.Event {
		e := counters.Event{ID: id, Key: "k", At: at, Values: counters.Values{field: 1}}
		if hash != "" {
			e.Hash = []byte(hash)
		}
		return e
	}
	if _, err := s.Apply(ctx, event("before", "h", "n")); err != nil {
		t.Fatal(err)
	}
	calls := []struct {
		events []counters.Event
		n      int
		want   error
	}{
		{[]counters.Event{event("a", "", "n")}, 1, nil},
		{[]counters.Event{event("a", "", "n")}, 0, nil},
		{[]counters.Event{event("before", "h", "n"), event("b", "", "n")}, 1, nil},
		{[]counters.Event{event("before", "other", "n"), event("c", "", "n")}, 0, counters.ErrReused},
		{[]counters.Event{event("c", "", "n")}, 1, nil},
		{[]counters.Event{event("d", "1", "note")}, 0, counters.ErrNotNumber},
		{[]counters.Event{event("d", "2", "n")}, 1, nil},
		{[]counters.Event{event("d", "1", "n")}, 0, counters.ErrReused},
		{[]counters.Event{event("a", "", "other")}, 0, counters.ErrReused},
		{[]counters.Event{event("e", "", "note"), event("f", "", "n")}, 0, counters.ErrNotNumber},
		{[]counters.Event{event("g", "", "n"), event("g", "", "n"), event("", "", "n")}, 3, nil},
	}
	w := counters.WriterOf(s, counters.WriterConfig{}, 100)
	together(ctx, t, w, len(calls), func(i int) {
		if n, err := w.Apply(ctx, calls[i].events...); n != calls[i].n || !errors.Is(err, calls[i].want) {
			t.Errorf("%d: %d, %v; want %d, %v", i, n, err, calls[i].n, calls[i].want)
		}
	})
	if diff := cmp.Diff(counters.Values{"n": number(8), "note": "text"}, hour(t, s, "k")); diff != "" {
		t.Error(diff)
	}
	rows, _ := pool.Query(ctx, `SELECT concat(id, CASE WHEN length(hash) < 16 THEN convert_from(hash, 'UTF8') END) FROM howdah.counter_events WHERE tbl = format('%I.trifle_stats', current_schema()) ORDER BY id`)
	kept, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if diff := cmp.Diff([]string{"a", "b", "beforeh", "c", "d2", "g"}, kept); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// ApplyEach tells of each, in one transaction and without one.
func TestWriterApplyEach(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t, counters.Config{})
	if err := s.Assert(ctx, "k", at, counters.Values{"note": "text"}); err != nil {
		t.Fatal(err)
	}
	w := counters.NewWriter(s, counters.WriterConfig{Fast: true})
	for i, want := range []uint64{0, 1} {
		if i == 1 {
			running(t, w)
		}
		events := make([]counters.Event, 5)
		for n := range events {
			events[n] = counters.Event{Key: "k", At: at, Values: counters.Values{"n": 1}}
		}
		events[1].Key = ""
		events[2].ID, events[4].ID = fmt.Sprint(i), fmt.Sprint(i)
		events[3].Values = counters.Values{"note": 1}
		var got []string
		for _, o := range w.ApplyEach(ctx, events...) {
			got = append(got, fmt.Sprint(o.Applied, " ", o.Err))
		}
		if len(got) != 5 || got[0] != "true <nil>" || got[1] != "false counters: apply: key: empty" || got[2] != "true <nil>" ||
			!strings.Contains(got[3], "which is no number") || got[4] != "false <nil>" {
			t.Errorf("%q", got)
		}
		if got := w.Stats().Flushes; got != want {
			t.Errorf("%d transactions, want %d", got, want)
		}
	}
	if got := hour(t, s, "k")["n"]; !got.(counters.Number).Equal(number(4)) {
		t.Errorf("n = %v, want 4", got)
	}
}

// A Fast Writer that is full lets callers wait; what failed, Flush and the log tell.
func TestFastWriter(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t, counters.Config{})
	if err := s.Assert(ctx, "k", at, counters.Values{"note": "text"}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	w := counters.NewWriter(s, counters.WriterConfig{Fast: true, MaxEvents: 3, Log: slog.New(slog.NewTextHandler(&log, nil))})
	w.Gather()
	values := counters.Values{"n": 1}
	for _, v := range []counters.Values{values, {"note": 1, "n": 7}, {"n": 1}} {
		if err := w.Track(ctx, "k", at, v); err != nil {
			t.Fatal(err)
		}
	}
	values["n"] = 100 // it is the caller's
	waiting, giveUp := context.WithCancel(ctx)
	full := make(chan error, 1)
	go func() { full <- w.Track(waiting, "k", at, values) }()
	pgtest.Until(t, "it waits for room", func() bool { return w.Stats().Blocked == 1 })
	giveUp()
	if err := pgtest.Receive(t, full, "the end of Track"); !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "no room for more than 3 events") {
		t.Errorf("Track of a full Writer: %v, want Exhausted", err)
	}
	if err := w.Track(ctx, "", at, nil); !errors.Is(err, fault.Invalid) {
		t.Errorf("Track of what cannot be: %v, want Invalid", err)
	}
	stop := running(t, w)
	if err := w.Flush(ctx); !errors.Is(err, counters.ErrNotNumber) || !strings.Contains(err.Error(), "events that were not written: 1, the first of them: ") {
		t.Errorf("Flush = %v", err)
	}
	if err := w.Flush(ctx); err != nil {
		t.Errorf("the next Flush = %v", err)
	}
	if got := hour(t, s, "k")["n"]; !got.(counters.Number).Equal(number(2)) {
		t.Errorf("n = %v, want 2", got)
	}
	for _, want := range []string{`msg="event was not written" op=add key=k`, `values="map[n:7 note:1]"`, "which is no number"} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("log: %s, want %s", log.String(), want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// What is too large for a shared transaction comes after what was taken before it.
func TestFastWriterKeepsOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h"}})
	w := counters.NewWriter(s, counters.WriterConfig{Fast: true})
	w.Gather()
	if err := w.Assert(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	large := make([]counters.Event, 9000)
	for i := range large {
		large[i] = counters.Event{Op: counters.OpPut, Key: "k", At: at, Values: counters.Values{"n": 2}}
	}
	applied := make(chan error, 1)
	go func() {
		_, err := w.Apply(ctx, large...)
		applied <- err
	}()
	select {
	case err := <-applied:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	running(t, w)
	if err := pgtest.Receive(t, applied, "the end of Apply"); err != nil {
		t.Fatal(err)
	}
	if got := hour(t, s, "k")["n"]; !got.(counters.Number).Equal(number(2)) {
		t.Errorf("n = %v, want 2", got)
	}
}

// Events that the end leaves unwritten are counted, and each is logged.
func TestWriterThatCannotDrain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, pool := newStore(t, counters.Config{})
	pool, err := pgxpool.NewWithConfig(ctx, pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	s := counters.New(pool, counters.Config{})
	var log bytes.Buffer
	w := counters.NewWriter(s, counters.WriterConfig{Fast: true, RetryFor: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))})
	w.Gather()
	events := []counters.Event{{Key: "k", At: at}, {Key: "k", At: at}}
	if n, err := w.Apply(ctx, events...); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	pool.Close()
	done, cancel := context.WithCancel(ctx)
	cancel()
	_ = w.Run(done)
	if err := w.Flush(ctx); err == nil || !strings.Contains(err.Error(), "events that were not written: 2, ") {
		t.Errorf("Flush = %v", err)
	}
	if n := strings.Count(log.String(), "event was not written"); n != 2 {
		t.Errorf("%d entries: %s", n, log.String())
	}
}

// Without Run, and in a transaction, a Writer is its Store.
func TestWriterThatDoesNotRun(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	w := counters.NewWriter(s, counters.WriterConfig{Fast: true})
	if err := w.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Error(err)
	}
	stop := running(t, w)
	if err := w.Track(ctx, "k", at, counters.Values{"n": 10}); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := w.Assert(ctx, "k", at, counters.Values{"note": "x"}); err != nil || w.Stats().Written != 1 {
		t.Errorf("after Run: %v, %+v", err, w.Stats())
	}
	if err := w.Run(ctx); err == nil {
		t.Error("it runs twice")
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	in := counters.NewWriter(s.WithTx(tx), counters.WriterConfig{})
	if n, err := in.Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 100}}); n != 1 || err != nil {
		t.Errorf("in a transaction: %d, %v", n, err)
	}
	if err := errors.Join(in.Flush(ctx), tx.Rollback(ctx)); err != nil {
		t.Error(err)
	}
	if err := in.Run(ctx); err == nil {
		t.Error("it runs in a transaction")
	}
	if diff := cmp.Diff(counters.Values{"n": number(11), "note": "x"}, hour(t, s, "k")); diff != "" {
		t.Error(diff)
	}
}

// Where sessions change under it, as behind a pooler, there are no prepared statements.
func TestWriterWithoutPreparedStatements(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		_, pool := newStore(t, counters.Config{})
		cfg := pool.Config()
		cfg.ConnConfig.DefaultQueryExecMode = mode
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		s := counters.New(pool, counters.Config{})
		w := counters.NewWriter(s, counters.WriterConfig{})
		running(t, w)
		for _, want := range []int{1, 0} {
			n, err := w.Apply(ctx, counters.Event{ID: "a", Hash: []byte("h"), Key: "k", At: at, Values: counters.Values{"n": 1, "state": counters.Put("up")}})
			if n != want || err != nil {
				t.Errorf("%v: %d, %v", mode, n, err)
			}
		}
		if err := w.Track(ctx, "k", at, counters.Values{"state": 1}); !errors.Is(err, counters.ErrNotNumber) {
			t.Errorf("%v: %v", mode, err)
		}
		if diff := cmp.Diff(counters.Values{"n": number(1), "state": "up"}, hour(t, s, "k")); diff != "" {
			t.Errorf("%v: %s", mode, diff)
		}
	}
}

// Receipts of Writers that have been silent for a week are dropped, no others.
func TestDropReceipts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, `INSERT INTO howdah.counter_writers (id, seq, at)
		SELECT gen_random_uuid(), -1, now() - interval '1 day' * n FROM generate_series(6, 10507) AS n`); err != nil {
		t.Fatal(err)
	}
	if err := s.WithTx(tx).DropReceipts(ctx); err != nil {
		t.Fatal(err)
	}
	var left int
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM howdah.counter_writers WHERE seq = -1`).Scan(&left); err != nil || left != 2 {
		t.Errorf("%d are left, %v, want 2", left, err)
	}
}
