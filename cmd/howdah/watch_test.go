package main

import (
	"errors"
	"io"
	"iter"
	"testing"

	"github.com/creack/pty"

	"github.com/howdah-db/howdah/checklists"
)

// On a terminal a watch keeps one line up to date, and leaves it.
func TestWatchOnATerminal(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	var seen iter.Seq2[checklists.Progress, error] = func(yield func(checklists.Progress, error) bool) {
		for done := range int64(2) {
			if !yield(checklists.Progress{Total: 2000, Left: 2000 - done, Done: done}, nil) {
				return
			}
		}
		yield(checklists.Progress{}, gone)
	}
	terminal, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	c := &cli{out: &output{Writer: tty}}
	if err := c.watch(seen); !errors.Is(err, gone) {
		t.Errorf("%v, want what ended it", err)
	}
	tty.Close()
	const want = "\r\x1b[K0 done  0 dead  0 leased  2,000 left\r\x1b[K1 done  0 dead  0 leased  1,999 left\r\n"
	got := make([]byte, len(want))
	if n, err := io.ReadFull(terminal, got); string(got) != want {
		t.Errorf("%q, %v, want %q", got[:n], err, want)
	}
}
