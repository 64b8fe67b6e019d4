package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// commands are all commands of the program, cobra's own too.
func commands() []*cobra.Command {
	c := &cli{env: func(string) string { return "" }}
	root := c.root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		all = append(all, cmd)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return all
}

// Every command and every flag is in a transcript.
func TestScriptsAreComplete(t *testing.T) {
	t.Parallel()
	var scripts strings.Builder
	err := filepath.WalkDir("testdata", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".txtar" {
			return err
		}
		text, err := os.ReadFile(path)
		scripts.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	occurs := func(text string) bool {
		return regexp.MustCompile(`(?m)(^|[ '(])` + regexp.QuoteMeta(text) + `([ ='"]|$)`).MatchString(scripts.String())
	}
	for _, cmd := range commands() {
		if !occurs(cmd.CommandPath()) {
			t.Errorf("no script runs %s", cmd.CommandPath())
		}
		cmd.NonInheritedFlags().VisitAll(func(flag *pflag.Flag) {
			if !occurs("--" + flag.Name) {
				t.Errorf("no script runs %s with --%s", cmd.CommandPath(), flag.Name)
			}
		})
	}
}

// Every command says what it does.
func TestHelpOfEveryCommand(t *testing.T) {
	t.Parallel()
	for _, cmd := range commands() {
		if cmd.Short == "" {
			t.Errorf("%s has no Short", cmd.CommandPath())
		}
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		if r := program(t, nil, "", args...); r.code != 0 || !strings.Contains(r.stdout, "Usage:") || r.stderr != "" {
			t.Errorf("%s: %+v", strings.Join(args, " "), r)
		}
	}
}

// exemplary is a database with what the examples of the help texts are about.
var exemplary = pgtest.Template{Make: func(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `
		CREATE TABLE users (id int PRIMARY KEY, name text, password text);
		CREATE TABLE orders (id int PRIMARY KEY, status text);
		CREATE FUNCTION apply_change(jsonb) RETURNS void LANGUAGE sql AS ''`); err != nil {
		return err
	}
	env := map[string]string{"DATABASE_URL": url}
	for _, args := range [][]string{{"migrate"}, {"changes", "capture", "public.users"}, {"checklists", "insert", "downloads", "a.txt", "b.txt"},
		{"changes", "run", "billing", "--sql", "SELECT 1", "--until", "now"}, {"counters", "beam", "worker::a", "state=up"}} {
		var out bytes.Buffer
		if code := run(ctx, args, func(name string) string { return env[name] }, strings.NewReader(""), &out, &out); code != 0 {
			return fmt.Errorf("%q: %d %s", args, code, out.String())
		}
	}
	_, err = conn.Exec(ctx, `
		UPDATE iidy.lists SET due = now() + interval '1 hour', lease = '0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e' WHERE item = 'a.txt';
		INSERT INTO iidy.lists (list, item, due, error) VALUES ('downloads', 'c.txt', 'infinity', '503 from origin');
		INSERT INTO trifle_stats VALUES ('visits::1h::1746522000', '{"count": 1}')`)
	return err
}}

