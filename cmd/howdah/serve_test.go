package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// patience fails a test that hangs; it is long for a machine that is busy.
const patience = 3 * time.Minute

// process is howdah as a process of its own.
type process struct {
	*exec.Cmd
	stdout *lines
	stderr *lines
	ended  chan struct{} // closed when the process is
	err    error         // of the process, once it has ended
}

// startHowdah starts howdah with an environment. It is stopped when the test ends, if it
// still runs then.
func startHowdah(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("howdah", args...), stdout: newLines(), stderr: newLines(), ended: make(chan struct{})}
	p.Env, p.Stdout, p.Stderr = env, p.stdout, p.stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-p.ended:
		default:
			p.stop(t)
		}
		if t.Failed() {
			t.Logf("%q: stdout: %.4000s\nstderr: %s", p.Args, p.stdout, p.stderr)
		}
	})
	return p
}

// stop sends SIGTERM and waits for the end, which has to be a good one.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.endWell(t, syscall.SIGTERM)
}

// endWell sends a signal and waits for the end, with exit code 0.
func (p *process) endWell(t *testing.T, signal os.Signal) {
	t.Helper()
	p.end(t, signal)
	if p.err != nil {
		t.Errorf("%q ended with %v: %s", p.Args, p.err, p.stderr)
	}
}

// end sends a signal and waits for the end.
func (p *process) end(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := p.Process.Signal(signal); err != nil {
		t.Error(err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.Process.Kill()
		<-p.ended
		t.Errorf("%q did not end: %s", p.Args, p.stderr)
	}
}

// serving is howdah serve.
type serving struct {
	*process
	url string
}

// startServe starts howdah serve with an environment and waits until it serves.
func startServe(t *testing.T, env []string, args ...string) *serving {
	t.Helper()
	s := &serving{process: startHowdah(t, env, append([]string{"serve"}, args...)...)}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if !s.stdout.await(ctx, s.ended, "Ctrl-C stops") {
		t.Fatalf("it does not serve: %s%s", s.stdout, s.stderr)
	}
	_, s.url, _ = strings.Cut(s.stdout.String(), "howdah serves on ")
	s.url, _, _ = strings.Cut(s.url, "\n")
	return s
}

// ask sends a request and returns the status and the body; 0 if none came.
func (s *serving) ask(t *testing.T, method, path, contentType string, body io.Reader) (int, string) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	req.Header.Set("Content-Type", contentType)
	req.Close = true // no connection of ours is left to wait for
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, strings.TrimSpace(string(text))
}

// want asks and compares.
func (s *serving) want(t *testing.T, method, path, body string, status int, answer string) {
	t.Helper()
	if got, text := s.ask(t, method, path, "application/json", strings.NewReader(body)); got != status || !strings.Contains(text, answer) {
		t.Errorf("%s %s = %d %s, want %d %s", method, path, got, text, status, answer)
	}
}

// lines is output that can be waited for.
type lines struct {
	mu   sync.Mutex
	more *sync.Cond
	text bytes.Buffer
}

func newLines() *lines {
	l := &lines{}
	l.more = sync.NewCond(&l.mu)
	return l
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.more.Broadcast()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await reports whether what came before ctx or ended were over.
func (l *lines) await(ctx context.Context, ended <-chan struct{}, what string) bool {
	over := func() bool {
		select {
		case <-ended:
			return true
		case <-ctx.Done():
			return true
		default:
			return false
		}
	}
	wake := func() { l.mu.Lock(); defer l.mu.Unlock(); l.more.Broadcast() }
	defer context.AfterFunc(ctx, wake)()
	woken := make(chan struct{})
	defer close(woken)
	go func() {
		select {
		case <-ended:
			wake()
		case <-woken:
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	for !bytes.Contains(l.text.Bytes(), []byte(what)) {
		if over() {
			return false
		}
		l.more.Wait()
	}
	return true
}

var eventually = pgtest.Until

// firstLine is the first line of a file.
func firstLine(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
