package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// newAdopted returns a store on an adopted table whose names are in an order of ICU:
// a A b B.
func newAdopted(t testing.TB) (*checklists.Store, *pgxpool.Pool) {
	t.Helper()
	s, pool := newOrdered(t)
	mustAdopt(t, s)
	return s, pool
}

// newOrdered is newAdopted before it is adopted.
func newOrdered(t testing.TB) (*checklists.Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Pool(t, pgtest.Database(t))
	execute(t, pool, `CREATE TABLE lists (
		list text COLLATE "en-US-x-icu" NOT NULL,
		item text COLLATE "en-US-x-icu" NOT NULL,
		attempts integer NOT NULL DEFAULT 0,
		CONSTRAINT list_pk PRIMARY KEY (list, item))`)
	s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"public", "lists"}})
	up(t, pool, s)
	if v := mustSurvey(t, s); v.Order != "a A b B" || v.Collation != "en-US-x-icu" {
		t.Errorf("order %q, collation %q", v.Order, v.Collation)
	}
	return s, pool
}

// What holds of a table that howdah made holds of an adopted one in another order.
func TestAdoptedTablesAreAsGoodAsMade(t *testing.T) {
	t.Parallel()
	for name, holds := range map[string]func(*testing.T, *checklists.Store, *pgxpool.Pool){
		"calls answer as the model":    callsAnswerAsTheModel,
		"counts are right":             countsAreRight,
		"leases end under load":        leasesEndUnderLoad,
		"overlaps do not deadlock":     overlapsDoNotDeadlock,
		"every call":                   everyCallWorks,
		"batches and leases in a race": batchesLockInOneOrder,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, pool := newAdopted(t)
			holds(t, s, pool)
		})
	}
}

// everyCallWorks calls what no other of these tests calls.
func everyCallWorks(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) {
	ctx := t.Context()
	insert(t, s, "ord", "B", "a", "A", "b", "é", "Z")
	if n, err := s.Import(ctx, "ord", source("b", "c", "C"), checklists.ImportOptions{}); n.Added != 2 || n.Skipped != 1 || err != nil {
		t.Errorf("Import = %+v, %v", n, err)
	}
	want := []string{"a", "A", "b", "B", "c", "C", "é", "Z"}
	if got := names(t, s, "ord"); !slices.Equal(got, want) {
		t.Errorf("All: %q, want %q", got, want)
	}
	page, err := s.Page(ctx, "ord", new("A"), 2)
	if err != nil || len(page) != 2 || page[0].Name != "b" || page[1].Name != "B" {
		t.Errorf("Page after A: %v, %v", page, err)
	}
	if err := s.Set(ctx, "ord", checklists.Settings{KeepDone: true, MaxAttempts: 1}); err != nil {
		t.Fatal(err)
	}
	claim, err := s.Claim(ctx, "ord", "w", 100, time.Minute)
	if err != nil || len(claim.Items) != len(want) {
		t.Fatalf("Claim: %v, %v", claim.Items, err)
	}
	_, err1 := s.Done(ctx, claim.Lease, "Z", "a", "A")
	_, err2 := s.Fail(ctx, claim.Lease, checklists.Failure{Item: "é", Error: "no"}, checklists.Failure{Item: "b", Error: "no"})
	_, err3 := s.Extend(ctx, claim.Lease, time.Hour)
	_, err4 := s.Release(ctx, claim.Lease, "B")
	_, err5 := s.Kill(ctx, "ord", "gone", "C", "c")
	n, err6 := s.Insert(ctx, "ord", "A", "Z", "new") // A and Z are kept as done
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil || n != 1 {
		t.Errorf("%d added, %v", n, err)
	}
	found := []string{}
	for item, err := range s.Find(ctx, "ord", checklists.Query{State: checklists.StateDead, After: new("a")}) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, item.Name)
	}
	if !slices.Equal(found, []string{"b", "c", "C", "é"}) {
		t.Errorf("Find: %q", found)
	}
	if item, err := s.Get(ctx, "ord", "Z"); err != nil || item.State != checklists.StateDone {
		t.Errorf("Get: %+v, %v", item, err)
	}
	n1, err1 := s.Redrive(ctx, "ord", checklists.Query{Error: "no", Limit: 1})
	n2, err2 := s.Redrive(ctx, "ord", checklists.Query{State: checklists.StateDone})
	if err := errors.Join(err1, err2, s.Recount(ctx, ""), s.Recount(ctx, "ord"), s.Pause(ctx, "ord", true)); err != nil || n1 != 1 || n2 != 3 {
		t.Errorf("redriven %d and %d, %v", n1, n2, err)
	}
	p := progress(t, s, "ord")
	if p.Dead != 3 || p.Done != 0 || p.Left != 6 || !p.Paused {
		t.Errorf("%+v", p)
	}
	if set, err := s.Settings(ctx, "ord"); err != nil || !set.KeepDone {
		t.Errorf("%+v, %v", set, err)
	}
	added, changed, err := s.Upsert(ctx, "ord", checklists.Item{Name: "B", Priority: 2}, checklists.Item{Name: "zz"})
	if added != 1 || changed != 1 || err != nil {
		t.Errorf("Upsert = %d, %d, %v", added, changed, err)
	}
	insert(t, s, "a", "x")
	if err := s.Pause(ctx, "B", true); err != nil { // without items, between the others
		t.Error(err)
	}
	if n, err := s.Rename(ctx, "ord", "A"); n != 10 || err != nil {
		t.Errorf("Rename = %d, %v", n, err)
	}
	var listed []string
	for after := new(string); ; after = &listed[len(listed)-1] {
		page, err := s.Lists(ctx, after, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		listed = append(listed, page[0].Name)
	}
	if want := []string{"a", "A", "B"}; !slices.Equal(listed, want) {
		t.Errorf("Lists: %q, want %q", listed, want)
	}
	mustNotDrift(t, pool)
	if n, err := s.Drop(ctx, "A"); n != 10 || err != nil {
		t.Errorf("Drop = %d, %v", n, err)
	}
	mustNotDrift(t, pool)
}

