package counters_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// journal is a log that tests read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), text)
}

// keep runs a keeper, and returns what stops it.
func keep(t testing.TB, k *counters.Keeper) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := pgtest.Receive(t, done, "the end of Run"); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// A keeper waits for its table, folds, drops IDs that have had their time, takes a
// database that goes away for a while, and folds once more on its way out.
func TestKeeper(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url)
	proxy := pgtest.NewProxy(t, url)
	pool := pgtest.Pool(t, proxy.URL())
	s := counters.New(pool, counters.Config{Table: pgx.Identifier{"shop"}, Striped: []string{"hot"}})
	if err := migrate.Up(ctx, direct.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
		t.Fatal(err)
	}
	said := new(journal)
	log := slog.New(slog.NewTextHandler(said, nil))
	stop := keep(t, counters.NewKeeper(s, counters.KeeperConfig{Fold: 20 * time.Millisecond, Drop: 20 * time.Millisecond, Log: log}))
	if err := s.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := direct.Exec(ctx, `
		UPDATE howdah.counter_tables SET settings = settings || '{"striped_at": 1}';
		INSERT INTO howdah.counter_events (tbl, id, at)
		SELECT t, i, now() - interval '7 days' + (i - 20000) * interval '1 minute' FROM unnest(ARRAY['public.shop', 'other']) AS t, generate_series(1, 20010) AS i`); err != nil {
		t.Fatal(err)
	}
	s.Age(time.Hour)
	if err := s.Track(ctx, "hot", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	pgtest.Until(t, "the fold", func() bool {
		return scalar[int](t, direct, `SELECT count(*) FROM shop WHERE key = 'hot::1h::1746522000' AND data = '{"n": 1}'`) == 1
	})
	pgtest.Until(t, "old IDs", func() bool {
		n := scalar[int](t, direct, `SELECT count(*) FROM howdah.counter_events`)
		if n < 2 {
			t.Fatal("IDs that are not old are gone")
		}
		return n <= 20
	})
	if n, err := s.Apply(ctx, counters.Event{ID: "20010", Key: "hot", At: at}); n != 0 || err != nil {
		t.Errorf("Apply of an ID that is not old = %d, %v", n, err)
	}
	if text := said.text.String(); said.count("level=") > 0 {
		t.Errorf("logged %s", text)
	}
	proxy.Refuse(true)
	proxy.Cut()
	pgtest.Until(t, "a warning", func() bool { return said.count("level=WARN") > 0 })
	proxy.Refuse(false)
	pgtest.Until(t, "the end of it", func() bool { return said.count("at work again") > 0 })
	if n := said.count("task=fold"); n > 10 {
		t.Errorf("logged %d times", n)
	}
	stop()

	stop = keep(t, counters.NewKeeper(s, counters.KeeperConfig{Fold: time.Hour, Log: log}))
	if err := s.Track(ctx, "hot", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	stop()
	if n := scalar[int](t, direct, `SELECT count(*) FROM howdah.counter_slots`); n > 0 {
		t.Errorf("%d slots are left", n)
	}
	if diff := cmp.Diff(counters.Values{"n": number(2)}, hour(t, counters.New(direct, counters.Config{Table: pgx.Identifier{"shop"}}), "hot")); diff != "" {
		t.Error(diff)
	}
	if err := counters.NewKeeper(counters.New(pool, counters.Config{System: "on"}), counters.KeeperConfig{}).Run(ctx); !errors.Is(err, fault.Invalid) {
		t.Errorf("Run with a Config that cannot be = %v", err)
	}
}

// Of several keepers one has the turn, also where the clock was set back.
func TestTurns(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	turn := func(want int) {
		t.Helper()
		var mu sync.Mutex
		var group sync.WaitGroup
		turns := 0
		for range 8 {
			group.Go(func() {
				mine, err := counters.New(pool, counters.Config{}).Turn(ctx, "fold", 10*time.Minute)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if mine {
					turns++
				}
			})
		}
		group.Wait()
		if turns != want {
			t.Errorf("%d have the turn, want %d", turns, want)
		}
	}
	turn(1)
	turn(0)
	for _, ago := range []string{"9.5 minutes", "-1 hour"} {
		if _, err := pool.Exec(ctx, `UPDATE howdah.counter_turns SET at = clock_timestamp() - $1::text::interval WHERE tbl = quote_ident(current_schema()) || '.trifle_stats'`, ago); err != nil {
			t.Fatal(err)
		}
		turn(1)
		turn(0)
	}
	if mine, err := s.Turn(ctx, "other", time.Second); !mine || err != nil {
		t.Errorf("another task: %v, %v", mine, err)
	}
	if mine, err := counters.New(pgtest.Pool(t, pgtest.Database(t)), counters.Config{}).Turn(ctx, "fold", time.Second); mine || err != nil {
		t.Errorf("without a table: %v, %v", mine, err)
	}
}
