package pg_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

func TestHubBehindAPooler(t *testing.T) {
	t.Parallel()
	for name, silence := range map[string]func(w *wire, on bool){
		"nothing comes through":                 func(w *wire, on bool) { w.mute.Store(on) },
		"only what the session says comes back": func(w *wire, on bool) { w.session.Store(true); w.pooler.Store(on) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			proxy := pgtest.NewProxy(t, url)
			w := newWire(t, proxy.URL())
			silence(w, true)
			var log journal
			h := pg.NewHub(pg.HubConfig{Conn: w.config, Ping: 100 * time.Millisecond, Log: slog.New(&log)})
			s := subscribe(t, h, "x")
			runHub(t, h)
			wantGap(t, s)
			wantState(t, h, pg.HubPolling)
			late := subscribe(t, h, "x")
			wantGap(t, late)                   // it must not wait for one that does not come
			w.await(t, "SELECT set_config", 2) // goes on checking
			proxy.Cut()
			wantGap(t, s)
			wantState(t, h, pg.HubPolling)
			if n := w.count(`LISTEN "x"`); n > 0 {
				t.Errorf("%d LISTENs where they only disturb others", n)
			}

			silence(w, false)
			wantListening(t, h, s)
			wantListening(t, h, late)
			notify(t, session(t, url), "x", "hello")
			wantPayload(t, s, "hello")
			wantPayload(t, late, "hello")
			log.await(t, "INFO notifications reach the hub again", 1)
			if n := log.count("WARN notifications do not reach the hub"); n != 1 {
				t.Errorf("%d warnings of silence, want 1: %q", n, log.all())
			}
		})
	}
}

func TestHubBehindASessionPooler(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	w := newWire(t, url)
	w.session.Store(true)
	h := pg.NewHub(pg.HubConfig{Conn: w.config, Ping: 100 * time.Millisecond})
	s := subscribe(t, h, "x")
	runHub(t, h)
	wantListening(t, h, s)
	notify(t, session(t, url), "x", "hello")
	wantPayload(t, s, "hello")
}
