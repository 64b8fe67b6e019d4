package counters_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Two folds at once share the work and add nothing twice.
func TestFoldsAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Striped: []string{"m*"}, Granularities: []counters.Granularity{"1h"}, System: counters.Off})
	names := pgtest.Size(400, 100)
	var events []counters.Event
	for i := range names {
		for j := range 6 {
			events = append(events, counters.Event{Key: fmt.Sprint("m", i), At: at.Add(time.Duration(j%3) * time.Hour), Values: counters.Values{"n": 1}})
		}
	}
	for range 2 { // over two slots, mostly
		if _, err := s.Apply(ctx, events...); err != nil {
			t.Fatal(err)
		}
	}
	var folded atomic.Int64
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			n, err := s.Fold(ctx)
			if err != nil {
				t.Error(err)
			}
			folded.Add(n)
		})
	}
	group.Wait()
	if n := scalar[int](t, pool, `SELECT count(*) FROM trifle_stats WHERE data = '{"n": 4}'`); n != 3*names || folded.Load() != int64(3*names) {
		t.Errorf("%d rows, %d folded, want %d", n, folded.Load(), 3*names)
	}
	if n := slots(t, pool, "m%"); n > 0 {
		t.Errorf("%d slots are left", n)
	}
}

// A fold that dies half-way has folded nothing of its row, and the next does.
func TestFoldKilled(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Striped: []string{"hot"}, Granularities: []counters.Granularity{"1h"}, System: counters.Off})
	track := func() {
		t.Helper()
		if err := s.Track(ctx, "hot", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
	}
	for range 40 {
		track()
	}
	if _, err := pool.Exec(ctx, `
		CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$;
		CREATE TRIGGER halt BEFORE UPDATE ON trifle_stats FOR EACH ROW EXECUTE FUNCTION halt()`); err != nil {
		t.Fatal(err)
	}
	fold := make(chan error, 1)
	go func() { _, err := s.Fold(ctx); fold <- err }()
	pid := waits(t, pool, "PgSleep")
	if !scalar[bool](t, pool, `SELECT pg_terminate_backend($1)`, pid) {
		t.Fatal("it is gone already")
	}
	if err := pgtest.Receive(t, fold, "the end of Fold"); err == nil {
		t.Error("Fold went well without its connection")
	}
	if n := rowsOf(t, pool, "hot"); n > 0 {
		t.Errorf("%d rows of a fold that was killed", n)
	}
	track()
	want := counters.Values{"n": number(41)}
	if diff := cmp.Diff(want, hour(t, s, "hot")); diff != "" {
		t.Error(diff)
	}
	if _, err := pool.Exec(ctx, `DROP TRIGGER halt ON trifle_stats`); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Fold(ctx); err != nil || n != 1 {
		t.Errorf("Fold = %d, %v", n, err)
	}
	if diff := cmp.Diff(want, hour(t, s, "hot")); diff != "" || slots(t, pool, "hot") > 0 {
		t.Error(diff)
	}
}

// What cannot be added stays, and is told, and keeps nothing else; a put mends it.
func TestFoldOfWhatCannotBeAdded(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range modes {
		s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"s*"}, Granularities: []counters.Granularity{"1h"}, System: counters.Off})
		if err := s.Assert(ctx, "s1", at, counters.Values{"note": "text", "n": nil, "m": "1.5"}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"s0", "s1", "s2"} {
			if err := s.Track(ctx, name, at, counters.Values{"note": 1, "n": 1, "m": 1}); err != nil {
				t.Fatal(err)
			}
		}
		text := counters.Values{"note": "text", "n": number(1), "m": number(2.5)}
		if diff := cmp.Diff(text, hour(t, s, "s1")); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		n, err := s.Fold(ctx)
		if n != 2 || !errors.Is(err, counters.ErrNotNumber) || !strings.Contains(err.Error(), `values.note: s1`) || !strings.Contains(err.Error(), `holds "text"`) {
			t.Errorf("%s: Fold = %d, %v, want 2 and ErrNotNumber", mode, n, err)
		}
		if diff := cmp.Diff(text, hour(t, s, "s1")); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		if err := s.Assert(ctx, "s1", at, counters.Values{"n": 7}); !errors.Is(err, counters.ErrNotNumber) {
			t.Errorf("%s: Assert beside it: %v, want ErrNotNumber", mode, err)
		}
		if err := s.Assert(ctx, "s1", at, counters.Values{"note": 10}); err != nil {
			t.Errorf("%s: Assert: %v", mode, err)
		}
		if diff := cmp.Diff(counters.Values{"note": number(10), "n": number(1), "m": number(2.5)}, hour(t, s, "s1")); diff != "" || slots(t, pool, "s") > 0 {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}

