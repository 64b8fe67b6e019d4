package changes

import (
	"slices"
	"sync"
)

// ringBytes is how much of the feed a [Tail] keeps for those a little behind.
const ringBytes = 16 << 20

// ring is the newest part of the feed, decoded once for all who watch. Which change
// is the last of its commit depends on a filter: the watcher says it of its copy.
type ring struct {
	mu      sync.Mutex
	changes []Change
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
	r.changes, r.bytes, r.from, r.to = nil, 0, p, p
	r.history++
	r.wake()
}

// add appends changes, after which the feed is known up to to.
func (r *ring) add(changes []Change, to Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes += sizeOf(changes)
	r.changes = append(r.changes, changes...)
	drop := 0
	for r.bytes > ringBytes && drop < len(r.changes) {
		r.bytes -= r.changes[drop].size()
		drop++
	}
	if drop > 0 {
		r.from = r.changes[drop-1].Position
		// Watchers may be reading there: what is dropped is given back when append
		// next needs another place for what is left.
		r.changes = r.changes[drop:]
	}
	r.to = to
	r.wake()
}

func (r *ring) wake() {
	close(r.grown)
	r.grown = make(chan struct{})
}

// after returns at most n changes that follow p, which others read too, and where
// that leads; ok is false where the ring does not hold what follows p. Without
// changes, grown is closed when there is more.
func (r *ring) after(p Position, n int) (changes []Change, next Position, history int, grown <-chan struct{}, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Compare(r.from) < 0 || p.Compare(r.to) > 0 {
		return nil, p, r.history, r.grown, false
	}
	i, _ := slices.BinarySearchFunc(r.changes, p, func(c Change, p Position) int {
		if c.Position.Compare(p) <= 0 {
			return -1
		}
		return 1
	})
	changes = r.changes[i:min(i+n, len(r.changes))]
	if i+len(changes) == len(r.changes) {
		return changes, r.to, r.history, r.grown, true
	}
	return changes, changes[len(changes)-1].Position, r.history, r.grown, true
}

// size is about what a change takes in memory.
func (c *Change) size() int {
	return 300 + len(c.Schema) + len(c.Table) + len(c.Key) + len(c.Old) + len(c.New) + len(c.Origin) + len(c.Meta)
}

func sizeOf(cs []Change) (size int) {
	for i := range cs {
		size += cs[i].size()
	}
	return size
}
