package changes

import (
	"context"
	"time"

	"github.com/howdah-db/howdah/pg"
)

const (
	briefly = 10 * time.Millisecond  // between two looks just after there was something
	deaf    = 100 * time.Millisecond // at most, where notifications do not arrive
)

// bell waits for a reason to look at the feed: a doorbell, or that time has
// passed, which stands behind it.
type bell struct {
	hub            *pg.Hub
	writers, ticks *pg.Subscription
	idle           time.Duration
	next           time.Duration
	rung           bool // the last wait was ended by somebody, not by time
}

func newBell(hub *pg.Hub, idle time.Duration) (*bell, error) {
	writers, err := hub.Subscribe(bellOfWriters)
	if err != nil {
		return nil, err
	}
	ticks, err := hub.Subscribe(bellOfTicks)
	if err != nil {
		writers.Close()
		return nil, err
	}
	return &bell{hub: hub, writers: writers, ticks: ticks, idle: idle, next: briefly}, nil
}

func (b *bell) close() {
	b.writers.Close()
	b.ticks.Close()
}

// busy says that there was something: more is likely to follow soon.
func (b *bell) busy() { b.next = briefly }

// wait returns when it rings or it is time to look; false when ctx has ended.
func (b *bell) wait(ctx context.Context) bool {
	most := b.idle
	if b.hub.State() != pg.HubListening {
		most = min(most, deaf)
	}
	timer := time.NewTimer(min(b.next, most))
	defer timer.Stop()
	b.rung = true
	select {
	case <-ctx.Done():
		return false
	case <-b.writers.C():
		b.busy()
	case <-b.ticks.C():
		b.busy()
	case <-timer.C:
		b.rung = false
		b.next = min(2*b.next, b.idle)
	}
	return true
}
