package changes_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// chaosFor is how long the chaos lasts, under the race detector, where all is slower, a
// little longer: HOWDAH_CHAOS=60s for more.
func chaosFor(t testing.TB) time.Duration {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("HOWDAH_CHAOS"), fmt.Sprint(pgtest.Size(8, 10), "s")))
	if err != nil {
		t.Fatalf("HOWDAH_CHAOS: %v", err)
	}
	return d
}

// chaosSeed is HOWDAH_SEED, or another each time. What the machine does with it
// differs all the same.
func chaosSeed(t testing.TB) uint64 {
	text := os.Getenv("HOWDAH_SEED")
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("HOWDAH_SEED: %v", err)
	}
	return seed
}

// TestChaos lets sixteen writers do what writers do, four readers tick at once,
// transactions sleep here and in another database, consumers be killed and the log be
// emptied all the time, and holds the feed, and what was done, against the truth.
func TestChaos(t *testing.T) {
	t.Parallel()
	c := newChaos(t)
	var readers errgroup.Group
	drained, drain := context.WithCancel(context.WithoutCancel(t.Context()))
	followers := make([]*follower, 4)
	for i := range followers {
		f := &follower{c: c, r: c.random(100 + i), name: fmt.Sprintf("follower%d", i)}
		followers[i] = f
		readers.Go(func() error { return f.run(drained) })
	}
	s := &straggler{c: c, r: c.random(110)}
	readers.Go(func() error { return s.run(drained) })
	readers.Go(func() error { return c.tend(drained) })
	w := c.open()

	ctx, end := context.WithCancel(t.Context())
	defer end()
	var writers errgroup.Group
	writers.Go(func() error {
		defer end()
		return c.last(ctx, w)
	})
	for i := range 16 {
		writers.Go(func() error { return c.write(ctx, i) })
	}
	writers.Go(func() error { return c.sleep(ctx, c.url, c.random(200)) })
	writers.Go(func() error { return c.sleep(ctx, c.other, c.random(201)) })
	writers.Go(func() error { return c.probe(ctx) })
	writers.Go(func() error { return w.strike(ctx) })
	if err := writers.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := c.log.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	w.close()
	drain()
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}

	all := followers[0].seen // the log has let go of its beginning
	facts := truth(t, c.pool)
	for _, f := range followers {
		if problem := sameFeed(all, f.seen); problem != "" {
			t.Errorf("F6: %s, stopped %d times: %s", f.name, f.stops, problem)
		}
	}
	report(t, s.violations(all))
	report(t, violations(all, facts, c.spans))
	report(t, w.violations(all))
	t.Logf("%d changes of %d transactions, %d given up, %d deadlocks, %d prepared, %d probes",
		len(all), len(facts), c.undone.Load(), c.deadlocks.Load(), c.prepared.Load(), c.probes.Load())
	if c.undone.Load() == 0 || c.prepared.Load() == 0 || c.probes.Load() == 0 || len(facts) < 100 {
		t.Error("too little happened")
	}
}

// last returns when the chaos has lasted as long as it is to, and enough has happened: on a
// machine that is busy that takes longer.
func (c *chaos) last(ctx context.Context, w *workshop) error {
	rest(ctx, chaosFor(c.t))
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); rest(ctx, 100*time.Millisecond) {
		if enough, err := w.enough(ctx); err != nil || enough && c.undone.Load() > 0 && c.prepared.Load() > 0 && c.probes.Load() > 0 {
			return err
		}
	}
	return nil
}

type chaos struct {
	t          testing.TB
	seed       uint64
	url, other string // databases
	pool       *pgxpool.Pool
	log        *changes.Log

	mu    sync.Mutex
	spans map[string]span // by transaction

	undone, deadlocks, prepared, probes atomic.Int64
}

func newChaos(t testing.TB) *chaos {
	c := &chaos{t: t, seed: chaosSeed(t), url: pgtest.Database(t), other: pgtest.Database(t), spans: map[string]span{}}
	t.Logf("HOWDAH_SEED=%d", c.seed)
	c.log, c.pool = logOf(t, c.url)
	exec(t, c.pool, truthSQL)
	exec(t, c.pool, doneSQL)
	for _, table := range chaosTables {
		audited(t, c.pool, table.name, table.columns)
		wake := ""
		if table.name == "prepared" {
			wake = "poll"
		}
		capture(t, c.log, changes.Capture{Table: "chk." + table.name, Payload: changes.PayloadFull, Wake: wake})
	}
	c.retain()
	exec(t, c.pool, `INSERT INTO chk.stock SELECT g, 0 FROM generate_series(1, 2000) g`)
	exec(t, pgtest.Pool(t, c.other), `CREATE SCHEMA chk; CREATE TABLE chk.asleep (id int, v int)`)
	return c
}

