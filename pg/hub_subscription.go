package pg

import (
	"fmt"
)

// Subscription is one subscriber's ear at one channel of a [Hub].
type Subscription struct {
	hub     *Hub
	channel string
	c       chan Notice // its last place is kept for a gap, so that the hub never waits

	// Guarded by hub.mu. Notices are numbered from 1 in the order they are put in.
	sent    uint64 // the last one put in
	lastGap uint64 // the last gap put in
	closed  bool
}

// Subscribe begins a subscription to channel, which is taken as it is: letters
// keep their case. It never waits: the hub sends LISTEN when it can, and a
// notice with Gap says that from there on nothing is missed. In state
// [HubPolling] that gap comes at once, and no more will.
//
// The error is Invalid: channel is empty, longer than 63 bytes, or not text.
func (h *Hub) Subscribe(channel string) (*Subscription, error) {
	if err := checkChannel(channel); err != nil {
		return nil, fmt.Errorf("pg: subscribe: %w", err)
	}
	s := &Subscription{hub: h, channel: channel, c: make(chan Notice, h.cfg.Buffer+1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs[channel] == nil {
		h.subs[channel] = make(map[*Subscription]struct{})
	}
	h.subs[channel][s] = struct{}{}
	if h.listening[channel] || h.state == HubPolling {
		s.gap()
	}
	if !h.listening[channel] {
		h.changed(channel)
	}
	return s, nil
}

func checkChannel(channel string) error {
	switch {
	case channel == "":
		return Refuse("channel", "is empty")
	case len(channel) > maxIdentifier:
		return Refuse("channel", "%d bytes; PostgreSQL keeps %d", len(channel), maxIdentifier)
	}
	return CheckText("channel", channel)
}

// C returns the notices, in the order in which they came. Who does not read
// loses the newest ones and finds a gap in their place: however slow, the last
// notice or a gap after it is there to be read. Close closes it; what was
// waiting can still be read.
func (s *Subscription) C() <-chan Notice { return s.c }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	close(s.c)
	delete(h.subs[s.channel], s)
	if len(h.subs[s.channel]) == 0 {
		delete(h.subs, s.channel)
		if h.listening[s.channel] {
			h.changed(s.channel)
		} else {
			delete(h.stale, s.channel) // nothing to listen to, and nothing to end
		}
	}
}

// gap offers a gap. Under hub.mu.
func (s *Subscription) gap() { s.offer(Notice{Channel: s.channel, Gap: true}) }

// offer puts n in, or a gap when there is no room for it. A gap that still waits
// stands for everything that is dropped: who takes it reads later than now.
// Under hub.mu, which makes the hub the only sender: between len and the send
// the channel can only become emptier.
func (s *Subscription) offer(n Notice) {
	waiting := len(s.c)
	gapWaits := s.lastGap > s.sent-uint64(waiting)
	full := waiting >= cap(s.c)-1 // it is cap(s.c) only when its last is a gap
	if gapWaits && (full || n.Gap) {
		return
	}
	if full {
		n = Notice{Channel: s.channel, Gap: true}
	}
	s.sent++
	if n.Gap {
		s.lastGap = s.sent
	}
	s.c <- n
}
