package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

const list = "downloads"

// itemName is the i-th item in order: 46 bytes.
func itemName(i int) string { return fmt.Sprintf("https://example.com/files/%013d.tar.gz", i) }

// shuffled returns the first n items in an order that is the same every time.
func shuffled(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = itemName(i)
	}
	rand.New(rand.NewPCG(1, uint64(n))).Shuffle(n, func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

// batchFunc is a call about items.
type batchFunc func(ctx context.Context, list string, items ...string) (int64, error)

// inBatches calls do for 1,000 items at a time; each has to have an effect.
func inBatches(items []string, do batchFunc) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		for batch := range slices.Chunk(items, 1000) {
			n, err := do(ctx, list, batch...)
			if err != nil {
				return 0, err
			}
			if n != int64(len(batch)) {
				return 0, fmt.Errorf("%d of %d items were changed", n, len(batch))
			}
		}
		return len(items), nil
	}
}

func thrice(do func(context.Context) (int, error)) func(context.Context) (int, error) {
	return func(ctx context.Context) (sum int, err error) {
		for range 3 {
			n, err := do(ctx)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	}
}

// lists is a table of lists, ours or the original's.
type lists struct {
	pool  *pgxpool.Pool
	table string
}

func (l lists) truncate(ctx context.Context) error {
	_, err := l.pool.Exec(ctx, "TRUNCATE "+l.table)
	return err
}

// refill returns what puts the first n items into the emptied table.
func (l lists) refill(n int) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := l.truncate(ctx); err != nil {
			return err
		}
		_, err := l.pool.Exec(ctx, `
			INSERT INTO `+l.table+` (list, item)
			SELECT $1, 'https://example.com/files/' || lpad(i::text, 13, '0') || '.tar.gz'
			FROM generate_series(0, $2::int - 1) i`, list, n)
		return err
	}
}

// indexGrowth returns by how many percent do makes the index larger that fill has made.
func (l lists) indexGrowth(fill, do func(context.Context) (int, error)) func(context.Context) (float64, error) {
	return func(ctx context.Context) (percent float64, err error) {
		var sizes [2]float64
		for i, step := range []func(context.Context) (int, error){fill, do} {
			if _, err := step(ctx); err != nil {
				return 0, err
			}
			if err := l.pool.QueryRow(ctx, "SELECT pg_indexes_size($1::regclass)", l.table).Scan(&sizes[i]); err != nil {
				return 0, err
			}
		}
		return 100 * (sizes[1] - sizes[0]) / sizes[0], nil
	}
}

