package howdah_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

func open(t *testing.T, cfg howdah.Config) *howdah.Client {
	t.Helper()
	c, err := howdah.OpenConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTransactRollsBackOnErrorAndPanic(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := open(t, howdah.Config{Database: pg.Config{URL: pgtest.Database(t)}})
	insert := func(s howdah.Services) {
		if _, err := s.Checklists.Insert(ctx, "l", "a"); err != nil {
			t.Fatal(err)
		}
	}
	mine := errors.New("mine")
	if err := c.Transact(ctx, func(_ pgx.Tx, s howdah.Services) error { insert(s); return mine }); !errors.Is(err, mine) {
		t.Errorf("Transact = %v, want my error", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		c.Transact(ctx, func(_ pgx.Tx, s howdah.Services) error { insert(s); panic("mine") })
	}()
	// A statement that fails ends the transaction; its kind is still seen.
	err := c.Transact(ctx, func(tx pgx.Tx, s howdah.Services) error {
		insert(s)
		_, err := tx.Exec(ctx, `INSERT INTO iidy.lists (list, item) VALUES ('l', 'a')`)
		return err
	})
	if !errors.Is(err, howdah.ErrConflict) {
		t.Errorf("Transact = %v, want a conflict", err)
	}
	items, err := c.Checklists.Page(ctx, "l", nil, 10)
	if err != nil || len(items) != 0 {
		t.Errorf("left behind: %v, %v", items, err)
	}
}

func TestReadsGoToTheReplica(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	primary, replica := pgtest.Database(t), pgtest.Database(t)
	c := open(t, howdah.Config{Database: pg.Config{URL: primary, ReplicaURL: replica}})
	there := open(t, howdah.Config{Database: pg.Config{URL: replica}}) // what a replica would have by now
	if _, err := there.Checklists.Insert(ctx, "l", "replicated"); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		s    howdah.Services
		want int
	}{"primary": {c.Services, 0}, "replica": {c.Reads(), 1}, "without a replica": {there.Reads(), 1}} {
		if items, err := tc.s.Checklists.Page(ctx, "l", nil, 10); err != nil || len(items) != tc.want {
			t.Errorf("%s: %v, %v, want %d", name, items, err, tc.want)
		}
	}
}

func TestRunHearsNotifications(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	c := open(t, howdah.Config{Database: pg.Config{URL: pgtest.Database(t)}})
	running, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- c.Run(running) }()
	sub, err := c.Hub.Subscribe("my channel")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if first := pgtest.Receive(t, sub.C(), "the first notice"); !first.Gap {
		t.Errorf("first notice %+v, want a gap", first)
	}
	if _, err := c.Pool.Exec(ctx, `SELECT pg_notify('my channel', 'hello')`); err != nil {
		t.Fatal(err)
	}
	if got := pgtest.Receive(t, sub.C(), "hello"); got.Payload != "hello" {
		t.Errorf("heard %+v", got)
	}
	stop()
	if err := pgtest.Receive(t, ran, "the end of Run"); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// What was counted in any table that is recorded gets into its rows while Run runs.
func TestRunKeepsAllCounterTables(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := open(t, howdah.Config{Database: pg.Config{URL: pgtest.Database(t)}})
	shop := counters.New(c.Pool, counters.Config{Table: pgx.Identifier{"shop"}})
	if err := shop.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	if err := shop.Track(ctx, "orders", time.Unix(1746522930, 0), counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- c.Run(running) }()
	pgtest.UntilSQL(t, c.Pool, "the fold", `SELECT NOT EXISTS (SELECT FROM howdah.counter_slots)`)
	stop()
	if err := pgtest.Receive(t, ran, "the end of Run"); err != nil {
		t.Errorf("Run = %v", err)
	}
	var data string
	if err := c.Pool.QueryRow(ctx, `SELECT data::text FROM shop WHERE key = '__system__key__::1h::1746522000'`).Scan(&data); err != nil || data != `{"count": 1, "keys.orders": 1}` {
		t.Errorf("the system row has %s, %v", data, err)
	}
}

// What was counted is in the table's rows when Run ends, for programs that read them.
func TestRunKeepsCounters(t *testing.T) {
	t.Parallel()
	c := open(t, howdah.Config{Database: pg.Config{URL: pgtest.Database(t)}})
	running, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- c.Run(running) }()
	at := time.Unix(1746522930, 0)
	if err := c.Counters.Track(t.Context(), "orders", at, counters.Values{"n": 1}); err != nil {
		t.Error(err)
	}
	stop()
	if err := pgtest.Receive(t, ran, "the end of Run"); err != nil {
		t.Errorf("Run = %v", err)
	}
	var data string
	if err := c.Pool.QueryRow(t.Context(), `SELECT data::text FROM trifle_stats WHERE key = '__system__key__::1h::1746522000'`).Scan(&data); err != nil || data != `{"count": 1, "keys.orders": 1}` {
		t.Errorf("the system row has %s, %v", data, err)
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]error{
		"postgres://u:hunter2@h:x/db":         howdah.ErrInvalid,
		"postgres://u:hunter2@127.0.0.1:1/db": howdah.ErrUnavailable,
	} {
		_, err := howdah.Open(t.Context(), url)
		if !errors.Is(err, want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%q): %v, want %v", url, err, want)
		}
	}
}
