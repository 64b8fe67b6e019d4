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
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// original counts events as the original's driver does: one transaction for the rows of
// the metric, one for those of the system, in each an upsert for each granularity, which
// puts each sum to its field by a jsonb_set around that of the field before.
type original struct {
	pool          *pgxpool.Pool
	mode          counters.Mode
	calendar      counters.Calendar
	granularities []counters.Granularity
}

func (o original) inc(ctx context.Context, key string, at time.Time, values map[string]int) error {
	return pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		for _, g := range o.granularities {
			start := o.calendar.Floor(g, at)
			columns, identity := "key", []any{fmt.Sprintf("%s::%s::%d", key, g, start.Unix())}
			switch o.mode {
			case counters.Partial:
				columns, identity = "key, at", []any{fmt.Sprintf("%s::%s", key, g), start}
			case counters.Separated:
				columns, identity = "key, granularity, at", []any{key, string(g), start}
			}
			sql, args := upsertOfTheOriginal(columns, identity, values)
			if _, err := tx.Exec(ctx, sql, args...); err != nil {
				return err
			}
		}
		return nil
	})
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

// again repeats what was rolled back for the sake of another transaction.
func again(do func() error) (err error) {
	for range 50 {
		err = do()
		var pgErr *pgconn.PgError
		if !(errors.As(err, &pgErr) && pgErr.Code == "40P01") && !errors.Is(err, fault.Unavailable) {
			return err
		}
	}
	return err
}

// The original and howdah count the same metric in the same rows at the same time, and
// every event is in every sum.
func TestBesideTheOriginal(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			granularities := []counters.Granularity{"1h", "1d", "1mo"}
			s, pool := newStore(t, counters.Config{Mode: mode, Granularities: granularities, System: counters.Sync})
			cfg := pool.Config()
			cfg.ConnConfig.RuntimeParams["deadlock_timeout"] = "20ms" // the original's rows are in another order than ours
			quick, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer quick.Close()
			theirs := original{pool: quick, mode: mode, granularities: granularities}
			ours := counters.New(quick, counters.Config{})
			const each, events = 3, 40
			g, ctx := errgroup.WithContext(t.Context())
			for range each {
				g.Go(func() error {
					for range events {
						if err := again(func() error { return theirs.inc(ctx, "orders", at, map[string]int{"count": 1, "state.paid": 2}) }); err != nil {
							return err
						}
						system := map[string]int{"count": 1, "keys.orders": 1}
						if err := again(func() error { return theirs.inc(ctx, counters.SystemKey, at, system) }); err != nil {
							return err
						}
					}
					return nil
				})
				g.Go(func() error {
					for range events {
						err := again(func() error {
							return ours.Track(ctx, "orders", at, counters.Values{"count": 1, "state": counters.Values{"paid": 2, "failed": 0.5}})
						})
						if err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
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
			if n := one[int](t, pool, `SELECT count(*) FROM trifle_stats`); n != 6 {
				t.Errorf("%d rows, want 6", n)
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
