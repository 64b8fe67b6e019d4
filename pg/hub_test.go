package pg_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// runHub runs h until the test or the returned function ends it.
func runHub(t *testing.T, h *pg.Hub) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run = %v, want nil after its context ended", err)
			}
		case <-time.After(patience):
			t.Error("Run did not end with its context")
		}
	})
	t.Cleanup(stop)
	return stop
}

func subscribe(t *testing.T, h *pg.Hub, channels ...string) *pg.Subscription {
	t.Helper()
	s, err := h.Subscribe(channels...)
	if err != nil {
		t.Fatalf("Subscribe(%q) = %v", channels, err)
	}
	return s
}

func next(t *testing.T, s *pg.Subscription) pg.Notice {
	t.Helper()
	n := pgtest.Receive(t, s.C(), "a notice")
	if n == (pg.Notice{}) {
		t.Fatal("the subscription is closed")
	}
	return n
}

func wantGap(t *testing.T, s *pg.Subscription) {
	t.Helper()
	if n := next(t, s); !n.Gap || n.Payload != "" || n.PID != 0 {
		t.Fatalf("notice = %+v, want a gap", n)
	}
}

// wantListening takes gaps until h listens.
func wantListening(t *testing.T, h *pg.Hub, s *pg.Subscription) {
	t.Helper()
	for wantGap(t, s); h.State() != pg.HubListening; {
		wantGap(t, s)
	}
}

func wantPayload(t *testing.T, s *pg.Subscription, payload string) {
	t.Helper()
	if n := next(t, s); n.Gap || n.Payload != payload || n.PID == 0 {
		t.Fatalf("notice = %+v, want payload %q", n, payload)
	}
}

func wantState(t *testing.T, h *pg.Hub, want pg.HubState) {
	t.Helper()
	if got := h.State(); got != want {
		t.Fatalf("State() = %q, want %q", got, want)
	}
}

