//go:build unix && !linux

package localpg

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pollPause is the longest pause between two looks at a process, each of which
// takes a run of ps.
const pollPause = 100 * time.Millisecond

// childAttr is how our children are started: in a session of their own, so that
// a Ctrl-C meant for us does not stop the server before we are done with it.
// There is no death signal here.
func childAttr(as account, _ syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: as.credential(), Setsid: true}
}

// running reports whether pid exists and is not a zombie.
func running(pid int) bool {
	if err := syscall.Kill(pid, 0); err == syscall.ESRCH {
		return false
	}
	out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	state := strings.TrimSpace(string(out))
	return err == nil && state != "" && !strings.HasPrefix(state, "Z")
}

// serves reports whether pid is a PostgreSQL process that works on the
// directory data, as far as its arguments tell. One that names no directory
// could be any PostgreSQL; taking it for ours can at worst refuse a start.
func serves(pid int, data string) bool {
	if pid <= 0 || !running(pid) {
		return false
	}
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	command := string(out)
	if err != nil || !strings.Contains(command, "post") {
		return false
	}
	return strings.Contains(command, "-D "+data) || !strings.Contains(command, "-D ")
}

// servers would return every process that works on data; without /proc nobody
// can tell cheaply, and PostgreSQL's own check of shared memory has to do.
func servers(string) []int { return nil }
