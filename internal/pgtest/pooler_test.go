package pgtest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// A pooler gives clients a server for a transaction, and keeps nothing of a session.
func TestPooler(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := pgtest.NewPooler(t, pgtest.Database(t), 2)
	connect := func() *pgx.Conn {
		t.Helper()
		cfg, err := pgx.ParseConfig(p.URL())
		if err != nil {
			t.Fatal(err)
		}
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
		conn, err := pgx.ConnectConfig(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.WithoutCancel(ctx)) })
		return conn
	}
	one, two, three := connect(), connect(), connect()
	pid := func(db interface {
		QueryRow(context.Context, string, ...any) pgx.Row
	}) (pid int) {
		t.Helper()
		if err := db.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	if a, b, c := pid(one), pid(one), pid(one); a == b || a != c {
		t.Errorf("three transactions were on the servers %d, %d, %d; want two in turn", a, b, c)
	}
	if uint32(pid(one)) == one.PgConn().PID() {
		t.Error("a client is told the server's process")
	}

	// In a transaction it is one, and only so many have one at a time.
	var txs []pgx.Tx
	for _, conn := range []*pgx.Conn{one, two} {
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := pid(tx), pid(tx); a != b {
			t.Errorf("one transaction was on the servers %d and %d", a, b)
		}
		txs = append(txs, tx)
	}
	third := make(chan int, 1)
	go func() { third <- pid(three) }()
	select {
	case <-third:
		t.Error("a third transaction has a server too")
	case <-time.After(20 * time.Millisecond):
	}
	of := pid(txs[0])
	if err := txs[0].Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if got := pgtest.Receive(t, third, "the third has a server"); got != of {
		t.Errorf("the third was on server %d, want that of the first, %d", got, of)
	}

	// Who leaves in a transaction, or is cancelled in it, leaves nothing behind.
	if err := two.PgConn().Conn().Close(); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := three.Exec(brief, `SELECT pg_sleep(60)`); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a statement that is cancelled: %v", err)
	}
	four := connect()
	first := pid(four)
	pgtest.Until(t, "those that were lost are replaced", func() bool { return pid(four) != first })

	// What belongs to a session is lost.
	if _, err := four.Prepare(ctx, "mine", `SELECT 1`); err != nil {
		t.Fatal(err)
	}
	var pgErr *pgconn.PgError
	if _, err := four.Exec(ctx, "mine"); !errors.As(err, &pgErr) || pgErr.Code != "26000" {
		t.Errorf("a prepared statement: %v, want 26000", err)
	}
	if _, err := four.Exec(ctx, `SET work_mem = '1MB'`); err != nil {
		t.Fatal(err)
	}
	var lost string
	if err := four.QueryRow(ctx, `SHOW work_mem`).Scan(&lost); err != nil || lost == "1MB" {
		t.Errorf("a setting of the session is there: %q, %v", lost, err)
	}
	cfg := four.Config().Copy()
	cfg.RuntimeParams["search_path"] = "x"
	if _, err := pgx.ConnectConfig(ctx, cfg); err == nil || !strings.Contains(err.Error(), "unsupported startup parameter") {
		t.Errorf("with a search_path: %v", err)
	}
}
