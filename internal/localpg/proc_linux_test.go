package localpg_test

import (
	"os/exec"
	"testing"

	"github.com/howdah-db/howdah/internal/localpg"
)

// What cannot be told for certain is never a process to be ended.
func TestArgued(t *testing.T) {
	t.Parallel()
	data, other := t.TempDir(), t.TempDir()
	for _, test := range []struct {
		args      []string
		yes, sure bool
	}{
		{[]string{"/usr/bin/postgres", "-D", data, ""}, true, true},
		{[]string{"/usr/bin/postgres", "-D", data + "/../001", ""}, true, true},
		{[]string{"/usr/bin/postgres", "-D", other, ""}, false, true},
		{[]string{"/usr/bin/postgres", "-D", "relative", ""}, true, false},
		{[]string{"/usr/bin/postgres", "-D"}, true, false},
		{[]string{"/usr/bin/postgres", ""}, true, false}, // by PGDATA
		{[]string{"postgres: checkpointer ", ""}, false, false},
		{[]string{""}, true, false},
	} {
		if yes, sure := localpg.Argued(test.args, data); yes != test.yes || sure != test.sure {
			t.Errorf("Argued(%q) = %v, %v, want %v, %v", test.args, yes, sure, test.yes, test.sure)
		}
	}
}

// A server of another user, at whose working directory we may not look, is
// known by its arguments.
func TestServesOfAnotherUser(t *testing.T) {
	t.Parallel()
	one := start(t, localpg.Config{Dir: clusterDir(t), Tied: true})
	two := start(t, localpg.Config{Dir: clusterDir(t), Tied: true})
	for _, test := range []struct {
		pid  int
		want bool
	}{{one.PID(), true}, {two.PID(), false}} {
		w := newWorker(t, order{Dir: one.Dir(), Serves: test.pid}, asNobody(t))
		if got := w.report().Serves; got != test.want {
			t.Errorf("Serves(%d, %s) as another user = %v, want %v", test.pid, one.Data(), got, test.want)
		}
	}
}

// A process on its way out lets go of its directory before it is gone. Until it
// is, it counts: what waits for its end must not go on beside it.
func TestServesUntilItIsGone(t *testing.T) {
	t.Parallel()
	data, ctx := t.TempDir(), within(t)
	for range 100 {
		// The name is what PostgreSQL's processes go by.
		cmd := exec.Command("/bin/bash", "-c", "printf postgres > /proc/self/comm; kill -STOP $$")
		cmd.Dir = data
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		eventually(t, "it has its name", func() bool { return localpg.Serves(pid, data) })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for localpg.Serves(pid, data) && ctx.Err() == nil {
		}
		if localpg.Running(pid) {
			t.Error("it counts as gone, and is there")
		}
		_ = cmd.Wait()
	}
}
