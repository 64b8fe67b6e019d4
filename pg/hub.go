package pg

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
)

// HubConfig says where a [Hub] listens. Only Conn is needed.
type HubConfig struct {
	// Conn leads to the server itself ([Config.Direct]): a pooler in transaction
	// mode accepts LISTEN and never delivers. It comes from pgx.ParseConfig; the
	// hub works on a copy, under application_name "howdah hub".
	Conn   *pgx.ConnConfig
	Buffer int           // notices, of all its channels, kept for a subscription that does not read; default 64
	Ping   time.Duration // how often the connection is tried; default 5 s. One that is lost without a word is found 5 s later
	Log    *slog.Logger  // default slog.Default()
}

// HubState says how much a subscriber may rely on being rung.
type HubState string

const (
	// HubConnecting: there is no connection, or Run is not running. Poll; when it
	// is made, every subscription is told of a gap.
	HubConnecting HubState = "connecting"
	// HubListening: notifications arrive.
	HubListening HubState = "listening"
	// HubPolling: the server is there, but notifications do not come through (a
	// pooler in transaction mode). Poll; no notice but gaps will come.
	HubPolling HubState = "polling"
)

// Notice is a notification, or the news that some may have been missed.
type Notice struct {
	Channel, Payload string
	PID              uint32 // the backend that sent it; 0 in a gap
	Gap              bool   // anything may have been missed: read again. Payload is empty
}

// Hub hears the notifications of one database over one connection, for any
// number of subscribers in the process. A notification is a doorbell: a
// subscriber reads what there is to read in the tables, when a [Notice] comes
// and, because bells fail, now and then without one.
//
// All methods may be called at any time from any goroutine.
type Hub struct {
	cfg   HubConfig
	voice string // the channel on which the hub calls itself to learn whether it hears

	mu        sync.Mutex
	running   bool
	state     HubState
	subs      map[string]map[*Subscription]struct{} // by channel; no empty sets
	listening map[string]bool                       // channels whose LISTEN is in force
	stale     map[string]bool                       // channels of which subs and listening may disagree
	interrupt context.CancelFunc                    // ends the wait for notifications; nil while nobody waits
}

// NewHub returns a hub that listens once [Hub.Run] runs.
func NewHub(cfg HubConfig) *Hub {
	cfg.Buffer = max(cfg.Buffer, 0)
	cfg.Buffer = cmp.Or(cfg.Buffer, 64)
	cfg.Ping = max(cfg.Ping, 0)
	cfg.Ping = cmp.Or(cfg.Ping, 5*time.Second)
	return &Hub{
		cfg:       cfg,
		voice:     "howdah_hub_" + rand.Text(),
		state:     HubConnecting,
		subs:      make(map[string]map[*Subscription]struct{}),
		listening: make(map[string]bool),
		stale:     make(map[string]bool),
	}
}

// State says whether notifications arrive at the moment.
func (h *Hub) State() HubState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// Run keeps a connection and hands out what it hears until ctx is done; then it
// returns nil. Failures of the network, the server or the login never end it:
// it logs a warning once, tries again every 50 ms at first and every 5 s in the
// end, and logs when it is back. Subscriptions outlive it.
//
// It returns an error at once when there is nothing to wait for: Invalid without
// a Conn, Conflict when the hub runs already.
func (h *Hub) Run(ctx context.Context) error {
	if h.cfg.Conn == nil {
		return fmt.Errorf("pg: hub: %w", Refuse("Conn", "is missing"))
	}
	h.mu.Lock()
	if h.running {
		h.mu.Unlock()
		return fmt.Errorf("pg: hub: runs already: %w", fault.Conflict)
	}
	h.running = true
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.running = false
		h.mu.Unlock()
	}()
	(&hubRun{hub: h, log: cmp.Or(h.cfg.Log, slog.Default())}).run(ctx)
	return nil
}

// pending returns the statements that make listening agree with subs, and the
// channels that will be listened to once they have run.
func (h *Hub) pending() (statements []string, added []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for channel := range h.stale {
		quoted := pgx.Identifier{channel}.Sanitize()
		switch wanted := len(h.subs[channel]) > 0; {
		case wanted && !h.listening[channel]:
			statements = append(statements, "LISTEN "+quoted)
			added = append(added, channel)
		case !wanted && h.listening[channel]:
			statements = append(statements, "UNLISTEN "+quoted)
			delete(h.listening, channel) // at once: who subscribes while it runs must not believe that he is heard
		}
	}
	clear(h.stale)
	return statements, added
}

// heard marks that the hub listens, to the channels added too, and tells their
// subscribers that from now on they miss nothing.
func (h *Hub) heard(added []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = HubListening
	for _, channel := range added {
		h.listening[channel] = true
		if len(h.subs[channel]) == 0 { // the last one left while this was under way
			h.changed(channel)
		}
		for s := range h.subs[channel] {
			s.gap(channel)
		}
	}
}

// deaf marks that nothing will be heard until further notice.
func (h *Hub) deaf() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == HubPolling {
		return
	}
	h.state = HubPolling
	for channel, subs := range h.subs {
		for s := range subs {
			s.gap(channel)
		}
	}
}

// lost marks that there is no connection: all has to be listened to again.
func (h *Hub) lost() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = HubConnecting
	clear(h.listening)
	for channel := range h.subs {
		h.stale[channel] = true
	}
}

// arm makes cancel the way to interrupt a wait, unless there is something to
// do first: then it returns false.
func (h *Hub) arm(cancel context.CancelFunc) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.stale) > 0 {
		return false
	}
	h.interrupt = cancel
	return true
}

func (h *Hub) disarm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.interrupt = nil
}

// changed notes, under mu, that channel may have to be listened to, or no
// longer, and has a waiting connection see to it.
func (h *Hub) changed(channel string) {
	h.stale[channel] = true
	if h.interrupt != nil {
		h.interrupt()
		h.interrupt = nil
	}
}

// dispatch hands a notification to the subscribers of its channel.
func (h *Hub) dispatch(n Notice) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[n.Channel] {
		s.offer(n)
	}
}
