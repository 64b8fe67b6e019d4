package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// The lines of several channels are in the order in which they were sent, and none is left
// out where many are sent at once and nobody reads for a while.
func TestListenToSeveralChannels(t *testing.T) {
	t.Parallel()
	const each = 2500
	url := pgtest.Database(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	out, in := io.Pipe()
	defer out.Close()
	ended := make(chan int, 1)
	go func() {
		code := run(ctx, []string{"changes", "listen", "a", "b", "--database-url", url}, func(string) string { return "" }, strings.NewReader(""), in, io.Discard)
		in.Close()
		ended <- code
	}()
	var want, got []string
	lines := bufio.NewScanner(out)
	for range 2 { // each says that it is heard from here on
		if !lines.Scan() || !strings.HasSuffix(lines.Text(), `"gap":true}`) {
			t.Fatalf("%q, %v, want a gap", lines.Text(), lines.Err())
		}
	}
	if _, err := conn.Exec(ctx, `
		SELECT pg_notify(channel, i::text)
		FROM (SELECT i, channel FROM generate_series(1, $1::int) i, unnest(ARRAY['b', 'a']) channel ORDER BY i, channel DESC) s`, each); err != nil {
		t.Fatal(err)
	}
	for i := range each {
		for _, channel := range []string{"b", "a"} {
			want = append(want, fmt.Sprintf(`{"channel":%q,"payload":"%d","pid":%d}`, channel, i+1, conn.PgConn().PID()))
		}
	}
	for gap := false; !gap && len(got) < len(want) && lines.Scan(); {
		got = append(got, lines.Text())
		gap = strings.HasSuffix(lines.Text(), `"gap":true}`)
	}
	cancel()
	out.Close() // or a line more would keep it
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-sent +printed):\n%s", diff)
	}
	if code := pgtest.Receive(t, ended, "the end of listen"); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
