package counters_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
)

func TestZZScale(t *testing.T) {
	for _, mode := range modes {
		ctx := t.Context()
		s, pool := newStriped(t, counters.Config{Mode: mode, Striped: []string{"k*"}, System: counters.Off})
		row := map[counters.Mode]string{
			counters.Full:      `name || '::' || g || '::' || i * 60`,
			counters.Partial:   `name || '::' || g, to_timestamp(i * 60)`,
			counters.Separated: `name, g, to_timestamp(i * 60)`,
		}[mode]
		if _, err := pool.Exec(ctx, `
			INSERT INTO trifle_stats
			SELECT `+row+`, '{"n": 1}'
			FROM (VALUES ('k', '1m'), ('other', '5m')) AS heads(name, g), generate_series(20000000, 20000000 + 100000 - 1) AS i`); err != nil {
			t.Fatal(err)
		}
		if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		n, err := s.Rename(ctx, "k", "to")
		fmt.Println(mode, "rename", n, err, time.Since(begin))
		begin = time.Now()
		n, err = s.Rename(ctx, "to", "k")
		fmt.Println(mode, "rename back", n, err, time.Since(begin))
		if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
		tx, _ := pool.Begin(ctx)
		begin = time.Now()
		n, err = s.WithTx(tx).Delete(ctx, "k", nil, time.Time{}, time.Time{})
		fmt.Println(mode, "delete", n, err, time.Since(begin))
		tx.Commit(ctx)
		fmt.Println(scalar[int](t, pool, `SELECT count(*) FROM trifle_stats`))
	}
}
