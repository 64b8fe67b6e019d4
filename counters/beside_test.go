package counters_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// original counts events as the original's driver does: a transaction with an upsert for
// each granularity, and after each one for the row of the system. An upsert puts each sum
// to its field by a jsonb_set around that of the field before.
type original struct {
	pool          *pgxpool.Pool
	mode          counters.Mode
	calendar      counters.Calendar
	granularities []counters.Granularity
	system        bool
}

func (o original) inc(ctx context.Context, key string, at time.Time, values map[string]int) error {
	return pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		for _, g := range o.granularities {
			if err := o.upsert(ctx, tx, key, g, at, values); err != nil {
				return err
			}
			if !o.system {
				continue
			}
			if err := o.upsert(ctx, tx, counters.SystemKey, g, at, map[string]int{"count": 1, "keys." + key: 1}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (o original) upsert(ctx context.Context, tx pgx.Tx, key string, g counters.Granularity, at time.Time, values map[string]int) error {
	start := o.calendar.Floor(g, at)
	columns, identity := "key", []any{fmt.Sprintf("%s::%s::%d", key, g, start.Unix())}
	switch o.mode {
	case counters.Partial:
		columns, identity = "key, at", []any{fmt.Sprintf("%s::%s", key, g), start}
	case counters.Separated:
		columns, identity = "key, granularity, at", []any{key, string(g), start}
	}
	sql, args := upsertOfTheOriginal(columns, identity, values)
	_, err := tx.Exec(ctx, sql, args...)
	return err
}

func upsertOfTheOriginal(columns string, identity []any, values map[string]int) (string, []any) {
	places := make([]string, len(identity))
	for i := range places {
		places[i] = fmt.Sprintf("$%d", i+1)
	}
	chain := "trifle_stats.data"
	for _, name := range slices.Sorted(maps.Keys(values)) {
		chain = fmt.Sprintf(`jsonb_set(to_jsonb(%s), '{%s}', (coalesce(trifle_stats.data ->> '%[2]s', '0')::numeric + %d)::text::jsonb)`, chain, name, values[name])
	}
	return fmt.Sprintf(`
		INSERT INTO trifle_stats (%s, data)
		VALUES (%s, $%d)
		ON CONFLICT (%[1]s) DO UPDATE
		SET data = %[4]s`, columns, strings.Join(places, ", "), len(identity)+1, chain), append(identity, values)
}

// The original and howdah count the same metric in the same rows at the same time, and
// every event is in every sum. None waits for another in a circle: who it hits of the
// original's programs repeats nothing.
func TestBesideTheOriginal(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			granularities := []counters.Granularity{"1m", "1h", "1d", "1w", "1mo"}
			s, pool := newStore(t, counters.Config{Mode: mode, Granularities: granularities, System: counters.Sync})
			watched, deadlocks := countingDeadlocks(t, pool)
			theirs := original{pool: watched, mode: mode, calendar: counters.Calendar{Location: time.UTC}, granularities: granularities, system: true}
			ours := counters.New(watched, counters.Config{})
			const each, events = 3, 40
			g, ctx := errgroup.WithContext(t.Context())
			for range each {
				g.Go(func() error {
					for range events {
						if err := theirs.inc(ctx, "orders", at, map[string]int{"count": 1, "state.paid": 2}); err != nil {
							return err
						}
					}
					return nil
				})
				g.Go(func() error {
					for range events {
						if err := ours.Track(ctx, "orders", at, counters.Values{"count": 1, "state": counters.Values{"paid": 2, "failed": 0.5}}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			if n := deadlocks.Load(); n > 0 {
				t.Errorf("%d deadlocks", n)
			}
			for _, granularity := range granularities {
				for key, want := range map[string]string{
					"orders":           fmt.Sprintf(`{"count":%d,"state":{"failed":%d,"paid":%d}}`, 2*each*events, each*events/2, 4*each*events),
					counters.SystemKey: fmt.Sprintf(`{"count":%d,"keys":{"orders":%[1]d}}`, 2*each*events),
				} {
					series, err := s.Values(t.Context(), counters.Query{Key: key, From: at, To: at, Granularity: granularity})
					if err != nil || len(series.Values) != 1 {
						t.Fatal(series, err)
					}
					if got, err := series.Values[0].MarshalJSON(); string(got) != want {
						t.Errorf("%s of %s: %s, %v, want %s", key, granularity, got, err, want)
					}
				}
			}
			if n := one[int](t, pool, `SELECT count(*) FROM trifle_stats`); n != 2*len(granularities) {
				t.Errorf("%d rows, want %d", n, 2*len(granularities))
			}
		})
	}
}

// D18: a key that has no room is refused before anything is written, and the caller's
// transaction goes on.
func TestD18KeysThatAreTooLong(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		s, pool := newStore(t, counters.Config{Mode: mode})
		long := strings.Repeat("é", 256)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		in := s.WithTx(tx)
		for name, err := range map[string]error{
			"Track": in.Track(t.Context(), long, at, counters.Values{"n": 1}),
			"Beam":  in.Beam(t.Context(), long, at, nil),
		} {
			if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "255") {
				t.Errorf("%s: %s: %v", mode, name, err)
			}
		}
		if err := errors.Join(in.Track(t.Context(), "škoda 🚀", at, counters.Values{"n": 1}), tx.Commit(t.Context())); err != nil {
			t.Error(mode, err)
		}
		if got := fmt.Sprint(hour(t, s, "škoda 🚀")); got != "map[n:1]" {
			t.Errorf("%s: %s", mode, got)
		}
	}
}
