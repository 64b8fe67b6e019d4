package changes

import (
	"slices"
	"sync"
)

// ringBytes is how much of the feed a [Tail] keeps for those a little behind.
const ringBytes = 16 << 20

// ring is the newest part of the feed, as the log has it: whoever watches decodes
// what it wants.
type ring struct {
	mu      sync.Mutex
	lines   []line
	bytes   int
	from    Position      // the ring holds all that follows
	to      Position      // and nothing after
	history int           // changes when the ring begins anew
	grown   chan struct{} // closed when it does, or holds more
}

func newRing() *ring { return &ring{grown: make(chan struct{})} }

// reset empties the ring and lets it begin after p.
func (r *ring) reset(p Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines, r.bytes, r.from, r.to = nil, 0, p, p
	r.history++
	r.wake()
}

// add appends lines, after which the feed is known up to to.
func (r *ring) add(lines []line, to Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range lines {
		r.bytes += lines[i].size()
	}
	r.lines = append(r.lines, lines...)
	drop := 0
	for r.bytes > ringBytes && drop < len(r.lines) {
		r.bytes -= r.lines[drop].size()
		r.from = r.lines[drop].position()
		r.lines[drop] = line{} // given back at once; its place when the slice grows next
		drop++
	}
	r.lines = r.lines[drop:]
	r.to = to
	r.wake()
}

func (r *ring) wake() {
	close(r.grown)
	r.grown = make(chan struct{})
}

// after returns at most n lines that follow p, and where that leads; ok is false
// where the ring does not hold what follows p. Without lines, grown is closed
// when there is more.
func (r *ring) after(p Position, n int) (lines []line, next Position, history int, grown <-chan struct{}, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Compare(r.from) < 0 || p.Compare(r.to) > 0 {
		return nil, p, r.history, r.grown, false
	}
	i, _ := slices.BinarySearchFunc(r.lines, p, func(l line, p Position) int {
		if l.position().Compare(p) <= 0 {
			return -1
		}
		return 1
	})
	lines = r.lines[i:min(i+n, len(r.lines))]
	if i+len(lines) == len(r.lines) {
		return lines, r.to, r.history, r.grown, true
	}
	return lines, lines[len(lines)-1].position(), r.history, r.grown, true
}

func (l *line) position() Position { return Position{Commit: l.N, ID: l.ID} }

// size is about what a line takes in memory.
func (l *line) size() int {
	n := 0
	if l.Meta != nil {
		n = len(*l.Meta)
	}
	return 200 + n + len(l.Schema) + len(l.Table) + len(l.Key) + len(l.Old) + len(l.New) + len(l.Origin)
}
