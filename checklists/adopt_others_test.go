package checklists_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg/migrate"
)

// adoptVar gives a process that is to be killed its database.
const adoptVar = "HOWDAH_TEST_ADOPT"

// TestAdoptToBeKilled only matters in a process that is to be killed: it adopts,
// and before each step says so and waits for a line.
func TestAdoptToBeKilled(t *testing.T) {
	t.Parallel()
	url := os.Getenv(adoptVar)
	if url == "" {
		return
	}
	in := bufio.NewReader(os.Stdin)
	err := checklists.New(pgtest.Pool(t, url), checklists.Config{}).Adopt(t.Context(), func(a checklists.Adopting) {
		if a.Waiting == "" && a.Total == 0 {
			fmt.Println("step " + a.Step)
			in.ReadString('\n')
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// adoptKilled runs an adoption in a process of its own and kills it: before its
// step of that number, or, let go, somewhere in it.
func adoptKilled(t *testing.T, url string, step int, let bool) (steps []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestAdoptToBeKilled$", "-test.count=1")
	cmd.Env = append(os.Environ(), adoptVar+"="+url)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		at, ok := strings.CutPrefix(lines.Text(), "step ")
		if !ok {
			continue
		}
		steps = append(steps, at)
		if len(steps) == step && !let {
			break
		}
		fmt.Fprintln(in)
		if len(steps) == step {
			break
		}
	}
	cmd.Process.Kill()
	cmd.Wait() // tells that it was killed
	return steps
}

// Killed between any two of its steps and in any of them, it is run again, and goes
// on from there.
func TestAdoptingGoesOnWhereItWasKilled(t *testing.T) {
	t.Parallel()
	want := ""
	for _, let := range []bool{false, true} {
		s, pool := original(t)
		url := pool.Config().ConnString()
		all := mustSurvey(t, s).Steps
		for i := range all {
			steps := adoptKilled(t, url, 2, let)
			switch {
			case let: // the server may have finished what it was at, or not
			case i+1 < len(all) && (len(steps) != 2 || steps[0] != all[i]):
				t.Errorf("run %d began with %q, want %q and the next", i, steps, all[i])
			}
			if md5 := one[string](t, pool, md5OfRows); md5 != end {
				t.Errorf("rows after run %d: %s", i, md5)
			}
			// Whatever is there by now, the calls of a plain table work.
			if items, err := s.Page(t.Context(), "big", nil, 10); err != nil || len(items) != 10 {
				t.Errorf("Page after run %d: %v", i, err)
			}
		}
		mustAdopt(t, s)
		adoptedDrift(t, pool)
		got := strings.Join(schema(t, pool), "\n")
		if want != "" && got != want {
			t.Errorf("killed between steps and in them:\n%s", cmp.Diff(want, got))
		}
		want = got
		if claim, err := s.Claim(t.Context(), "big", "w", 10, time.Minute); err != nil || len(claim.Items) != 10 {
			t.Errorf("Claim: %d items, %v", len(claim.Items), err)
		}
	}
	if strings.Contains(want, "valid f") || !strings.Contains(want, "Adopted by howdah") || strings.Contains(want, "NOT VALID") {
		t.Error(want)
	}
}

// An index that CREATE INDEX CONCURRENTLY left when it was interrupted is built
// again; and building one waits for who has written and not committed.
func TestAnInvalidIndexIsBuiltAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := original(t)
	mustAdopt(t, s)
	want := schema(t, pool)
	execute(t, pool, `DROP INDEX iidy.lists_due`)
	writer, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Rollback(ctx)
	if _, err := writer.Exec(ctx, `INSERT INTO iidy.lists (list, item) VALUES ('other', 'a')`); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `SET lock_timeout = '20ms'`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, `CREATE INDEX CONCURRENTLY lists_due ON iidy.lists (list, priority, due)`); err == nil {
		t.Fatal("the index did not wait for a writer")
	}
	if one[bool](t, pool, `SELECT indisvalid FROM pg_index WHERE indexrelid = 'iidy.lists_due'::regclass`) {
		t.Fatal("the index is valid")
	}
	var waited atomic.Bool
	err = s.Adopt(ctx, func(a checklists.Adopting) {
		if strings.HasPrefix(a.Waiting, fmt.Sprintf("process %d", writer.Conn().PgConn().PID())) && waited.CompareAndSwap(false, true) {
			writer.Commit(ctx)
		}
	})
	if err != nil || !waited.Load() {
		t.Errorf("%v, waited: %v", err, waited.Load())
	}
	if diff := cmp.Diff(want, schema(t, pool)); diff != "" {
		t.Error(diff)
	}
}

// poorRole makes a role that may use iidy's schema and nothing of howdah's, and
// returns a pool of its own.
func poorRole(t *testing.T, pool *pgxpool.Pool) (role string, as *pgxpool.Pool) {
	t.Helper()
	role = "iidy_" + pool.Config().ConnConfig.Database
	execute(t, pool, `CREATE ROLE `+role+` LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA iidy TO `+role+`;
		GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON iidy.lists TO `+role)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
		defer cancel()
		if _, err := pool.Exec(ctx, `DROP OWNED BY `+role+` CASCADE; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	return role, pgtest.Pool(t, pgtest.As(t, pool.Config().ConnString(), role, "secret"))
}

// iidy's own statements, by a role that knows nothing of howdah, go on through
// adopting and giving back, and are counted from the first moment.
func TestTheOriginalGoesOnWhileItsTableIsAdopted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := original(t)
	_, as := poorRole(t, pool)
	var writers errgroup.Group
	stop := make(chan struct{})
	var rounds atomic.Int64
	for w := range 4 {
		writers.Go(func() error {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return nil
				default:
				}
				rounds.Add(1)
				list, item := fmt.Sprintf("busy %d", w), fmt.Sprintf("f%06d", i)
				batch := make([][]any, 20)
				names := make([]string, 20)
				for j := range batch {
					names[j] = fmt.Sprintf("%s-%d", item, j)
					batch[j] = []any{list, names[j]}
				}
				_, err1 := as.Exec(ctx, `INSERT INTO iidy.lists (list, item) VALUES ($1, $2)`, list, item)
				_, err2 := as.CopyFrom(ctx, pgx.Identifier{"iidy", "lists"}, []string{"list", "item"}, pgx.CopyFromRows(batch))
				_, err3 := as.Exec(ctx, `UPDATE iidy.lists SET attempts = attempts + 1 WHERE list = $1 AND item = $2`, list, item)
				tag, err4 := as.Exec(ctx, `DELETE FROM iidy.lists WHERE list = $1 AND item IN (SELECT unnest($2::text[]))`, list, names[:15])
				if err := errors.Join(err1, err2, err3, err4); err != nil || tag.RowsAffected() != 15 {
					return fmt.Errorf("%d deleted: %w", tag.RowsAffected(), err)
				}
			}
		})
	}
	for range 3 {
		mustAdopt(t, s)
		adoptedDrift(t, pool)
		if claim, err := s.Claim(ctx, "big", "w", 10, time.Minute); err != nil || len(claim.Items) != 10 {
			t.Errorf("Claim: %d items, %v", len(claim.Items), err)
		}
		if err := s.UndoAdopt(ctx, nil); err != nil {
			t.Error(err)
		}
	}
	mustAdopt(t, s)
	close(stop)
	if err := writers.Wait(); err != nil {
		t.Error(err)
	}
	adoptedDrift(t, pool)
	if rounds.Load() < 10 {
		t.Errorf("only %d rounds of writing", rounds.Load())
	}
	p := progress(t, s, "busy 0")
	if left := one[int64](t, pool, `SELECT count(*) FROM iidy.lists WHERE list = 'busy 0'`); p.Left != left {
		t.Errorf("%+v, %d are left", p, left)
	}
}

func TestSeveralAdoptAtOnce(t *testing.T) {
	t.Parallel()
	s, pool := original(t)
	var all errgroup.Group
	for range 4 {
		all.Go(func() error { return s.Adopt(t.Context(), nil) })
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	if v := mustSurvey(t, s); v.Layout != checklists.LayoutAdopted || len(v.Steps) != 0 {
		t.Errorf("%+v", v)
	}
	adoptedDrift(t, pool)
}

// Who keeps the table locked is named, and nothing has changed.
func TestAdoptingNamesWhoKeepsTheTable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := original(t)
	before := schema(t, pool)
	reader, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback(ctx)
	if _, err := reader.Exec(ctx, `SET LOCAL application_name = 'a long report'; SELECT FROM iidy.lists LIMIT 1`); err != nil {
		t.Fatal(err)
	}
	waited := 0
	err = s.Impatient(20*time.Millisecond).Adopt(ctx, func(a checklists.Adopting) {
		if a.Waiting != "" {
			waited++
		}
	})
	want := fmt.Sprintf("iidy.lists is in use by process %d (", reader.Conn().PgConn().PID())
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "a long report, idle in transaction") || waited != 4 {
		t.Errorf("told %d times: %v, want Unavailable with %q", waited, err, want)
	}
	if diff := cmp.Diff(before, schema(t, pool)); diff != "" {
		t.Error(diff)
	}
	if _, err := reader.Exec(ctx, `PREPARE TRANSACTION 'kept'`); err != nil {
		t.Fatal(err)
	}
	err = s.Impatient(20*time.Millisecond).Adopt(ctx, nil)
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "a prepared transaction (SELECT * FROM pg_prepared_xacts)") {
		t.Errorf("%v, want Unavailable and the prepared transaction", err)
	}
	execute(t, pool, `ROLLBACK PREPARED 'kept'`)
	mustAdopt(t, s)
}

// A role that may not is told by whom it can be done, or what to grant, and with
// that it can.
func TestAdoptingNeedsTheOwner(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	pgtest.Restore(t, url, "testdata/compat/end.sql.gz")
	pool := pgtest.Pool(t, url)
	owner, _ := poorRole(t, pool)
	execute(t, pool, `ALTER SCHEMA iidy OWNER TO `+owner+`; ALTER TABLE iidy.lists OWNER TO `+owner)
	database := pool.Config().ConnConfig.Database
	role := "howdah_" + database
	execute(t, pool, `CREATE ROLE `+role+` LOGIN PASSWORD 'secret'; GRANT CREATE ON DATABASE `+database+` TO `+role+`;
		GRANT USAGE ON SCHEMA iidy TO `+role+`; GRANT SELECT, INSERT, UPDATE, DELETE ON iidy.lists TO `+role)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(ctx), `DROP OWNED BY `+role+` CASCADE; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	as := pgtest.Pool(t, pgtest.As(t, url, role, "secret"))
	s := checklists.New(as, checklists.Config{})
	if err := migrate.Up(ctx, as.Config().ConnConfig, slog.New(slog.DiscardHandler), s.Migrations()); err != nil {
		t.Fatal(err)
	}
	before := schema(t, pool)
	grant := `GRANT "` + owner + `" TO "` + role + `"`
	if err := s.Adopt(ctx, nil); !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), "does not own it") || !strings.Contains(err.Error(), grant) {
		t.Errorf("%v, want Denied and %s", err, grant)
	}
	if v := mustSurvey(t, s); len(v.Problems) != 2 || v.Owner != owner {
		t.Errorf("%+v", v)
	}
	if diff := cmp.Diff(before, schema(t, pool)); diff != "" {
		t.Error(diff)
	}
	// The owner may not use howdah's functions.
	execute(t, pool, `GRANT USAGE ON SCHEMA howdah TO `+owner)
	byOwner := checklists.New(pgtest.Pool(t, pgtest.As(t, url, owner, "secret")), checklists.Config{})
	if err := byOwner.Adopt(ctx, nil); !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), "the role that ran howdah migrate") {
		t.Errorf("the owner: %v, want Denied", err)
	}
	execute(t, pool, grant)
	mustAdopt(t, s)
	adoptedDrift(t, pool)
	// The owner goes on without any right in schema howdah.
	execute(t, pool, `REVOKE USAGE ON SCHEMA howdah FROM `+owner)
	insert(t, checklists.New(pool, checklists.Config{}), "l", "a")
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SET LOCAL ROLE `+owner+`; INSERT INTO iidy.lists (list, item) VALUES ('l', 'b'); DELETE FROM iidy.lists WHERE item = 'a'`)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if p := progress(t, s, "l"); p.Left != 1 || p.Done != 1 {
		t.Errorf("%+v", p)
	}
	execute(t, pool, `REVOKE "`+owner+`" FROM "`+role+`"`)
	if err := s.UndoAdopt(ctx, nil); !errors.Is(err, fault.Denied) {
		t.Errorf("undo without rights: %v, want Denied", err)
	}
	execute(t, pool, grant)
	if err := s.UndoAdopt(ctx, nil); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, schema(t, pool)); diff != "" {
		t.Error(diff)
	}
}

// What others have built on howdah's columns is theirs: an undo stops before it.
func TestAnUndoSparesWhatDependsOnTheColumns(t *testing.T) {
	t.Parallel()
	s, pool := original(t)
	mustAdopt(t, s)
	execute(t, pool, `CREATE VIEW failed AS SELECT item, error FROM iidy.lists`)
	before := schema(t, pool)
	err := s.UndoAdopt(t.Context(), nil)
	if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "view failed depends on column error of table iidy.lists") {
		t.Errorf("%v, want Conflict and the view", err)
	}
	if diff := cmp.Diff(before, schema(t, pool)); diff != "" {
		t.Error(diff)
	}
}

// Lost triggers are found and put back, and what went uncounted is counted.
func TestAdoptingMendsWhatWasLost(t *testing.T) {
	t.Parallel()
	s, pool := original(t)
	mustAdopt(t, s)
	want := schema(t, pool)
	execute(t, pool, `DROP TRIGGER howdah_inserted ON iidy.lists; ALTER TABLE iidy.lists DISABLE TRIGGER howdah_deleted;
		DELETE FROM iidy.lists WHERE list = 'big'; INSERT INTO iidy.lists (list, item) VALUES ('l', 'a')`)
	if v := mustSurvey(t, s); len(v.Steps) != 1 {
		t.Errorf("%q", v.Steps)
	}
	mustAdopt(t, s)
	adoptedDrift(t, pool)
	if diff := cmp.Diff(want, schema(t, pool)); diff != "" {
		t.Error(diff)
	}
}

// A store that took the table for plain, or for adopted, finds out by itself.
func TestOtherStoresFindOut(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := original(t)
	other := checklists.New(pool, checklists.Config{})
	if _, err := other.Page(ctx, "big", nil, 1); err != nil {
		t.Fatal(err)
	}
	mustAdopt(t, s)
	if claim, err := other.Claim(ctx, "big", "w", 1, time.Minute); err != nil || len(claim.Items) != 1 {
		t.Errorf("Claim: %v", err)
	}
	if err := s.UndoAdopt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	var pgErr *pgconn.PgError
	if _, err := other.Claim(ctx, "big", "w", 1, time.Minute); !errors.As(err, &pgErr) || pgErr.Code != "42703" {
		t.Errorf("the first claim after it: %v, want the missing column", err)
	}
	if _, err := other.Claim(ctx, "big", "w", 1, time.Minute); !errors.Is(err, checklists.ErrPlain) {
		t.Errorf("the second: %v, want ErrPlain", err)
	}
	if items, err := other.Page(ctx, "big", nil, 1); err != nil || len(items) != 1 {
		t.Errorf("Page: %v", err)
	}
}
