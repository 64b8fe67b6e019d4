package pg_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// Subscriptions that come and go leave nothing to listen to, not even those that
// go while their LISTEN is under way.
func TestHubEndsWhatNobodyHears(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	conn, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	h := pg.NewHub(pg.HubConfig{Conn: conn})
	run(t, h)
	eventually(t, "listening", func() bool { return h.State() == pg.HubListening })
	last, err := h.Subscribe("last")
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	next(t, last) // the hub is at it
	for i := range 300 {
		s, err := h.Subscribe(fmt.Sprintf("c%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			next(t, s)
		}
		s.Close()
	}
	eventually(t, "one channel is left", func() bool {
		listening, stale := pg.HubChannels(h)
		return listening <= 2 && stale == 0 // the hub's own, for its check, may be one
	})
}