// batchesLockInOneOrder: names whose order differs between the table and the bytes,
// in all calls that lock several of them, by many at once, and none deadlocks.
func batchesLockInOneOrder(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) {
	ctx := t.Context()
	var all []string
	for i := range 100 {
		all = append(all, fmt.Sprintf("a%02d", i), fmt.Sprintf("A%02d", i), fmt.Sprintf("é%02d", i))
	}
	insert(t, s, "l", all...)
	pool = wide(t, pool)
	cfg := checklists.Config{Table: pgx.Identifier{"public", "lists"}}
	s = checklists.New(pool, cfg)
	claims, met := claimers(t, pool)
	claiming := checklists.New(claims, cfg)
	var group errgroup.Group
	for worker := range 8 {
		group.Go(func() error {
			random := rand.New(rand.NewPCG(4, uint64(worker)))
			for range 25 {
				some := make([]string, 100)
				for i := range some {
					some[i] = all[random.IntN(len(all))]
				}
				// In transactions, so that nothing is repeated in silence.
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
					in := s.WithTx(tx)
					switch random.IntN(6) {
					case 0:
						_, err = in.Increment(ctx, "l", some...)
					case 1:
						_, err = in.Delete(ctx, "l", some...)
					case 2:
						_, err = in.Insert(ctx, "l", some...)
					case 3:
						_, err = in.Kill(ctx, "l", "x", some...)
					case 4:
						_, err = in.Redrive(ctx, "l", checklists.Query{})
					default:
						_, err = in.Import(ctx, "l", source(some...), checklists.ImportOptions{})
					}
					return err
				})
				if err == nil || met(err) {
					err = claimAndFinish(ctx, claiming, s, random)
				}
				if err != nil {
					return err
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

// claimers is a pool for claims, and whether one of them had a part in a deadlock. SKIP
// LOCKED waits, too, now and then: where a row is just being changed, for whoever has locked
// what that becomes. So a claim, which repeats itself, may close a circle of those who are
// in order.
func claimers(t *testing.T, pool *pgxpool.Pool) (claims *pgxpool.Pool, met func(error) bool) {
	t.Helper()
	var pids sync.Map
	cfg := pool.Config()
	cfg.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		pids.Store(strconv.FormatUint(uint64(conn.PgConn().PID()), 10), true)
		return nil
	}
	claims, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(claims.Close)
	process := regexp.MustCompile(`Process (\d+) waits`)
	return claims, func(err error) bool {
		var pgErr *pgconn.PgError
		return errors.As(err, &pgErr) && pgErr.Code == "40P01" && slices.ContainsFunc(process.FindAllStringSubmatch(pgErr.Detail, -1), func(m []string) bool {
			_, ok := pids.Load(m[1])
			return ok
		})
	}
}

// claimAndFinish claims some of l and says something of all of them.
func claimAndFinish(ctx context.Context, claiming, s *checklists.Store, random *rand.Rand) error {
	c, err := claiming.Claim(ctx, "l", "w", 20, time.Minute)
	if err != nil || len(c.Items) == 0 {
		return err
	}
	switch random.IntN(3) {
	case 0:
		_, err = s.Done(ctx, c.Lease)
	case 1:
		_, err = s.Release(ctx, c.Lease)
	default:
		fs := []checklists.Failure{}
		for _, item := range c.Items {
			fs = append(fs, checklists.Failure{Item: item.Name, Error: "x", RetryIn: time.Nanosecond})
		}
		_, err = s.Fail(ctx, c.Lease, fs...)
	}
	return ignoreLost(err)
}

// At a million items in another order every statement finds its way all the same:
// only what it locks is sorted by the bytes.
func TestPlansOnAnAdoptedTable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newOrdered(t)
	execute(t, pool, `
		INSERT INTO lists (list, item)
		SELECT CASE WHEN i % 10 = 0 THEN 'list-' || to_char(i / 10 % 1000, 'FM0000') ELSE 'big' END, 'item-' || to_char(i, 'FM0000000')
		FROM generate_series(1, $1) AS i`, pgtest.Size(1_000_000, 100_000))
	mustAdopt(t, s)
	execute(t, pool, `
		UPDATE lists
		SET due = now() + interval '1 hour', lease = ('00000000-0000-4000-8000-' || lpad(right(item, 2), 12, '0'))::uuid
		WHERE right(item, 4) IN ('0007', '0013', '0021', '0101')`)
	second(s.Page(ctx, "big", nil, 1)) // the look at the table is not to be explained
	explained := pgtest.Explain(t, pool)
	in := s.WithTx(explained)
	some := []string{"item-0000001", "item-0045003", "item-0090001"}
	l := checklists.Lease{List: "big", Token: "00000000-0000-4000-8000-000000000007"}
	for _, tc := range []struct {
		name, index string
		do          func() error
	}{
		{"Page after", "list_pk", func() error { return second(in.Page(ctx, "big", new("item-0080000"), 100)) }},
		{"Get", "list_pk", func() error { return second(in.Get(ctx, "big", some[1])) }},
		{"Increment of some", "list_pk", func() error { return second(in.Increment(ctx, "big", some...)) }},
		{"Kill", "list_pk", func() error { return second(in.Kill(ctx, "big", "", some...)) }},
		{"Claim", "using lists_due", func() error { return second(in.Claim(ctx, "big", "w", 100, time.Minute)) }},
		{"Done of some", "list", func() error { return second(in.Done(ctx, l, "item-0010007")) }},
		{"Done of all", "lists_lease", func() error { return second(in.Done(ctx, l)) }},
		{"Delete of some", "list_pk", func() error { return second(in.Delete(ctx, "big", some...)) }},
		{"Lists after", "list", func() error { return second(in.Lists(ctx, new("list-0500"), 10)) }},
	} {
		if err := tc.do(); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		plan := explained.Plan()
		if !strings.Contains(plan, tc.index) || strings.Contains(plan, "Seq Scan on lists") {
			t.Errorf("%s:\n%s", tc.name, plan)
		}
	}
}

// Two tables of one schema are adopted one beside the other: the names of indexes
// are those of their tables.
func TestTablesOfOneSchemaAreAdopted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t))
	execute(t, pool, `CREATE SCHEMA iidy`)
	for _, table := range []string{"lists", "todo", `odd "name`} {
		id := pgx.Identifier{"iidy", table}
		execute(t, pool, `CREATE TABLE `+id.Sanitize()+` (list text NOT NULL, item text NOT NULL, attempts integer NOT NULL DEFAULT 0, PRIMARY KEY (list, item))`)
		s := checklists.New(pool, checklists.Config{Table: id})
		up(t, pool, s)
		insert(t, s, "l", "a", "b")
		for range 2 {
			mustAdopt(t, s)
			claim, err := s.Claim(t.Context(), "l", "w", 1, time.Minute)
			if err != nil || len(claim.Items) != 1 {
				t.Errorf("%s: %d items, %v", table, len(claim.Items), err)
			}
			if _, err := s.Release(t.Context(), claim.Lease); err != nil {
				t.Error(err)
			}
			if table == "todo" {
				if err := s.UndoAdopt(t.Context(), nil); err != nil {
					t.Error(err)
				}
			}
		}
		if v := mustSurvey(t, s); (v.Layout == checklists.LayoutAdopted) == (table == "todo") {
			t.Errorf("%s: %+v", table, v)
		}
	}
}
