package pg

import (
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is sent and read in whatever order: nobody waits, notices come in
// order, one gap waits at most, and for every notice that the reader did not get
// there is a gap that he took after it was sent.
func TestSubscriptionLosesNothingUntold(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := NewHub(HubConfig{Buffer: rapid.IntRange(1, 5).Draw(t, "buffer")})
		s, err := h.Subscribe("x")
		if err != nil {
			t.Fatal(err)
		}
		sent, untold := 0, map[int]bool{} // untold: sent, and neither read nor behind a gap
		last := -1
		read := func() {
			n := <-s.C()
			if n.Gap {
				// Re-reads everything up to now; what still waits comes twice, which is allowed.
				clear(untold)
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
			"send": func(*rapid.T) {
				h.dispatch(Notice{Channel: "x", Payload: strconv.Itoa(sent), PID: 1})
				untold[sent] = true
				sent++
			},
			"reconnect": func(*rapid.T) {
				untold[-1] = true // what was sent meanwhile
				h.lost()
				h.heard([]string{"x"})
			},
			"read": func(*rapid.T) {
				if len(s.C()) > 0 {
					read()
				}
			},
			"": func(t *rapid.T) {
				if n := len(s.C()); n > h.cfg.Buffer+1 {
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
