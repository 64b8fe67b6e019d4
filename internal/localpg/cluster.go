//go:build unix

package localpg

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clusterVersion returns the major version that the data directory was made by;
// 0 if there is no cluster.
func clusterVersion(data string) (int, error) {
	b, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Join(data, "PG_VERSION"), err)
	}
	return major, nil
}

// create makes a cluster beside its place and renames it there when it is
// complete, so that a crash half-way leaves nothing that looks like one.
func create(ctx context.Context, cfg Config, bin binaries, as account) error {
	data := filepath.Join(cfg.Dir, "data")
	if entries, err := os.ReadDir(data); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty and holds no PG_VERSION: it is not ours to overwrite", data)
	}
	cfg.Say("creating a private PostgreSQL " + bin.version + " in " + cfg.Dir)
	fresh := filepath.Join(cfg.Dir, "data.new")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := as.mkdir(fresh); err != nil {
		return err
	}
	// The password is in place before the cluster that asks for it.
	password := rand.Text()
	if err := writeFile(filepath.Join(cfg.Dir, "password"), password+"\n"); err != nil {
		return err
	}
	// initdb reads it as another user if we are root: from a file of that
	// user's own, in a directory where only we can put files.
	pwfile := filepath.Join(cfg.Dir, "password.initdb")
	defer os.Remove(pwfile)
	if err := writeFile(pwfile, password+"\n"); err != nil {
		return err
	}
	if err := as.give(pwfile); err != nil {
		return err
	}
	args := []string{
		"-D", fresh, "--username=howdah", "--pwfile=" + pwfile, "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C",
	}
	if !cfg.durable() {
		args = append(args, "--no-sync")
	}
	var out bytes.Buffer
	cmd := command(ctx, cfg, as, bin.initdb(), args...)
	// Nobody needs an initdb whose caller is dead, least of all the next one.
	cmd.SysProcAttr = childAttr(as, syscall.SIGKILL)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := runHeld(cmd); err != nil {
		os.RemoveAll(fresh)
		return fmt.Errorf("initdb: %w: %s", err, lastLines(out.Bytes(), 5))
	}
	if err := os.Remove(data); err != nil && !errors.Is(err, os.ErrNotExist) { // an empty directory
		return err
	}
	if err := os.Rename(fresh, data); err != nil {
		return err
	}
	return syncDir(cfg.Dir)
}

// keepPassword gives the role howdah a new password if the file with the old one
// is lost. The cluster's owner may do that while no server runs: by PostgreSQL's
// single-user mode, which asks for no password.
func (s *Server) keepPassword(ctx context.Context, bin binaries, as account) error {
	file := s.path("password")
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.cfg.Log.Warn("the private postgresql's password is lost; setting a new one", "file", file)
	if err := errors.Join(s.expel(ctx), s.removeStale("")); err != nil {
		return err
	}
	password := rand.Text()
	var out bytes.Buffer
	cmd := command(ctx, s.cfg, as, bin.postgres(), "--single", "-D", s.Data(), "postgres")
	cmd.SysProcAttr = childAttr(as, syscall.SIGKILL)
	cmd.Stdin = strings.NewReader("ALTER ROLE howdah PASSWORD '" + password + "'\n")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := runHeld(cmd); err != nil {
		return fmt.Errorf("setting a new password: %w", err) // the output quotes the statement
	}
	return writeFile(file, password+"\n")
}

// command prepares a program of PostgreSQL: as the account, in a directory that
// the account can be in, and with an environment from which it learns nothing
// of ours. PGDATA, PGPORT or a locale would change what it does.
func command(ctx context.Context, cfg Config, as account, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = cfg.Dir
	cmd.SysProcAttr = childAttr(as, 0)
	cmd.Env = []string{"LC_ALL=C"}
	for _, name := range []string{"PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// runHeld runs cmd on a thread of its own: a death signal is sent when the
// thread that forked ends, and Go ends threads when it likes unless one is held.
func runHeld(cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	return <-done
}

// writeFile replaces path by a file that only we can read, all or nothing.
func writeFile(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing after the rename
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lastLines makes a few last lines of a program's output part of an error.
func lastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
