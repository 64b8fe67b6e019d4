//go:build unix

package changes

import (
	"os/exec"
	"syscall"
)

// group puts a command into a process group of its own, so that an interrupt typed at
// the terminal is ours to act on and what the command started ends with it. kill ends
// the group at once.
func group(cmd *exec.Cmd) (kill func()) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	return func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
