package changes_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
)

// A table that is truncated or rewritten between the snapshot of a chunk and the reading
// of it is empty to that snapshot, which was taken of another file. It is no end of the
// table: what is there is read.
func TestC7TableIsAnotherFileWhileItIsRead(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql  string
		rows int64
	}{
		"truncated":          {`TRUNCATE t; INSERT INTO t VALUES (1, 1), (2, 1)`, 2},
		"rewritten":          {`ALTER TABLE t ALTER other TYPE bigint`, 40},
		"rewritten, in part": {`ALTER TABLE t_1 SET UNLOGGED`, 40},
		"clustered":          {`ALTER TABLE t_1 CLUSTER ON t_1_pkey; CLUSTER t_1`, 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newAudited(t)
			exec(t, m.pool, `
				CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL) PARTITION BY RANGE (id);
				CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (20);
				CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (20) TO (100);
				INSERT INTO t SELECT g, 1 FROM generate_series(1, 40) g;
				CREATE TABLE copy (id int PRIMARY KEY);
				CREATE FUNCTION take(c jsonb) RETURNS void LANGUAGE sql AS $$
					DELETE FROM public.copy WHERE c->>'op' = 'truncate';
					INSERT INTO public.copy SELECT (c->'key'->>'id')::int WHERE c->>'op' <> 'truncate' ON CONFLICT DO NOTHING;
				$$`)
			capture(t, m.log, changes.Capture{Table: "public.t"})
			cfg, err := pgxpool.ParseConfig(withConns(m.url, 8))
			if err != nil {
				t.Fatal(err)
			}
			var chunks int
			var mu sync.Mutex
			cfg.ConnConfig.Tracer = beforeQuery(func(ctx context.Context, sql string) {
				if !strings.Contains(sql, `FROM "public"."t" AS r`) {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if chunks++; chunks == 2 { // some of its rows have been handed over
					if _, err := m.pool.Exec(ctx, c.sql); err != nil {
						t.Error(err)
					}
				}
			})
			runOn(t, cfg, func(string) changes.Handler { return changes.SQL(`SELECT public.take($1::jsonb)`) }, filling("public.t"))
			filled(t, m, "fill")
			handled(t, m.log, "fill")
			if n := m.number(t, `SELECT count(*) FROM copy`); n != c.rows || m.number(t, `SELECT count(*) FROM t`) != n {
				t.Errorf("the copy has %d rows, want %d", n, c.rows)
			}
		})
	}
}
