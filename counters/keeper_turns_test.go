package counters_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A keeper that may not fold a table is in nobody's way: doctor sees that what was counted
// waits, and the keeper that may has its turn at once.
func TestKeeperThatFailsLeavesItsTurn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ rights, says string }{
		"no rights on the table":  {`REVOKE ALL ON closed FROM %s`, "GRANT SELECT, INSERT, UPDATE ON public.closed TO "},
		"no rights on what waits": {`REVOKE DELETE ON howdah.counter_slots FROM %s`, "permission denied for table counter_slots"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			pool := pgtest.Pool(t, pgtest.Database(t))
			migrated(t, pool)
			theirs := as(t, pool, "keeper "+rand.Text(), `USAGE ON SCHEMA public`)
			role := scalar[string](t, theirs, `SELECT quote_ident(current_user)`)
			s := counters.New(pool, counters.Config{Table: pgx.Identifier{"closed"}})
			if err := s.Setup(ctx); err != nil {
				t.Fatal(err)
			}
			if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
				t.Fatal(err)
			}
			execute(t, pool, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA howdah TO `+role+`; GRANT SELECT, INSERT, UPDATE, DELETE ON closed TO `+role)
			execute(t, pool, fmt.Sprintf(tc.rights, role))
			var log journal
			keep(t, counters.NewKeeper(counters.New(theirs, counters.Config{}), counters.KeeperConfig{All: true, Fold: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil))}))
			pgtest.Until(t, "the warning of the keeper that may not", func() bool { return log.count(tc.says) > 0 })
			if diff := cmp.Diff([]string{"warning slots-unfolded"}, codes(t, s)); diff != "" {
				t.Errorf("doctor, while nobody folds:\n%s", diff)
			}
			keep(t, counters.NewKeeper(s, counters.KeeperConfig{Fold: time.Hour}))
			pgtest.UntilSQL(t, pool, "the fold of the keeper that may", `SELECT NOT EXISTS (SELECT FROM howdah.counter_slots)`)
		})
	}
}

// A task that fails leaves its turn as it was before: who did it last did so then.
func TestTurnIsGivenBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	const ago = `SELECT (extract(epoch FROM clock_timestamp() - at) / 60)::int FROM howdah.counter_turns WHERE tbl = quote_ident(current_schema()) || '.trifle_stats' AND task = 'fold'`
	if mine, err := s.Turn(ctx, "fold", time.Minute); !mine || err != nil {
		t.Fatal(mine, err)
	}
	execute(t, pool, `UPDATE howdah.counter_turns SET at = clock_timestamp() - interval '1 hour' WHERE tbl = quote_ident(current_schema()) || '.trifle_stats'`)
	for range 2 {
		if had, err := s.FailTurn(ctx, "fold", time.Minute); !had || err != nil {
			t.Fatalf("a turn that was given back is nobody's: %v, %v", had, err)
		}
		if minutes := scalar[int](t, pool, ago); minutes != 60 {
			t.Errorf("the last turn was %d minutes ago, want 60", minutes)
		}
	}
	if had, err := s.FailTurn(ctx, "other", time.Minute); !had || err != nil {
		t.Fatal(had, err)
	}
	if mine, err := s.Turn(ctx, "other", time.Minute); !mine || err != nil {
		t.Errorf("the first turn, given back: %v, %v", mine, err)
	}
}

// Who is at a fold has not folded yet: it may fail in the end, time and again.
func TestDoctorWhileSomebodyFolds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	unfolded := []string{"warning slots-unfolded"}
	begun := func(minutes int) {
		t.Helper()
		execute(t, pool, fmt.Sprintf(`UPDATE howdah.counter_turns SET at = at - interval '%[1]d min', done = done - interval '%[1]d min' WHERE tbl = quote_ident(current_schema()) || '.trifle_stats'`, minutes))
	}
	for _, step := range []struct {
		what string
		turn func(context.Context, string, time.Duration) (bool, error)
		want []string
	}{{"it is begun", s.Turn, unfolded}, {"it failed", s.FailTurn, unfolded}, {"it is done", s.EndTurn, nil}, {"another is begun", s.Turn, nil}, {"it failed, too", s.FailTurn, nil}} {
		if mine, err := step.turn(ctx, "fold", time.Minute); !mine || err != nil {
			t.Fatal(step.what, mine, err)
		}
		if found := codes(t, s); !slices.Equal(found, step.want) {
			t.Errorf("%s: doctor found %q, want %q", step.what, found, step.want)
		}
		begun(2)
	}
	if mine, err := s.Turn(ctx, "fold", time.Minute); !mine || err != nil {
		t.Fatal(mine, err)
	}
	if found := codes(t, s); !slices.Equal(found, unfolded) {
		t.Errorf("6 minutes after the last that was done: doctor found %q", found)
	}
}

// What keeps one table alone from being kept is logged, also where it may be over in a
// moment; what is wrong with the server is said by one keeper.
func TestKeeperSaysWhatIsWrongWithOneTable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	migrated(t, pool)
	s := counters.New(pool, counters.Config{Table: pgx.Identifier{"slow"}, Retention: counters.Retention{"1m": 24 * time.Hour}})
	if err := s.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `CREATE FUNCTION cancelled() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it took too long' USING ERRCODE = '57014'; END $$;
		CREATE TRIGGER cancelled BEFORE DELETE ON slow FOR EACH ROW EXECUTE FUNCTION cancelled()`)
	var log journal
	keep(t, counters.NewKeeper(counters.New(pool, counters.Config{}), counters.KeeperConfig{All: true, Log: slog.New(slog.NewTextHandler(&log, nil))}))
	pgtest.Until(t, "the warning", func() bool { return log.count("it took too long") > 0 })

	for code, want := range map[string]bool{
		"08006": true, "53300": true, "53100": true, "57P01": true, "57P03": true,
		"57014": false, "55P03": false, "40P01": false, "42P01": false, "42703": false, "42883": false, "25006": false, "42501": false,
	} {
		if got := counters.OfTheServer(fmt.Errorf("counters: fold: %w", &pgconn.PgError{Code: code})); got != want {
			t.Errorf("%s is of the server: %v, want %v", code, got, want)
		}
	}
	if !counters.OfTheServer(context.DeadlineExceeded) || counters.OfTheServer(counters.ErrNotNumber) {
		t.Error("of the server is the end of a deadline, and not ErrNotNumber")
	}
}

// What is old in howdah's own tables is dropped by one keeper, not by those of each table,
// whether or not the keeper has a table itself.
func TestKeeperOfAllDropsForAll(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	migrated(t, pool)
	for _, name := range []string{"one", "two"} {
		if err := counters.New(pool, counters.Config{Table: pgx.Identifier{name}}).Setup(ctx); err != nil {
			t.Fatal(err)
		}
	}
	execute(t, pool, `INSERT INTO howdah.counter_events (tbl, id, at) VALUES ('public.one', 'a', now() - interval '8 days')`)
	keep(t, counters.NewKeeper(counters.New(pool, counters.Config{}), counters.KeeperConfig{All: true}))
	pgtest.UntilSQL(t, pool, "all first turns", `
		SELECT count(*) FILTER (WHERE task = 'fold') = 2 AND count(*) FILTER (WHERE task LIKE 'drop %') >= 2 AND NOT EXISTS (SELECT FROM howdah.counter_events)
		FROM howdah.counter_turns`)
	if n := scalar[int](t, pool, `SELECT count(*) FROM howdah.counter_turns WHERE task LIKE 'drop %'`); n != 2 {
		t.Errorf("%d turns of dropping what is old, want one of IDs and one of receipts", n)
	}
}
