package changes

import (
	"runtime"
	"syscall"
)

// tie makes a command end when we do, even by kill -9: another instance of the consumer
// runs it again at once. The system takes the end of the thread that starts it for ours,
// which therefore is kept until untie.
func tie(attr *syscall.SysProcAttr) (untie func()) {
	runtime.LockOSThread()
	attr.Pdeathsig = syscall.SIGKILL
	return runtime.UnlockOSThread
}
