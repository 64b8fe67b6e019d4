//go:build !unix

package changes

import (
	"os/exec"
	"syscall"
)

// group can do nothing here: what a command started outlives it.
func group(cmd *exec.Cmd) (kill func()) {
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return func() {}
}
