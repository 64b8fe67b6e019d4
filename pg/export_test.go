package pg

// HubChannels tells how many channels h listens to, and how many wait to be
// listened to or no longer.
func HubChannels(h *Hub) (listening, stale int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.listening), len(h.stale)
}
