package main

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// positionsOf are the positions in the whole lines that tail has printed.
func positionsOf(t *testing.T, stdout string) (all []string) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var c struct{ Position string }
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, c.Position)
	}
	return all
}

// A tail that is killed, and started again behind its last line, misses nothing and repeats
// nothing. Of two that run one consumer, whichever is killed, each change takes effect
// once, in order. An interrupt ends them well.
func TestFollowersAreKilledAndGoOn(t *testing.T) {
	t.Parallel()
	url := exemplary.Database(t)
	pool := pgtest.Pool(t, url)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE effects (n bigserial, position text)`)
	exec(`CREATE OR REPLACE FUNCTION apply_change(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO effects (position) VALUES ($1->>'position') $$`)
	here := map[string]string{"DATABASE_URL": url}
	env := append(os.Environ(), "DATABASE_URL="+url)
	follow := func(from string) *process { return startHowdah(t, env, "changes", "tail", "--from", from) }
	consume := func() *process {
		return startHowdah(t, env, "changes", "run", "copy", "--table", "public.users", "--sql", "SELECT apply_change($1::jsonb)", "--from", "start", "--batch", "3", "--quiet")
	}
	written := 0
	write := func(transactions int) {
		t.Helper()
		for range transactions {
			exec(`INSERT INTO users SELECT generate_series($1::int, $1 + 1)`, written)
			written += 2
		}
	}
	var told []string
	tail := follow("start")
	last := "start"
	follows := func() { // until all that is committed has been told
		t.Helper()
		r := program(t, here, "", "changes", "tail", "--from", "start", "--until", "now")
		feed := positionsOf(t, r.stdout)
		if r.code != 0 || len(feed) == 0 {
			t.Fatalf("%+v", r)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if !tail.stdout.await(ctx, tail.ended, `"position":"`+feed[len(feed)-1]+`"`) {
			t.Fatalf("tail does not come to %s: %s%s", feed[len(feed)-1], tail.stdout, tail.stderr)
		}
	}
	again := func() { // tail, behind its last line
		t.Helper()
		tail.end(t, syscall.SIGKILL)
		if some := positionsOf(t, tail.stdout.String()); len(some) > 0 {
			told = append(told, some...)
			last = some[len(some)-1]
		}
		tail = follow(last)
	}
	handled := func() {
		t.Helper()
		eventually(t, "one has begun", func() bool { return program(t, here, "", "changes", "consumers", "copy").code == 0 })
		if r := program(t, here, "", "changes", "wait", "copy", "--timeout", "3m"); r.code != 0 {
			t.Fatalf("%+v", r)
		}
	}

	both := [2]*process{consume(), consume()}
	write(10)
	follows()
	handled()
	for i := range both { // one of them is at it
		write(10)
		both[i].end(t, syscall.SIGKILL)
		again()
		write(10)
		both[i] = consume()
		handled()
	}
	follows()

	tail.endWell(t, os.Interrupt)
	told = append(told, positionsOf(t, tail.stdout.String())...)
	for _, p := range both {
		p.endWell(t, os.Interrupt)
	}
	feed := positionsOf(t, program(t, here, "", "changes", "tail", "--from", "start", "--until", "now").stdout)
	if len(feed) != written {
		t.Errorf("%d changes, want %d", len(feed), written)
	}
	if diff := cmp.Diff(feed, told); diff != "" {
		t.Errorf("what tail told (-feed +told):\n%s", diff)
	}
	rows, _ := pool.Query(t.Context(), `SELECT position FROM effects ORDER BY n`)
	effects, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(feed, effects); diff != "" {
		t.Errorf("what run did (-feed +effects):\n%s", diff)
	}
}

// An interrupt ends what follows the feed well at whatever time it comes, such as before
// there is a connection.
func TestInterruptedAtTheStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"changes", "tail"}, {"changes", "listen", "a"}, {"changes", "run", "lines", "--lines"}} {
		var stdout, stderr strings.Builder
		code := run(ctx, append(args, "--database-url", pgtest.URL(t)), func(string) string { return "" }, strings.NewReader(""), &stdout, &stderr)
		if code != 0 || stderr.Len() > 0 {
			t.Errorf("%q: exit code %d, %s", args, code, &stderr)
		}
	}
}
