//go:build unix

package localpg

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// openLock opens a file that exists to be locked. Go opens close-on-exec, so no
// server we start inherits the lock.
func openLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// tryLock takes the flock how (LOCK_SH or LOCK_EX) if nobody is in the way.
func tryLock(f *os.File, how int) (bool, error) {
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, err
		}
	}
}

// lock waits for the exclusive flock of the file path until ctx is done. Closing
// the file gives the lock back. It asks again and again, because a blocking
// flock cannot be called off.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := openLock(path)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, func() (bool, error) { return tryLock(f, syscall.LOCK_EX) })
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// poll calls done, ever less often, until it answers true or an error, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	pause := time.Millisecond
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(pause*3/2, pollPause)
	}
}