// chaosTables are what is written to. Before all else there is something in stock.
var chaosTables = []struct{ name, columns string }{
	{"hot", "v int"},
	{"parent", "v int"},
	{"child", "parent int REFERENCES chk.parent ON DELETE CASCADE ON UPDATE CASCADE"},
	{"moving", "v int"},
	{"copied", "v text"},
	{"wiped", "v int"},
	{"prepared", "v int"},
	{"asleep", "v int"},
	{"probe", "v int"},
	{"stock", "v int"},
}

func (c *chaos) tables() (names []string) {
	for _, table := range chaosTables {
		names = append(names, "chk."+table.name)
	}
	return names
}

// random returns the numbers of one actor.
func (c *chaos) random(actor int) *rand.Rand { return rand.New(rand.NewPCG(c.seed, uint64(actor))) }

// rest passes some time, as applications do in the middle of a transaction.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func connect(url string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(context.Background(), url)
	if err == nil {
		_, err = conn.Exec(context.Background(), `SET deadlock_timeout = '20ms'; SET lock_timeout = '10s'`)
	}
	return conn, err
}

// write runs transactions until ctx is done; the last one is ended.
func (c *chaos) write(ctx context.Context, i int) error {
	conn, err := connect(c.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	w := &writer{chaos: c, conn: conn, r: c.random(i), name: fmt.Sprintf("chaos_%d_%d", c.seed, i)}
	for ctx.Err() == nil {
		switch {
		case i < 2:
			err = w.transaction(true, w.touchPrepared)
		case w.r.IntN(50) == 0:
			err = w.transaction(false, w.wipe)
		default:
			err = w.transaction(false, w.touch)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writer is a connection that writes.
type writer struct {
	*chaos
	conn *pgx.Conn
	r    *rand.Rand
	name string
}

func (w *writer) do(sql string, args ...any) error {
	_, err := w.conn.Exec(context.Background(), sql, args...)
	return err
}

// transaction makes one transaction of a few steps. Only what a writer must be
// ready for is no error: a deadlock, a row that is there already.
func (w *writer) transaction(prepare bool, step func() error) error {
	if err := w.do(`BEGIN`); err != nil {
		return err
	}
	if w.r.IntN(3) == 0 { // a transaction id early, changes late
		if err := w.do(`SELECT pg_current_xact_id()`); err != nil {
			return err
		}
		rest(context.Background(), time.Duration(w.r.IntN(8))*time.Millisecond)
	}
	began := time.Now()
	for range 1 + w.r.IntN(4) {
		saved := w.r.IntN(3) == 0
		if saved {
			if err := w.do(`SAVEPOINT s`); err != nil {
				return err
			}
		}
		err := step()
		switch {
		case err != nil && !w.expected(err):
			return err
		case err != nil && !saved:
			w.undone.Add(1)
			return w.do(`ROLLBACK`)
		case err != nil, saved && w.r.IntN(3) == 0:
			if err := w.do(`ROLLBACK TO s`); err != nil {
				return err
			}
		}
		if w.r.IntN(6) == 0 {
			rest(context.Background(), time.Duration(w.r.IntN(10))*time.Millisecond)
		}
	}
	return w.end(prepare, began)
}

func (w *writer) expected(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	if pgErr.Code == "40P01" {
		w.deadlocks.Add(1)
	}
	return slices.Contains([]string{"40P01", "55P03", "23505", "23503", "P0001"}, pgErr.Code)
}

func (w *writer) end(prepare bool, began time.Time) error {
	var xid *string
	if err := w.conn.QueryRow(context.Background(), `SELECT pg_current_xact_id_if_assigned()::text`).Scan(&xid); err != nil {
		return err
	}
	commit, rollback := `COMMIT`, `ROLLBACK`
	if prepare && xid != nil {
		if err := w.do(`PREPARE TRANSACTION '` + w.name + `'`); err != nil {
			return err
		}
		w.prepared.Add(1)
		commit, rollback = `COMMIT PREPARED '`+w.name+`'`, `ROLLBACK PREPARED '`+w.name+`'`
		rest(context.Background(), time.Duration(w.r.IntN(100))*time.Millisecond)
	}
	if w.r.IntN(6) == 0 {
		w.undone.Add(1)
		return w.do(rollback)
	}
	if err := w.do(commit); err != nil {
		return err
	}
	if xid != nil {
		w.mark(*xid, span{began, time.Now()})
	}
	return nil
}

func (c *chaos) mark(xid string, s span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spans[xid] = s
}

// touch changes something.
func (w *writer) touch() error {
	id, other := w.r.IntN(12), w.r.IntN(1_000_000)
	switch w.r.IntN(14) {
	case 0, 1, 2:
		return w.do(`INSERT INTO chk.hot VALUES ($1, 0) ON CONFLICT (id) DO UPDATE SET v = hot.v + 1`, id)
	case 3:
		return w.do(`DELETE FROM chk.hot WHERE id = $1`, id)
	case 4:
		return w.do(`UPDATE chk.hot SET v = v + 1 WHERE id BETWEEN $1 AND $1 + 3`, id)
	case 5:
		return w.do(`WITH p AS (INSERT INTO chk.parent VALUES ($1, 0) RETURNING id)
			INSERT INTO chk.child SELECT $1 * 10 + g, id FROM p, generate_series(0, $2::int) g`, other, w.r.IntN(4))
	case 6:
		return w.do(`DELETE FROM chk.parent WHERE id = (SELECT id FROM chk.parent OFFSET $1 LIMIT 1)`, id)
	case 7:
		return w.do(`UPDATE chk.parent SET id = $2, v = v + 1 WHERE id = (SELECT id FROM chk.parent OFFSET $1 LIMIT 1)`, id, other)
	case 8:
		return w.do(`INSERT INTO chk.moving VALUES ($1, 0) ON CONFLICT (id) DO UPDATE SET v = moving.v + 1`, id)
	case 9:
		return w.do(`UPDATE chk.moving SET id = $2 WHERE id = $1`, id, w.r.IntN(12))
	case 10:
		_, err := w.conn.CopyFrom(context.Background(), pgx.Identifier{"chk", "copied"}, []string{"id", "v"},
			pgx.CopyFromSlice(1+w.r.IntN(30), func(i int) ([]any, error) { return []any{other + i, "x"}, nil }))
		return err
	case 11:
		return w.do(`UPDATE chk.stock SET v = v + 1 WHERE id BETWEEN $1 AND $1 + 2`, other%2500)
	case 12:
		if other%2 == 0 {
			return w.do(`DELETE FROM chk.stock WHERE id = $1`, other%2500)
		}
		return w.do(`INSERT INTO chk.stock VALUES ($1, 0) ON CONFLICT (id) DO UPDATE SET v = stock.v + 1`, other%2500)
	default: // a block that fails and goes on
		return w.do(fmt.Sprintf(`DO $$ BEGIN
			BEGIN
				UPDATE chk.hot SET v = -1 WHERE id = %d;
				RAISE 'no';
			EXCEPTION WHEN raise_exception THEN
				INSERT INTO chk.copied VALUES (%d, 'after all') ON CONFLICT DO NOTHING;
			END;
		END $$`, id, other))
	}
}

func (w *writer) wipe() error {
	if w.r.IntN(3) == 0 {
		return w.do(`TRUNCATE chk.wiped`)
	}
	return w.do(`INSERT INTO chk.wiped VALUES ($1, 0) ON CONFLICT (id) DO UPDATE SET v = wiped.v + 1`, w.r.IntN(5))
}

func (w *writer) touchPrepared() error {
	return w.do(`INSERT INTO chk.prepared VALUES ($1, 0) ON CONFLICT (id) DO UPDATE SET v = prepared.v + 1`, w.r.IntN(1000))
}

// sleep keeps a transaction open for one to three seconds, again and again.
func (c *chaos) sleep(ctx context.Context, url string, r *rand.Rand) error {
	conn, err := connect(url)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	for i := 0; ctx.Err() == nil; i++ {
		began := time.Now()
		var xid string
		if _, err := conn.Exec(ctx, `BEGIN`); err != nil {
			return nil // ctx has ended
		}
		if err := conn.QueryRow(context.Background(), `INSERT INTO chk.asleep VALUES ($1, 0) RETURNING pg_current_xact_id()::text`, i).Scan(&xid); err != nil {
			return err
		}
		rest(ctx, time.Second+time.Duration(r.IntN(2000))*time.Millisecond)
		if _, err := conn.Exec(context.Background(), `COMMIT`); err != nil {
			return err
		}
		if url == c.url {
			c.mark(xid, span{began, time.Now()})
		}
	}
	return nil
}

// probe commits a change and ticks once: that must be enough (F7), whoever has
// a transaction open.
func (c *chaos) probe(ctx context.Context) error {
	bg := context.Background()
	for i := 0; ctx.Err() == nil; i++ {
		began := time.Now()
		var xid string
		if err := c.pool.QueryRow(bg, `INSERT INTO chk.probe VALUES ($1, 0) RETURNING pg_current_xact_id()::text`, i).Scan(&xid); err != nil {
			return err
		}
		c.mark(xid, span{began, time.Now()})
		at, err := c.log.Sync(bg)
		if err != nil {
			return err
		}
		var n int64
		if err := c.pool.QueryRow(bg, `SELECT max(n) FROM howdah.change_commit WHERE xid = $1::text::xid8 HAVING count(*) = 1`, xid).Scan(&n); err != nil {
			return fmt.Errorf("F7: transaction %s has committed and has no number after a tick: %w", xid, err)
		}
		if n > at.Commit {
			return fmt.Errorf("F7: transaction %s had committed before the tick to %s and is commit %d", xid, at, n)
		}
		c.probes.Add(1)
		rest(ctx, 10*time.Millisecond)
	}
	return nil
}
