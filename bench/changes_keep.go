package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// take runs an instance of a consumer, who does nothing with what it is handed, until
// that is n changes, and returns how many it was. A new one begins at the start.
func (f feed) take(ctx context.Context, pool *pgxpool.Pool, name string, batch, n int) (sum int, err error) {
	hub := pg.NewHub(pg.HubConfig{Conn: f.lab.Pool.Config().ConnConfig})
	c := changes.NewConsumer(pool, hub, changes.ConsumerConfig{Name: name, Batch: batch, From: "start"})
	enough := make(chan struct{})
	c.Handle("*", func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
		before := sum
		if sum += len(cs); before < n && sum >= n {
			close(enough)
		}
		return nil
	})
	listening, cancel := context.WithCancel(ctx)
	unlisten := running(listening, hub.Run)
	taking, stop := context.WithCancel(ctx)
	go func() {
		defer stop()
		select {
		case <-enough:
		case <-listening.Done():
		}
	}()
	err = c.Run(taking) // a batch that is under way is finished
	cancel()
	if unheard := unlisten(); err == nil {
		err = unheard
	}
	return sum, err
}

// consumed compares a consumer with pages alone, over the same changes.
func (f feed) consumed(rows int) (control, ours Side) {
	var name string
	return Side{Run: f.ownPages}, Side{
		Prepare: func(context.Context) error {
			name = fmt.Sprintf("c%d", time.Now().UnixNano())
			return nil
		},
		Run: func(ctx context.Context) (int, error) {
			n, err := f.take(ctx, f.lab.Pool, name, 100, rows)
			if err == nil && n != rows {
				err = fmt.Errorf("%d of %d changes were handed over", n, rows)
			}
			return n, err
		},
	}
}

// openCheckpoints has one consumer make many checkpoints, each a batch of one change,
// while somebody holds a snapshot from before, and then compares it with new ones.
func openCheckpoints(ctx context.Context, lab *Lab) (control, ours Side, err error) {
	before, stretch := lab.N(100_000, 5_000), lab.N(2_000, 300)
	f, err := openFeed(ctx, lab, "t")
	if err == nil {
		err = f.commits(ctx, before+(lab.Rounds+1)*stretch)
	}
	if err == nil {
		err = lab.Hold(ctx)
	}
	if err != nil {
		return control, ours, err
	}
	// What comes before does not wait for the disk: it is not measured.
	hasty := lab.Pool.Config()
	hasty.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	pool, err := pgxpool.NewWithConfig(ctx, hasty)
	if err != nil {
		return control, ours, err
	}
	defer pool.Close()
	lab.Say("%s checkpoints", grouped(before))
	if _, err := f.take(ctx, pool, "old", 1, before); err != nil {
		return control, ours, err
	}
	side := func(name func() string) Side {
		return Side{Run: func(ctx context.Context) (int, error) { return f.take(ctx, lab.Pool, name(), 1, stretch) }}
	}
	return side(func() string { return fmt.Sprintf("c%d", time.Now().UnixNano()) }), side(func() string { return "old" }), nil
}

// openRetention puts the same changes, ten a transaction, into an old leaf of the
// log, and into a table like one, again and again, and has them removed.
func openRetention(ctx context.Context, lab *Lab) (control, ours Spend, err error) {
	f, err := openFeed(ctx, lab, "t")
	if err == nil {
		err = f.unnumbered(ctx, lab.N(1_000_000, 300_000), 10)
	}
	if err == nil {
		_, err = f.Sync(ctx)
	}
	if err == nil {
		err = lab.Exec(ctx, `
			CREATE TABLE kept AS TABLE howdah.change`, `
			CREATE TABLE kept_commit AS TABLE howdah.change_commit`, `
			UPDATE kept SET slot = (howdah.change_slot() + 4) % 8`, `
			UPDATE kept_commit SET slot = (howdah.change_slot() + 4) % 8`, `
			UPDATE howdah.change_tick SET at = at - interval '2 days'`, `
			CREATE TABLE plain (LIKE howdah.change)`, `
			CREATE INDEX ON plain (xid, id)`)
	}
	ms := func(remove func(context.Context) error, from string, prepare ...string) Spend {
		return func(ctx context.Context) (float64, error) {
			err := lab.Exec(ctx, prepare...)
			if err == nil {
				err = lab.Vacuum(ctx)
			}
			if err != nil {
				return 0, err
			}
			began := time.Now()
			err = remove(ctx)
			took := float64(time.Since(began).Microseconds()) / 1e3
			if err != nil {
				return 0, err
			}
			var left int
			err = lab.Pool.QueryRow(ctx, `SELECT count(*) FROM `+from).Scan(&left)
			if err == nil && left > 0 {
				err = fmt.Errorf("%d rows are left", left)
			}
			return took, err
		}
	}
	control = ms(func(ctx context.Context) error { return lab.Exec(ctx, `DELETE FROM plain`, `VACUUM plain`) }, "plain",
		`INSERT INTO plain TABLE kept`)
	ours = ms(f.Tend, "howdah.change",
		`TRUNCATE howdah.change, howdah.change_commit`,
		`INSERT INTO howdah.change TABLE kept`,
		`INSERT INTO howdah.change_commit TABLE kept_commit`,
		`UPDATE howdah.change_state SET floor = 0`,
		`SELECT setval('howdah.change_floor', 1, false)`)
	return control, ours, err
}
