package checklists_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// writing is what a Store and a Writer have in common.
type writing interface {
	Insert(ctx context.Context, list string, items ...string) (int64, error)
	Increment(ctx context.Context, list string, items ...string) (int64, error)
	Delete(ctx context.Context, list string, items ...string) (int64, error)
	Done(ctx context.Context, l checklists.Lease, items ...string) (int64, error)
	Fail(ctx context.Context, l checklists.Lease, fs ...checklists.Failure) (int64, error)
}

var (
	_ writing = (*checklists.Store)(nil)
	_ writing = (*checklists.Writer)(nil)
)

// oneCall is a call about one item, and what it answers.
type oneCall struct {
	Verb, List, Item, Token string
	Wait                    time.Duration
}

func (c oneCall) on(ctx context.Context, w writing) string {
	n, err := int64(0), error(nil)
	l := checklists.Lease{List: c.List, Token: c.Token}
	switch c.Verb {
	case "insert":
		n, err = w.Insert(ctx, c.List, c.Item)
	case "increment":
		n, err = w.Increment(ctx, c.List, c.Item)
	case "delete":
		n, err = w.Delete(ctx, c.List, c.Item)
	case "done":
		n, err = w.Done(ctx, l, c.Item)
	case "fail":
		n, err = w.Fail(ctx, l, checklists.Failure{Item: c.Item, Error: "of " + c.Token + " " + c.Wait.String(), RetryIn: c.Wait})
	}
	return fmt.Sprint(n, " ", err)
}

const (
	token1 = "0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e"
	token2 = "0D6C4C0E-3a0f-4c55-9a53-5f7a3b0f5f0f"
)

// together makes calls that a Writer gathers in their order, in batches of at most
// so many, and returns the answers.
func together(ctx context.Context, t interface{ Fatal(...any) }, s *checklists.Store, batch int, calls []oneCall) []string {
	ctx, over := context.WithTimeout(ctx, patience)
	defer over()
	w := checklists.NewWriter(s, checklists.WriterConfig{MaxBatch: batch})
	w.Gather()
	answers := make([]string, len(calls))
	var callers, running errgroup.Group
	for i, c := range calls {
		callers.Go(func() error { answers[i] = c.on(ctx, w); return nil })
		for w.Gathered() <= i {
			if ctx.Err() != nil {
				t.Fatal("it is not taken")
			}
			runtime.Gosched() // all that it waits for is its turn
		}
	}
	ctx, stop := context.WithCancel(ctx)
	running.Go(func() error { return w.Run(ctx) })
	_ = callers.Wait()
	stop()
	if err := running.Wait(); err != nil {
		t.Fatal(err)
	}
	return answers
}

