package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/compat/pgstore"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// original is iidy itself, as far as the database can tell: its statements, in the
// order in which it is given items.
type original struct{ pool *pgxpool.Pool }

var _ pgstore.Store = original{}

func (o original) exec(ctx context.Context, sql string, args ...any) (int64, error) {
	tag, err := o.pool.Exec(ctx, sql, args...)
	return tag.RowsAffected(), err
}

func (o original) InsertOne(ctx context.Context, list, item string) (int64, error) {
	return o.exec(ctx, `INSERT INTO iidy.lists (list, item) VALUES ($1, $2)`, list, item)
}

func (o original) GetOne(ctx context.Context, list, item string) (attempts int, ok bool, err error) {
	err = o.pool.QueryRow(ctx, `SELECT attempts FROM iidy.lists WHERE list = $1 AND item = $2`, list, item).Scan(&attempts)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return attempts, err == nil, err
}

func (o original) DeleteOne(ctx context.Context, list, item string) (int64, error) {
	return o.exec(ctx, `DELETE FROM iidy.lists WHERE list = $1 AND item = $2`, list, item)
}

func (o original) IncrementOne(ctx context.Context, list, item string) (int64, error) {
	return o.exec(ctx, `UPDATE iidy.lists SET attempts = attempts + 1 WHERE list = $1 AND item = $2`, list, item)
}

func (o original) InsertBatch(ctx context.Context, list string, items []string) (int64, error) {
	return o.pool.CopyFrom(ctx, pgx.Identifier{"iidy", "lists"}, []string{"list", "item"},
		pgx.CopyFromSlice(len(items), func(i int) ([]any, error) { return []any{list, items[i]}, nil }))
}

func (o original) GetBatch(ctx context.Context, list, start string, count int) ([]pgstore.ListEntry, error) {
	sql, args := `SELECT item, attempts FROM iidy.lists WHERE list = $1 ORDER BY list, item LIMIT $2`, []any{list, count}
	if start != "" {
		sql, args = `SELECT item, attempts FROM iidy.lists WHERE list = $1 AND item > $3 ORDER BY list, item LIMIT $2`, append(args, start)
	}
	rows, _ := o.pool.Query(ctx, sql, args...)
	return pgx.CollectRows(rows, pgx.RowToStructByPos[pgstore.ListEntry])
}

func (o original) DeleteBatch(ctx context.Context, list string, items []string) (int64, error) {
	return o.exec(ctx, `DELETE FROM iidy.lists WHERE list = $1 AND item IN (SELECT unnest($2::text[]))`, list, items)
}

func (o original) IncrementBatch(ctx context.Context, list string, items []string) (int64, error) {
	return o.exec(ctx, `UPDATE iidy.lists SET attempts = attempts + 1 WHERE list = $1 AND item IN (SELECT unnest($2::text[]))`, list, items)
}

