package changes_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// What the consumers of the chaos do is done in the database, and noted there with the
// transaction that did it, by triggers that know nothing of handlers: a place of a shard
// and what was handled up to it belong together.
const doneSQL = `
	CREATE SCHEMA done;
	CREATE TABLE done.effect (
		i bigint GENERATED ALWAYS AS IDENTITY,
		xid text NOT NULL DEFAULT pg_current_xact_id()::text,
		position text NOT NULL);
	CREATE TABLE done.place (
		xid text NOT NULL DEFAULT pg_current_xact_id()::text,
		shard int NOT NULL, seq bigint NOT NULL, n bigint NOT NULL, id bigint NOT NULL);
	CREATE FUNCTION done.note() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO done.place (shard, seq, n, id) VALUES (NEW.shard, NEW.seq, NEW.n, NEW.id);
		RETURN NULL;
	END $$;
	CREATE TRIGGER note AFTER INSERT ON howdah.change_checkpoint FOR EACH ROW WHEN (NEW.consumer = 'c') EXECUTE FUNCTION done.note();

	CREATE TABLE done.copy (tab text, id int, at bigint[] NOT NULL, image jsonb NOT NULL, PRIMARY KEY (tab, id));
	CREATE TABLE done.wrong (change jsonb, had jsonb);
	CREATE FUNCTION done.take(cs jsonb[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		c    jsonb;
		key  int;
		at_  bigint[];
		had  jsonb;
	BEGIN
		FOREACH c IN ARRAY cs LOOP
			key := c->'key'->>'id';
			at_ := string_to_array(c->>'position', '.');
			IF c->>'op' = 'read' THEN -- behind all of its commit
				at_ := at_ || 9223372036854775807;
				SELECT image INTO had FROM done.copy WHERE tab = c->>'table' AND id = key;
				IF had <> c->'new' THEN
					INSERT INTO done.wrong VALUES (c, had);
				END IF;
			END IF;
			IF c->>'op' = 'truncate' THEN -- another shard may be far behind it, or before
				DELETE FROM done.copy WHERE tab = c->>'table' AND at < at_;
			ELSIF c->>'op' = 'delete' THEN
				DELETE FROM done.copy WHERE tab = c->>'table' AND id = key;
			ELSE
				INSERT INTO done.copy VALUES (c->>'table', key, at_, c->'new')
				ON CONFLICT (tab, id) DO UPDATE SET at = EXCLUDED.at, image = EXCLUDED.image;
			END IF;
		END LOOP;
	END $$`

// workshop is where consumers work while the chaos lasts: three instances of "c", of
// four shards, that are stricken at every step of their batches, and two of "copy", which
// begins with the rows of all tables and cannot handle some of them before the end.
type workshop struct {
	*chaos
	random func(n int) int
	ends   []func() // of instances that run, and wait for it
	armed  atomic.Pointer[strike]

	cured   atomic.Bool    // copy can handle all
	kinds   atomic.Int64   // of strikes
	strikes map[string]int // by what was done
	calls   atomic.Int64   // of c's handler
	failed  atomic.Int64   // of these
	parked  int64          // changes, at the end of the chaos
	longest time.Duration  // until another went on
}

// strike is harm that is to be done to an instance, once it has come so far.
type strike struct {
	how, step string
	shard     int
	hit       chan hit
	over      chan struct{} // closed when another has gone on
}

type hit struct {
	instance int
	seq      int64
}

const (
	shardsOfC    = 4
	instancesOfC = 3
	workers      = "chaos_worker" // application_name
)

// open begins the work.
func (c *chaos) open() *workshop {
	w := &workshop{chaos: c, strikes: map[string]int{}}
	var mu sync.Mutex
	random := c.random(300)
	w.random = func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	for i := range instancesOfC {
		w.ends = append(w.ends, w.begin(changes.ConsumerConfig{Name: "c", From: "start", Shards: shardsOfC, Batch: 40, Timeout: 2 * time.Second}, i, w.handle))
	}
	for range 2 {
		w.ends = append(w.ends, w.begin(changes.ConsumerConfig{Name: "copy", Shards: 2, Batch: 40, Chunk: 100, Backfill: c.tables()}, -1, w.copy))
	}
	for _, name := range []string{"c", "copy"} {
		eventually(c.t, name+" has begun", func() bool { return registered(c.log, name) })
	}
	return w
}