// rowsOf is all that a table and its counts hold, but for what chance decides.
func rowsOf(ctx context.Context, t interface{ Fatal(...any) }, pool *pgxpool.Pool) []string {
	rows, _ := pool.Query(ctx, `
		SELECT concat_ws('|', list, item, attempts, lease, error, due = 'infinity', due > now()) FROM lists
		UNION ALL
		SELECT concat_ws('|', 'done', list, item, attempts) FROM howdah.checklist_done WHERE relation = 'lists'::regclass
		UNION ALL
		SELECT concat_ws('|', 'counts', list, sum(items), sum(done), sum(dead), sum(failed)) FROM howdah.checklist_count WHERE relation = 'lists'::regclass
		GROUP BY list HAVING (sum(items), sum(done), sum(dead), sum(failed)) <> (0, 0, 0, 0)
		ORDER BY 1`)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Whatever calls share a transaction: they answer, and leave, what the Store's own
// calls answer and leave, made one after the other.
func TestWriterAnswersAsTheStore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	one, alone := newStore(t)
	shared, inBatches := newStore(t)
	pools := []*pgxpool.Pool{alone, inBatches}
	for _, s := range []*checklists.Store{one, shared} {
		set := checklists.DefaultSettings
		set.MaxAttempts = 3
		if err := s.Set(ctx, "l", set); err != nil {
			t.Fatal(err)
		}
		set.KeepDone = true
		if err := s.Set(ctx, "kept", set); err != nil {
			t.Fatal(err)
		}
	}
	oneOf := func(values ...string) *rapid.Generator[string] { return rapid.SampledFrom(values) }
	list, item, token := oneOf("l", "kept"), oneOf("", "a", "b", "ä"), oneOf(token1, token2)
	rapid.Check(t, func(r *rapid.T) {
		for _, pool := range pools {
			if _, err := pool.Exec(ctx, `
				TRUNCATE lists;
				DELETE FROM howdah.checklist_count WHERE relation = 'lists'::regclass;
				DELETE FROM howdah.checklist_done WHERE relation = 'lists'::regclass`); err != nil {
				r.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 6).Draw(r, "rows") {
			args := []any{list.Draw(r, "list"), item.Draw(r, "item"), rapid.SampledFrom([]int{0, 2, 3, 2147483645, 2147483647}).Draw(r, "attempts"),
				oneOf("", token1, token2).Draw(r, "lease"), oneOf("-infinity", "2100-01-01", "infinity").Draw(r, "due")}
			for _, pool := range pools {
				if _, err := pool.Exec(ctx, `INSERT INTO lists (list, item, attempts, lease, due)
					VALUES ($1, $2, $3, nullif($4, '')::uuid, $5::text::timestamptz) ON CONFLICT DO NOTHING`, args...); err != nil {
					r.Fatal(err)
				}
			}
		}
		calls := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) oneCall {
			return oneCall{
				Verb: oneOf("insert", "increment", "delete", "done", "fail").Draw(r, "verb"),
				List: list.Draw(r, "list"), Item: item.Draw(r, "item"), Token: token.Draw(r, "token"),
				Wait: rapid.SampledFrom([]time.Duration{0, -1, time.Hour}).Draw(r, "wait"),
			}
		}), 1, 16).Draw(r, "calls")
		var want []string
		for _, c := range calls {
			want = append(want, c.on(ctx, one))
		}
		got := together(ctx, r, shared, rapid.SampledFrom([]int{3, 100}).Draw(r, "batch"), calls)
		if diff := cmp.Diff(want, got); diff != "" {
			r.Fatalf("answers (-alone +together):\n%s", diff)
		}
		if diff := cmp.Diff(rowsOf(ctx, r, alone), rowsOf(ctx, r, inBatches)); diff != "" {
			r.Fatalf("rows (-alone +together):\n%s", diff)
		}
	})
}

func TestWriterOnAPlainTable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Schema(t)
	if _, err := pool.Exec(ctx, `CREATE TABLE plain (list text NOT NULL, item text NOT NULL, attempts integer NOT NULL DEFAULT 0, PRIMARY KEY (list, item))`); err != nil {
		t.Fatal(err)
	}
	s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{"plain"}})
	got := together(ctx, t, s, 100, []oneCall{
		{Verb: "insert", List: "l", Item: "b"}, {Verb: "insert", List: "l", Item: "a"}, {Verb: "insert", List: "l", Item: "b"},
		{Verb: "increment", List: "l", Item: "b"}, {Verb: "increment", List: "l", Item: "b"}, {Verb: "increment", List: "l", Item: "c"},
		{Verb: "delete", List: "l", Item: "a"}, {Verb: "delete", List: "l", Item: "a"}, {Verb: "insert", List: "l", Item: "a"},
	})
	want := []string{"1 <nil>", "1 <nil>", "0 <nil>", "1 <nil>", "1 <nil>", "0 <nil>", "1 <nil>", "0 <nil>", "1 <nil>"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if page, err := s.Page(ctx, "l", nil, 10); err != nil || len(page) != 2 || page[1].Attempts != 2 {
		t.Errorf("items: %+v, %v", page, err)
	}
	w := running(t, s)
	if _, err := w.Done(ctx, checklists.Lease{List: "l", Token: token1}, "a"); !errors.Is(err, checklists.ErrPlain) {
		t.Errorf("Done: %v, want ErrPlain", err)
	}
}