// iidy returns a pool of a role that has the rights iidy needs, and no others.
func iidy(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	admin := pgtest.Pool(t, url)
	role := "iidy_" + admin.Config().ConnConfig.Database
	if _, err := admin.Exec(t.Context(), `
		CREATE ROLE `+role+` LOGIN PASSWORD 'secret';
		GRANT USAGE ON SCHEMA iidy TO `+role+`;
		GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON iidy.lists TO `+role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(context.WithoutCancel(t.Context()), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	return pgtest.Pool(t, pgtest.As(t, url, role, "secret"))
}

// iidy works on a table that howdah made as on its own, with no right to anything
// else of howdah's, and what it does counts.
func TestTheOriginalOnATableOfHowdahs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	open(t, url) // makes the table
	pool := iidy(t, url)
	var usage bool
	if err := pool.QueryRow(ctx, `SELECT has_schema_privilege('howdah', 'USAGE')`).Scan(&usage); err != nil || usage {
		t.Errorf("a right to schema howdah: %v, %v", usage, err)
	}
	all := calls(t, "calls.jsonl")
	replay(t, original{pool}, all)

	admin := pgtest.Pool(t, url)
	wantRows(t, admin)
	want := map[string]checklists.Progress{}
	for _, c := range all {
		p := want[c.List]
		switch c.Op {
		case "InsertOne", "InsertBatch":
			p.Left += c.N
			p.Total += c.N
		case "DeleteOne", "DeleteBatch":
			p.Left -= c.N
			p.Done += c.N
		}
		want[c.List] = p
	}
	store := checklists.New(admin, checklists.Config{})
	for list, p := range want {
		got, err := store.Progress(ctx, list)
		got.Rate, got.ETA = 0, 0 // may be known by now
		if diff := cmp.Diff(p, got); err != nil || diff != "" {
			t.Errorf("Progress(%q): %v\n%s", list, err, diff)
		}
	}
	if _, err := pool.Exec(ctx, `TRUNCATE TABLE iidy.lists`); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Progress(ctx, "big"); err != nil || got.Left != 0 || got.Done != want["big"].Total {
		t.Errorf("after Nuke: %+v, %v, want all %d done", got, err, want["big"].Total)
	}
}

// Batches of the original take their rows as they find them and deadlock with one
// another. Ours beside them never fail.
func TestBatchesBesideTheOriginals(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	ours := open(t, url)
	admin := pgtest.Pool(t, url)
	if _, err := admin.Exec(t.Context(), `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''20ms''', current_database()); END $$`); err != nil {
		t.Fatal(err)
	}
	theirs := original{iidy(t, url)}
	fresh := open(t, url) // with the setting
	store := checklists.New(admin, checklists.Config{})
	ours.Close()
	admin.Reset()

	all := make([]string, 1000)
	for i := range all {
		all[i] = fmt.Sprintf("f%04d", i)
	}
	if _, err := fresh.InsertBatch(t.Context(), "l", all); err != nil {
		t.Fatal(err)
	}
	some := func(random *rand.Rand) []string {
		items := make([]string, 200)
		for i := range items {
			items[i] = all[random.IntN(len(all))]
		}
		return items
	}
	var wait, meanwhile sync.WaitGroup
	done := make(chan struct{})
	for worker := range uint64(4) {
		meanwhile.Go(func() {
			random := rand.New(rand.NewPCG(1, worker))
			for {
				select {
				case <-done:
					return
				default:
				}
				items := some(random)
				for _, do := range []func(context.Context, string, []string) (int64, error){theirs.IncrementBatch, theirs.DeleteBatch, theirs.InsertBatch} {
					_, err := do(t.Context(), "l", items)
					if code := stateOf(err); err != nil && code != "40P01" && code != "23505" {
						t.Errorf("the original's: %v", err)
					}
				}
			}
		})
		wait.Go(func() {
			random := rand.New(rand.NewPCG(2, worker))
			for range 25 {
				items := some(random)
				if _, err := fresh.IncrementBatch(t.Context(), "l", items); err != nil {
					t.Errorf("IncrementBatch: %v", err)
				}
				if _, err := store.Delete(t.Context(), "l", items[:50]...); err != nil {
					t.Errorf("Delete: %v", err)
				}
				if _, err := store.Insert(t.Context(), "l", items[:50]...); err != nil {
					t.Errorf("Insert: %v", err)
				}
				if _, err := fresh.InsertBatch(t.Context(), "l", items[:50]); err != nil && stateOf(err) != "23505" {
					t.Errorf("InsertBatch: %v", err)
				}
			}
		})
	}
	wait.Wait()
	close(done)
	meanwhile.Wait()
}

func stateOf(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// strict is the service as the original would have it: what is there is an error, a
// batch is all or nothing, and refusals have the original's SQLSTATE.
type strict struct {
	*pgstore.PgStore // for pages and names that the service does not take
	pool             *pgxpool.Pool
	lists            *checklists.Store
}

func coded(n int64, err error) (int64, error) {
	if errors.Is(err, fault.Invalid) {
		err = &pgconn.PgError{Code: "22021"}
	}
	return n, err
}

func (s strict) InsertOne(ctx context.Context, list, item string) (int64, error) {
	if len(list)+len(item) > checklists.MaxName {
		return s.PgStore.InsertOne(ctx, list, item)
	}
	return s.InsertBatch(ctx, list, []string{item})
}

func (s strict) InsertBatch(ctx context.Context, list string, items []string) (n int64, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		n, err = s.lists.WithTx(tx).Insert(ctx, list, items...)
		if err == nil && n < int64(len(items)) {
			return &pgconn.PgError{Code: "23505"}
		}
		return err
	})
	if err != nil {
		n = 0
	}
	return coded(n, err)
}

func (s strict) GetOne(ctx context.Context, list, item string) (int, bool, error) {
	found, err := s.lists.Get(ctx, list, item)
	if errors.Is(err, checklists.ErrNoItem) {
		return 0, false, nil
	}
	_, err = coded(0, err)
	return found.Attempts, err == nil, err
}

func (s strict) DeleteOne(ctx context.Context, list, item string) (int64, error) {
	return coded(s.lists.Delete(ctx, list, item))
}

func (s strict) IncrementOne(ctx context.Context, list, item string) (int64, error) {
	return coded(s.lists.Increment(ctx, list, item))
}

func (s strict) DeleteBatch(ctx context.Context, list string, items []string) (int64, error) {
	return coded(s.lists.Delete(ctx, list, items...))
}

func (s strict) IncrementBatch(ctx context.Context, list string, items []string) (int64, error) {
	return coded(s.lists.Increment(ctx, list, items...))
}

// The service itself answers as the original, but that it skips where the original
// refuses.
func TestAnswersOfTheService(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url)
	replay(t, strict{open(t, url), pool, checklists.New(pool, checklists.Config{})}, calls(t, "calls.jsonl"))
	wantRows(t, pool)
}
