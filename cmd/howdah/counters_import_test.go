package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// An import that is killed, as often as it likes, and run again counts each line once.
func TestKilledImports(t *testing.T) {
	t.Parallel()
	const lines = 20_000
	database := pgtest.Database(t)
	env := map[string]string{"DATABASE_URL": database}
	if r := program(t, env, "", "migrate"); r.code != 0 {
		t.Fatal(r)
	}
	var log bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&log, `203.0.113.%d - - [17/May/2015:%02d:%02d:00 +0000] "GET /%d HTTP/1.1" 200 %d "-" "-"`+"\n", i%256, i/1000, i/20%60, i, i)
	}
	file := filepath.Join(t.TempDir(), "access.log")
	if err := os.WriteFile(file, log.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"counters", "import", file, "--key", "web", "-g", "1m,1d", "--once", "killed"}
	kills := 0
	for patience := 50 * time.Millisecond; ; patience += patience / 2 {
		cmd := exec.Command("howdah", args...)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+database)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			break
		}
		if kills++; patience > pgtest.Patience {
			t.Fatalf("not through after %d kills", kills)
		}
	}
	if kills == 0 {
		t.Error("it was never killed")
	}
	if r := program(t, env, "", args...); r.stdout != fmt.Sprintf(`{"lines":%d,"applied":0,"duplicates":%[1]d,"refused":0}`+"\n", lines) {
		t.Error(r)
	}
	for path, want := range map[string]int{"requests": lines, "bytes": lines * (lines - 1) / 2, "status.2xx": lines} {
		r := program(t, env, "", "counters", "query", "web", "sum", path, "--from", "2015-05-17", "--to", "2015-05-17", "-g", "1d")
		if strings.TrimSpace(r.stdout) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, want %d", path, r, want)
		}
	}
}
