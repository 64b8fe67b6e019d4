package localpg

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pollPause is the longest pause between two looks at a process.
const pollPause = 20 * time.Millisecond

// childAttr is how our children are started: in a session of their own, so that
// a Ctrl-C meant for us does not stop the server before we are done with it,
// and, if death is not 0, to be sent that signal when the thread that forks them ends.
func childAttr(as account, death syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: as.credential(), Setsid: true, Pdeathsig: death}
}

// running reports whether pid exists and is not a zombie. kill(pid, 0), which
// PostgreSQL asks, takes a zombie for alive.
func running(pid int) bool {
	stat, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return false
	}
	// pid (name) state …, where the name may hold blanks and parentheses.
	i := bytes.LastIndexByte(stat, ')')
	return i >= 0 && i+2 < len(stat) && stat[i+2] != 'Z' && stat[i+2] != 'X'
}

// serves reports whether pid is a PostgreSQL process that works on the
// directory data. A pid in a file proves nothing: it may have been given to
// another process since.
func serves(pid int, data string) bool {
	name, err := os.ReadFile(procPath(pid, "comm"))
	if err != nil || !strings.Contains(string(name), "postgres") || !running(pid) {
		return false
	}
	cwd, err := os.Stat(procPath(pid, "cwd"))
	if errors.Is(err, os.ErrPermission) {
		// Root in a container without CAP_SYS_PTRACE may not look at the
		// working directory of another user's process; its arguments it may.
		args, _ := os.ReadFile(procPath(pid, "cmdline"))
		return bytes.Contains(args, []byte("-D\x00"+data+"\x00"))
	}
	if err != nil {
		return false
	}
	here, err := os.Stat(data)
	return err == nil && os.SameFile(cwd, here)
}

// servers returns every process that works on data, postmaster or not.
func servers(data string) []int {
	entries, _ := filepath.Glob("/proc/[0-9]*")
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(filepath.Base(entry))
		if err == nil && serves(pid, data) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
