package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// drift compares counts and rows of every list of the table lists, in one
// statement and so in one snapshot, and returns what differs.
func drift(ctx context.Context, db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) (differs string, err error) {
	err = db.QueryRow(ctx, `
		WITH fact AS (
			SELECT list COLLATE "C" AS list, count(*) AS items, count(*) FILTER (WHERE due = 'infinity') AS dead
			FROM lists
			GROUP BY list),
		kept AS (
			SELECT list, sum(items) AS items, sum(dead) AS dead
			FROM howdah.checklist_count
			WHERE relation = 'lists'::regclass
			GROUP BY list)
		SELECT coalesce(string_agg(format('%s: %s items and %s dead, counted %s and %s', list, fact.items, fact.dead, kept.items, kept.dead), '; '), '')
		FROM fact
		FULL JOIN kept USING (list)
		WHERE coalesce(fact.items, 0) <> coalesce(kept.items, 0) OR coalesce(fact.dead, 0) <> coalesce(kept.dead, 0)`).Scan(&differs)
	return differs, err
}

func mustNotDrift(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if differs, err := drift(t.Context(), pool); differs != "" || err != nil {
		t.Errorf("counts: %s %v", differs, err)
	}
}

// progress is how far a list is, without how fast: some of it may have been done in
// a minute that is over by now.
func progress(t *testing.T, s *checklists.Store, list string) checklists.Progress {
	t.Helper()
	p, err := s.Progress(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	p.Rate, p.ETA = 0, 0
	return p
}

// In every snapshot, whatever sixteen writers of mixed isolation do or take
// back, counts are what counting would give.
func TestCountsAreRightInEverySnapshot(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	countsAreRight(t, s, pool)
}

func countsAreRight(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) {
	ctx := t.Context()
	rollback := errors.New("rolled back")
	levels := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}
	pool = wide(t, pool)
	var writers, reader errgroup.Group
	written := make(chan struct{})
	for w := range 16 {
		writers.Go(func() error {
			random := rand.New(rand.NewPCG(2, uint64(w)))
			for range 120 {
				err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: levels[random.IntN(len(levels))]}, func(tx pgx.Tx) error {
					in := s.WithTx(tx)
					for range 1 + random.IntN(3) {
						if err := writeSomething(ctx, in, tx, random); err != nil {
							return err
						}
					}
					if random.IntN(7) == 0 {
						return rollback
					}
					return nil
				})
				var pgErr *pgconn.PgError
				if errors.As(err, &pgErr) && (pgErr.Code == "40001" || pgErr.Code == "40P01") {
					continue // of two who write the same items one gives way
				}
				if err != nil && !errors.Is(err, rollback) {
					return err
				}
			}
			return nil
		})
	}
	checks := 0
	reader.Go(func() error {
		for {
			select {
			case <-written:
				return nil
			default:
			}
			differs, err := drift(ctx, pool)
			if err != nil || differs != "" {
				return fmt.Errorf("after %d looks: %s %w", checks, differs, err)
			}
			checks++
		}
	})
	err := writers.Wait()
	close(written)
	if err := errors.Join(err, reader.Wait()); err != nil {
		t.Fatal(err)
	}
	mustNotDrift(t, pool)
	var rows int
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM howdah.checklist_count WHERE relation = 'lists'::regclass`).Scan(&rows); err != nil || rows > 1000 {
		t.Errorf("%d rows of counts are left, %v; nobody folds", rows, err)
	}
	if checks < 10 {
		t.Errorf("only %d looks", checks)
	}
}

// writeSomething changes items of a few lists, by ours and by anyone's SQL.
func writeSomething(ctx context.Context, s *checklists.Store, tx pgx.Tx, random *rand.Rand) (err error) {
	list := fmt.Sprintf("l%d", random.IntN(3))
	some := make([]string, 1+random.IntN(20))
	for i := range some {
		some[i] = fmt.Sprintf("i%03d", random.IntN(300))
	}
	switch random.IntN(7) {
	case 0, 1:
		_, err = s.Insert(ctx, list, some...)
	case 2:
		_, err = s.Delete(ctx, list, some...)
	case 3:
		_, err = tx.Exec(ctx, `DELETE FROM lists WHERE list = $1 AND item = $2`, list, some[0])
	case 5:
		items := make([]checklists.Item, len(some))
		for i, name := range some {
			items[i] = checklists.Item{Name: name, Priority: random.IntN(11) - 5}
		}
		_, _, err = s.Upsert(ctx, list, items...)
	case 6:
		if random.IntN(2) == 0 {
			_, err = s.Drop(ctx, list)
		} else {
			_, err = s.Rename(ctx, list, fmt.Sprintf("l%d", random.IntN(4)))
		}
		if errors.Is(err, checklists.ErrNoList) || errors.Is(err, checklists.ErrExists) || errors.Is(err, fault.Invalid) {
			err = nil
		}
	case 4:
		_, err = tx.Exec(ctx, `INSERT INTO lists (list, item) VALUES ($1, $2), ('other', $2) ON CONFLICT DO NOTHING`, list, some[0])
	}
	return err
}

// wide is a pool like pool with a connection for each of sixteen writers.
func wide(t *testing.T, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	cfg := pool.Config()
	cfg.MaxConns = 20
	cfg.ConnConfig.RuntimeParams["deadlock_timeout"] = "20ms" // transactions that meet in both orders are many
	more, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(more.Close)
	return more
}

func TestProgressIsKeptByWhoeverWrites(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if got := progress(t, s, "l"); got != (checklists.Progress{}) {
		t.Errorf("of an unknown list: %+v", got)
	}
	insert(t, s, "l", "a", "b", "c", "d")
	if _, err := s.Import(ctx, "l", source("e", "f"), checklists.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(ctx, "l", "a", "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `DELETE FROM lists WHERE item = 'c'`); err != nil {
		t.Fatal(err)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 6, Left: 3, Done: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	mustNotDrift(t, pool)
	// The last full minute, as seen a minute later.
	if _, err := pool.Exec(ctx, `UPDATE howdah.checklist_count SET bucket = bucket - interval '30 seconds' WHERE relation = 'lists'::regclass`); err != nil {
		t.Fatal(err)
	}
	got, err := s.Progress(ctx, "l")
	if err != nil || got.Rate != 0.05 || got.ETA.Seconds() != 60 {
		t.Errorf("rate %v, ETA %v, %v; want 0.05 and a minute", got.Rate, got.ETA, err)
	}
	if _, err := pool.Exec(ctx, `TRUNCATE lists`); err != nil {
		t.Fatal(err)
	}
	if got = progress(t, s, "l"); got.Left != 0 || got.Done != 6 {
		t.Errorf("emptied: %+v", got)
	}
	mustNotDrift(t, pool)
}

func TestRecountMendsCounts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	for _, list := range []string{"", "l", "m"} {
		insert(t, s, list, "a", "b", "c")
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			SET LOCAL session_replication_role = replica;
			DELETE FROM lists WHERE list IN ('', 'l') AND item > 'a';
			DELETE FROM lists WHERE list = 'm';
			INSERT INTO lists (list, item, due) VALUES ('n', 'a', 'infinity')`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Recount(ctx, "l"); err != nil {
		t.Fatal(err)
	}
	if got := progress(t, s, "l"); got.Left != 1 {
		t.Errorf("recounted: %+v, want 1 left", got)
	}
	if got := progress(t, s, "m"); got.Left != 3 {
		t.Errorf("another list: %+v, want as it was", got)
	}
	for range 2 {
		if err := s.Recount(ctx, ""); err != nil {
			t.Fatal(err)
		}
		mustNotDrift(t, pool)
	}
	if got := progress(t, s, "n"); got.Dead != 1 || got.Left != 0 || got.Total != 1 {
		t.Errorf("n: %+v, want one dead", got)
	}
}

