package pg

import (
	"maps"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is sent and read in whatever order, on one channel or several: nobody waits,
// notices come in order, of each channel one gap waits at most, and for every notice that
// the reader did not get there is a gap of its channel that he took after it was sent.
func TestSubscriptionLosesNothingUntold(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := NewHub(HubConfig{Buffer: rapid.IntRange(1, 5).Draw(t, "buffer")})
		channels := []string{"x", "y", "z"}[:rapid.IntRange(1, 3).Draw(t, "channels")]
		s, err := h.Subscribe(channels...)
		if err != nil {
			t.Fatal(err)
		}
		sent, untold := 0, map[int]string{} // untold: sent, and neither read nor behind a gap
		last := -1
		read := func() {
			n := <-s.C()
			if n.Gap {
				// Re-reads everything up to now; what still waits comes twice, which is allowed.
				maps.DeleteFunc(untold, func(_ int, channel string) bool { return channel == n.Channel })
				return
			}
			i, _ := strconv.Atoi(n.Payload)
			if i <= last {
				t.Fatalf("%d came after %d", i, last)
			}
			last = i
			delete(untold, i)
		}
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				channel := rapid.SampledFrom(channels).Draw(t, "channel")
				h.dispatch(Notice{Channel: channel, Payload: strconv.Itoa(sent), PID: 1})
				untold[sent] = channel
				sent++
			},
			"reconnect": func(*rapid.T) {
				for i, channel := range channels {
					untold[-1-i] = channel // what was sent meanwhile
				}
				h.lost()
				h.heard(channels)
			},
			"read": func(*rapid.T) {
				if len(s.C()) > 0 {
					read()
				}
			},
			"": func(t *rapid.T) {
				if n := len(s.C()); n > h.cfg.Buffer+len(channels) {
					t.Fatalf("%d notices wait, buffer %d", n, h.cfg.Buffer)
				}
			},
		})
		for len(s.C()) > 0 {
			read()
		}
		if len(untold) > 0 {
			t.Fatalf("neither told nor behind a gap: %v", untold)
		}
	})
}
