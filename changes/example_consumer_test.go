package changes_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

// open returns a pool on a database of the example's own; a program has its own, which
// howdah migrate prepares.
func open(ctx context.Context) (*pgxpool.Pool, func()) {
	url, drop := pgtest.ForExample()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	return pool, func() { pool.Close(); drop() }
}

func prepare(ctx context.Context, pool *pgxpool.Pool, services ...pg.Migrations) {
	if err := migrate.Up(ctx, pool.Config().ConnConfig, slog.New(slog.DiscardHandler), services...); err != nil {
		log.Fatal(err)
	}
}

// The outbox without an outbox: an order is inserted, by whatever program, and a letter is
// put on the checklist of those to send, and counted. All of that is committed in one
// transaction with how far the consumer has come: so it happens once for each order,
// whatever is killed meanwhile, or not at all where the order is rolled back.
func ExampleConsumer() {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	pool, done := open(ctx)
	defer done()
	l := changes.New(pool, changes.Config{})
	lists := checklists.New(pool, checklists.Config{})
	counts := counters.New(pool, counters.Config{})
	prepare(ctx, pool, l.Migrations(), lists.Migrations(), counts.Migrations())
	if _, err := pool.Exec(ctx, `CREATE TABLE orders (id int PRIMARY KEY, mail text, placed timestamptz)`); err != nil {
		log.Fatal(err)
	}
	if _, err := l.Apply(ctx, []changes.Capture{{Table: "public.orders"}}, false); err != nil {
		log.Fatal(err)
	}

	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	c := changes.NewConsumer(pool, hub, changes.ConsumerConfig{Name: "letters"})
	c.Handle("public.orders:insert", changes.Each(func(ctx context.Context, tx pgx.Tx, c changes.Change) error {
		var order struct {
			ID     int
			Mail   string
			Placed time.Time
		}
		if err := json.Unmarshal(c.New, &order); err != nil {
			return err
		}
		letter := fmt.Sprintf("order %d, to %s", order.ID, order.Mail)
		if _, err := lists.WithTx(tx).Insert(ctx, "letters", letter); err != nil {
			return err
		}
		return counts.WithTx(tx).Track(ctx, "letters", order.Placed, counters.Values{"to_send": 1})
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

	if _, err := pool.Exec(ctx, `
		INSERT INTO orders VALUES
			(1, 'ada@example.com', '2026-03-02 10:00Z'),
			(2, 'grace@example.com', '2026-03-02 11:30Z')`); err != nil {
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

	letters, err := lists.Page(ctx, "letters", nil, 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, letter := range letters {
		fmt.Println(letter.Name)
	}
	day := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	count, err := counts.Values(ctx, counters.Query{Key: "letters", From: day, To: day, Granularity: "1d"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(count.Values)
	// Output:
	// order 1, to ada@example.com
	// order 2, to grace@example.com
	// [map[to_send:2]]
}

// A statement is a handler, too: a function of the database is called exactly once for
// each change.
func ExampleSQL() {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	pool, done := open(ctx)
	defer done()
	l := changes.New(pool, changes.Config{})
	prepare(ctx, pool, l.Migrations())
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
