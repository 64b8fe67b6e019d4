package counters_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
)

// What is more than is deleted at a time goes as a whole, over the ends of spans, and
// what lies between and beside them stays.
func TestDeleteOfMany(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, pool := newStore(t, counters.Config{Mode: mode, System: counters.Off})
			row := map[counters.Mode]string{
				counters.Full:      `name || '::' || g || '::' || i * 60`,
				counters.Partial:   `name || '::' || g, to_timestamp(i * 60)`,
				counters.Separated: `name, g, to_timestamp(i * 60)`,
			}[mode]
			const each = 6_789
			if _, err := pool.Exec(ctx, `
				INSERT INTO trifle_stats
				SELECT `+row+`, '{"n": 1}'
				FROM (VALUES ('k', '1m'), ('k', '5m'), ('k::5m', '1m'), ('k2', '1m')) AS heads(name, g), generate_series(20000000, 20000000 + $1 - 1) AS i`, each); err != nil {
				t.Fatal(err)
			}
			last := time.Unix(20000000*60+(each-2)*60, 0)
			if n, err := s.Delete(ctx, "k", []counters.Granularity{"1m", "5m"}, time.Time{}, last); err != nil || n != 2*(each-1) {
				t.Errorf("deleted %d, %v, want %d", n, err, 2*(each-1))
			}
			var left int
			if err := pool.QueryRow(ctx, `SELECT count(*) FROM trifle_stats`).Scan(&left); err != nil || left != 2*each+2 {
				t.Errorf("%d rows are left, %v, want %d", left, err, 2*each+2)
			}
		})
	}
}

// Where no index knows the order of bytes, the table is read a few times, and not again
// for each metric.
func TestPruneWithoutAnIndexIsOnePass(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, pool := newStore(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1m", "1h"}, Retention: counters.Retention{"1m": 24 * time.Hour}})
	reorder(t, pool, false)
	const metrics, each = 60, 40
	if _, err := pool.Exec(ctx, `
		INSERT INTO trifle_stats
		SELECT 'k' || k || '::' || g || '::' || 1746489600 + i * 3600, '{"n": 1}'
		FROM generate_series(1, $1) AS k, generate_series(1, $2) AS i, (VALUES ('1m'), ('1h')) AS of(g)`, metrics, each); err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func(*counters.Store) (int64, error){
		"Prune": func(s *counters.Store) (int64, error) { return s.Prune(ctx, at.AddDate(1, 0, 0)) },
		"Delete": func(s *counters.Store) (int64, error) {
			return s.Delete(ctx, "k7", []counters.Granularity{"1s", "15s", "1m", "5m", "15m", "30m", "1h", "12h", "1d"}, time.Time{}, time.Time{})
		},
	} {
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		scanned := func() (rows int) { // also by those before whose statistics were not sent yet
			if err := tx.QueryRow(ctx, `SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = 'trifle_stats'::regclass`).Scan(&rows); err != nil {
				t.Fatal(err)
			}
			return rows
		}
		before := scanned()
		n, err := call(counters.New(tx, counters.Config{}))
		if want := map[string]int64{"Prune": metrics * each, "Delete": 2 * each}[what]; n != want || err != nil {
			t.Errorf("%s = %d, %v, want %d", what, n, err, want)
		}
		if passes := float64(scanned()-before) / (2 * metrics * each); passes > 4.5 {
			t.Errorf("%s read the table %.1f times", what, passes)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
