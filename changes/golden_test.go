package changes_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/internal/pgtest/golden"
)

func TestGoldenScenarios(t *testing.T) {
	t.Parallel()
	for file, some := range golden.Load(t, "testdata/golden/0*.json") {
		for _, s := range some {
			t.Run(file+"/"+s.Name, func(t *testing.T) {
				t.Parallel()
				play(t, &s)
			})
		}
	}
}

// play plays a scenario through the Go API.
func play(t *testing.T, s *golden.Scenario) {
	url := pgtest.Database(t)
	l, pool := logOf(t, url)
	exec(t, pool, `CREATE SCHEMA chk`)
	actors := &actors{t: t, url: url, conns: map[string]*actor{}}
	defer actors.close()
	for _, sql := range s.Setup {
		actors.get("setup").run(sql)
	}
	before := triggers(t, pool)
	for _, c := range s.Capture {
		_, err := l.Apply(t.Context(), []changes.Capture{c.Capture}, false)
		if c.Fails {
			if !errors.Is(err, fault.Invalid) {
				t.Errorf("capture of %s: %v, want Invalid", c.Table, err)
			}
			if got := triggers(t, pool); got != before {
				t.Errorf("capture of %s was refused and left %s", c.Table, got)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	var at changes.Position
	for i, st := range s.Script {
		switch {
		case st.Mark != nil:
			var marked []changes.Change
			marked, at = readAll(t, l, at, 3, changes.Filter{})
			text, err := json.Marshal(marked)
			if err != nil {
				t.Fatal(err)
			}
			if len(marked) != st.Changes || !strings.Contains(string(text), st.Has) || st.HasNot != "" && strings.Contains(string(text), st.HasNot) {
				t.Errorf("mark %q: %d changes, want %d with %q without %q: %s", *st.Mark, len(marked), st.Changes, st.Has, st.HasNot, text)
			}
		case st.Await:
			actors.get(st.On).await(i)
		case st.Blocks:
			actors.get(st.On).blocks(i, st.SQL)
		default:
			actors.get(st.On).runFor(i, st.SQL, st.Error)
		}
	}

	all, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	again, _ := readAll(t, l, changes.Position{}, 2, changes.Filter{})
	if diff := cmp.Diff(all, again); diff != "" {
		t.Errorf("read twice, two different feeds:\n%s", diff)
	}
	s.Compare(t, all)
}

// triggers are all that people can see in the database.
func triggers(t *testing.T, pool interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) (text string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT coalesce(string_agg(pg_get_triggerdef(oid), E'\n' ORDER BY oid), '') FROM pg_trigger WHERE NOT tgisinternal`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// actors are the connections of a scenario.
type actors struct {
	t     *testing.T
	url   string
	conns map[string]*actor
}

type actor struct {
	t       *testing.T
	conn    *pgx.Conn
	pending chan error // of a statement that blocks
}

func (a *actors) get(name string) *actor {
	a.t.Helper()
	if a.conns[name] == nil {
		conn, err := pgx.Connect(a.t.Context(), a.url)
		if err != nil {
			a.t.Fatal(err)
		}
		a.conns[name] = &actor{t: a.t, conn: conn}
		a.conns[name].run(`SET search_path = chk`)
	}
	return a.conns[name]
}

func (a *actors) close() {
	for _, actor := range a.conns {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		actor.conn.Close(ctx) // the database is dropped after it
		cancel()
	}
}

func (a *actor) run(sql string) {
	a.t.Helper()
	a.runFor(-1, sql, "")
}

func (a *actor) runFor(i int, sql, state string) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	_, err := a.conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	var pgErr *pgconn.PgError
	switch {
	case state == "" && err != nil:
		a.t.Fatalf("step %d: %s: %v", i, sql, err)
	case state != "" && (!errors.As(err, &pgErr) || pgErr.Code != state):
		a.t.Errorf("step %d: %s: %v, want SQLSTATE %s", i, sql, err, state)
	}
}

// blocks starts a statement and returns when the server says that it waits for
// a lock.
func (a *actor) blocks(i int, sql string) {
	a.t.Helper()
	pid := a.conn.PgConn().PID()
	a.pending = make(chan error, 1)
	go func() {
		_, err := a.conn.Exec(a.t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
		a.pending <- err
	}()
	watcher, err := pgx.ConnectConfig(a.t.Context(), a.conn.Config())
	if err != nil {
		a.t.Fatal(err)
	}
	defer watcher.Close(a.t.Context())
	deadline := time.Now().Add(patience)
	for waiting := false; !waiting; {
		if err := watcher.QueryRow(a.t.Context(), `SELECT cardinality(pg_blocking_pids($1)) > 0`, int32(pid)).Scan(&waiting); err != nil {
			a.t.Fatal(err)
		}
		select {
		case err := <-a.pending:
			a.t.Fatalf("step %d: %s did not wait: %v", i, sql, err)
		default:
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("step %d: %s does not wait", i, sql)
		}
	}
}

func (a *actor) await(i int) {
	a.t.Helper()
	select {
	case err := <-a.pending:
		if err != nil {
			a.t.Fatalf("step %d: what waited: %v", i, err)
		}
	case <-time.After(patience):
		a.t.Fatalf("step %d still waits", i)
	}
}