// session returns a connection of its own.
func session(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func notify(t *testing.T, c *pgx.Conn, channel, payload string) {
	t.Helper()
	if _, err := c.Exec(context.Background(), "SELECT pg_notify($1, $2)", channel, payload); err != nil {
		t.Fatal(err)
	}
}

func TestHubHandsOut(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	h := pg.NewHub(pg.HubConfig{Conn: hubConfig(t, url)})
	wantState(t, h, pg.HubConnecting)
	channels := []string{
		"plain", "UPPER and lower", `"quoted" 'twice'`, "dots.in.it", "x; NOTIFY plain, 'injected'", "ünï ☃ 象", `back\slash`, "select", "$1",
		strings.Repeat("é", 31) + "x", // 63 bytes
	}
	type ears struct{ a, b *pg.Subscription }
	subs := make(map[string]ears)
	for _, c := range channels { // one before and one after Run begins
		subs[c] = ears{a: subscribe(t, h, c)}
	}
	stop := runHub(t, h)
	for _, c := range channels {
		wantGap(t, subs[c].a)
		b := subscribe(t, h, c)
		wantGap(t, b)
		subs[c] = ears{subs[c].a, b}
	}
	wantState(t, h, pg.HubListening)

	conn := session(t, url)
	for _, c := range channels {
		notify(t, conn, c, "1 of "+c)
		notify(t, conn, c, "")
	}
	for _, c := range channels {
		for _, s := range []*pg.Subscription{subs[c].a, subs[c].b} {
			if n, want := next(t, s), (pg.Notice{Channel: c, Payload: "1 of " + c, PID: conn.PgConn().PID()}); n != want {
				t.Errorf("notice = %+v, want %+v", n, want)
			}
			wantPayload(t, s, "")
			if len(s.C()) > 0 {
				t.Errorf("%q also got %+v", c, next(t, s))
			}
		}
	}

	stop()
	wantState(t, h, pg.HubConnecting)
	late := subscribe(t, h, "plain")
	runHub(t, h) // a second time
	wantGap(t, late)
	wantGap(t, subs["plain"].a)
	notify(t, conn, "plain", "again")
	wantPayload(t, late, "again")
	wantPayload(t, subs["plain"].a, "again")
}

func TestHubRefuses(t *testing.T) {
	t.Parallel()
	h := pg.NewHub(pg.HubConfig{})
	for _, channel := range []string{"", strings.Repeat("x", 64), strings.Repeat("é", 32), "nul\x00", "not\xffutf8"} {
		if s, err := h.Subscribe(channel); !errors.Is(err, fault.Invalid) || s != nil {
			t.Errorf("Subscribe(%q) = %v, %v, want Invalid", channel, s, err)
		}
	}
	if err := h.Run(context.Background()); !errors.Is(err, fault.Invalid) {
		t.Errorf("Run without Conn = %v, want Invalid", err)
	}

	h = pg.NewHub(pg.HubConfig{Conn: hubConfig(t, pgtest.Database(t))})
	s := subscribe(t, h, "x")
	runHub(t, h)
	wantGap(t, s)
	if err := h.Run(context.Background()); !errors.Is(err, fault.Conflict) {
		t.Errorf("second Run = %v, want Conflict", err)
	}
}

func TestHubListensForTheFirstAndUnlistensAfterTheLast(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	w := newWire(t, url)
	h := pg.NewHub(pg.HubConfig{Conn: w.config})
	runHub(t, h)
	first := subscribe(t, h, "x")
	wantGap(t, first)
	second := subscribe(t, h, "x")
	wantGap(t, second) // without a LISTEN of its own
	first.Close()
	first.Close() // a second time
	if _, open := <-first.C(); open {
		t.Error("C is open after Close")
	}
	other := subscribe(t, h, "y")
	wantGap(t, other) // whatever closing first caused has been sent before
	if listens, unlistens := w.count(`LISTEN "x"`), w.count(`UNLISTEN "x"`); listens != 1 || unlistens != 0 {
		t.Errorf("%d LISTEN and %d UNLISTEN with a subscription left, want 1 and 0", listens, unlistens)
	}
	second.Close()
	w.await(t, `UNLISTEN "x"`, 1)

	third := subscribe(t, h, "x")
	wantGap(t, third)
	if n := w.count(`LISTEN "x"`); n != 2 {
		t.Errorf("%d LISTENs, want a second", n)
	}
	notify(t, session(t, url), "x", "hello")
	wantPayload(t, third, "hello")
}

// Subscriptions come and go while notifications stream in: each interrupts the
// wait for the next message, wherever in a message the stream is.
func TestHubLosesNothingWhenInterrupted(t *testing.T) {
	t.Parallel()
	const notices = 1000
	url := pgtest.Database(t)
	h := pg.NewHub(pg.HubConfig{Conn: hubConfig(t, url), Buffer: notices, Ping: 10 * time.Millisecond})
	runHub(t, h)
	steady := subscribe(t, h, "steady")
	wantGap(t, steady)

	sent := make(chan struct{})
	var churn sync.WaitGroup
	for i := range 2 {
		churn.Go(func() {
			for n := 0; ; n++ {
				s, err := h.Subscribe(fmt.Sprintf("churn %d %d", i, n%7))
				if err != nil {
					t.Error(err)
					return
				}
				if n%3 == 0 {
					select {
					case <-s.C():
					case <-sent:
					}
				}
				s.Close()
				select {
				case <-sent:
					return
				default:
				}
			}
		})
	}
	conn := session(t, url)
	long := strings.Repeat("x", 7000) // does not fit in one read
	for i := range notices {
		notify(t, conn, "steady", strconv.Itoa(i)+" "+long[:i%5*1700])
	}
	close(sent)
	churn.Wait()
	for i := range notices {
		n := next(t, steady)
		if number, _, _ := strings.Cut(n.Payload, " "); n.Gap || number != strconv.Itoa(i) {
			t.Fatalf("notice %d = %.40q, gap %t", i, n.Payload, n.Gap)
		}
	}
}

// One subscription to several channels has them in the order in which they were sent.
func TestHubOrderOfChannels(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	h := pg.NewHub(pg.HubConfig{Conn: hubConfig(t, url)})
	runHub(t, h)
	s := subscribe(t, h, "x", "y", "x")
	wantGap(t, s)
	wantGap(t, s)
	conn := session(t, url)
	for i := range 50 {
		notify(t, conn, []string{"y", "x", "x"}[i%3], strconv.Itoa(i))
	}
	for i := range 50 {
		wantPayload(t, s, strconv.Itoa(i))
	}
	s.Close()
	again := subscribe(t, h, "y")
	wantGap(t, again)
	notify(t, conn, "x", "nobody hears it")
	notify(t, conn, "y", "again")
	wantPayload(t, again, "again")
}

func TestHubSlowReader(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	h := pg.NewHub(pg.HubConfig{Conn: hubConfig(t, url), Buffer: 4})
	slow, quick := subscribe(t, h, "x"), subscribe(t, h, "x")
	runHub(t, h)
	wantGap(t, slow)
	wantGap(t, quick)
	conn := session(t, url)
	for i := range 20 {
		notify(t, conn, "x", strconv.Itoa(i))
		wantPayload(t, quick, strconv.Itoa(i)) // is not held up
	}
	for i := range 4 {
		wantPayload(t, slow, strconv.Itoa(i))
	}
	wantGap(t, slow)
	if n := len(slow.C()); n > 0 {
		t.Errorf("%d notices after the gap, want none", n)
	}
	notify(t, conn, "x", "on")
	wantPayload(t, slow, "on")
}

func TestHubComesBack(t *testing.T) {
	t.Parallel()
	type scene struct {
		hub   *pg.Hub
		wire  *wire
		proxy *pgtest.Proxy
		conn  *pgx.Conn
	}
	for name, outage := range map[string]func(*testing.T, scene){
		"terminated": func(t *testing.T, s scene) { terminate(t, s.conn) },
		"cut":        func(_ *testing.T, s scene) { s.proxy.Cut() },
		"cut before the answer to LISTEN": func(t *testing.T, s scene) {
			s.proxy.CutOn([]byte(`LISTEN "c"`))
			c := subscribe(t, s.hub, "c")
			wantGap(t, c)
			notify(t, s.conn, "c", "hello")
			wantPayload(t, c, "hello")
		},
		"stalled": func(t *testing.T, s scene) {
			s.proxy.Stall(true)
			s.wire.await(t, "accept", 2) // only a ping without an answer tells the hub
			s.proxy.Stall(false)
		},
		"refused": func(t *testing.T, s scene) {
			s.proxy.Refuse(true)
			s.proxy.Cut()
			s.wire.await(t, "accept", 4)
			s.proxy.Refuse(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			proxy := pgtest.NewProxy(t, url)
			w := newWire(t, proxy.URL())
			var log journal
			h := pg.NewHub(pg.HubConfig{Conn: w.config, Ping: 100 * time.Millisecond, Log: slog.New(&log)})
			a, b := subscribe(t, h, "a"), subscribe(t, h, "b")
			runHub(t, h)
			wantGap(t, a)
			wantGap(t, b)
			conn := session(t, url)
			outage(t, scene{h, w, proxy, conn})
			wantGap(t, a)
			wantGap(t, b)
			wantState(t, h, pg.HubListening)
			notify(t, conn, "a", "after")
			notify(t, conn, "b", "after")
			wantPayload(t, a, "after")
			wantPayload(t, b, "after")
			if lines := log.all(); len(lines) != 2 || log.count("WARN hub has no connection") != 1 || log.count("INFO hub is connected again") != 1 {
				t.Errorf("log = %q, want one warning and one word of its end", lines)
			}
		})
	}
}

// terminate ends the hub's connection to conn's database.
func terminate(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	tag, err := conn.Exec(context.Background(), `
		SELECT pg_terminate_backend(pid)
		FROM pg_stat_activity
		WHERE application_name = 'howdah hub' AND datname = current_database()`)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatalf("terminating the hub's one connection: %v, %v", tag, err)
	}
}

