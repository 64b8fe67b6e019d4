package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// onWrite is output that does something as it is written to, each time.
type onWrite struct {
	mu sync.Mutex
	bytes.Buffer
	do func(text string)
}

func (w *onWrite) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.do(string(b))
	return w.Buffer.Write(b)
}

// What reads or hands on up to an end goes on, where its connections are lost on the way,
// behind the last line that it printed, and says so once.
func TestConnectionsLostOnTheWay(t *testing.T) {
	t.Parallel()
	const rows = 5
	const said = "the connection is lost, going on when there is one again"
	url := exemplary.Database(t)
	if _, err := pgtest.Pool(t, url).Exec(t.Context(), `INSERT INTO users SELECT generate_series(1, $1)`, rows); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		on   string // a statement of which the answer is lost; "" = all is lost after the first line
		args []string
	}{
		"tail":           {"", []string{"tail", "--chunk", "1"}},
		"run":            {"", []string{"run", "lines", "--lines", "--batch", "1"}},
		"run, beginning": {"INSERT INTO howdah.change_consumer", []string{"run", "more", "--lines"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := pgtest.NewProxy(t, url)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var lost sync.Once
			stdout := &onWrite{do: func(string) {
				lost.Do(func() {
					proxy.Refuse(true)
					proxy.Cut()
				})
			}}
			if test.on != "" {
				lost.Do(func() { proxy.CutOn([]byte(test.on)) })
			}
			stderr := &onWrite{do: func(text string) {
				if strings.Contains(text, said) {
					proxy.Refuse(false)
				}
			}}
			args := append([]string{"changes"}, append(test.args, "--from", "start", "--until", "now", "--database-url", proxy.URL())...)
			code := run(ctx, args, func(string) string { return "" }, strings.NewReader(""), stdout, stderr)
			if code != 0 || strings.Count(stderr.String(), said) != 1 {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			var got, want []string
			for line := range strings.Lines(stdout.String()) {
				var c struct{ Position string }
				if err := json.Unmarshal([]byte(line), &c); err != nil {
					t.Fatalf("%v in %q", err, line)
				}
				if name == "tail" || len(got) == 0 || got[len(got)-1] != c.Position { // what was handed over as the connection went comes again
					got = append(got, c.Position)
				}
			}
			for i := range rows {
				want = append(want, fmt.Sprintf("1.%d", i+1))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
