package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/howdah-db/howdah/internal/pgtest"
)

const oneItem = `{"items":["a.txt"]}`

// private is the environment of a howdah that is given no URL.
func private(dir string) []string {
	env := []string{"HOWDAH_STATE_DIR=" + dir}
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); name != "DATABASE_URL" && name != "HOWDAH_STATE_DIR" && !strings.HasPrefix(name, "PG") {
			env = append(env, pair)
		}
	}
	return env
}

// shell runs a line as a user would type it.
func shell(t *testing.T, env []string, line string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// postmaster is the process number of a private PostgreSQL.
func postmaster(t *testing.T, dir string) int {
	t.Helper()
	pid, err := strconv.Atoi(firstLine(t, dir+"/data/postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone checks that nothing of a private PostgreSQL is left but its data.
func gone(t *testing.T, dir string, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is there: %v", pid, err)
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && (entry.Type()&fs.ModeSocket != 0 || strings.HasPrefix(entry.Name(), ".s.PGSQL") || entry.Name() == "postmaster.pid") {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A newcomer's first minute: nothing is set up, one command serves, what it
// proposes works, and when it is stopped nothing is left but the data.
func TestServeWithoutAnything(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	env := private(dir)
	began := time.Now()
	s := startServe(t, env, "--listen", "127.0.0.1:0")
	t.Logf("first start: %s", time.Since(began).Round(time.Millisecond))
	s.want(t, "GET", "/healthz", "", 200, `{"status":"ok"}`)
	eventually(t, "notifications are heard", func() bool {
		_, text := s.ask(t, "GET", "/readyz", "", nil)
		return text == `{"status":"ready","notifications":"listening"}`
	})

	said := s.stdout.String()
	if !strings.Contains(said, "keeps its data in "+dir+"/data\n") {
		t.Errorf("it does not say where its data are: %s", said)
	}
	var tried []string
	for line := range strings.Lines(said) {
		if command, ok := strings.CutPrefix(line, "  "); ok {
			tried = append(tried, strings.TrimSpace(shell(t, env, command)))
		}
	}
	want := []string{
		`{"added":2,"skipped":0}`,
		`{"items":[{"item":"a.txt","attempts":0},{"item":"b.txt","attempts":0}]}`,
		`{"item":"a.txt","attempts":0}` + "\n" + `{"item":"b.txt","attempts":0}`,
	}
	if fmt.Sprint(tried) != fmt.Sprint(want) {
		t.Errorf("what it proposes gives %q, want %q", tried, want)
	}

	// Commands work beside it, on the same data, and leave its database alone.
	if out := shell(t, env, "howdah checklists increment downloads a.txt"); out != "{\"incremented\":1}\n" {
		t.Error(out)
	}
	s.want(t, "GET", "/v1/checklists/downloads/items/a.txt", "", 200, `{"item":"a.txt","attempts":1}`)
	if url := shell(t, env, "howdah url"); strings.Count(url, "\n") != 1 || !strings.HasPrefix(url, "postgres://") {
		t.Error(url) // nothing else is said: it stays up
	}
	if out := shell(t, env, `howdah psql -- -Atc 'SELECT sum(attempts) FROM iidy.lists'`); out != "1\n" {
		t.Error(out)
	}

	shell(t, env, "howdah counters track orders count=1") // is folded when it stops: then the database must still be there

	pid := postmaster(t, dir)
	s.stop(t)
	gone(t, dir, pid)
	if log := s.stderr.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "next keeper") {
		t.Errorf("it ran into something: %s", s.stderr)
	}

	began = time.Now()
	s = startServe(t, env, "--listen", "127.0.0.1:0")
	t.Logf("second start: %s", time.Since(began).Round(time.Millisecond))
	s.want(t, "GET", "/v1/checklists/downloads/items/a.txt", "", 200, `{"item":"a.txt","attempts":1}`)
	pid = postmaster(t, dir)
	s.stop(t)
	gone(t, dir, pid)
}

// kill -9 of the server's process takes its PostgreSQL with it, or leaves it to
// the next start; nothing acknowledged is lost.
func TestServeKilled(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	s := startServe(t, private(dir), "--listen", "127.0.0.1:0")
	s.want(t, "POST", "/v1/checklists/l/items", oneItem, 200, `"added":1`)
	s.end(t, syscall.SIGKILL)
	s = startServe(t, private(dir), "--listen", "127.0.0.1:0")
	s.want(t, "POST", "/v1/checklists/l/items", oneItem, 200, `"skipped":1`)
	pid := postmaster(t, dir)
	s.stop(t)
	gone(t, dir, pid)
}

// kill -9 of the private PostgreSQL under load: 503 while it is away, back by
// itself, and a client that repeats what was not acknowledged has lost nothing. Nor have
// those who follow the feed beside it.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	s := startServe(t, private(dir), "--listen", "127.0.0.1:0")
	url := strings.TrimSpace(shell(t, private(dir), "howdah url"))
	beside := append(os.Environ(), "DATABASE_URL="+url)
	shell(t, beside, `howdah psql -- -qc 'CREATE TABLE copied (n bigserial, item text)' && howdah changes capture iidy.lists`)
	tail := startHowdah(t, beside, "changes", "tail", "--from", "start")
	copies := startHowdah(t, beside, "changes", "run", "copy", "--from", "start", "--quiet", "--sql", `INSERT INTO copied (item) SELECT $1::jsonb #>> '{key,item}'`)
	const workers = 4
	var acknowledged [workers]int
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for w := range workers {
		wait.Go(func() {
			for {
				item := fmt.Sprintf(`{"items":["%d-%06d"]}`, w, acknowledged[w])
				for deadline := time.Now().Add(patience); ; {
					status, text := s.ask(t, "POST", "/v1/checklists/l/items", "application/json", strings.NewReader(item))
					if status == 200 {
						break
					}
					if status != 503 || time.Now().After(deadline) {
						t.Errorf("%d %s", status, text)
						return
					}
				}
				acknowledged[w]++
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	count := func() (n int) {
		_, text := s.ask(t, "GET", "/v1/checklists/l/export?format=text", "", nil)
		return strings.Count(text+"\n", "\n")
	}
	eventually(t, "some are in, and followed", func() bool {
		return count() > 20 && tail.stdout.String() != "" && exec.Command("howdah", "changes", "consumers", "copy", "--database-url", url).Run() == nil
	})

	// The restart takes this lock; held, it gives us the time to look.
	lock, err := os.OpenFile(dir+"/start.lock", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(postmaster(t, dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is not ready", func() bool {
		status, text := s.ask(t, "GET", "/readyz", "", nil)
		return status == 503 && strings.Contains(text, "urn:howdah:unavailable")
	})
	s.want(t, "GET", "/healthz", "", 200, "ok")
	lock.Close()
	began := time.Now()
	eventually(t, "it is ready again", func() bool {
		status, _ := s.ask(t, "GET", "/readyz", "", nil)
		return status == 200
	})
	t.Logf("ready again after %s", time.Since(began).Round(time.Millisecond))
	before := count()
	eventually(t, "more are in", func() bool { return count() > before+20 })
	close(stop)
	wait.Wait()
	sum := 0
	for _, n := range acknowledged {
		sum += n
	}
	if got := count(); got != sum {
		t.Errorf("%d items, %d acknowledged", got, sum)
	}
	t.Logf("%d items", sum)
	eventually(t, "tail has told of each", func() bool { return strings.Count(tail.stdout.String(), "\n") >= sum })
	shell(t, beside, "howdah changes wait copy --timeout 3m")
	tail.endWell(t, os.Interrupt)
	copies.endWell(t, os.Interrupt)
	var told strings.Builder
	for line := range strings.Lines(tail.stdout.String()) {
		var c struct{ Key struct{ Item string } }
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		fmt.Fprintln(&told, c.Key.Item)
	}
	if copied := shell(t, beside, `howdah psql -- -qAtc 'SELECT item FROM copied ORDER BY n'`); copied != told.String() || strings.Count(copied, "\n") != sum {
		t.Errorf("%d items: tail told of %d, run copied %d", sum, strings.Count(told.String(), "\n"), strings.Count(copied, "\n"))
	}
	pid := postmaster(t, dir)
	s.stop(t)
	gone(t, dir, pid)
}

// An import that would go on for ever is cut when the time to stop is up, and
// what it has not committed is not there.
func TestInterruptDuringAnImport(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	s := startServe(t, private(dir), "--listen", "127.0.0.1:0", "--shutdown-timeout", "300ms")
	r, w := io.Pipe()
	answer := make(chan error, 1)
	go func() {
		req, err := http.NewRequest("POST", s.url+"/v1/checklists/l/import", r)
		if err != nil {
			answer <- err
			return
		}
		req.Header.Set("Content-Type", "text/plain")
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
			err = fmt.Errorf("%s", res.Status)
		}
		answer <- err
	}()
	// More than fits between the two: when it is written the server is reading.
	if _, err := io.WriteString(w, "a.txt\n"+strings.Repeat("\n", 12<<20)); err != nil {
		t.Fatal(err)
	}
	pid := postmaster(t, dir)
	began := time.Now()
	s.end(t, os.Interrupt)
	t.Logf("ended after %s", time.Since(began).Round(time.Millisecond))
	if s.err != nil || !strings.Contains(s.stderr.String(), "cut the requests that were not done within 300ms") {
		t.Errorf("%v: %s", s.err, s.stderr)
	}
	w.Close()
	if err := pgtest.Receive(t, answer, "the end of the request"); err == nil {
		t.Error("the client was told that all is well")
	}
	gone(t, dir, pid)
	if out := shell(t, private(dir), "howdah checklists lists"); out != "" {
		t.Errorf("half an import is there: %s", out)
	}
}

// Two servers on one state directory share its PostgreSQL; when the one that
// started it leaves, the other brings it up again.
func TestTwoServes(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	first := startServe(t, private(dir), "--listen", "127.0.0.1:0")
	second := startServe(t, private(dir), "--listen", "127.0.0.1:0")
	first.want(t, "POST", "/v1/checklists/l/items", oneItem, 200, `"added":1`)
	second.want(t, "POST", "/v1/checklists/l/items", oneItem, 200, `"skipped":1`)
	first.stop(t)
	began := time.Now()
	eventually(t, "the second has a database again", func() bool {
		status, text := second.ask(t, "POST", "/v1/checklists/l/items", "application/json", strings.NewReader(`{"items":["b.txt"]}`))
		return status == 200 && strings.Contains(text, `"added"`)
	})
	t.Logf("written again after %s", time.Since(began).Round(time.Millisecond))
	second.want(t, "GET", "/v1/checklists/l/items", "", 200, `{"items":[{"item":"a.txt","attempts":0},{"item":"b.txt","attempts":0}]}`)
	pid := postmaster(t, dir)
	second.stop(t)
	gone(t, dir, pid)
}

// The real list, if only its beginning: through the command line and back over
// HTTP, both agree.
func TestCommandLineAndHTTPAgree(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	env := private(dir)
	s := startServe(t, env, "--listen", "127.0.0.1:0")
	if out := shell(t, env, `seq -f 'pool/main/%06g.deb' 1 5000 | howdah checklists import downloads -`); out != "{\"added\":5000,\"skipped\":0}\n" {
		t.Error(out)
	}
	cli := shell(t, env, "howdah checklists page downloads --limit 3 --after pool/main/000007.deb")
	_, text := s.ask(t, "GET", "/v1/checklists/downloads/items?limit=3&after=pool/main/000007.deb", "", nil)
	var page struct{ Items []json.RawMessage }
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		t.Fatal(err)
	}
	var http strings.Builder
	for _, item := range page.Items {
		fmt.Fprintf(&http, "%s\n", item)
	}
	if cli != http.String() || strings.Count(cli, "\n") != 3 {
		t.Errorf("command line %q, HTTP %q", cli, http.String())
	}
	_, text = s.ask(t, "GET", "/v1/checklists/downloads/export", "", nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "howdah", "checklists", "export", "downloads", "--format", "jsonl")
	cmd.Env = env
	if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != text {
		t.Errorf("the exports differ (%v)", err)
	}
	s.stop(t)
}
