package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestAccessLog(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "access.log")
	const lines = `203.0.113.7 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 2326 "-" "-"
203.0.113.7 - - [17/May/2015:10:05:43 +0000] "GET /logo.png HTTP/1.1" 200 171717 "-" "-"
198.51.100.23 - - [18/May/2015:09:00:12 +0000] "POST /form HTTP/1.1" 303 - "-" "-"
`
	if err := os.WriteFile(log, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	database := pgtest.Database(t)
	for _, first := range []string{"3 lines are new, 0 were counted before", "0 lines are new, 3 were counted before"} {
		var out bytes.Buffer
		if err := run(t.Context(), &out, database, log); err != nil {
			t.Fatal(err)
		}
		want := first + "\n2015-05-17       2 requests, half of them up to 2325 bytes\n2015-05-18       1 requests, half of them up to null bytes\n"
		if out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
	}
}
