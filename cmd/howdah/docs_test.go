package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/internal/pgtest"
)

const root = "../.."

// The documents that show what to type, and what comes back.
var documents = []string{"README.md", "CONTRIBUTING.md", "docs/*.md"}

// block is a fenced block of a document.
type block struct {
	file  string
	line  int
	kind  string
	lines []string
}

func blocks(t *testing.T) []block {
	t.Helper()
	var all []block
	for _, pattern := range documents {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var in *block
			for i, line := range strings.Split(string(text), "\n") {
				switch kind, fence := strings.CutPrefix(line, "```"); {
				case fence && in == nil:
					in = &block{file: file, line: i + 2, kind: kind}
				case fence:
					all = append(all, *in)
					in = nil
				case in != nil:
					in.lines = append(in.lines, line)
				}
			}
		}
	}
	return all
}

// transcript is what a document says to type, and what it says comes back.
type transcript struct {
	line          int
	typed, answer string
}

// answered reports whether got is the answer, in which … stands for anything
// short of a line.
func (l *transcript) answered(got string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(l.answer), "…", ".*")
	return regexp.MustCompile("^" + pattern + "$").MatchString(got)
}

func transcripts(b block) []transcript {
	var all []transcript
	for i, line := range b.lines {
		if typed, ok := strings.CutPrefix(line, "$ "); ok {
			all = append(all, transcript{line: b.line + i, typed: typed})
		} else if len(all) > 0 {
			all[len(all)-1].answer += line + "\n"
		}
	}
	return all
}

// onTerminal runs a line of shell and returns what a terminal would show of its
// output.
func onTerminal(ctx context.Context, line, dir string, env []string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -o pipefail; "+line)
	cmd.Dir, cmd.Env = dir, env
	var stderr bytes.Buffer
	out, err := onTTY(cmd, "", func(tty *os.File) { cmd.Stdout, cmd.Stderr = tty, &stderr })
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.ReplaceAll(out, "\r\n", "\n"), err
}

var trailing = regexp.MustCompile(`(?m) +$`)

func TestTranscriptsOfTheDocuments(t *testing.T) {
	t.Parallel()
	byFile := map[string][]transcript{}
	for _, b := range blocks(t) {
		if b.kind == "console" {
			byFile[b.file] = append(byFile[b.file], transcripts(b)...)
		}
	}
	if len(byFile[filepath.Join(root, "README.md")]) == 0 {
		t.Fatal("README.md has no transcripts")
	}
	for file, lines := range byFile {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			database := pgtest.Database(t)
			env := append(os.Environ(), "DATABASE_URL="+database)
			server := startServe(t, env, "--listen", "127.0.0.1:0")
			defer server.stop(t)
			work := t.TempDir()
			for _, l := range lines {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				got, err := onTerminal(ctx, strings.ReplaceAll(l.typed, "localhost:8080", strings.TrimPrefix(server.url, "http://")), work, env)
				cancel()
				if err != nil {
					t.Errorf("%s:%d: %s: %v", file, l.line, l.typed, err)
				}
				got = trailing.ReplaceAllString(got, "")
				if diff := cmp.Diff(l.answer, got); !l.answered(got) {
					t.Errorf("%s:%d: %s\n%s", file, l.line, l.typed, diff)
				}
			}
		})
	}
}

// What the documents say to run is run as they say: make run is started and
// interrupted, and make test is what runs this test.
func TestCommandsOfTheDocuments(t *testing.T) {
	t.Parallel()
	said := map[string]bool{}
	for _, b := range blocks(t) {
		if b.kind != "sh" {
			continue
		}
		for _, line := range b.lines {
			line, _, _ = strings.Cut(line, "#")
			said[strings.TrimSpace(line)] = true
		}
	}
	for line := range said {
		switch line {
		case "":
		case "make run":
			makeRun(t)
		case "make test":
			out, err := exec.Command("make", "-n", "-C", root, "test").Output()
			if err != nil || !regexp.MustCompile(`(?m)^go test (-timeout \d+m )?\./\.\.\.$`).Match(out) {
				t.Errorf("make test is %q, %v", out, err)
			}
		default:
			t.Errorf("%q: no test runs it", line)
		}
	}
	if !said["make run"] || !said["make test"] {
		t.Errorf("README.md has lost its two commands: %v", said)
	}
}

func makeRun(t *testing.T) {
	t.Helper()
	state := stateDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", "-C", root, "run", "LISTEN=127.0.0.1:0")
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = append(os.Environ(), "HOWDAH_STATE_DIR="+state, "DATABASE_URL=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fmt.Fprintln(&seen, lines.Text())
		if strings.Contains(lines.Text(), "Ctrl-C stops") {
			syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // as the terminal does: the whole group
		}
	}
	err = cmd.Wait()
	for _, want := range []string{"howdah serves on http://127.0.0.1:", "keeps its data in " + state, "curl -s http://127.0.0.1:", "checklists page downloads"} {
		if !strings.Contains(seen.String(), want) {
			t.Errorf("make run does not say %q:\n%s%s", want, seen.String(), stderr.String())
		}
	}
	if _, err := os.Stat(filepath.Join(state, "data", "postmaster.pid")); !os.IsNotExist(err) {
		t.Errorf("make run left a server or its lock: %v", err)
	}
	_ = err // make reports the interrupt in a way of its own
}

// Go in the documents is Go of the examples, which are run.
func TestGoOfTheDocuments(t *testing.T) {
	t.Parallel()
	space := regexp.MustCompile(`\s+`)
	text := ""
	files, err := filepath.Glob(filepath.Join(root, "*example*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	below, err := filepath.Glob(filepath.Join(root, "*", "*example*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, below...) {
		examples, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text += space.ReplaceAllString(string(examples), " ")
	}
	for _, b := range blocks(t) {
		if code := space.ReplaceAllString(strings.Join(b.lines, "\n"), " "); b.kind == "go" && !strings.Contains(text, code) {
			t.Errorf("%s:%d is no part of an example", b.file, b.line)
		}
	}
}
