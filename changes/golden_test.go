package changes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// scenario is a script of concurrent connections, and what the feed shows of it.
type scenario struct {
	Name    string   `json:"name"`
	Setup   []string `json:"setup"`
	Capture []struct {
		changes.Capture
		Fails bool `json:"fails"`
	} `json:"capture"`
	Script []step `json:"script"`
	Expect struct {
		Transactions [][]map[string]json.RawMessage `json:"transactions"`
		Absent       []string                       `json:"absent"`
		Unordered    bool                           `json:"unordered"`
		Before       [][2]int                       `json:"before"`
	} `json:"expect"`
}

type step struct {
	On, SQL       string
	Blocks, Await bool
	Error         string
	Mark          *string
	Changes       int
	Has           string
	HasNot        string `json:"has_not"`
}

func scenarios(t *testing.T, files string) map[string][]scenario {
	t.Helper()
	paths, err := filepath.Glob("testdata/golden/" + files)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %d files, %v", files, len(paths), err)
	}
	all := map[string][]scenario{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var some []scenario
		d := json.NewDecoder(bytes.NewReader(text))
		if err := d.Decode(&some); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[filepath.Base(path)] = some
	}
	return all
}

func TestGoldenScenarios(t *testing.T) {
	t.Parallel()
	for file, some := range scenarios(t, "0*.json") {
		for _, s := range some {
			t.Run(file+"/"+s.Name, func(t *testing.T) {
				t.Parallel()
				play(t, &s)
			})
		}
	}
}

// play plays a scenario through the Go API.
func play(t *testing.T, s *scenario) {
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
	compare(t, s, all)
}

// compare compares the feed with what is expected of it.
func compare(t *testing.T, s *scenario, all []changes.Change) {
	t.Helper()
	var got [][]changes.Change
	for i, c := range all {
		if i == 0 || c.Position.Commit != all[i-1].Position.Commit {
			got = append(got, nil)
		}
		got[len(got)-1] = append(got[len(got)-1], c)
		last := i+1 == len(all) || all[i+1].Position.Commit != c.Position.Commit
		if c.Last != last {
			t.Errorf("%s: last = %v, want %v", c.Position, c.Last, last)
		}
		if i > 0 && c.Position.Compare(all[i-1].Position) <= 0 {
			t.Errorf("%s follows %s", c.Position, all[i-1].Position)
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, absent := range s.Expect.Absent {
		if strings.Contains(string(text), absent) {
			t.Errorf("the feed contains %q", absent)
		}
	}
	want := s.Expect.Transactions
	if len(got) != len(want) {
		t.Fatalf("%d transactions, want %d: %s", len(got), len(want), text)
	}
	if !s.Expect.Unordered {
		for i := range want {
			if problem := differs(want[i], got[i]); problem != "" {
				t.Errorf("transaction %d: %s", i, problem)
			}
		}
		return
	}
	place := make([]int, len(want)) // of each expected one in the feed
	taken := map[int]bool{}
	for i := range want {
		place[i] = slices.IndexFunc(got, func(tx []changes.Change) bool {
			return !taken[slices.IndexFunc(got, func(o []changes.Change) bool { return &o[0] == &tx[0] })] && differs(want[i], tx) == ""
		})
		if place[i] < 0 {
			t.Fatalf("transaction %d is not in the feed: %s", i, text)
		}
		taken[place[i]] = true
	}
	for _, pair := range s.Expect.Before {
		if place[pair[0]] > place[pair[1]] {
			t.Errorf("transaction %d comes after %d", pair[0], pair[1])
		}
	}
}

// differs says how a transaction differs from what is wanted.
func differs(want []map[string]json.RawMessage, got []changes.Change) string {
	i := 0
	for _, w := range want {
		count := 1
		if c, ok := w["count"]; ok {
			if err := json.Unmarshal(c, &count); err != nil {
				return err.Error()
			}
		}
		for range count {
			if i == len(got) {
				return fmt.Sprintf("%d changes, want more", len(got))
			}
			if problem := differ(w, got[i]); problem != "" {
				return fmt.Sprintf("change %d: %s", i, problem)
			}
			i++
		}
	}
	if i < len(got) {
		return fmt.Sprintf("%d changes, want %d", len(got), i)
	}
	return ""
}

func differ(want map[string]json.RawMessage, got changes.Change) string {
	text, err := json.Marshal(got)
	if err != nil {
		return err.Error()
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return err.Error()
	}
	_, counted := want["count"]
	for name, value := range want {
		switch {
		case name == "count":
		case name == "origin" && string(value) == `""`:
			if fields[name] != nil {
				return fmt.Sprintf("has an origin: %s", text)
			}
		case !sameJSON(value, fields[name]):
			return fmt.Sprintf("%s = %s, want %s", name, fields[name], value)
		}
	}
	if want["schema"] == nil && got.Schema != "chk" {
		return "schema " + got.Schema
	}
	if counted {
		return ""
	}
	for name := range fields {
		switch name {
		case "position", "at", "xid", "last", "schema", "origin":
		default:
			if want[name] == nil {
				return fmt.Sprintf("has %s: %s", name, fields[name])
			}
		}
	}
	return ""
}

// sameJSON compares by value, numbers digit for digit.
func sameJSON(a, b json.RawMessage) bool {
	value := func(text json.RawMessage) (v any) {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if d.Decode(&v) != nil {
			return fmt.Sprintf("no JSON: %s", text)
		}
		return v
	}
	return cmp.Equal(value(a), value(b))
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