// begin starts an instance, and others after it whenever it is ended by a strike.
func (w *workshop) begin(cfg changes.ConsumerConfig, instance int, h changes.Handler) (end func()) {
	pool := pgtest.Pool(w.t, withConns(w.url, cfg.Shards+3)+"&application_name="+workers)
	hub := pg.NewHub(pg.HubConfig{Conn: pool.Config().ConnConfig})
	ctx, stop := context.WithCancel(context.WithoutCancel(w.t.Context()))
	var background sync.WaitGroup
	background.Go(func() { hub.Run(ctx) })
	background.Go(func() {
		for ctx.Err() == nil {
			life, die := context.WithCancel(ctx)
			c := changes.NewConsumer(pool, hub, cfg)
			c.Hurry()
			c.Grace(time.Second)
			c.Handle("chk.*", h)
			if instance >= 0 {
				c.Failpoint(func(b changes.Batch) { w.reached(b, instance, die) })
			}
			if err := c.Run(life); err != nil {
				w.t.Errorf("%s ended: %v", cfg.Name, err)
				stop()
			}
			die()
		}
	})
	end = sync.OnceFunc(func() { stop(); background.Wait() })
	w.t.Cleanup(end)
	return end
}

// handle does what c does. Now and then it fails, when all has been done.
func (w *workshop) handle(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
	var at []string
	for _, c := range cs {
		at = append(at, c.Position.String())
	}
	if _, err := tx.Exec(ctx, `INSERT INTO done.effect (position) SELECT p FROM unnest($1::text[]) WITH ORDINALITY AS u(p, i) ORDER BY i`, at); err != nil {
		return err
	}
	switch w.calls.Add(1) % 100 {
	case 20:
		w.failed.Add(1)
		return errors.New("unlucky")
	case 70:
		w.failed.Add(1)
		panic("unlucky")
	}
	return nil
}

func (w *workshop) copy(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
	if _, err := tx.Exec(ctx, `SELECT done.take($1::jsonb[])`, cs); err != nil {
		return err
	}
	for _, c := range cs {
		if poison := c.Table == "stock" && strings.HasSuffix(string(c.Key), "77}") || c.Table == "wiped" && string(c.Key) == `{"id":2}`; poison && !w.cured.Load() {
			return errors.New("poison")
		}
	}
	return nil
}

// reached does the harm that is to be done at this step.
func (w *workshop) reached(b changes.Batch, instance int, die context.CancelFunc) {
	s := w.armed.Load()
	if s == nil || s.step != b.Step || s.shard != b.Shard || !w.armed.CompareAndSwap(s, nil) {
		return
	}
	conn := (*b.Tx).Conn().PgConn()
	s.hit <- hit{instance, b.Seq}
	switch s.how {
	case "cut":
		conn.Conn().Close()
	case "terminate":
		if _, err := w.pool.Exec(context.Background(), `SELECT pg_terminate_backend($1)`, conn.PID()); err != nil {
			w.t.Error(err)
		}
	case "end":
		die()
	case "freeze": // as a machine that sleeps and wakes up, and knows nothing of it
		<-s.over
	case "lose the answer":
		*b.Tx = unanswered{*b.Tx}
	}
}

// unanswered is a transaction whose COMMIT is done, and the answer is lost.
type unanswered struct{ pgx.Tx }

func (t unanswered) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	results := t.Tx.SendBatch(ctx, b)
	if b.QueuedQueries[b.Len()-1].SQL != "COMMIT" {
		return results
	}
	return lostAnswer{results}
}

type lostAnswer struct{ pgx.BatchResults }

