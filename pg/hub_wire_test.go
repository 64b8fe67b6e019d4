package pg_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// patience is how long a test waits for what has to come.
const patience = pgtest.Patience

// journal is what happened, in order, for tests to wait on.
type journal struct {
	mu      sync.Mutex
	changed chan struct{} // closed by the next entry
	lines   []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// count returns the number of entries that begin with prefix.
func (j *journal) count(prefix string) (n int) {
	for _, line := range j.all() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// await waits for n entries that begin with prefix.
func (j *journal) await(t *testing.T, prefix string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		j.mu.Lock()
		if j.changed == nil {
			j.changed = make(chan struct{})
		}
		changed := j.changed
		j.mu.Unlock()
		if j.count(prefix) >= n {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited in vain for %d × %q in %q", n, prefix, j.all())
		}
	}
}

// Enabled, Handle, WithAttrs and WithGroup make a journal a log: "WARN message key=value".
func (j *journal) Enabled(context.Context, slog.Level) bool { return true }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	j.add(line)
	return nil
}

func (j *journal) WithAttrs([]slog.Attr) slog.Handler { return j }
func (j *journal) WithGroup(string) slog.Handler      { return j }

// wire stands between a client and the server and understands what they say. Its
// journal has "accept" for each connection and the text of each query.
type wire struct {
	journal
	config *pgx.ConnConfig // leads to the wire

	mute    atomic.Bool // swallow notifications
	session atomic.Bool // make up process ids, as every pooler does
	pooler  atomic.Bool // drop notifications that come between commands, as PgBouncer in transaction mode does

	listener net.Listener
	server   func() (net.Conn, error)
	wait     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// newWire returns a wire to the database at url.
func newWire(t *testing.T, url string) *wire {
	t.Helper()
	config := hubConfig(t, url)
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{
		config:   config,
		listener: listener,
		server:   func() (net.Conn, error) { return net.Dial(network, address) },
		conns:    make(map[net.Conn]bool),
	}
	config.Host = "127.0.0.1"
	config.Port = uint16(listener.Addr().(*net.TCPAddr).Port)
	config.TLSConfig, config.Fallbacks = nil, nil
	w.wait.Go(w.accept)
	t.Cleanup(func() {
		listener.Close()
		w.mu.Lock()
		for c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.wait.Wait()
	})
	return w
}

func hubConfig(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func (w *wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.add("accept")
		server, err := w.server()
		if err != nil {
			client.Close()
			continue
		}
		w.mu.Lock()
		w.conns[client], w.conns[server] = true, true
		w.mu.Unlock()
		w.wait.Go(func() { w.relay(client, server) })
	}
}

// relay carries messages both ways until one side ends.
func (w *wire) relay(client, server net.Conn) {
	var open atomic.Int64 // commands whose end the client has not seen
	open.Store(1)         // the login
	var both sync.WaitGroup
	both.Go(func() {
		defer server.Close()
		if message, err := read(client, 0); err == nil { // the startup message has no type
			server.Write(message)
		}
		for {
			message, err := read(client, 1)
			if err != nil {
				return
			}
			if message[0] == 'Q' {
				open.Add(1)
				w.add(strings.TrimRight(string(message[5:]), "\x00"))
			}
			if _, err := server.Write(message); err != nil {
				return
			}
		}
	})
	both.Go(func() {
		defer client.Close()
		for {
			message, err := read(server, 1)
			if err != nil {
				return
			}
			switch pooler := w.pooler.Load(); message[0] {
			case 'A':
				if w.mute.Load() || pooler && open.Load() == 0 {
					w.add("swallow")
					continue
				}
			case 'K':
				if pooler || w.session.Load() {
					binary.BigEndian.PutUint32(message[5:], 2878858203)
				}
			case 'Z':
				open.Add(-1)
			}
			if _, err := client.Write(message); err != nil {
				return
			}
		}
	})
	both.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, client)
	delete(w.conns, server)
}

// read reads a message: head bytes of type, four of length (which count
// themselves), and the rest.
func read(r io.Reader, head int) ([]byte, error) {
	message := make([]byte, head+4)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	message = append(message, make([]byte, binary.BigEndian.Uint32(message[head:])-4)...)
	_, err := io.ReadFull(r, message[head+4:])
	return message, err
}
