package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

// feed is howdah's log, with some tables to write to.
type feed struct {
	*changes.Log
	lab *Lab
}

func openFeed(ctx context.Context, lab *Lab, tables ...string) (feed, error) {
	f := feed{changes.New(lab.Pool, changes.Config{}), lab}
	direct, err := (pg.Config{URL: lab.URL}).Direct()
	if err != nil {
		return f, err
	}
	if err := migrate.Up(ctx, direct, slog.New(slog.DiscardHandler), f.Migrations()); err != nil {
		return f, err
	}
	for _, table := range tables {
		err := lab.Exec(ctx, `
			CREATE TABLE `+table+` (
				id   bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
				name text    NOT NULL,
				mail text    NOT NULL,
				n    integer NOT NULL)`)
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

func (f feed) capture(ctx context.Context, captures ...changes.Capture) error {
	_, err := f.Apply(ctx, captures, false)
	return err
}

const userRow = `'Ada Lovelace', 'ada@example.com', `

// insert writes n rows in one statement.
func (f feed) insert(ctx context.Context, table string, n int) error {
	_, err := f.lab.Pool.Exec(ctx, `INSERT INTO `+table+` (name, mail, n) SELECT `+userRow+` i FROM generate_series(1, $1::int) i`, n)
	return err
}

// load returns how long insert takes, in ms, into empty tables.
func (f feed) load(table string, n int) Spend {
	return func(ctx context.Context) (float64, error) {
		if err := f.lab.Exec(ctx, `TRUNCATE `+table+`, howdah.change`); err != nil {
			return 0, err
		}
		began := time.Now()
		err := f.insert(ctx, table, n)
		return float64(time.Since(began).Microseconds()) / 1e3, err
	}
}

// unnumbered writes n rows to t, which is captured from now on, in transactions of so
// many each.
func (f feed) unnumbered(ctx context.Context, n, each int) error {
	if err := f.capture(ctx, changes.Capture{Table: "public.t", Wake: "poll"}); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, f.lab.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, `SET synchronous_commit = off`)
	if err == nil {
		_, err = conn.Exec(ctx, fmt.Sprintf(`
			DO $$ BEGIN
				FOR i IN 1..%d LOOP
					INSERT INTO t (name, mail, n) SELECT %s i FROM generate_series(1, %d);
					COMMIT;
				END LOOP;
			END $$`, n/each, userRow, each))
	}
	return err
}

// commits makes n transactions of one row, and numbers them.
func (f feed) commits(ctx context.Context, n int) error {
	if err := f.unnumbered(ctx, n, 1); err != nil {
		return err
	}
	_, err := f.Sync(ctx)
	return err
}

// pages returns the two ways through what has been logged, after err.
func (f feed) pages(ctx context.Context, err error) (control, ours Side, _ error) {
	if err == nil {
		_, err = f.Sync(ctx)
	}
	if err == nil {
		err = f.lab.Exec(ctx, `
			CREATE TABLE plain AS
			SELECT id, op::text, schema_name, table_name, key, old, new, at, xid::text, origin, meta, trimmed
			FROM howdah.change
			ORDER BY id`,
			`ALTER TABLE plain ADD PRIMARY KEY (id)`)
	}
	var rows int
	if err == nil {
		err = f.lab.Pool.QueryRow(ctx, `SELECT count(*) FROM plain`).Scan(&rows)
	}
	whole := func(pages func(context.Context) (int, error)) Side {
		return Side{Run: func(ctx context.Context) (int, error) {
			n, err := pages(ctx)
			if err == nil && n != rows {
				err = fmt.Errorf("%d of %d rows were read", n, rows)
			}
			return n, err
		}}
	}
	return whole(f.plainPages), whole(f.ownPages), err
}

func (f feed) ownPages(ctx context.Context) (sum int, err error) {
	var after changes.Position
	for {
		page, next, err := f.Page(ctx, after, 1000, changes.Filter{})
		if err != nil || next == after {
			return sum, err
		}
		sum += len(page)
		after = next
	}
}

func (f feed) plainPages(ctx context.Context) (sum int, err error) {
	type entry struct {
		ID            int64
		Op            string
		Schema, Table string
		Key, Old, New []byte
		At            time.Time
		XID           string
		Origin, Meta  *string
		Trimmed       bool
	}
	var after int64
	for {
		rows, _ := f.lab.Pool.Query(ctx, `SELECT * FROM plain WHERE id > $1 ORDER BY id LIMIT 1000`, after) // CollectRows reports its error too
		page, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
		if err != nil || len(page) == 0 {
			return sum, err
		}
		sum += len(page)
		after = page[len(page)-1].ID
	}
}

// running starts what runs until it is told; stop tells it, and waits.
func running(ctx context.Context, runs ...func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, len(runs))
	for _, run := range runs {
		go func() { ended <- run(ctx) }()
	}
	return func() (err error) {
		cancel()
		for range runs {
			err = errors.Join(err, <-ended)
		}
		return err
	}
}
