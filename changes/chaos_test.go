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

// chaosFor is how long the chaos lasts: HOWDAH_CHAOS=60s for longer.
func chaosFor(t testing.TB) time.Duration {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("HOWDAH_CHAOS"), "8s"))
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
// transactions sleep here and in another database, and holds the feed against
// the truth.
func TestChaos(t *testing.T) {
	t.Parallel()
	c := newChaos(t)
	var readers errgroup.Group
	drained := make(chan struct{})
	followers := make([]*follower, 4)
	for i := range followers {
		f := &follower{c: c, r: c.random(100 + i)}
		followers[i] = f
		readers.Go(func() error { return f.run(drained) })
	}

	ctx, cancel := context.WithTimeout(t.Context(), chaosFor(t))
	defer cancel()
	var writers errgroup.Group
	for i := range 16 {
		writers.Go(func() error { return c.write(ctx, i) })
	}
	writers.Go(func() error { return c.sleep(ctx, c.url, c.random(200)) })
	writers.Go(func() error { return c.sleep(ctx, c.other, c.random(201)) })
	writers.Go(func() error { return c.probe(ctx) })
	if err := writers.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := c.log.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	close(drained)
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}

	all, _ := readAll(t, c.log, changes.Position{}, 1000, changes.Filter{})
	facts := truth(t, c.pool)
	for i, f := range followers {
		if problem := sameFeed(all, f.seen); problem != "" {
			t.Errorf("F6: follower %d, stopped %d times: %s", i, f.stops, problem)
		}
	}
	report(t, violations(all, facts, c.spans))
	t.Logf("%d changes of %d transactions, %d given up, %d deadlocks, %d prepared, %d probes",
		len(all), len(facts), c.undone.Load(), c.deadlocks.Load(), c.prepared.Load(), c.probes.Load())
	if c.undone.Load() == 0 || c.prepared.Load() == 0 || c.probes.Load() == 0 || len(facts) < 100 {
		t.Error("too little happened")
	}
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
	audited(t, c.pool, "hot", "v int")
	audited(t, c.pool, "parent", "v int")
	audited(t, c.pool, "child", "parent int REFERENCES chk.parent ON DELETE CASCADE ON UPDATE CASCADE")
	audited(t, c.pool, "moving", "v int")
	audited(t, c.pool, "copied", "v text")
	audited(t, c.pool, "wiped", "v int")
	audited(t, c.pool, "prepared", "v int")
	audited(t, c.pool, "asleep", "v int")
	audited(t, c.pool, "probe", "v int")
	for _, table := range []string{"hot", "parent", "child", "moving", "copied", "wiped", "asleep", "probe"} {
		capture(t, c.log, changes.Capture{Table: "chk." + table, Payload: changes.PayloadFull})
	}
	capture(t, c.log, changes.Capture{Table: "chk.prepared", Payload: changes.PayloadFull, Wake: "poll"})
	// Leaves change every 50 ms, not every four hours: transactions lie in several.
	exec(t, c.pool, `CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint LANGUAGE sql VOLATILE
		RETURN ((extract(epoch FROM clock_timestamp()) * 20)::bigint % 8)::smallint`)
	exec(t, pgtest.Pool(t, c.other), `CREATE SCHEMA chk; CREATE TABLE chk.asleep (id int, v int)`)
	return c
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
	switch w.r.IntN(12) {
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

// follower reads the feed and is stopped now and then: in the middle of a page,
// in the middle of a call. It goes on from the last position it kept.
type follower struct {
	c     *chaos
	r     *rand.Rand
	seen  []changes.Change
	stops int
}

// run reads until everything has been written and read.
func (f *follower) run(drained <-chan struct{}) error {
	var at changes.Position
	for {
		over := false
		select {
		case <-drained:
			over = true
		default:
		}
		ctx, cancel := context.WithCancel(context.Background())
		if !over && f.r.IntN(10) == 0 {
			cancel()
			ctx, cancel = context.WithTimeout(context.Background(), time.Duration(f.r.IntN(3000))*time.Microsecond)
		}
		page, next, err := f.c.log.Page(ctx, at, 1+f.r.IntN(300), changes.Filter{})
		stopped := ctx.Err() != nil
		cancel()
		switch {
		case err != nil && stopped:
			f.stops++
			continue
		case err != nil:
			return err
		case len(page) > 0 && f.r.IntN(4) == 0: // not all of it was handled
			f.stops++
			page = page[:1+f.r.IntN(len(page))]
			next = page[len(page)-1].Position
		case len(page) == 0 && next == at && over:
			return nil
		case len(page) == 0:
			rest(context.Background(), time.Duration(f.r.IntN(5))*time.Millisecond)
		}
		if len(page) > 0 && page[0].Position.Compare(at) <= 0 {
			return fmt.Errorf("F6: %s was read and %s came after it", at, page[0].Position)
		}
		f.seen = append(f.seen, page...)
		at = next
	}
}

// sameFeed says where what a follower saw parts from the feed.
func sameFeed(want, got []changes.Change) string {
	for i := range min(len(want), len(got)) {
		if got[i].Position != want[i].Position || got[i].XID != want[i].XID || string(got[i].New) != string(want[i].New) {
			return fmt.Sprintf("change %d is %s, want %s", i, got[i].Position, want[i].Position)
		}
	}
	if len(want) != len(got) {
		return fmt.Sprintf("saw %d changes, want %d", len(got), len(want))
	}
	return ""
}
