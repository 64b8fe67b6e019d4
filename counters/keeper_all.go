package counters

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// stagger is how far from each other tables begin to be kept, on average: many that did so
// at once would keep all connections from those who count, now and every time after.
const stagger = 100 * time.Millisecond

// keepRecorded has a keeper for each recorded table, but that of k, for as long as it is
// recorded. Each is on its own: what one waits for, or cannot do, is nothing to the others.
func (k *Keeper) keepRecorded(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	kept := map[string]context.CancelFunc{}
	for {
		tables, err := k.store.otherTables(ctx)
		if ctx.Err() != nil {
			return
		}
		k.tell("look for tables", err)
		if err == nil {
			for name, stop := range kept {
				if tables[name] == nil {
					stop()
					delete(kept, name)
				}
			}
			for name, table := range tables {
				if kept[name] != nil {
					continue
				}
				cfg := k.cfg
				cfg.All = false
				other := NewKeeper(New(k.store.db, Config{Table: table}), cfg)
				other.recorded = true
				other.spread = time.Duration(len(tables)) * stagger
				keeping, stop := context.WithCancel(ctx)
				kept[name] = stop
				group.Go(func() {
					defer stop()
					k.tell("keep "+name, other.Run(keeping))
				})
			}
		}
		if !pause(ctx, k.cfg.Fold) {
			return
		}
	}
}

// otherTables returns the tables that are recorded, but that of s, by their names as
// they are recorded. They need not be there.
func (s *Store) otherTables(ctx context.Context) (map[string]pgx.Identifier, error) {
	own, err := s.tableIfAny(ctx)
	if err != nil {
		own = nil // what is wrong with it is nothing to the others
	}
	tables := map[string]pgx.Identifier{}
	err = pg.Retry(ctx, s.db, func() error {
		clear(tables)
		var records *string // those that the role may read
		err := s.db.QueryRow(ctx, `
			SELECT 'howdah.' || min(r.relname::text)
			FROM pg_class r
			JOIN pg_namespace h ON h.oid = r.relnamespace
			WHERE h.nspname = 'howdah' AND r.relname IN ('counter_tables', 'counter_tables_readable') AND has_table_privilege(r.oid, 'SELECT')`).Scan(&records)
		if err != nil || records == nil {
			return err
		}
		rows, err := s.db.Query(ctx, `
			SELECT tbl, parse_ident(tbl)
			FROM `+*records)
		if err != nil {
			return err
		}
		var name string
		var table []string
		_, err = pgx.ForEachRow(rows, []any{&name, &table}, func() error {
			if own == nil || name != own.name {
				tables[name] = table
			}
			return nil
		})
		return err
	})
	return tables, pg.Wrap("counters: look for tables", err)
}
