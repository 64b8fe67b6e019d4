package pg

import (
	"cmp"
	"fmt"
)

// Subscription is one subscriber's ear at channels of a [Hub].
type Subscription struct {
	hub *Hub
	c   chan Notice // its last places are kept for a gap of each channel, so that the hub never waits

	// Guarded by hub.mu. Notices are numbered from 1 in the order they are put in.
	sent    uint64            // the last one put in
	lastGap map[string]uint64 // of each channel the last gap put in; 0 = none
	closed  bool
}

// Subscribe begins a subscription to channels, which are taken as they are: letters
// keep their case. It never waits: the hub sends LISTEN when it can, and a
// notice with Gap says that from there on nothing of its channel is missed. In state
// [HubPolling] that gap comes at once, and no more will.
//
// The error is Invalid: there is no channel, or one is empty, longer than 63 bytes, or
// not text.
func (h *Hub) Subscribe(channels ...string) (*Subscription, error) {
	err := error(nil)
	if len(channels) == 0 {
		err = Refuse("channel", "is missing")
	}
	lastGap := make(map[string]uint64, len(channels))
	for _, channel := range channels {
		err = cmp.Or(err, checkChannel(channel))
		lastGap[channel] = 0
	}
	if err != nil {
		return nil, fmt.Errorf("pg: subscribe: %w", err)
	}
	s := &Subscription{hub: h, lastGap: lastGap, c: make(chan Notice, h.cfg.Buffer+len(lastGap))}
	h.mu.Lock()
	defer h.mu.Unlock()
	for channel := range lastGap {
		if h.subs[channel] == nil {
			h.subs[channel] = make(map[*Subscription]struct{})
		}
		h.subs[channel][s] = struct{}{}
		if h.listening[channel] || h.state == HubPolling {
			s.gap(channel)
		}
		if !h.listening[channel] {
			h.changed(channel)
		}
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

// C returns the notices, in the order in which they came, whatever their channel. Who does
// not read loses the newest ones and finds a gap of their channel in their place: however
// slow, the last notice or a gap after it is there to be read. Close closes it; what was
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
	for channel := range s.lastGap {
		delete(h.subs[channel], s)
		if len(h.subs[channel]) > 0 {
			continue
		}
		delete(h.subs, channel)
		if h.listening[channel] {
			h.changed(channel)
		} else {
			delete(h.stale, channel) // nothing to listen to, and nothing to end
		}
	}
}

// gap offers a gap of channel. Under hub.mu.
func (s *Subscription) gap(channel string) { s.offer(Notice{Channel: channel, Gap: true}) }

// offer puts n in, or a gap when there is no room for it. A gap that still waits
// stands for everything of its channel that is dropped: who takes it reads later than now.
// Under hub.mu, which makes the hub the only sender: between len and the send
// the channel can only become emptier.
func (s *Subscription) offer(n Notice) {
	waiting := len(s.c)
	gapWaits := s.lastGap[n.Channel] > s.sent-uint64(waiting)
	full := waiting >= cap(s.c)-len(s.lastGap) // what is beyond are gaps, one of a channel at most
	if gapWaits && (full || n.Gap) {
		return
	}
	if full {
		n = Notice{Channel: n.Channel, Gap: true}
	}
	s.sent++
	if n.Gap {
		s.lastGap[n.Channel] = s.sent
	}
	s.c <- n
}
