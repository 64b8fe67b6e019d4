package main

import (
	"io"
	"iter"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress is a bar on stderr, where people look at it: of bytes where the size
// of the input is known, else of items.
type progress struct {
	bar   *progressbar.ProgressBar // nil where nobody looks
	bytes bool
	out   io.Writer
}

func (c *cli) progress(what string, size int64) *progress {
	if c.quiet || !isTerminal(c.err) {
		return &progress{}
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(c.err),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(size >= 0),
		progressbar.OptionShowCount(),
		progressbar.OptionSetSpinnerChangeInterval(0), // else it is drawn once more, after the result
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionSetWidth(24),
		progressbar.OptionFullWidth(),
		progressbar.OptionEnableColorCodes(!c.noColor),
	}
	if size < 0 { // of bytes the rate is shown anyway
		options = append(options, progressbar.OptionShowIts(), progressbar.OptionSetItsString("items"))
	}
	return &progress{bytes: size >= 0, out: c.err, bar: progressbar.NewOptions64(size, options...)}
}

func (p *progress) reader(r io.Reader) io.Reader {
	if p.bar == nil || !p.bytes {
		return r
	}
	return io.TeeReader(r, p.bar)
}

// counted shows how many of src there were, where the bar is of items.
func counted[T any](p *progress, src iter.Seq2[T, error]) iter.Seq2[T, error] {
	if p.bar == nil || p.bytes {
		return src
	}
	return func(yield func(T, error) bool) {
		n := 0
		for item, err := range src {
			if n++; n%500 == 0 {
				p.bar.Add(500) // a bar that cannot be drawn is no reason to stop
			}
			if !yield(item, err) {
				break
			}
		}
		p.bar.Add(n % 500)
	}
}

// finish leaves the bar as it stands, on a line of its own.
func (p *progress) finish() {
	if p.bar != nil {
		p.bar.Exit()
		io.WriteString(p.out, "\n")
	}
}