// Tables of one database share howdah's own, and lists of the same name do not mix.
func TestCountsOfTablesAreApart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	stores := make([]*checklists.Store, 2)
	for i, table := range []pgx.Identifier{nil, {"Other Schema", `li"sts'`}} {
		stores[i] = checklists.New(pool, checklists.Config{Table: table})
		up(t, pool, stores[i])
	}
	insert(t, stores[0], "l", "a", "b", "c")
	insert(t, stores[1], "l", "a")
	if _, err := stores[1].Delete(ctx, "l", "a"); err != nil {
		t.Fatal(err)
	}
	if got, want := progress(t, stores[0], "l"), (checklists.Progress{Total: 3, Left: 3}); got != want {
		t.Errorf("first: %+v, want %+v", got, want)
	}
	if got, want := progress(t, stores[1], "l"), (checklists.Progress{Total: 1, Done: 1}); got != want {
		t.Errorf("second: %+v, want %+v", got, want)
	}
	// A table that is renamed keeps them.
	if _, err := pool.Exec(ctx, `ALTER TABLE iidy.lists RENAME TO todo`); err != nil {
		t.Fatal(err)
	}
	if got := progress(t, checklists.New(pool, checklists.Config{Table: pgx.Identifier{"iidy", "todo"}}), "l"); got.Left != 3 {
		t.Errorf("renamed: %+v", got)
	}
}

