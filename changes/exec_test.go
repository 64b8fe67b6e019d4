//go:build unix

package changes_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestExec(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders SELECT g, repeat('<x>', 1000) FROM generate_series(1, 100) g`) // more than a pipe holds
	file := filepath.Join(t.TempDir(), "out")
	s.mustHand(t, changes.Exec("sh", "-c", `{ echo "$HOWDAH_CONSUMER $HOWDAH_POSITION $1"; cat; } > "$0"`, file, "* $HOME"), cs)
	want := "billing " + cs[99].Position.String() + " * $HOME\n"
	for _, c := range cs {
		want += plainJSON(t, c) + "\n"
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%v: got %.300s", err, got)
	}
	s.mustHand(t, changes.Exec("true"), cs) // without a look at its stdin
	s.mustHand(t, changes.Exec("false"), nil)
}

func TestExecFails(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	for name, tc := range map[string]struct {
		argv  []string
		want  string // the error's end
		stops bool
	}{
		"a code":    {[]string{"sh", "-c", "exit 3"}, "exit status 3", false},
		"a reason":  {[]string{"sh", "-c", `printf 'no \000 index\n' >&2; exit 1`}, "exit status 1: no  index", false},
		"at length": {[]string{"sh", "-c", `printf '%2000s' | tr ' ' x >&2; exit 1`}, "exit status 1: " + strings.Repeat("x", 1024), false},
		"a signal":  {[]string{"sh", "-c", "kill -9 $$"}, "signal: killed", false},
		"not there": {[]string{"/no/such/command"}, "no such file or directory", false},
		"nothing":   {nil, "there is none", true},
	} {
		err := s.hand(t.Context(), changes.Exec(tc.argv...), cs)
		if err == nil || !strings.HasSuffix(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "changes: exec: ") || changes.Stops(err) != tc.stops || errors.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the command started ends with it, even what does not care for SIGTERM.
func TestExecEndsTheGroup(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	for name, trap := range map[string]string{"the polite": "", "the stubborn": "trap '' TERM; "} {
		fifo := filepath.Join(t.TempDir(), "alive") // its writers are the processes
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.hand(ctx, changes.Exec("sh", "-c", trap+`(echo started; sleep 1000) > "$0" & wait`, fifo), cs)
		}()
		alive, err := os.Open(fifo)
		if err != nil {
			t.Fatal(err)
		}
		begun := make([]byte, len("started\n"))
		if _, err := io.ReadFull(alive, begun); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := pgtest.Receive(t, done, "the end of the handler"); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		if rest, err := io.ReadAll(alive); err != nil || len(rest) != 0 { // returns when none is left
			t.Errorf("%s: %q, %v", name, rest, err)
		}
		alive.Close()
	}
}

// What a command that fails has started is gone before it is run again.
func TestExecThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	fifo := filepath.Join(t.TempDir(), "alive") // its writer is the process
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	alive, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := alive.SetReadDeadline(time.Now().Add(pgtest.Patience)); err != nil {
		t.Fatal(err)
	}
	if err := s.hand(t.Context(), changes.Exec("sh", "-c", `exec 3> "$0"; echo started >&3; sleep 1000 & exit 1`, fifo), cs); err == nil || !strings.HasSuffix(err.Error(), "exit status 1") {
		t.Errorf("%v, want exit status 1", err)
	}
	if rest, err := io.ReadAll(alive); err != nil || string(rest) != "started\n" { // returns when none is left
		t.Errorf("%q, %v", rest, err)
	}
}

// A daemon that a command leaves behind is not waited for.
func TestExecLeavesADaemon(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	fifo := filepath.Join(t.TempDir(), "release")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s.mustHand(t, changes.Exec("sh", "-c", `read x < "$0" & exit 0`, fifo), cs) // it holds stderr until it is released
	release, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	release.Close()
}