func (a lostAnswer) Close() error {
	if err := a.BatchResults.Close(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// strike harms c until ctx is done, one instance at a time, and sees to it that the
// shard that was being moved is moved on (C5).
func (w *workshop) strike(ctx context.Context) error {
	for i := 0; ctx.Err() == nil; i++ {
		s := &strike{shard: w.random(shardsOfC), hit: make(chan hit, 1), over: make(chan struct{})}
		s.how = []string{"cut", "terminate", "end", "lose the answer"}[w.random(4)]
		handing := []string{"calling", "called", "moving"}
		s.step = slices.Concat(handing, []string{"begun", "locked", "read", "committed"})[w.random(7)]
		if i == 0 || w.random(60) == 0 {
			s.how, s.step = "freeze", handing[w.random(3)]
		}
		w.armed.Store(s)
		var h hit
		select {
		case h = <-s.hit:
		case <-ctx.Done():
			if w.armed.CompareAndSwap(s, nil) {
				return nil
			}
			h = <-s.hit
		}
		began := time.Now()
		var err error
		if slices.Contains(handing, s.step) {
			err = w.movedOn(s.shard, h.seq)
		}
		close(s.over)
		if err != nil {
			return fmt.Errorf("%s at step %s of instance %d: %w", s.how, s.step, h.instance, err)
		}
		w.strikes[s.how]++
		w.kinds.Store(int64(len(w.strikes)))
		if s.how != "freeze" {
			w.longest = max(w.longest, time.Since(began))
		}
		if w.random(4) == 0 { // anybody, anywhere
			if _, err := w.pool.Exec(context.Background(), `
				SELECT pg_terminate_backend(pid)
				FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1 ORDER BY pid OFFSET $2 LIMIT 1) s`, workers, w.random(20)); err != nil {
				return err
			}
			w.strikes["somebody"]++
		}
		if w.random(30) == 0 {
			if err := w.log.Pause(context.Background(), "c", "for a moment"); err != nil {
				return err
			}
			if err := w.log.Resume(context.Background(), "c"); err != nil {
				return err
			}
			w.strikes["pause"]++
		}
	}
	return nil
}

// enough reports whether the consumers have been through what the end asks for.
func (w *workshop) enough(ctx context.Context) (bool, error) {
	if w.failed.Load() == 0 || w.kinds.Load() < 3 || w.calls.Load() < 100 {
		return false, nil
	}
	s, err := w.log.Consumer(ctx, "copy")
	return s.Parked > 0, err
}

// movedOn returns when a shard of c has a checkpoint behind seq.
func (w *workshop) movedOn(shard int, seq int64) error {
	ctx := context.Background()
	var at int64
	var state, reason string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); rest(ctx, 2*time.Millisecond) {
		if err := w.pool.QueryRow(ctx, `
			SELECT state, reason, (SELECT max(seq) FROM howdah.change_checkpoint WHERE consumer = name AND shard = $1)
			FROM howdah.change_consumer
			WHERE name = 'c'`, shard).Scan(&state, &reason, &at); err != nil || at > seq {
			return err
		}
		if state != "running" {
			break
		}
	}
	return fmt.Errorf("C5: shard %d stays at checkpoint %d; c is %s (%s)", shard, at, state, reason)
}

// close waits until all has been handled, and ends the instances.
func (w *workshop) close() {
	w.parked = status(w.t, w.log, "copy").Parked
	w.cured.Store(true)
	for _, name := range []string{"c", "copy"} {
		eventually(w.t, name+" has handled all", func() bool {
			s := status(w.t, w.log, name)
			if s.State == "paused" || s.State == "expired" {
				w.t.Fatalf("%s is %s: %s", name, s.State, s.Reason)
			}
			if s.Dead > 0 {
				if _, err := w.log.Retry(w.t.Context(), name); err != nil {
					w.t.Fatal(err)
				}
			}
			return s.Lag == 0 && s.Parked == 0 && len(s.Backfill) == 0
		})
	}
	for _, end := range w.ends {
		end()
	}
}

// violations says what of the consumers' promises is broken, where the feed is all.
func (w *workshop) violations(all []changes.Change) (broken []string) {
	say := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	byPosition := map[string]*changes.Change{}
	for i := range all {
		byPosition[all[i].Position.String()] = &all[i]
	}

	// The places that each shard came to, one after the other, and what was done on the
	// way to each.
	rows, _ := w.pool.Query(context.Background(), `
		SELECT p.shard, p.seq, p.n, p.id, coalesce(e.positions, '{}')
		FROM done.place p
		LEFT JOIN (SELECT xid, array_agg(position ORDER BY i) AS positions FROM done.effect GROUP BY xid) e USING (xid)
		ORDER BY p.shard, p.seq`)
	var shard int
	var seq int64
	var to changes.Position
	var effects []string
	lastSeq, lastPlace, lastDone := map[int]int64{}, map[int]changes.Position{}, map[int]changes.Position{}
	done := map[string][]int{}  // shards, by position
	shardOf := map[string]int{} // by key
	transactions, n := 0, 0
	if _, err := pgx.ForEachRow(rows, []any{&shard, &seq, &to.Commit, &to.ID, &effects}, func() error {
		if seq != lastSeq[shard]+1 {
			say("C5: shard %d: checkpoint %d follows %d", shard, seq, lastSeq[shard])
		}
		if to.Compare(lastPlace[shard]) < 0 {
			say("C3: shard %d went back from %s to %s", shard, lastPlace[shard], to)
		}
		for _, position := range effects {
			at, _ := changes.ParsePosition(position)
			c := byPosition[position]
			switch {
			case c == nil:
				say("C1: shard %d handled %s, which is not in the feed", shard, position)
				continue
			case at.Compare(lastDone[shard]) <= 0:
				say("C3: shard %d handled %s after %s", shard, at, lastDone[shard])
			case at.Compare(lastPlace[shard]) <= 0 || at.Compare(to) > 0:
				say("C1: shard %d handled %s on its way from %s to %s", shard, at, lastPlace[shard], to)
			}
			if key := c.Table + string(c.Key); c.Op != changes.Truncate {
				if s, ok := shardOf[key]; ok && s != shard {
					say("C3: %s is on shard %d and on %d", key, s, shard)
				}
				shardOf[key] = shard
			}
			lastDone[shard] = at
			done[position] = append(done[position], shard)
		}
		if len(effects) > 0 {
			transactions++
		}
		n += len(effects)
		lastSeq[shard], lastPlace[shard] = seq, to
		return nil
	}); err != nil {
		say("%v", err)
	}
	for _, c := range all {
		want := 1
		if c.Op == changes.Truncate { // of everybody's keys
			want = shardsOfC
		}
		if got := done[c.Position.String()]; len(got) != want {
			say("C1: %s was handled %d times, by the shards %v, want %d", c.Position, len(got), got, want)
		}
	}
	var committed int
	if err := w.pool.QueryRow(context.Background(), `SELECT count(*) FROM done.effect`).Scan(&committed); err != nil || committed != n {
		say("C1: %d effects, %v, of which %d have a place", committed, err, n)
	}

	var wrong int
	var sample *string
	if err := w.pool.QueryRow(context.Background(), `SELECT count(*), min(change::text || ' had ' || had::text) FROM done.wrong`).Scan(&wrong, &sample); err != nil || wrong > 0 {
		say("C7: %d rows were read that the copy had otherwise, %v: %s", wrong, err, *sample)
	}
	for _, table := range w.tables() {
		var differ int
		if err := w.pool.QueryRow(context.Background(), fmt.Sprintf(`
			SELECT count(*)
			FROM (SELECT id, image FROM done.copy WHERE 'chk.' || tab = $1) c
			FULL JOIN (SELECT id, to_jsonb(t) AS image FROM %s t) t USING (id)
			WHERE c.image IS DISTINCT FROM t.image`, table), table).Scan(&differ); err != nil || differ > 0 {
			say("C7: the copy of %s differs in %d rows, %v", table, differ, err)
		}
	}
	w.t.Logf("%d changes handled in %d transactions, %d calls failed, %d parked elsewhere, %v, longest pause %v", n, transactions, w.failed.Load(), w.parked, w.strikes, w.longest.Round(time.Millisecond))
	if w.failed.Load() == 0 || w.parked == 0 || len(w.strikes) < 3 || transactions < 50 {
		say("too little happened to the consumers")
	}
	return broken
}