// A writer who may write the table and nothing else is counted.
func TestARoleWithoutRightsInHowdahIsCounted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	insert(t, s, "l", "a")
	role := pgx.Identifier{"writer_" + pool.Config().ConnConfig.RuntimeParams["search_path"]}.Sanitize()
	if _, err := pool.Exec(ctx, `CREATE ROLE `+role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(ctx), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	var schema string
	if err := pool.QueryRow(ctx, `SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			GRANT USAGE ON SCHEMA `+schema+` TO `+role+`;
			GRANT SELECT, INSERT, DELETE ON lists TO `+role+`;
			SET LOCAL ROLE `+role+`;
			INSERT INTO lists (list, item) VALUES ('l', 'b'), ('l', 'c');
			DELETE FROM lists WHERE item = 'a'`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := progress(t, s, "l"), (checklists.Progress{Total: 3, Left: 2, Done: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	mustNotDrift(t, pool)
}

// A plain table answers that it is plain, and a store notices when that ends.
func TestAPlainTableHasNoCounts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	if _, err := pool.Exec(ctx, `CREATE SCHEMA iidy; CREATE TABLE iidy.lists (list text NOT NULL, item text NOT NULL,
		attempts integer NOT NULL DEFAULT 0, CONSTRAINT list_pk PRIMARY KEY (list, item))`); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	insert(t, s, "l", "b", "a")
	if item, err := s.Get(ctx, "l", "a"); err != nil || item.State != "" {
		t.Errorf("Get = %+v, %v", item, err)
	}
	if got := names(t, s, "l"); len(got) != 2 {
		t.Errorf("items: %q", got)
	}
	for name, err := range map[string]error{"Progress": second(s.Progress(ctx, "l")), "Recount": s.Recount(ctx, "l")} {
		if !errors.Is(err, checklists.ErrPlain) {
			t.Errorf("%s: %v, want ErrPlain", name, err)
		}
	}
	if _, err := pool.Exec(ctx, `DROP TABLE iidy.lists; DROP TABLE howdah."checklists_version"`); err != nil {
		t.Fatal(err)
	}
	up(t, pool, s) // now it is howdah's
	if got := progress(t, s, "l"); got != (checklists.Progress{}) {
		t.Errorf("%+v", got)
	}
	insert(t, s, "l", "a")
	if got := progress(t, s, "l"); got.Left != 1 {
		t.Errorf("%+v, want 1 left", got)
	}
	// And the other way round: after a call that fails the store looks again.
	if _, err := pool.Exec(ctx, `ALTER TABLE iidy.lists DROP COLUMN due CASCADE`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Page(ctx, "l", nil, 1); err == nil {
		t.Error("a column is gone, and Page says nothing")
	}
	pool.Reset() // statements that were prepared for the first table
	if got, err := s.Page(ctx, "l", nil, 1); err != nil || len(got) != 1 {
		t.Errorf("Page = %v, %v", got, err)
	}
}

// What was done is taken back once, by whichever of several who drop, rename and
// redrive the same lists: no count is ever below zero.
func TestWhatWasDoneIsTakenBackOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	s = checklists.New(wide(t, pool), checklists.Config{Table: pgx.Identifier{"lists"}})
	var group errgroup.Group
	for w := range 8 {
		group.Go(func() error {
			random := rand.New(rand.NewPCG(3, uint64(w)))
			for range 60 {
				list := fmt.Sprintf("l%d", random.IntN(2))
				var err error
				switch random.IntN(5) {
				case 0:
					_, err = s.Drop(ctx, list)
				case 1:
					_, err = s.Rename(ctx, list, fmt.Sprintf("l%d", random.IntN(2)))
				case 2:
					_, err = s.Redrive(ctx, list, checklists.Query{State: checklists.StateDone})
				default:
					_, err = s.Change(ctx, list, func(set *checklists.Settings) { set.KeepDone = true })
					if err == nil {
						_, err = s.Insert(ctx, list, "a", "b", "c")
					}
					if err == nil {
						_, err = s.Delete(ctx, list, "a", "b", "c")
					}
				}
				if err != nil && !errors.Is(err, checklists.ErrNoList) && !errors.Is(err, checklists.ErrExists) && !errors.Is(err, fault.Invalid) {
					return err
				}
				for i := range 2 {
					p, err := s.Progress(ctx, fmt.Sprintf("l%d", i))
					if err != nil || p.Done < 0 || p.Left < 0 || p.Failed < 0 {
						return fmt.Errorf("l%d: %+v, %w", i, p, err)
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	mustNotDrift(t, pool)
}