// A row that somebody holds keeps the others from nothing, nor does a slot; in a
// transaction of the caller's all comes back that he takes back.
func TestFoldBesideOthers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStriped(t, counters.Config{Striped: []string{"s*"}, Granularities: []counters.Granularity{"1h"}, System: counters.Off})
	for _, name := range []string{"s1", "s2", "s3"} {
		if err := s.Track(ctx, name, at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	in := s.WithTx(tx)
	if n, err := in.Fold(ctx); n != 3 || err != nil {
		t.Errorf("Fold in a transaction = %d, %v", n, err)
	}
	if diff := cmp.Diff(counters.Values{"n": number(1)}, hour(t, in, "s1")); diff != "" {
		t.Error(diff)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if n := rowsOf(t, pool, "s1"); n > 0 {
		t.Errorf("%d rows of a fold that was taken back", n)
	}
	if tx, err = pool.Begin(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WithTx(tx).Inc(ctx, []counters.Key{{"s1", "1h", "1746522000"}}, counters.Values{"n": 1}); err != nil { // holds the row
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM howdah.counter_slots WHERE tbl = quote_ident(current_schema()) || '.trifle_stats' AND key = 's2::1h::1746522000' FOR UPDATE`); err != nil { // and the slots of another
		t.Fatal(err)
	}
	if n, err := s.Fold(ctx); n != 1 || err != nil {
		t.Errorf("Fold = %d, %v, want 1", n, err)
	}
	if n := rowsOf(t, pool, "s2"); n > 0 {
		t.Errorf("%d rows without anything", n)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Fold(ctx); n != 2 || err != nil {
		t.Errorf("Fold = %d, %v, want 2", n, err)
	}
	if diff := cmp.Diff(counters.Values{"n": number(2)}, hour(t, s, "s1")); diff != "" {
		t.Error(diff)
	}
}

// Whoever is about to overwrite rows gathers what is in their slots.
func TestGather(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range modes {
		s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"s*"}, System: counters.Off})
		for range 10 {
			if err := s.Track(ctx, "s1", at, counters.Values{"n": 1}); err != nil {
				t.Fatal(err)
			}
		}
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := s.Gather(ctx, tx, counters.Key{"none", "1h", "1746522000"}); err != nil {
				return err
			}
			return s.Gather(ctx, tx, counters.Key{"s1", "1h", "1746522000"}, counters.Key{"s1", "1d", "1746489600"}, counters.Key{"s1", "1h", "1746522000"})
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := scalar[int](t, pool, `SELECT count(*) FROM trifle_stats WHERE data = '{"n": 10}'`); n != 2 {
			t.Errorf("%s: %d rows, want 2", mode, n)
		}
		if n := scalar[int](t, pool, `SELECT count(*) FROM trifle_stats`); n != 2 {
			t.Errorf("%s: %d rows, want 2", mode, n)
		}
		if diff := cmp.Diff(counters.Values{"n": number(10)}, hour(t, s, "s1")); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}

// With many rows, and many slots of this table and another, all find their way by the
// key; series are whole at the seams of their parts.
func TestPlansOfSlots(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"m1*"}})
			row := map[counters.Mode]string{
				counters.Full:      `'m' || i % 20 || '::1h::' || h`,
				counters.Partial:   `'m' || i % 20 || '::1h', to_timestamp(h)`,
				counters.Separated: `'m' || i % 20, '1h', to_timestamp(h)`,
			}[mode]
			for _, sql := range []string{
				`INSERT INTO trifle_stats SELECT ` + row + `, '{"n": 1}' FROM generate_series(0, 29999) AS i, LATERAL (SELECT 1746522000 + i / 20 * 3600 AS h) AS hours`,
				`INSERT INTO howdah.counter_slots SELECT tbl, 'm' || i % 20 || '::1h::' || 1746522000 + i / 60 * 3600, i / 20 % 3, '{"n": 1}'
				FROM generate_series(0, 17999) AS i, unnest(ARRAY[quote_ident(current_schema()) || '.trifle_stats', quote_ident(current_schema()) || '.other']) AS tbl`,
				`ANALYZE trifle_stats`, `ANALYZE howdah.counter_slots`,
			} {
				if _, err := pool.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Get(ctx, nil); err != nil {
				t.Fatal(err)
			}
			explained := pgtest.Explain(t, pool)
			in := s.WithTx(explained)
			q := counters.Query{Key: "m17", From: time.Unix(1746522000, 0), To: time.Unix(1746522000+1599*3600, 0), Granularity: "1h"}
			check := func(name string, do func() error, indexes ...string) {
				t.Helper()
				if err := do(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				plan := explained.Plan()
				for _, index := range indexes {
					if !strings.Contains(plan, index) {
						t.Errorf("%s without %s:\n%s", name, index, plan)
					}
				}
				if strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Rows Removed by Filter") {
					t.Errorf("%s:\n%s", name, plan)
				}
			}
			check("Get", func() error {
				got, err := in.Get(ctx, []counters.Key{{"m17::1h::1746522000"}, {"m3::1h::1746525600"}})
				if diff := cmp.Diff([]counters.Values{{"n": number(4)}, {"n": number(1)}}, got); diff != "" {
					t.Error(diff)
				}
				return err
			}, "trifle_stats_pkey", "counter_slots_pk")
			check("Values", func() error { return second(in.Values(ctx, q)) }, "trifle_stats_pkey", "counter_slots_pk")
			whole, err := s.Values(ctx, counters.Query{Key: q.Key, From: q.From, To: q.To, Granularity: q.Granularity, SkipBlanks: true})
			if err != nil || len(whole.At) != 1500 {
				t.Fatalf("%d points, %v", len(whole.At), err)
			}
			check("Rows", func() error {
				i := 0
				for p, err := range in.Rows(ctx, q) {
					n := 1
					if i < 300 {
						n = 4
					}
					if err != nil || !p.At.Equal(whole.At[i]) || cmp.Diff(counters.Values{"n": number(n)}, p.Values) != "" || cmp.Diff(p.Values, whole.Values[i]) != "" {
						return fmt.Errorf("point %d: %v, %w", i, p, err)
					}
					i++
				}
				if i != len(whole.At) {
					t.Errorf("%d points, want %d", i, len(whole.At))
				}
				return nil
			}, "trifle_stats_pkey", "counter_slots_pk")
			check("fold of a row", func() error { return in.FoldRow(ctx, counters.Key{"m17::1h::1746522000"}) }, "counter_slots_pk")
			check("gather", func() error { return in.Gather(ctx, explained, counters.Key{"m18::1h::1746522000"}) }, "counter_slots_pk")
			check("keys", func() error { return second(in.WaitingKeys(ctx)) }, "counter_slots_pk")
		})
	}
}