func TestHubWaitsForTheServer(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	proxy.Refuse(true)
	w := newWire(t, proxy.URL())
	w.config.Password = cmp.Or(w.config.Password, "s3cret")
	var log journal
	h := pg.NewHub(pg.HubConfig{Conn: w.config, Log: slog.New(&log)})
	s := subscribe(t, h, "x")
	stop := runHub(t, h)
	w.await(t, "accept", 3)
	wantState(t, h, pg.HubConnecting)
	if lines := log.all(); len(lines) != 1 || strings.Contains(lines[0], w.config.Password) {
		t.Errorf("log = %q, want one warning for all attempts, without the password", lines)
	}
	proxy.Refuse(false)
	wantGap(t, s)

	// Run ends while nobody answers.
	connections := w.count("accept")
	proxy.Stall(true)
	proxy.Cut()
	w.await(t, "accept", connections+1)
	stop()
}

func TestHubPings(t *testing.T) {
	t.Parallel()
	w := newWire(t, pgtest.Database(t))
	h := pg.NewHub(pg.HubConfig{Conn: w.config, Ping: 20 * time.Millisecond})
	runHub(t, h)
	w.await(t, "-- ping", 3)
	wantState(t, h, pg.HubListening) // without a subscription, too
}

func TestHubOfManySubscriptions(t *testing.T) {
	t.Parallel()
	const channels, subscriptions = 300, 1000
	url := pgtest.Database(t)
	w := newWire(t, url)
	h := pg.NewHub(pg.HubConfig{Conn: w.config, Log: slog.New(&journal{})})
	names := make([]string, channels)
	for i := range names {
		names[i] = fmt.Sprintf("channel %d", i)
	}
	subs := make([]*pg.Subscription, subscriptions)
	for i := range subs {
		subs[i] = subscribe(t, h, names[i%channels])
	}
	runHub(t, h)
	conn := session(t, url)
	for round := range 2 {
		for _, s := range subs {
			wantGap(t, s)
		}
		if _, err := conn.Exec(context.Background(), "SELECT pg_notify(c, c) FROM unnest($1::text[]) AS c", names); err != nil {
			t.Fatal(err)
		}
		for i, s := range subs {
			wantPayload(t, s, names[i%channels])
		}
		batches := 0
		for _, q := range w.all() {
			if strings.Contains(q, `LISTEN "channel`) {
				batches++
				if n := strings.Count(q, "LISTEN"); n != channels {
					t.Errorf("%d LISTENs in a batch, want %d", n, channels)
				}
			}
		}
		if batches != round+1 {
			t.Errorf("%d batches of LISTENs after %d connections", batches, round+1)
		}
		if round == 0 {
			terminate(t, conn)
		}
	}
	for _, s := range subs {
		if len(s.C()) > 0 {
			t.Fatalf("%+v was not asked for", next(t, s))
		}
	}
}