// running returns a Writer that runs until the test ends.
func running(t *testing.T, s *checklists.Store) *checklists.Writer {
	t.Helper()
	w := checklists.NewWriter(s, checklists.WriterConfig{})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	w.Gather() // not by chance
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := pgtest.Receive(t, ended, "the end of Run"); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Who is refused, or cannot be written, fails alone.
func TestWriterFailsNobodyElse(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	ctx := t.Context()
	if _, err := pool.Exec(ctx, `ALTER TABLE lists ADD CONSTRAINT no_x CHECK (item <> 'x')`); err != nil {
		t.Fatal(err)
	}
	var calls []oneCall
	for i := range 20 {
		calls = append(calls, oneCall{Verb: "insert", List: "l", Item: fmt.Sprint(i)})
	}
	calls[7].Item = "x"
	for i, got := range together(ctx, t, s, 100, calls) {
		if i == 7 && !strings.Contains(got, "no_x") || i != 7 && got != "1 <nil>" {
			t.Errorf("%d: %s", i, got)
		}
	}
	w := running(t, s)
	for _, bad := range []string{"\x00", "\xff", strings.Repeat("x", 3000)} {
		if _, err := w.Insert(ctx, "l", bad); !errors.Is(err, fault.Invalid) {
			t.Errorf("Insert(%.10q): %v, want Invalid", bad, err)
		}
	}
	if _, err := w.Done(ctx, checklists.Lease{List: "l", Token: "?"}, "1"); !errors.Is(err, fault.Invalid) {
		t.Errorf("Done with a bad token: %v", err)
	}
	mustNotDrift(t, pool)
}

// An item that is locked, or put on or taken off by somebody who does not come to
// an end, holds up its own caller and nobody else.
func TestWriterPassesOverLocks(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	ctx := t.Context()
	insert(t, s, "l", "locked", "leaving")
	other, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(context.WithoutCancel(ctx))
	if _, err := other.Exec(ctx, `
		SELECT FROM lists WHERE item = 'locked' FOR UPDATE;
		DELETE FROM lists WHERE item = 'leaving';
		INSERT INTO lists (list, item) VALUES ('l', 'coming')`); err != nil {
		t.Fatal(err)
	}
	s = checklists.New(wide(t, pool), checklists.Config{Table: tableOf(t, pool)})
	w := running(t, s)
	var waiting errgroup.Group
	for verb, item := range map[string]string{"increment": "locked", "delete": "leaving", "insert": "coming"} {
		waiting.Go(func() error {
			want := "0 <nil>" // it is there, or gone, when the other has ended
			if verb == "increment" {
				want = "1 <nil>"
			}
			if got := (oneCall{Verb: verb, List: "l", Item: item}).on(ctx, w); got != want {
				return fmt.Errorf("%s of %s: %s, want %s", verb, item, got, want)
			}
			return nil
		})
	}
	for i := range 50 {
		if n, err := w.Insert(ctx, "l", fmt.Sprint(i)); n != 1 || err != nil {
			t.Fatalf("%d: %d, %v", i, n, err)
		}
	}
	// They wait, each by itself.
	pgtest.UntilSQL(t, pool, "three wait for the other", `
		SELECT count(*) >= 3
		FROM pg_stat_activity
		WHERE datname = current_database() AND pg_backend_pid() <> pid AND $1 = ANY(pg_blocking_pids(pid))`, other.Conn().PgConn().PID())
	if _, err := other.Exec(ctx, `UPDATE lists SET attempts = 5 WHERE item = 'locked'`); err != nil {
		t.Fatal(err)
	}
	if err := other.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); err != nil {
		t.Fatal(err)
	}
	if item, err := s.Get(ctx, "l", "locked"); err != nil || item.Attempts != 6 {
		t.Errorf("%+v, %v; want 6 attempts", item, err)
	}
	mustNotDrift(t, pool)
}