// The examples of the help texts are commands that work.
func TestHelpExamplesWork(t *testing.T) {
	t.Parallel()
	const elsewhere = "postgres://app@db.example.com/app"
	n := 0
	for _, cmd := range commands() {
		if strings.HasPrefix(cmd.CommandPath(), "howdah completion") { // cobra's own
			continue
		}
		for line := range strings.Lines(cmd.Example) {
			line = strings.TrimSpace(line)
			n++
			t.Run(line, func(t *testing.T) {
				t.Parallel()
				database := exemplary.Database(t)
				env := append(os.Environ(), "DATABASE_URL="+database)
				dir := t.TempDir()
				for _, file := range []string{"a.txt", "b.txt", "c.txt", "names.txt", "urls.txt"} {
					if err := os.WriteFile(filepath.Join(dir, file), []byte("a.txt\nb.txt\n"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(filepath.Join(dir, "files.csv"), []byte("item,size\na.txt,1\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				var packed bytes.Buffer
				visit := `203.0.113.7 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 2326 "-" "-"` + "\n"
				z := gzip.NewWriter(&packed)
				io.WriteString(z, visit)
				z.Close()
				for file, text := range map[string]string{
					"access.log": visit, "access.log.1.gz": packed.String(), "orders.jsonl": `{"at":"2025-05-06T09:15:00Z","values":{"count":1}}`, "events.jsonl": `{"key":"orders","at":"2025-05-06T09:15:00Z","values":{"count":1}}`,
					"s.key": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G\n",
				} {
					if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				captures := []byte(`{"captures":[{"table":"public.orders","payload":"diff"}]}`)
				pgtest.Program(t, filepath.Join(dir, "reindex"), []byte("#!/bin/sh\nexec cat\n"))
				if err := os.WriteFile(filepath.Join(dir, "captures.json"), captures, 0o644); err != nil {
					t.Fatal(err)
				}
				line := strings.ReplaceAll(line, elsewhere, "'"+database+"'")
				if strings.HasPrefix(line, "howdah serve") {
					s := startServe(t, env, strings.Fields(strings.ReplaceAll(line+" --listen 127.0.0.1:0", "'", ""))[2:]...)
					s.stop(t)
					return
				}
				follows := regexp.MustCompile(`^howdah changes (tail|run)`).MatchString(line)           // and may have nothing to say
				if follows && !strings.Contains(line, "--until") && !strings.Contains(line, "--save") { // what follows without an end has a test of its own
					before, command, found := strings.Cut(line, " -- ")
					line = before + " --until now"
					if found {
						line += " -- " + command
					}
				}
				if strings.HasPrefix(line, "howdah checklists work") { // what others have leased it waits for
					line = strings.Replace(line, "work downloads", "work others --quiet", 1)
					follows = true
				}
				if line == "howdah changes parked billing" || strings.HasPrefix(line, "howdah counters verify") { // nothing is, or all is well
					follows = true
				}
				if strings.HasSuffix(line, " doctor") {
					line += " --quiet" // else it says that there is nothing to report
					follows = true
				}
				if strings.HasPrefix(line, "howdah changes backfill") { // only of what is captured
					line = "howdah changes capture public.orders --quiet && " + line
				}
				if strings.HasPrefix(line, "howdah adopt trifle") {
					line += " --quiet" // else it says what it does
				}
				if strings.HasSuffix(line, "billing 1042.88213") { // which is parked
					if _, err := pgtest.Pool(t, database).Exec(t.Context(), `
						INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head)
						VALUES ('billing', 0, 1042, 88213, 0, 'public.orders', false, '{}', true)`); err != nil {
						t.Fatal(err)
					}
				}
				if strings.HasSuffix(line, "rebase --yes") { // of a log that came from elsewhere
					if _, err := pgtest.Pool(t, database).Exec(t.Context(), `UPDATE howdah.change_state SET system = 1`); err != nil {
						t.Fatal(err)
					}
				}
				output := (*exec.Cmd).Output
				if strings.HasPrefix(line, "howdah changes listen") || strings.HasSuffix(line, " --watch") {
					line = "exec " + line // so that it is interrupted, and not its shell
					output = untilItSpeaks
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				run := exec.CommandContext(ctx, "sh", "-c", line)
				var stderr bytes.Buffer
				run.Dir, run.Env, run.Stderr = dir, env, &stderr
				out, err := output(run)
				if err != nil || stderr.Len() > 0 || len(out) == 0 && !follows && !strings.Contains(line, ">") {
					t.Errorf("%v, stdout %q, stderr %q", err, out, stderr.String())
				}
			})
		}
	}
	if n < 15 {
		t.Errorf("%d examples", n)
	}
}

// untilItSpeaks is [exec.Cmd.Output] of a command that has no end of its own: it is
// interrupted after its first line.
func untilItSpeaks(cmd *exec.Cmd) ([]byte, error) {
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	out := bufio.NewReader(stdout)
	first, err := out.ReadBytes('\n')
	if err == nil {
		err = cmd.Process.Signal(os.Interrupt)
	}
	rest, _ := io.ReadAll(out) // what ended it is what Wait tells
	return append(first, rest...), errors.Join(err, cmd.Wait())
}
