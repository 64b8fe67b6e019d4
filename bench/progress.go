package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// Progress tells on stderr what is going on: on a terminal in one line that
// changes, else a line for each row.
type Progress struct {
	out      io.Writer
	terminal bool
	began    time.Time
}

func newProgress(out io.Writer) *Progress {
	p := &Progress{out: out, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// Row says that a row begins.
func (p *Progress) Row(name string) {
	if p != nil && !p.terminal {
		fmt.Fprintf(p.out, "%5s  %s\n", p.elapsed(), name)
	}
}

// Say says what is being done.
func (p *Progress) Say(what string) {
	if p != nil && p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%5s  %.100s", p.elapsed(), what)
	}
}

// Clear makes room for other output.
func (p *Progress) Clear() {
	if p != nil && p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func (p *Progress) elapsed() time.Duration { return time.Since(p.began).Round(time.Second) }
