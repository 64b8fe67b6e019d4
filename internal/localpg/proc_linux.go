package localpg

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
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
// another process since. In doubt the answer is yes, which at worst refuses a
// start.
func serves(pid int, data string) bool {
	yes, _ := works(pid, data)
	return yes
}

// works is serves, and whether there is no doubt.
func works(pid int, data string) (yes, sure bool) {
	name, err := os.ReadFile(procPath(pid, "comm"))
	if err != nil || !strings.Contains(string(name), "postgres") || !running(pid) {
		return false, true
	}
	cwd, err := os.Stat(procPath(pid, "cwd"))
	if errors.Is(err, os.ErrPermission) {
		// Root in a container without CAP_SYS_PTRACE may not look at the
		// working directory of another user's process; at its arguments it may.
		args, err := os.ReadFile(procPath(pid, "cmdline"))
		if err != nil {
			return false, false
		}
		return argued(strings.Split(string(args), "\x00"), data)
	}
	if err != nil {
		// On its way out it has let go of its directory, and for a moment, on a
		// busy machine a long one, it is there still: whoever waits for its end waits on.
		return running(pid), false
	}
	return sameFile(cwd, data), true
}

// argued is works, by the arguments of the process alone.
func argued(args []string, data string) (yes, sure bool) {
	if strings.HasPrefix(args[0], "postgres:") {
		return false, false // a postmaster's child, but whose? No pid file names it
	}
	i := slices.Index(args, "-D")
	if i < 0 || i+1 >= len(args) || !filepath.IsAbs(args[i+1]) {
		return true, false
	}
	info, err := os.Stat(args[i+1])
	return err == nil && sameFile(info, data), true
}

func sameFile(info os.FileInfo, path string) bool {
	here, err := os.Stat(path)
	return err == nil && os.SameFile(info, here)
}

// servers returns every process that works on data for certain, postmaster or not.
func servers(data string) []int {
	entries, _ := filepath.Glob("/proc/[0-9]*")
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			continue
		}
		if yes, sure := works(pid, data); yes && sure {
			pids = append(pids, pid)
		}
	}
	return pids
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
