package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a running postmaster.
type process struct {
	pid  int
	data string
	// exited is closed when our own child has ended and is reaped. It is nil
	// for a server that is not our child.
	exited chan struct{}
	// fresh is true from our starting it until it serves. Before it has entered
	// its data directory, only its pid tells that it is there.
	fresh bool
}

func (p *process) child() bool { return p.exited != nil }

// alive reports whether the postmaster still works.
func (p *process) alive() bool {
	if !p.child() {
		return p.fresh && running(p.pid) || serves(p.pid, p.data)
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// wait returns when the postmaster has ended, or with an error when ctx is done.
func (p *process) wait(ctx context.Context) error {
	if !p.child() {
		err := poll(ctx, func() (bool, error) { return !p.alive(), nil })
		// Where we are process 1, an orphan became our child after all.
		_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop asks for a fast shutdown (clients are cut off, what is committed is
// flushed); after patience, or when ctx is done, for an immediate one, after
// which the next start recovers. It returns when the server is gone.
func (p *process) stop(ctx context.Context, patience time.Duration) error {
	if !p.alive() {
		return p.wait(ctx)
	}
	if err := syscall.Kill(p.pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	polite, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if p.wait(polite) == nil {
		return nil
	}
	if err := syscall.Kill(p.pid, syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	// The postmaster kills what has not ended 5 s after SIGQUIT.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	if err := p.wait(last); err != nil {
		return fmt.Errorf("process %d does not end: %w", p.pid, err)
	}
	return nil
}

// spawn starts the postmaster and returns when the system runs it, which is
// before it serves anybody. A tied one is our child. Another is nobody's, so
// that it can go on after us and we owe it no wait.
func spawn(ctx context.Context, cfg Config, bin binaries, as account, socketDir string, log *os.File) (*process, error) {
	data := filepath.Join(cfg.Dir, "data")
	args := cfg.arguments(data, socketDir)
	ctx = context.WithoutCancel(ctx) // the server outlives the call that starts it
	if !cfg.Tied {
		// The shell goes at once, and leaves the server to process 1.
		cmd := command(ctx, cfg, as, "/bin/sh",
			append([]string{"-c", `exec "$@" >&2 & echo $!`, "sh", bin.postgres()}, args...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, log
		if err := cmd.Run(); err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
		if err != nil {
			return nil, err
		}
		return &process{pid: pid, data: data, fresh: true}, nil
	}
	cmd := command(ctx, cfg, as, bin.postgres(), args...)
	cmd.SysProcAttr = childAttr(as, syscall.SIGINT)
	cmd.Stdout, cmd.Stderr = log, log
	p := &process{data: data, exited: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the server: see exited
		// The death signal is sent when the thread that forked ends, so this
		// thread is held as long as the server lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the log says why it ended
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.pid = cmd.Process.Pid
	return p, nil
}

// awaitReady returns the pid file once it says that the server takes
// connections. It fails when the process ends before that, or ctx is done.
func (p *process) awaitReady(ctx context.Context) (pidFile, error) {
	var file pidFile
	err := poll(ctx, func() (bool, error) {
		gone := !p.alive() // asked before the file is read: it may have been ready and then gone
		var err error
		file, err = readPidFile(filepath.Join(p.data, "postmaster.pid"))
		if err != nil || file.pid == p.pid && file.ready() {
			return true, err
		}
		if gone {
			return false, errEnded
		}
		return false, nil
	})
	p.fresh = p.fresh && err != nil
	return file, err
}

var errEnded = errors.New("the server ended before it was ready")

// openLog opens the server's log, after putting away one that has grown large.
func openLog(path string) (*os.File, error) {
	const large = 10 << 20
	if info, err := os.Stat(path); err == nil && info.Size() > large {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
}

// tail returns what was written to the log from the offset on, the last 16 KiB of it.
func tail(log *os.File, offset int64) []byte {
	end, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil
	}
	b := make([]byte, min(end-offset, 16<<10))
	n, _ := log.ReadAt(b, end-int64(len(b)))
	return b[:n]
}
