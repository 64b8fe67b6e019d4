package logical_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/changes/logical"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A slot that was dropped and made anew begins where it was made: what was committed
// before is missing, which is an error, and stays one.
func TestPumpOfAnotherSlot(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	stop := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t VALUES (1, 'one')`)
	feed(t, f.log, "one")
	stop()
	f.start(t, f.target, f.config())() // the same slot is well
	f.dropSlot(t)
	exec(t, f.source, `INSERT INTO shop.t VALUES (2, 'lost')`)
	exec(t, f.source, `SELECT pg_create_logical_replication_slot(current_database()::text, 'pgoutput')`)
	p, err := logical.New(f.target, f.config())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Run(t.Context()); !errors.Is(err, logical.ErrLost) || !strings.Contains(err.Error(), "another slot") {
			t.Errorf("Run with another slot: %v, want ErrLost", err)
		}
	}
	if err := p.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.start(t, f.target, f.config())()
}

// Whatever is cut off, and whenever: each transaction is in the log once, whole, and the
// rows go through their versions in order.
func TestPumpThroughCuts(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, v int, note text)`)
	exec(t, f.source, `INSERT INTO shop.t SELECT g, 0 FROM generate_series(1, 2500) g`)
	f.publish(t)
	from, to := pgtest.NewProxy(t, f.sourceURL), pgtest.NewProxy(t, f.target.Config().ConnString())
	cfg := f.config()
	cfg.Source = from.URL()
	stop := f.start(t, pgtest.Pool(t, to.URL()), cfg)

	const rounds = 60
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for i := range rounds {
				_, err := f.source.Exec(t.Context(), `UPDATE shop.t SET v = v + 1 WHERE id BETWEEN $1 AND $2`, w*100+1, w*100+1+i%7)
				if err == nil && w == 0 && i%20 == 0 {
					_, err = f.source.Exec(t.Context(), `UPDATE shop.t SET v = v + 1 WHERE id > 1000`) // more than is held
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() { writers.Wait(); close(written) }()
	last := 0
	for cut, over := 0, false; cut < 12 || !over; cut++ {
		select {
		case <-written:
			over = true
		default:
		}
		eventually(t, "the pump goes on", func() bool { // until there is news, or nothing more to come
			var n int
			if err := f.target.QueryRow(t.Context(), `SELECT count(DISTINCT xid) FROM howdah.change`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			more := n > last
			last = n
			return more || n == 3*rounds+3
		})
		if cut%2 == 0 {
			from.Cut()
		} else {
			to.Cut()
		}
	}
	exec(t, f.source, `INSERT INTO shop.t VALUES (9999, 0, 'the end')`)
	all := feed(t, f.log, "the end")
	stop()

	versions := map[string]int{}
	for i, c := range all {
		var row struct{ V int }
		if err := json.Unmarshal(c.New, &row); err != nil || row.V != versions[string(c.Key)]+1 {
			t.Fatalf("%s %s: version %d follows %d, %v", c.Position, c.Key, row.V, versions[string(c.Key)], err)
		}
		versions[string(c.Key)] = row.V
		if i > 0 && c.XID != all[i-1].XID && !all[i-1].Last {
			t.Fatalf("%s: a transaction in pieces", c.Position)
		}
	}
	rows, err := f.source.Query(t.Context(), `SELECT id, v FROM shop.t WHERE v > 0`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var id, v int
		if err := rows.Scan(&id, &v); err != nil {
			t.Fatal(err)
		}
		if got := versions[fmt.Sprintf(`{"id":%d}`, id)]; got != v {
			t.Errorf("row %d came to version %d, want %d", id, got, v)
		}
	}
	if rows.Err() != nil || n != 1521 {
		t.Errorf("%d rows, %v", n, rows.Err())
	}
}

// The log's server is killed: what it had not on its disk is pumped again, because the
// slot was not told that it was there.
func TestPumpThroughACrash(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	server := pgtest.Server(t, func(c *localpg.Config) {
		c.Settings = map[string]string{"wal_writer_delay": "10s"} // nobody else puts it there
	})
	f.into(t, server.URL())
	ctx, cancel := context.WithCancel(t.Context())
	var supervisor sync.WaitGroup
	supervisor.Go(func() { server.Run(ctx) })
	defer supervisor.Wait()
	defer cancel()
	stop := f.start(t, f.target, f.config())
	const n = 50
	var written string // before the last
	for i := range n {
		if err := f.source.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&written); err != nil {
			t.Fatal(err)
		}
		exec(t, f.source, fmt.Sprintf(`INSERT INTO shop.t VALUES (%d, '')`, i))
	}
	eventually(t, "the source has been told", func() (told bool) {
		if err := f.source.QueryRow(t.Context(), `SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, f.slot, written).Scan(&told); err != nil {
			t.Fatal(err)
		}
		return told
	})
	old := server.PID()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is back", func() bool { return server.PID() != old && f.target.Ping(t.Context()) == nil })
	exec(t, f.source, `INSERT INTO shop.t VALUES (9999, 'the end')`)
	all := feed(t, f.log, "the end")
	stop()
	if len(all) != n {
		t.Errorf("%d changes, want %d", len(all), n)
	}
	for i, c := range all {
		if want := fmt.Sprintf(`{"id":%d}`, i); string(c.Key) != want {
			t.Fatalf("change %d is of %s", i, c.Key)
		}
	}
}

// Of two pumps of a slot one works, and the other goes on when it ends.
func TestPumpTakesOver(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	first := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t VALUES (1, 'one')`)
	feed(t, f.log, "one")
	second := f.start(t, f.target, f.config())
	first()
	exec(t, f.source, `INSERT INTO shop.t VALUES (2, 'two')`)
	if all := feed(t, f.log, "two"); len(all) != 1 {
		t.Errorf("%d changes before the second", len(all))
	}
	second()
	third := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t VALUES (3, 'three')`)
	all := feed(t, f.log, "three")
	third()
	if len(all) != 2 || !slices.IsSortedFunc(all, func(a, b changes.Change) int { return a.Position.Compare(b.Position) }) {
		t.Errorf("%d changes before the third", len(all))
	}
}

func TestPumpRefuses(t *testing.T) {
	t.Parallel()
	for field, cfg := range map[string]logical.Config{"source": {}, "slot": {Source: "postgres://x", Slot: "A-b"}} {
		if _, err := logical.New(nil, cfg); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), field+": ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	f := newFixture(t, ``)
	f.publish(t)
	run := func(change func(*logical.Config)) error {
		cfg := f.config()
		change(&cfg)
		p, err := logical.New(f.target, cfg)
		if err != nil {
			return err
		}
		return p.Run(t.Context())
	}
	err := run(func(c *logical.Config) { c.Unbounded = false })
	if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "max_slot_wal_keep_size: -1") {
		t.Errorf("unbounded: %v", err)
	}
	err = run(func(c *logical.Config) { c.Publication = "other" })
	if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `CREATE PUBLICATION "other"`) {
		t.Errorf("no publication: %v", err)
	}
	var slots int
	if err := f.source.QueryRow(t.Context(), `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`).Scan(&slots); err != nil || slots != 0 {
		t.Errorf("%d slots after refusals, %v", slots, err)
	}

	f.start(t, f.target, f.config())()
	f.dropSlot(t)
	if err := run(func(*logical.Config) {}); !errors.Is(err, logical.ErrLost) {
		t.Errorf("slot dropped: %v", err)
	}
	p, err := logical.New(f.target, f.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.start(t, f.target, f.config())()
}

// A slot that fell behind what the source keeps ends the pump, and is not passed over.
func TestPumpOfALostSlot(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, func(c *localpg.Config) {
		c.Settings = map[string]string{"wal_level": "logical", "max_slot_wal_keep_size": "1MB", "fsync": "off"}
	})
	f := &fixture{sourceURL: server.URL(), slot: "howdah"}
	f.source = pgtest.Pool(t, f.sourceURL)
	f.into(t, f.sourceURL)
	exec(t, f.source, `CREATE TABLE t (id int PRIMARY KEY, note text); CREATE PUBLICATION howdah FOR TABLE t`)
	cfg := f.config()
	cfg.Unbounded = false
	f.start(t, f.target, cfg)()
	for range 3 {
		exec(t, f.source, `SELECT pg_logical_emit_message(false, 'x', repeat('x', 100000)), pg_switch_wal()`)
	}
	exec(t, f.source, `CHECKPOINT`)
	p, err := logical.New(f.target, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, logical.ErrLost) || !errors.Is(err, fault.Conflict) {
		t.Errorf("Run: %v, want ErrLost", err)
	}
}
