package pg_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// What a server reports for real statements falls into the right kind.
func TestServerErrorsHaveKinds(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	pool := pgtest.Schema(t)
	if _, err := pool.Exec(ctx, `
		CREATE TABLE parent (id int PRIMARY KEY, n int NOT NULL CHECK (n > 0));
		CREATE TABLE child (parent int REFERENCES parent);
		INSERT INTO parent VALUES (1, 1)`); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]fault.Kind{
		`INSERT INTO parent VALUES (1, 1)`:                  fault.Conflict,
		`INSERT INTO child VALUES (2)`:                      fault.Conflict,
		`INSERT INTO parent VALUES (2, NULL)`:               fault.Invalid,
		`INSERT INTO parent VALUES (2, 0)`:                  fault.Invalid,
		`SELECT 1/0`:                                        fault.Invalid,
		`SELECT 'x'::int`:                                   fault.Invalid,
		`SELECT * FROM no_such_table`:                       fault.Unavailable,
		`SELECT no_such_function()`:                         fault.Unavailable,
		`SET statement_timeout = 1; SELECT pg_sleep(10)`:    fault.Unavailable,
		`BEGIN READ ONLY; INSERT INTO parent VALUES (3, 3)`: fault.Unavailable,
		`SET ROLE pg_monitor; CREATE TABLE pg_catalog.x ()`: fault.Denied,
		`DO $$ BEGIN EXECUTE (SELECT 'CREATE TABLE wide (' || string_agg('c' || i || ' int', ',') || ')' FROM generate_series(1, 1601) AS i); END $$`: fault.Exhausted,
		`this is no SQL`: "",
	} {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, strings.TrimPrefix(sql, "BEGIN READ ONLY; "), pgx.QueryExecModeSimpleProtocol)
			if strings.HasPrefix(sql, "BEGIN READ ONLY") {
				_, err = tx.Exec(ctx, strings.Replace(sql, "BEGIN READ ONLY", "SET TRANSACTION READ ONLY", 1), pgx.QueryExecModeSimpleProtocol)
			}
			return err
		})
		if got := pg.KindOf(err); err == nil || got != want {
			t.Errorf("%s: %q, want %q (%v)", sql, got, want, err)
		}
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	if pg.Wrap("x", nil) != nil {
		t.Error("Wrap(nil) is an error")
	}
	sentinel := fmt.Errorf("no such thing: %w", fault.NotFound)
	err := pg.Wrap("service: get", sentinel)
	if !errors.Is(err, sentinel) || !errors.Is(err, fault.NotFound) || err.Error() != "service: get: no such thing: not found" {
		t.Errorf("a sentinel: %v", err)
	}
	var pgErr *pgconn.PgError
	err = pg.Wrap("service: set", &pgconn.PgError{Severity: "ERROR", Code: "23505", Message: "twice"})
	if !errors.Is(err, fault.Conflict) || !errors.As(err, &pgErr) || err.Error() != "service: set: ERROR: twice (SQLSTATE 23505)" {
		t.Errorf("an error of the server: %v", err)
	}
	for _, bare := range []error{context.Canceled, errors.New("a bug")} {
		if err := pg.Wrap("service: get", bare); pg.KindOf(err) != "" || !errors.Is(err, bare) {
			t.Errorf("%v has kind %q", bare, pg.KindOf(err))
		}
	}
	if err := pg.Wrap("service: get", context.DeadlineExceeded); !errors.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a deadline: %v", err)
	}
}

func TestALostConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	pool := pgtest.Pool(t, proxy.URL())
	lose := map[string]func(){
		"cut":        func() { proxy.CutOn([]byte("lost")) },
		"terminated": func() {}, // by the statement itself
	}
	for name, arm := range lose {
		arm()
		_, err := pool.Exec(ctx, `SELECT 'lost', CASE WHEN $1 THEN pg_terminate_backend(pg_backend_pid()) END`, name == "terminated")
		if err := pg.Wrap("x", err); !errors.Is(err, fault.Unavailable) || !pg.LostConnection(err) {
			t.Errorf("%s: %v, want Unavailable", name, err)
		}
	}
	proxy.Refuse(true)
	proxy.Cut()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := pool.Exec(ctx, `SELECT 1`); !errors.Is(pg.Wrap("x", err), fault.Unavailable) {
		t.Errorf("refused: %v, want Unavailable", err)
	}
	pool.Close()
	if _, err := pool.Exec(ctx, `SELECT 1`); !errors.Is(pg.Wrap("x", err), fault.Unavailable) {
		t.Errorf("closed pool: %v, want Unavailable", err)
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	pool := pgtest.Schema(t)
	deadlock, down := &pgconn.PgError{Code: "40P01"}, &pgconn.PgError{Code: "57P03"}
	for name, tc := range map[string]struct {
		errs []error
		want int // calls
		err  error
	}{
		"success":             {[]error{nil}, 1, nil},
		"a passing failure":   {[]error{deadlock, &pgconn.PgError{Code: "40001"}, nil}, 3, nil},
		"bad input":           {[]error{fault.Invalid, nil}, 1, fault.Invalid},
		"unknown outcome":     {[]error{&pgconn.PgError{Code: "57P01"}, nil}, 1, &pgconn.PgError{Code: "57P01"}},
		"a deadlock for ever": {slices.Repeat([]error{deadlock}, 40), 33, deadlock},
		"no server for ever":  {slices.Repeat([]error{down}, 40), 9, down},
	} {
		calls := 0
		err := pg.Retry(ctx, pool, func() error { calls++; return tc.errs[calls-1] })
		if calls != tc.want || fmt.Sprint(err) != fmt.Sprint(tc.err) {
			t.Errorf("%s: %d calls, %v, want %d, %v", name, calls, err, tc.want, tc.err)
		}
	}
	// The caller's transaction is his to repeat.
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	calls := 0
	if err := pg.Retry(ctx, tx, func() error { calls++; return deadlock }); calls != 1 || !errors.Is(err, deadlock) {
		t.Errorf("in a transaction: %d calls, %v", calls, err)
	}
	// So is one that he began by a statement, also when it has failed by then.
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `BEGIN`); err != nil {
		t.Fatal(err)
	}
	calls = 0
	if err := pg.Retry(ctx, conn, func() error { calls++; return deadlock }); calls != 1 || !errors.Is(err, deadlock) {
		t.Errorf("after a BEGIN by hand: %d calls, %v", calls, err)
	}
	if _, err := conn.Exec(ctx, `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	calls = 0
	if err := pg.Retry(ended, pool, func() error { calls++; return deadlock }); calls != 1 || !errors.Is(err, deadlock) {
		t.Errorf("after the end: %d calls, %v", calls, err)
	}
}

// A file's trouble is not the database's, though both come as the errno of a
// system call.
func TestAFileIsNoConnection(t *testing.T) {
	t.Parallel()
	_, err := os.ReadFile(t.TempDir())
	if got := pg.KindOf(err); err == nil || got != "" || pg.LostConnection(err) {
		t.Errorf("%v: %q, want no kind", err, got)
	}
}

// What is marked as foreign was another's connection.
func TestAForeignConnectionIsNoConnection(t *testing.T) {
	t.Parallel()
	err := pg.Foreign(fmt.Errorf("webhook: %w", &net.OpError{Op: "dial", Err: io.EOF}))
	if got := pg.KindOf(err); got != "" || pg.LostConnection(err) {
		t.Errorf("%v: %q, want no kind", err, got)
	}
}

// pgx calls a connection that was lost while the answer was awaited safe to
// repeat on; the statement may have been carried out.
func TestRetryDoesNotRepeatWhatMayHaveBeenDone(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	database := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, database)
	through, direct := pgtest.Pool(t, proxy.URL()), pgtest.Pool(t, database)
	if _, err := direct.Exec(ctx, `CREATE TABLE written ()`); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]any{"extended protocol": {}, "simple protocol": {pgx.QueryExecModeSimpleProtocol}} {
		proxy.CutOn([]byte("INSERT"))
		tries := 0
		if err := pg.Retry(ctx, through, func() error {
			tries++
			_, err := through.Exec(ctx, `INSERT INTO written DEFAULT VALUES`, args...)
			return err
		}); !errors.Is(pg.Wrap("x", err), fault.Unavailable) {
			t.Errorf("%s: %d tries, %v, want Unavailable", name, tries, err)
		}
	}
	var n int
	if err := direct.QueryRow(ctx, `SELECT count(*) FROM written`).Scan(&n); err != nil || n > 2 {
		t.Errorf("%d rows, %v; want 2 at most", n, err)
	}
}

// A connection that cannot be made was surely not written to.
func TestRetryWaitsForAServer(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	pool := pgtest.Pool(t, proxy.URL())
	proxy.Refuse(true)
	tries := 0
	err := pg.Retry(ctx, pool, func() error {
		if tries++; tries == 3 {
			proxy.Refuse(false)
		}
		_, err := pool.Exec(ctx, `SELECT 1`)
		return err
	})
	if err != nil || tries < 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

// What howdah knows the cure of is said with it.
func TestHints(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ code, message, want string }{
		{"42P01", `relation "howdah.change" does not exist`, "howdah migrate"},
		{"42501", "permission denied for table change", "ON ALL TABLES IN SCHEMA"},
		{"42501", "permission denied for sequence change_id", "GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA"},
		{"42501", "permission denied to create temporary tables in database", "GRANT TEMPORARY"},
		{"42P05", `prepared statement "stmtcache_1" already exists`, "--pooler"},
		{"26000", `prepared statement "stmtcache_1" does not exist`, "--pooler"},
		{"25006", "cannot execute INSERT in a read-only transaction", "target_session_attrs=read-write"},
	} {
		if got := pg.Wrap("test", &pgconn.PgError{Code: tc.code, Message: tc.message}).Error(); !strings.Contains(got, tc.message) || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q in it", tc.code, got, tc.want)
		}
	}
}

// A COPY that is cut short says so, and not only that its connection is closed.
func TestTheEndOfACopyIsThatOfItsContext(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	pool := pgtest.Schema(t)
	if _, err := pool.Exec(ctx, `CREATE TABLE names (name text)`); err != nil {
		t.Fatal(err)
	}
	for range 8 { // what pgx sees first is by chance
		cut, cancel := context.WithCancel(ctx)
		n := 0
		_, err := pg.Copy(cut, pool, pgx.Identifier{"names"}, []string{"name"}, pgx.CopyFromFunc(func() ([]any, error) {
			if n++; n == 5000 {
				cancel()
			}
			return []any{"some name"}, nil
		}))
		if !errors.Is(err, context.Canceled) || pg.KindOf(err) != "" {
			t.Errorf("%v (%q), want context.Canceled", err, pg.KindOf(err))
		}
		cancel()
	}
}
