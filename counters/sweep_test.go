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
