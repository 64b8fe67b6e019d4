package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"unicode"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// output is stdout. It remembers that its reader has seen enough, which is no
// failure; a connection to the database that breaks in the same way is one.
type output struct {
	io.Writer
	closed atomic.Bool
	enough func() // called then, if not nil
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		o.close()
	}
	return n, err
}

func (o *output) close() {
	o.closed.Store(true)
	if o.enough != nil {
		o.enough()
	}
}

// isTerminal reports whether people look at w.
func isTerminal(w any) bool {
	if out, ok := w.(*output); ok {
		w = out.Writer
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// piped is stdout, and the file that it is where that may be a pipe; else nil.
func (c *cli) piped() (*output, *os.File) {
	out, ok := c.out.(*output)
	if !ok || isTerminal(out) {
		return out, nil
	}
	file, _ := out.Writer.(*os.File)
	return out, file
}

// isUnread reports whether f is a pipe that nobody reads any longer.
func isUnread(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}} // errors are told unasked
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}

func (c *cli) wantsJSON() bool { return c.json || !isTerminal(c.out) }

// note says something on stderr that is not the result.
func (c *cli) note(text string) {
	if !c.quiet {
		fmt.Fprintln(c.err, text)
	}
}

// result prints what a command did: words for people, an object for programs.
func (c *cli) result(words string, object any) error {
	if c.wantsJSON() {
		return jsonLine(c.out, object)
	}
	_, err := fmt.Fprintln(c.out, words)
	return err
}

func jsonLine(w io.Writer, object any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(object)
}

// rows prints objects as they come: a table for people, with the columns named
// and cut by cells, JSON lines for programs.
func rows[T any](c *cli, columns []string, cells func(T) []any, objects iter.Seq2[T, error]) error {
	if c.wantsJSON() {
		for object, err := range objects {
			if err != nil {
				return err
			}
			if err := jsonLine(c.out, object); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	line := func(values []any) {
		text := make([]string, len(values))
		for i, v := range values {
			text[i] = printable(fmt.Sprint(v))
		}
		fmt.Fprintln(table, strings.Join(text, "\t"))
	}
	head := make([]any, len(columns))
	for i, name := range columns {
		head[i] = name
	}
	line(head)
	for object, err := range objects {
		if err != nil {
			table.Flush() // what came before the error was read well
			return err
		}
		line(cells(object))
	}
	return table.Flush()
}

// printable keeps a name from moving the cursor or breaking the table.
func printable(s string) string {
	if s == "" {
		return `""`
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}

// quantity is a number of things, "1 row" or "2,000 rows".
func quantity[N int | int64](n N, one string) string {
	if n != 1 {
		one += "s"
	}
	return grouped(int64(n)) + " " + one
}

// sequence makes a sequence of a slice that was read whole.
func sequence[T any](all []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, one := range all {
			if !yield(one, nil) {
				return
			}
		}
	}
}
