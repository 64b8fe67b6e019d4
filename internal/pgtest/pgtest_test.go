package pgtest_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestMain(m *testing.M) {
	prepare() // see process_test.go
	pgtest.Main(m)
}

// within bounds a step of a test.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(within(t), url)
	if err != nil {
		t.Fatalf("Connect = %v", err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func ask[T any](t *testing.T, conn interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(within(t), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func TestSchemasAreApart(t *testing.T) {
	t.Parallel()
	a, b := pgtest.Schema(t), pgtest.Schema(t)
	for _, pool := range []*pgxpool.Pool{a, b} {
		if _, err := pool.Exec(within(t), "CREATE TABLE same (id int)"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Exec(within(t), "INSERT INTO same VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	if n := ask[int](t, b, "SELECT count(*) FROM same"); n != 0 {
		t.Errorf("rows of the other schema = %d, want 0", n)
	}
}

func TestSchemaIsDropped(t *testing.T) {
	t.Parallel()
	var name string
	t.Run("user", func(t *testing.T) {
		name = ask[string](t, pgtest.Schema(t), "SELECT current_schema()")
	})
	other := pgtest.Schema(t)
	if ask[bool](t, other, "SELECT to_regnamespace($1) IS NOT NULL", name) {
		t.Errorf("schema %s is still there", name)
	}
}

func TestDatabaseIsDroppedUnderItsUsers(t *testing.T) {
	t.Parallel()
	var name string
	outer := t // whose connection is open still when the inner test is over
	t.Run("user", func(t *testing.T) {
		conn := connect(outer, pgtest.Database(t))
		name = ask[string](t, conn, "SELECT current_database()")
		if n := ask[int](t, conn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); n != 0 {
			t.Errorf("tables in a new database = %d, want 0", n)
		}
	})
	conn := connect(t, pgtest.URL(t))
	if ask[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name) {
		t.Errorf("database %s is still there", name)
	}
}

// Who is slow to leave a database holds up its end, which comes.
func TestDatabaseIsDroppedOnceItIsLeft(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.Database(t))
	drop, own := `DROP DATABASE `+conn.Config().Database+` WITH (FORCE)`, `'of `+conn.Config().Database+`'`
	for _, sql := range []string{`BEGIN`, `CREATE TABLE t ()`, `PREPARE TRANSACTION ` + own} {
		if _, err := conn.Exec(within(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := connect(t, pgtest.URL(t)).Exec(within(t), drop); err == nil {
		t.Fatal("it is dropped under a transaction that is prepared")
	}
	dropped := make(chan error, 1)
	go func() { dropped <- pgtest.Alone(pgtest.URL(t), drop) }()
	_, _ = conn.Exec(within(t), `ROLLBACK PREPARED `+own) // whose answer may be cut off
	if err := pgtest.Receive(t, dropped, "the end of the database"); err != nil {
		t.Error(err)
	}
}

func TestOwnServerIsDurable(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	conn := connect(t, server.URL())
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		if got := ask[string](t, conn, "SELECT current_setting($1)", setting); got != "on" {
			t.Errorf("%s = %s, want on", setting, got)
		}
	}
}

func TestProxyPasses(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.NewProxy(t, pgtest.URL(t)).URL())
	if got := ask[int](t, conn, "SELECT length(repeat('x', 1000000))"); got != 1000000 {
		t.Errorf("length = %d, want 1000000", got)
	}
}

func TestProxyCut(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	proxy.Cut()
	if _, err := conn.Exec(within(t), "SELECT 1"); err == nil {
		t.Error("a statement on a cut connection succeeded")
	}
	ask[int](t, connect(t, proxy.URL()), "SELECT 1")
}

func TestProxyRefuse(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	open := connect(t, proxy.URL())
	proxy.Refuse(true)
	if conn, err := pgx.Connect(within(t), proxy.URL()); err == nil {
		_ = conn.Close(context.Background())
		t.Error("a refusing proxy took a connection")
	}
	ask[int](t, open, "SELECT 1")
	proxy.Refuse(false)
	ask[int](t, connect(t, proxy.URL()), "SELECT 1")
}

func TestProxyStall(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	proxy.Stall(true)
	answer := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, err := conn.Exec(ctx, "SELECT 1")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("an answer came through a stalled proxy: %v", err)
	case <-time.After(50 * time.Millisecond): // long for a loopback, and a slow machine only makes it truer
	}
	proxy.Stall(false)
	if err := pgtest.Receive(t, answer, "the answer after the stall"); err != nil {
		t.Errorf("after the stall: %v", err)
	}
}

func TestProxyCutWhileStalled(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	proxy.Stall(true)
	answer := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, err := conn.Exec(ctx, "SELECT 1")
		answer <- err
	}()
	proxy.Cut()
	if err := pgtest.Receive(t, answer, "the end of the statement"); err == nil {
		t.Error("a statement on a cut connection succeeded")
	}
}

// Whether the server got the statement is what sets the two traps apart; the
// client sees the same.
func TestProxyTraps(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		arm  func(*pgtest.Proxy, []byte)
		want bool
	}{
		{"CutOn", (*pgtest.Proxy).CutOn, true},
		{"Drop", (*pgtest.Proxy).Drop, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			direct := connect(t, url)
			if _, err := direct.Exec(within(t), "CREATE TABLE done (id int)"); err != nil {
				t.Fatal(err)
			}
			proxy := pgtest.NewProxy(t, url)
			conn := connect(t, proxy.URL())
			pid := conn.PgConn().PID()
			tx, err := conn.Begin(within(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(within(t), "INSERT INTO done VALUES (1)"); err != nil {
				t.Fatal(err)
			}
			test.arm(proxy, []byte("commit"))
			if err := tx.Commit(within(t)); err == nil {
				t.Fatal("the commit was acknowledged through a cut")
			}
			// The backend ends when it sees the cut: after that nothing changes.
			pgtest.Until(t, "the server notices that its client is gone", func() bool {
				return ask[bool](t, direct, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid)
			})
			if got := ask[bool](t, direct, "SELECT EXISTS (SELECT FROM done)"); got != test.want {
				t.Errorf("committed = %v, want %v", got, test.want)
			}
			again := connect(t, proxy.URL()) // the trap worked once
			if _, err := again.Exec(within(t), "begin; commit"); err != nil {
				t.Errorf("after the trap: %v", err)
			}
		})
	}
}

func TestProxyTrapForAnswers(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	proxy.CutOnAnswer([]byte("row 90000"))
	rows, err := conn.Query(within(t), "SELECT 'row ' || n FROM generate_series(1, 100000) AS n")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for rows.Next() {
		n++
	}
	if rows.Err() == nil || n == 0 || n >= 90_000 {
		t.Errorf("%d rows came, %v, want some and an error", n, rows.Err())
	}
	ask[int](t, connect(t, proxy.URL()), "SELECT 1")
}

func TestProxyRewrite(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	version := connect(t, proxy.URL()).PgConn().ParameterStatus("server_version")
	pretended := "9" + strings.Repeat("9", len(version)-1)
	proxy.Rewrite([]byte(version), []byte(pretended))
	if got := connect(t, proxy.URL()).PgConn().ParameterStatus("server_version"); got != pretended {
		t.Errorf("server_version = %q, want %q", got, pretended)
	}
}

func TestProxyWithoutServer(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, "postgres://nobody@127.0.0.1:1/nothing") // where nobody ever listens
	if _, err := pgx.Connect(within(t), proxy.URL()); err == nil {
		t.Error("connected to nothing")
	}
}
