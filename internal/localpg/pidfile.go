//go:build unix

package localpg

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// pidFile is what PostgreSQL tells the world in data/postmaster.pid, a line each:
// pid, data directory, start time, port, socket directory, listen address,
// shared memory, status.
type pidFile struct {
	pid       int
	data      string
	port      string
	socketDir string
	status    string // starting, stopping, ready, standby
	single    bool   // somebody repairs the cluster by hand, with postgres --single
}

// readPidFile returns the zero pidFile if there is none. The file is written in
// steps, so everything after the pid may be missing still.
func readPidFile(path string) (pidFile, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return pidFile{}, nil
	}
	if err != nil {
		return pidFile{}, err
	}
	line := strings.Split(string(b), "\n")
	at := func(n int) string {
		if n > len(line) {
			return ""
		}
		return strings.TrimSpace(line[n-1])
	}
	pid, _ := strconv.Atoi(at(1)) // garbage names nobody, like a file that is empty still
	return pidFile{
		pid: max(pid, -pid), single: pid < 0,
		data: at(2), port: at(4), socketDir: at(5), status: at(8),
	}, nil
}

func (p pidFile) ready() bool { return p.status == "ready" || p.status == "standby" }

// postmaster returns the pid file of the server that works on data right now;
// the zero pidFile if none does.
func postmaster(data string) (pidFile, error) {
	p, err := readPidFile(filepath.Join(data, "postmaster.pid"))
	if err != nil || !serves(p.pid, data) {
		return pidFile{}, err
	}
	return p, nil
}
