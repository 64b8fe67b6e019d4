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

// serving is howdah serve as a process of its own.
type serving struct {
	*exec.Cmd
	url    string
	stdout *lines
	stderr *lines
	ended  chan struct{} // closed when the process is
	err    error         // of the process, once it has ended
}

// startServe starts howdah serve with an environment and waits until it serves.
// It is stopped when the test ends, if it still runs then.
func startServe(t *testing.T, env []string, args ...string) *serving {
	t.Helper()
	s := &serving{
		Cmd:    exec.Command("howdah", append([]string{"serve"}, args...)...),
		stdout: newLines(), stderr: newLines(), ended: make(chan struct{}),
	}
	s.Env, s.Stdout, s.Stderr = env, s.stdout, s.stderr
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.err = s.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-s.ended:
		default:
			s.stop(t)
		}
		if t.Failed() {
			t.Logf("stdout: %s\nstderr: %s", s.stdout, s.stderr)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if !s.stdout.await(ctx, s.ended, "Ctrl-C stops") {
		t.Fatalf("it does not serve: %s%s", s.stdout, s.stderr)
	}
	_, s.url, _ = strings.Cut(s.stdout.String(), "howdah serves on ")
	s.url, _, _ = strings.Cut(s.url, "\n")
	return s
}

// stop sends SIGTERM and waits for the end, which has to be a good one.
func (s *serving) stop(t *testing.T) {
	t.Helper()
	s.end(t, syscall.SIGTERM)
	if s.err != nil {
		t.Errorf("howdah serve ended with %v: %s", s.err, s.stderr)
	}
}

// end sends a signal and waits for the end.
func (s *serving) end(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := s.Process.Signal(signal); err != nil {
		t.Error(err)
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.Process.Kill()
		<-s.ended
		t.Errorf("howdah serve did not end: %s", s.stderr)
	}
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
