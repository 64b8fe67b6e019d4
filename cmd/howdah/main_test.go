package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// TestMain also is the command howdah, for tests that start it: see
// testscript.Main.
func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"howdah": func() { os.Exit(command()) }})
}

type tests struct{ m *testing.M }

func (t tests) Run() int {
	// With -race each howdah we start would wait a second before it ends.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	return pgtest.Run(t.m)
}

// TestScripts runs the transcripts of testdata, which are the manual of the
// command line. Each has a database of its own; those named private_… have a
// state directory of their own instead.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			env.Values[environment{}] = env
			self, err := exec.LookPath("howdah")
			if err != nil {
				return err
			}
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("HOWDAH", self) // for scripts without PATH
			if strings.HasPrefix(scriptName(env), "private_") {
				env.Setenv("HOWDAH_STATE_DIR", stateDir(t))
				return nil
			}
			url := pgtest.Database(t)
			env.Setenv("DATABASE_URL", url)
			if scriptName(env) == "pooler" {
				env.Setenv("POOLER_URL", pgtest.NewPooler(t, url, 4).URL())
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"sql":      sql,
			"terminal": terminal,
		},
	})
}

func scriptName(env *testscript.Env) string {
	dir := env.WorkDir[strings.LastIndexByte(env.WorkDir, '/')+1:]
	return strings.TrimPrefix(dir, "script-")
}

// stateDir is a directory with a short path that the server's user can reach,
// for a private PostgreSQL, which has to be stopped before the test ends.
func stateDir(t testing.TB) string {
	t.Helper()
	parent, err := os.MkdirTemp("/tmp", "howdah-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	return parent + "/state"
}

// exits runs a program and compares its exit code: exits 2 howdah --nonsense.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code program [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// sql runs a statement on the script's database and prints its rows.
func sql(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: sql statement")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, ts.Getenv("DATABASE_URL"))
	ts.Check(err)
	defer conn.Close(ctx)
	rows, _ := conn.Query(ctx, args[0])
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		return strings.TrimSpace(fmt.Sprintln(values...)), err
	})
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), strings.Join(lines, "\n"))
}

// result is what a run of the program in this process left.
type result struct {
	code           int
	stdout, stderr string
}

// program runs the program in this process, with an environment that is env and
// nothing else.
func program(t testing.TB, env map[string]string, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, func(name string) string { return env[name] }, strings.NewReader(stdin), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}