// deadlocks returns how often the server found one while 8 workers called
// increment 100 times each with 200 of 1,000 items. Its own count: howdah repeats
// such a call, so that callers would not see it.
func (l lists) deadlocks(lab *Lab, increment batchFunc) func(context.Context) (float64, error) {
	count := func(ctx context.Context) (n float64, err error) {
		// A connection that idles tells its statistics late; one that ends, at once.
		l.pool.Reset()
		for n := 1; n > 0 && err == nil; {
			err = l.pool.QueryRow(ctx, `
				SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&n)
		}
		if err == nil {
			err = l.pool.QueryRow(ctx, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").Scan(&n)
		}
		return n, err
	}
	return func(ctx context.Context) (float64, error) {
		if err := l.refill(1000)(ctx); err != nil {
			return 0, err
		}
		before, err := count(ctx)
		if err != nil {
			return 0, err
		}
		names := shuffled(1000)
		var workers sync.WaitGroup
		errs := make([]error, 8)
		for w := range errs {
			workers.Go(func() {
				random := rand.New(rand.NewPCG(2, uint64(w)))
				for range lab.N(100, 25) {
					var some []string
					for _, i := range random.Perm(len(names))[:200] {
						some = append(some, names[i])
					}
					_, err := increment(ctx, list, some...)
					if refused := (*pgconn.PgError)(nil); err != nil && !(errors.As(err, &refused) && refused.Code == "40P01") {
						errs[w] = err
						return
					}
				}
			})
		}
		workers.Wait()
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		after, err := count(ctx)
		return after - before, err
	}
}

// hurryDeadlocks lets the server look for deadlocks after a moment, not after a
// second, so that the side which has hundreds is done before long.
func (l *Lab) hurryDeadlocks(ctx context.Context) error {
	defer l.Pool.Reset()
	return l.Exec(ctx, `
		DO $$ BEGIN
			EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''20ms''', current_database());
		EXCEPTION WHEN insufficient_privilege THEN NULL; -- then it takes as long as it takes
		END $$`)
}

// store is howdah's side.
type store struct {
	*checklists.Store
	lists
}

func openStore(ctx context.Context, lab *Lab, table pgx.Identifier) (store, error) {
	s := store{checklists.New(lab.Pool, checklists.Config{Table: table}), lists{lab.Pool, table.Sanitize()}}
	direct, err := (pg.Config{URL: lab.URL}).Direct()
	if err != nil {
		return s, err
	}
	return s, migrate.Up(ctx, direct, slog.New(slog.DiscardHandler), s.Migrations())
}

func (s store) importAll(ctx context.Context, names []string) (int, error) {
	done, err := s.Import(ctx, list, asItems(names), checklists.ImportOptions{})
	return int(done.Added + done.Skipped), err
}

func asItems(names []string) iter.Seq2[checklists.Item, error] {
	return func(yield func(checklists.Item, error) bool) {
		for _, name := range names {
			if !yield(checklists.Item{Name: name}, nil) {
				return
			}
		}
	}
}

func (s store) pageAll(ctx context.Context) (sum int, err error) {
	var after *string
	for {
		items, err := s.Page(ctx, list, after, 1000)
		if err != nil || len(items) == 0 {
			return sum, err
		}
		sum += len(items)
		after = &items[len(items)-1].Name
	}
}

// original is the other side: the effects of iidy's calls by its kind of
// statement, on a table of its three columns, through pgx.
type original struct{ lists }

// openLists makes the tables of both.
func openLists(ctx context.Context, lab *Lab) (ours store, theirs original, err error) {
	theirs = original{lists{lab.Pool, "original.lists"}}
	if ours, err = openStore(ctx, lab, pgx.Identifier{"iidy", "lists"}); err != nil {
		return ours, theirs, err
	}
	return ours, theirs, lab.Exec(ctx, `CREATE SCHEMA original`, `
		CREATE TABLE original.lists (
			list     text    NOT NULL,
			item     text    NOT NULL,
			attempts integer NOT NULL DEFAULT 0,
			CONSTRAINT list_pk PRIMARY KEY (list, item))`)
}

// openFilled is openLists with n items in each.
func openFilled(ctx context.Context, lab *Lab, n int) (ours store, theirs original, err error) {
	if ours, theirs, err = openLists(ctx, lab); err != nil {
		return ours, theirs, err
	}
	return ours, theirs, errors.Join(ours.refill(n)(ctx), theirs.refill(n)(ctx))
}

func (o original) copyIn(ctx context.Context, names []string, batch int) (sum int, err error) {
	for some := range slices.Chunk(names, batch) {
		n, err := o.pool.CopyFrom(ctx, pgx.Identifier{"original", "lists"}, []string{"list", "item"},
			pgx.CopyFromSlice(len(some), func(i int) ([]any, error) { return []any{list, some[i]}, nil }))
		if err != nil {
			return sum, err
		}
		sum += int(n)
	}
	return sum, nil
}

func (o original) increment(ctx context.Context, list string, items ...string) (int64, error) {
	tag, err := o.pool.Exec(ctx, `
		UPDATE original.lists SET attempts = attempts + 1
		WHERE list = $1 AND item IN (SELECT unnest($2::text[]))`, list, items)
	return tag.RowsAffected(), err
}

func (o original) delete(ctx context.Context, list string, items ...string) (int64, error) {
	tag, err := o.pool.Exec(ctx, `
		DELETE FROM original.lists
		WHERE list = $1 AND item IN (SELECT unnest($2::text[]))`, list, items)
	return tag.RowsAffected(), err
}

func (o original) pageAll(ctx context.Context) (sum int, err error) {
	type entry struct {
		item     string
		attempts int
	}
	after := ""
	for {
		// The first page of the original leaves the bound out; no item is '' here.
		rows, _ := o.pool.Query(ctx, `
			SELECT item, attempts FROM original.lists
			WHERE list = $1 AND item > $2
			ORDER BY list, item
			LIMIT $3`, list, after, 1000) // ForEachRow reports its error too
		page := make([]entry, 0, 1000)
		var e entry
		if _, err := pgx.ForEachRow(rows, []any{&e.item, &e.attempts}, func() error { page = append(page, e); return nil }); err != nil {
			return sum, err
		}
		if len(page) == 0 {
			return sum, nil
		}
		sum += len(page)
		after = page[len(page)-1].item
	}
}
