package counters_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// What a transaction of the caller's sees of an old moment, others do not take for what
// holds.
func TestOldSnapshotIsNotKept(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, pool := newStore(t, counters.Config{})
	s := counters.New(pool, counters.Config{})
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, `SELECT FROM trifle_stats`); err != nil {
		t.Fatal(err)
	}
	if err := counters.New(pool, counters.Config{Striped: []string{"hot"}}).Setup(ctx); err != nil {
		t.Fatal(err)
	}
	if err := known(t, pool, counters.Config{}).Track(ctx, "hot", at, counters.Values{"n": 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WithTx(tx).Get(ctx, key("hot::1h::1746522000")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(counters.Values{"n": number(5)}, hour(t, s, "hot")); diff != "" {
		t.Error(diff)
	}
}

// Names are striped by a commit that all can see in time.
func TestStripingInATransaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, pool := newStore(t, counters.Config{Striped: []string{"hot"}})
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := counters.New(tx, counters.Config{Striped: []string{"hot"}, System: counters.Off}).Setup(ctx); err != nil { // changes none
			return err
		}
		err := counters.New(tx, counters.Config{Striped: []string{"hot", "hotter"}}).Setup(ctx)
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("%v, want Invalid", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What takes long hears of names that are striped meanwhile.
func TestStripedMeanwhile(t *testing.T) {
	t.Parallel()
	midway := time.Date(2025, 5, 7, 9, 0, 0, 0, time.UTC)
	tests := map[string]func(ctx context.Context, s *counters.Store, change func()) error{
		"ApplyAll": func(ctx context.Context, s *counters.Store, change func()) error {
			_, err := s.ApplyAll(ctx, func(yield func(counters.Event, error) bool) {
				change()
				yield(counters.Event{Op: counters.OpPut, Key: "hot", At: midway, Values: counters.Values{"n": 1}}, nil)
			}, counters.ApplyOptions{})
			return err
		},
		"Replace": func(ctx context.Context, s *counters.Store, change func()) error {
			_, err := s.Replace(ctx, "hot", at.Truncate(24*time.Hour), midway.Truncate(24*time.Hour).AddDate(0, 0, 1), func(yield func(counters.Event, error) bool) {
				if yield(counters.Event{At: at, Values: counters.Values{"n": 1}}, nil) {
					change()
					yield(counters.Event{At: midway, Values: counters.Values{"n": 1}}, nil)
				}
			})
			return err
		},
		"Import": func(ctx context.Context, s *counters.Store, change func()) error {
			_, err := s.Import(ctx, func(yield func(counters.Row, error) bool) {
				change()
				for _, g := range []counters.Granularity{"1h", "1d"} {
					yield(counters.Row{Key: "hot", Granularity: g, At: counters.Calendar{Location: time.UTC, WeekStart: counters.Monday}.Floor(g, midway), Values: counters.Values{"n": 1}}, nil)
				}
			})
			return err
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			_, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}, System: counters.Off})
			s := counters.New(pool, counters.Config{})
			if err := s.Track(ctx, "other", at, nil); err != nil { // so that it has looked
				t.Fatal(err)
			}
			err := run(ctx, s, func() {
				if err := counters.New(pool, counters.Config{Striped: []string{"hot"}}).Setup(ctx); err != nil {
					t.Fatal(err)
				}
				if err := known(t, pool, counters.Config{}).Track(ctx, "hot", midway, counters.Values{"n": 5}); err != nil {
					t.Fatal(err)
				}
				s.Age(time.Minute)
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Fold(ctx); err != nil {
				t.Fatal(err)
			}
			for _, g := range []counters.Granularity{"1h", "1d"} {
				got, err := s.Values(ctx, counters.Query{Key: "hot", From: midway, To: midway, Granularity: g})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]counters.Values{{"n": number(1)}}, got.Values); diff != "" {
					t.Errorf("%s: %s", g, diff)
				}
			}
		})
	}
	t.Run("Rows", func(t *testing.T) {
		t.Parallel()
		ctx := t.Context()
		_, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1m"}, System: counters.Off})
		if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats SELECT 'hot::1m::' || 1746522000 + 60 * i, '{"n": 1}' FROM generate_series(0, 2999) AS i`); err != nil {
			t.Fatal(err)
		}
		s := counters.New(pool, counters.Config{})
		last := time.Unix(1746522000+60*2999, 0)
		n, got := 0, counters.Values(nil)
		for p, err := range s.Rows(ctx, counters.Query{Key: "hot", Granularity: "1m", From: at, To: last}) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 1 {
				if err := counters.New(pool, counters.Config{Striped: []string{"hot"}}).Setup(ctx); err != nil {
					t.Fatal(err)
				}
				if err := known(t, pool, counters.Config{}).Track(ctx, "hot", last, counters.Values{"n": 5}); err != nil {
					t.Fatal(err)
				}
				s.Age(time.Minute)
			}
			got = p.Values
		}
		if diff := cmp.Diff(counters.Values{"n": number(6)}, got); n != 2985 || diff != "" {
			t.Errorf("%d rows; the last: %s", n, diff)
		}
	})
}
