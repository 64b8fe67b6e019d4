package changes_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

// open returns a pool and a log on a database of the example's own; a program has its
// own database, which howdah migrate has prepared.
func open(ctx context.Context) (*pgxpool.Pool, *changes.Log, func()) {
	url, drop := pgtest.ForExample()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	l := changes.New(pool, changes.Config{})
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), l.Migrations()); err != nil {
		log.Fatal(err)
	}
	return pool, l, func() { pool.Close(); drop() }
}

// The outbox without an outbox: an order is inserted, by whatever program, and what is
// to follow happens exactly once, because what the handler writes is committed together
// with how far the consumer has come.
func ExampleConsumer() {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	pool, l, done := open(ctx)
	defer done()
	if _, err := pool.Exec(ctx, `
		CREATE TABLE orders (id int PRIMARY KEY, mail text);
		CREATE TABLE letters (id int PRIMARY KEY, mail text, about int)`); err != nil {
		log.Fatal(err)
	}
	if _, err := l.Apply(ctx, []changes.Capture{{Table: "public.orders"}}, false); err != nil {
		log.Fatal(err)
	}

	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	c := changes.NewConsumer(pool, hub, changes.ConsumerConfig{Name: "letters"})
	c.Handle("public.orders:insert", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO letters
			SELECT (o->>'id')::int, o->>'mail', (o->>'id')::int
			FROM (SELECT $1::jsonb AS o) AS s`, string(c.New))
		return err
	}))
	if err := c.Register(ctx); err != nil { // from here on it misses nothing
		log.Fatal(err)
	}
	running, end := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { hub.Run(running) })
	background.Go(func() {
		if err := c.Run(running); err != nil {
			log.Fatal(err)
		}
	})

	if _, err := pool.Exec(ctx, `INSERT INTO orders VALUES (1, 'ada@example.com'), (2, 'grace@example.com')`); err != nil {
		log.Fatal(err)
	}
	now, err := l.Sync(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := l.Wait(ctx, "letters", now); err != nil { // a test would wait like this
		log.Fatal(err)
	}
	end()
	background.Wait()

	rows, _ := pool.Query(ctx, `SELECT mail, about FROM letters ORDER BY id`)
	var mail string
	var about int
	_, err = pgx.ForEachRow(rows, []any{&mail, &about}, func() error {
		_, err := fmt.Println("to", mail, "about order", about)
		return err
	})
	fmt.Println(err)
	// Output:
	// to ada@example.com about order 1
	// to grace@example.com about order 2
	// <nil>
}

// A statement is a handler, too: a function of the database is called exactly once for
// each change.
func ExampleSQL() {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	pool, l, done := open(ctx)
	defer done()
	if _, err := pool.Exec(ctx, `
		CREATE TABLE users (id int PRIMARY KEY, name text);
		CREATE TABLE history (n serial, what text);
		CREATE FUNCTION remember(c jsonb) RETURNS void LANGUAGE sql
			AS $$ INSERT INTO history (what) VALUES (format('%s %s', c->>'op', c->'new'->>'name')) $$`); err != nil {
		log.Fatal(err)
	}
	if _, err := l.Apply(ctx, []changes.Capture{{Table: "public.users"}}, false); err != nil {
		log.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `INSERT INTO users VALUES (1, 'Ada'); UPDATE users SET name = 'Ada L.'`); err != nil {
		log.Fatal(err)
	}

	c := changes.NewConsumer(pool, pg.NewHub(pg.HubConfig{}), changes.ConsumerConfig{Name: "history", From: "start"})
	c.Handle("public.users", changes.SQL(`SELECT remember($1::jsonb)`))
	if err := c.Register(ctx); err != nil {
		log.Fatal(err)
	}
	running, end := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() {
		if err := c.Run(running); err != nil {
			log.Fatal(err)
		}
	})
	now, err := l.Sync(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := l.Wait(ctx, "history", now); err != nil {
		log.Fatal(err)
	}
	end()
	background.Wait()

	rows, _ := pool.Query(ctx, `SELECT what FROM history ORDER BY n`)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	fmt.Println(all, err)
	// Output: [insert Ada update Ada L.] <nil>
}