// Two Writers and the Store, on the same items at once: what they were told adds up.
func TestWritersShareATable(t *testing.T) {
	t.Parallel()
	_, pool := newStore(t)
	ctx := t.Context()
	s := checklists.New(wide(t, pool), checklists.Config{Table: tableOf(t, pool)})
	ways := []writing{running(t, s), running(t, s), s}
	var callers errgroup.Group
	told := make([]struct{ added, deleted, done int64 }, 24)
	for c := range told {
		callers.Go(func() error {
			random := rand.New(rand.NewPCG(5, uint64(c)))
			w, told := ways[c%len(ways)], &told[c]
			for range 150 {
				var n int64
				var err error
				item := fmt.Sprint(random.IntN(40))
				switch random.IntN(8) {
				case 0, 1, 2:
					n, err = w.Insert(ctx, "l", item)
					told.added += n
				case 3:
					n, err = w.Delete(ctx, "l", item)
					told.deleted += n
				case 4:
					_, err = w.Increment(ctx, "l", item)
				default:
					var claim checklists.Claim
					if claim, err = s.Claim(ctx, "l", "w", 1, time.Minute); err != nil || len(claim.Items) == 0 {
						break
					}
					if random.IntN(2) == 0 {
						_, err = w.Fail(ctx, claim.Lease, checklists.Failure{Item: claim.Items[0].Name, RetryIn: time.Millisecond})
					} else {
						n, err = w.Done(ctx, claim.Lease, claim.Items[0].Name)
						told.done += n
					}
					err = ignoreLost(err)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := callers.Wait(); err != nil {
		t.Fatal(err)
	}
	var added, gone int64
	for _, told := range told {
		added, gone = added+told.added, gone+told.deleted+told.done
	}
	if got := progress(t, s, "l"); got.Left+got.Dead != added-gone || got.Done > gone {
		t.Errorf("added %d, gone %d as told; counted %+v", added, gone, got)
	}
	if left := int64(len(names(t, s, "l"))); left != added-gone {
		t.Errorf("%d items are left, want %d", left, added-gone)
	}
	mustNotDrift(t, pool)
}

// Without Run, and in a transaction, a Writer is its Store.
func TestWriterThatDoesNotRunIsItsStore(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	ctx := t.Context()
	w := checklists.NewWriter(s, checklists.WriterConfig{})
	if n, err := w.Insert(ctx, "l", "a"); n != 1 || err != nil {
		t.Errorf("before Run: %d, %v", n, err)
	}
	running, stop := context.WithCancel(ctx)
	stop()
	if err := w.Run(running); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Increment(ctx, "l", "a"); n != 1 || err != nil || w.Flushes() != 0 {
		t.Errorf("after Run: %d, %v", n, err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	in := checklists.NewWriter(s.WithTx(tx), checklists.WriterConfig{})
	if n, err := in.Delete(ctx, "l", "a"); n != 1 || err != nil {
		t.Errorf("in a transaction: %d, %v", n, err)
	}
	if err := in.Run(ctx); err == nil {
		t.Error("it runs in a transaction")
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s, "l"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("left: %q", got)
	}
}

// Where sessions change under it, as behind a pooler, there are no prepared statements.
func TestWriterWithoutPreparedStatements(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		_, pool := newStore(t)
		cfg := pool.Config()
		cfg.ConnConfig.DefaultQueryExecMode = mode
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		s := checklists.New(pool, checklists.Config{Table: tableOf(t, pool)})
		insert(t, s, "l", "a", "b", "c")
		c := claim(t, s, "l", 2)
		got := together(ctx, t, s, 100, []oneCall{
			{Verb: "insert", List: "l", Item: "d"}, {Verb: "increment", List: "l", Item: "c"}, {Verb: "increment", List: "l", Item: "c"},
			{Verb: "done", List: "l", Item: "a", Token: c.Token}, {Verb: "fail", List: "l", Item: "b", Token: c.Token, Wait: time.Hour},
			{Verb: "delete", List: "l", Item: "d"},
		})
		if want := slices.Repeat([]string{"1 <nil>"}, len(got)); !slices.Equal(got, want) {
			t.Errorf("%v: %q", mode, got)
		}
		if item, err := s.Get(ctx, "l", "c"); err != nil || item.Attempts != 2 {
			t.Errorf("%v: %+v, %v", mode, item, err)
		}
	}
}
