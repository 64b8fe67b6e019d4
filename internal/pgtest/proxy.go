package pgtest

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Proxy is a network between a test and its server that fails on command. Its
// methods may be called from several goroutines.
type Proxy struct {
	listener net.Listener
	url      string
	network  string // of the server
	address  string
	wait     sync.WaitGroup

	mu     sync.Mutex // guards the rest
	move   *sync.Cond // something below has changed
	closed bool
	refuse bool
	stall  bool
	hung   bool // a link does, or did
	links  map[*link]struct{}
	traps  []trap
	from   []byte
	to     []byte
}

// link is one connection through the proxy.
type link struct {
	client, server net.Conn
	cut            bool // no byte passes any more
	hung           bool // nor does one until it is cut, and nobody is told
}

// trap cuts the connection on which match comes by.
type trap struct {
	match   []byte
	answer  bool // from the server, not from the client
	forward bool // the other side gets to see it
	hang    bool // nobody is told
}

// NewProxy puts a proxy on a loopback port in front of the server of url, be
// that on TCP or on a unix socket. It ends, with every connection through it,
// when the test does.
func NewProxy(t testing.TB, url string) *Proxy {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	p := &Proxy{links: map[*link]struct{}{}}
	p.move = sync.NewCond(&p.mu)
	p.network, p.address = pgconn.NetworkAddress(cfg.Host, cfg.Port)
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	p.url = proxyURL(cfg, p.listener.Addr().String())
	p.wait.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func proxyURL(cfg *pgx.ConnConfig, address string) string {
	u := url.URL{Scheme: "postgres", Host: address, Path: "/" + cfg.Database, User: url.User(cfg.User)}
	if cfg.Password != "" {
		u.User = url.UserPassword(cfg.User, cfg.Password)
	}
	return u.String()
}

// URL returns the URL of the same database for the same user, through the proxy.
func (p *Proxy) URL() string { return p.url }

// Cut resets every connection that is open now. New ones are let through.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		p.drop(l)
	}
}

// Refuse makes the proxy reset new connections at once, until it is told false.
// Open ones are left alone.
func (p *Proxy) Refuse(on bool) { p.set(func() { p.refuse = on }) }

// Stall stops every byte in both directions, until it is told false: the
// connections stay open, and nothing comes.
func (p *Proxy) Stall(on bool) { p.set(func() { p.stall = on }) }

// CutOn arms a trap: the next time that a client sends match (within one chunk
// of what the network delivers, which holds for a statement), the server gets
// it, and the connection is cut before any answer passes. What the server then
// did, the client cannot know.
func (p *Proxy) CutOn(match []byte) { p.arm(trap{match: match, forward: true}) }

// Drop arms a trap like [Proxy.CutOn], but the server does not get what matched.
func (p *Proxy) Drop(match []byte) { p.arm(trap{match: match}) }

// HangOn arms a trap like [Proxy.Drop], but nobody is told: the connection stays open, and
// leads nowhere any more until it is [Proxy.Cut].
func (p *Proxy) HangOn(match []byte) { p.arm(trap{match: match, hang: true}) }

// Hung reports whether a trap of HangOn has sprung.
func (p *Proxy) Hung() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hung
}

// CutOnAnswer arms a trap for what the server sends: the client gets what came
// before the chunk of the network that holds match, and then the connection is
// cut.
func (p *Proxy) CutOnAnswer(match []byte) { p.arm(trap{match: match, answer: true}) }

func (p *Proxy) arm(t trap) {
	t.match = bytes.Clone(t.match)
	p.set(func() { p.traps = append(p.traps, t) })
}

// Rewrite replaces from by to, which must have the same length, in every chunk
// that servers send from now on: to pretend another server_version, for
// instance. Empty from ends it.
func (p *Proxy) Rewrite(from, to []byte) {
	if len(from) != len(to) {
		panic("pgtest: Rewrite needs two of the same length")
	}
	p.set(func() { p.from, p.to = bytes.Clone(from), bytes.Clone(to) })
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.move.Broadcast()
}

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.set(func() { p.closed = true })
	p.Cut()
	p.wait.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // this one client went away again
		}
		p.wait.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	p.mu.Lock()
	refuse := p.refuse || p.closed
	p.mu.Unlock()
	if refuse {
		reset(client)
		return
	}
	server, err := net.Dial(p.network, p.address)
	if err != nil {
		reset(client) // what the server itself would do: it is not there
		return
	}
	l := &link{client: client, server: server}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links[l] = struct{}{}
	if p.closed || p.refuse { // by now
		p.drop(l)
		return
	}
	p.wait.Go(func() { p.pump(l, client, server, p.fromClient) })
	p.wait.Go(func() { p.pump(l, server, client, p.fromServer) })
}

// pump carries bytes one way until either end is closed. See lets them pass.
func (p *Proxy) pump(l *link, from, to net.Conn, see func(*link, []byte) ([]byte, bool)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			chunk, last := see(l, buf[:n])
			if _, werr := to.Write(chunk); werr != nil && err == nil {
				err = werr
			}
			if last {
				break
			}
		}
		if err != nil {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(l)
}

// fromClient returns what of chunk may go to the server, and whether that is
// the last of this connection.
func (p *Proxy) fromClient(l *link, chunk []byte) (_ []byte, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pass(l) {
		return nil, true
	}
	return p.spring(l, chunk, false)
}

// spring springs the first trap that chunk goes into, and returns what of chunk
// may pass and whether that is the last of this connection; the caller holds mu.
func (p *Proxy) spring(l *link, chunk []byte, answer bool) (_ []byte, last bool) {
	for i, trap := range p.traps {
		if trap.answer != answer || !bytes.Contains(chunk, trap.match) {
			continue
		}
		p.traps = append(p.traps[:i:i], p.traps[i+1:]...)
		if trap.hang {
			l.hung, p.hung = true, true
			p.pass(l)
			return nil, true
		}
		l.cut = true // the answer must not overtake the cut
		if trap.forward {
			return chunk, true
		}
		return nil, true
	}
	return chunk, false
}

func (p *Proxy) fromServer(l *link, chunk []byte) (_ []byte, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pass(l) {
		return nil, true
	}
	if len(p.from) > 0 {
		chunk = bytes.ReplaceAll(chunk, p.from, p.to)
	}
	return p.spring(l, chunk, true)
}

// pass waits out a stall. It reports false if the link was cut meanwhile.
func (p *Proxy) pass(l *link) bool {
	for (p.stall || l.hung) && !l.cut {
		p.move.Wait()
	}
	return !l.cut
}

// drop ends a link; the caller holds mu. The client is reset. The server sees an
// ordinary end, so that it still reads what was forwarded.
func (p *Proxy) drop(l *link) {
	l.cut = true
	delete(p.links, l)
	reset(l.client)
	_ = l.server.Close()
	p.move.Broadcast()
}

// reset closes c at once, without the polite end that would let the other side
// read what is on its way.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
