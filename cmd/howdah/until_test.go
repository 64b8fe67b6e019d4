package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// What goes on up to an end is done once it has come there: where it is interrupted
// before, or stands still, what was to follow it is not to begin (&&).
func TestUntilIsNotReached(t *testing.T) {
	t.Parallel()
	url := exemplary.Database(t)
	pool := pgtest.Pool(t, url)
	if _, err := pool.Exec(t.Context(), `INSERT INTO users SELECT generate_series(1, 5)`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `
		CREATE FUNCTION pauses(jsonb) RETURNS void LANGUAGE sql AS $$
			UPDATE howdah.change_consumer SET state = 'paused', reason = 'enough of it' WHERE name = 'pauses' AND $1->'key'->>'id' = '3'
		$$`); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		interrupt bool // by the first line
		code      int
		says      string
		args      []string
	}{
		"tail, interrupted": {true, 1, "interrupted", []string{"tail", "--chunk", "1"}},
		"run, interrupted":  {true, 1, "interrupted", []string{"run", "lines", "--batch", "1", "--lines"}},
		"run, pauses":       {false, 5, "pauses is paused at 1.3, before ", []string{"run", "pauses", "--batch", "1", "--sql", "SELECT pauses($1::jsonb)"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			ctx, interrupt := context.WithCancel(ctx)
			defer interrupt()
			var once sync.Once
			stdout := &onWrite{do: func(string) {
				if test.interrupt {
					once.Do(interrupt)
				}
			}}
			var stderr bytes.Buffer
			args := append(append([]string{"changes"}, test.args...), "--from", "start", "--until", "now", "--quiet", "--database-url", url)
			if code := run(ctx, args, func(string) string { return "" }, strings.NewReader(""), stdout, &stderr); code != test.code || !strings.Contains(stderr.String(), test.says) {
				t.Errorf("exit code %d, want %d, %s, want %q in it", code, test.code, &stderr, test.says)
			}
		})
	}
}
