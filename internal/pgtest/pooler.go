package pgtest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Pooler is a pooler in transaction mode, as PgBouncer is one: clients have no server
// connection of their own, but one of a few for each transaction, and the next time most
// likely another. What belongs to a session (prepared statements, settings, LISTEN,
// locks) stays with the server's, where the next client finds it; notifications go to
// whoever has that connection, or nowhere.
type Pooler struct {
	t        testing.TB
	listener net.Listener
	url      string
	server   *pgconn.Config
	greeting []pgproto3.BackendMessage // the parameters of a server's session
	wait     sync.WaitGroup

	mu      sync.Mutex // taken last
	freed   *sync.Cond // free has grown, or closed is set
	closed  bool
	servers map[*pooledServer]struct{}
	free    []*pooledServer          // first come, first served: a client seldom has one twice in a row
	clients map[uint32]*pooledClient // by the process id that it was told
}

// pooledServer is a connection to the server.
type pooledServer struct {
	*pgconn.HijackedConn
	client atomic.Pointer[pooledClient] // who has it; nil = nobody
}

// pooledClient is a connection of a client.
type pooledClient struct {
	conn    net.Conn
	backend *pgproto3.Backend
	key     pgproto3.BackendKeyData

	mu      sync.Mutex
	server  *pooledServer // of its transaction, or nil
	awaited int           // times that the server has still to say that it is ready
}

// NewPooler puts a pooler with size server connections on a loopback port in front of the
// database of url. It lets everybody in. It ends, with every connection through it, when
// the test does.
func NewPooler(t testing.TB, url string, size int) *Pooler {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	p := &Pooler{t: t, server: &cfg.Config, servers: map[*pooledServer]struct{}{}, clients: map[uint32]*pooledClient{}}
	p.freed = sync.NewCond(&p.mu)
	p.server.RuntimeParams["application_name"] = "pooler"
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(p.close)
	for range size {
		if err := p.connect(); err != nil {
			t.Fatalf("pgtest: %v", err)
		}
	}
	for s := range p.servers {
		for name, value := range s.ParameterStatuses {
			p.greeting = append(p.greeting, &pgproto3.ParameterStatus{Name: name, Value: value})
		}
		break
	}
	p.url = proxyURL(cfg, p.listener.Addr().String())
	p.wait.Go(p.accept)
	return p
}

// URL returns the URL of the same database for the same user, through the pooler.
func (p *Pooler) URL() string { return p.url }

func (p *Pooler) close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.freed.Broadcast()
	for _, c := range p.clients {
		c.conn.Close()
	}
	for s := range p.servers {
		s.Conn.Close()
	}
	p.mu.Unlock()
	p.wait.Wait()
}

// connect adds a server connection.
func (p *Pooler) connect() error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, p.server)
	if err != nil {
		return err
	}
	h, err := conn.Hijack()
	if err != nil {
		return err
	}
	s := &pooledServer{HijackedConn: h}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return h.Conn.Close()
	}
	p.servers[s] = struct{}{}
	p.wait.Go(func() { p.answers(s) })
	p.free = append(p.free, s)
	p.freed.Signal()
	return nil
}

// answers hands what a server says to who has its connection, until it is closed;
// then it puts another in its place.
func (p *Pooler) answers(s *pooledServer) {
	for {
		msg, err := s.Frontend.Receive()
		c := s.client.Load()
		switch {
		case err != nil && c != nil:
			c.conn.Close()
			fallthrough
		case err != nil:
			p.lost(s)
			return
		case c != nil:
			c.mu.Lock()
			p.answer(c, s, msg)
			c.mu.Unlock()
		}
	}
}

// answer hands an answer to a client. A server that is ready, and not in a transaction, is
// free for the next.
func (p *Pooler) answer(c *pooledClient, s *pooledServer, msg pgproto3.BackendMessage) {
	if c.server != s {
		return // it has left
	}
	ready, ok := msg.(*pgproto3.ReadyForQuery)
	if ok {
		c.awaited--
	}
	if ok && c.awaited == 0 && ready.TxStatus == 'I' {
		c.server = nil
		s.client.Store(nil)
		p.mu.Lock()
		p.free = append(p.free, s)
		p.freed.Signal()
		p.mu.Unlock()
	}
	c.backend.Send(msg)
	if ok || s.Frontend.ReadBufferLen() == 0 {
		c.backend.Flush() // a client that is gone is found where it is read from
	}
}

// lost sees to it that a server connection that is gone is replaced.
func (p *Pooler) lost(s *pooledServer) {
	s.Conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.servers, s)
	p.free = slices.DeleteFunc(p.free, func(f *pooledServer) bool { return f == s })
	if p.closed {
		return
	}
	p.wait.Go(func() {
		if err := p.connect(); err != nil {
			p.t.Errorf("pgtest: pooler: %v", err)
		}
	})
}

func (p *Pooler) accept() {
	for {
		conn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.wait.Go(func() { p.serve(conn) })
		}
	}
}

// serve takes in what a client says until it is gone.
func (p *Pooler) serve(conn net.Conn) {
	defer conn.Close()
	c := &pooledClient{conn: conn, backend: pgproto3.NewBackend(conn, conn)}
	if err := p.greet(c); err != nil {
		return
	}
	defer p.leave(c)
	for {
		msg, err := c.backend.Receive()
		if _, bye := msg.(*pgproto3.Terminate); bye || err != nil {
			return
		}
		if err := p.ask(c, msg); err != nil {
			return
		}
	}
}

// tracked are the settings that a client may ask for at its start, and does not get.
var tracked = []string{"user", "database", "application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"}

// greet begins a client's session. An error ends it.
func (p *Pooler) greet(c *pooledClient) error {
	for {
		msg, err := c.backend.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.CancelRequest:
			p.cancel(msg)
			return errors.New("that was all")
		case *pgproto3.StartupMessage:
			for name := range msg.Parameters {
				if !slices.Contains(tracked, name) {
					c.backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: " + name})
					return errors.Join(c.backend.Flush(), fmt.Errorf("refused: %s", name))
				}
			}
			return p.enter(c)
		default: // TLS
			if _, err := c.conn.Write([]byte("N")); err != nil {
				return err
			}
		}
	}
}

// enter tells a client that it is in.
func (p *Pooler) enter(c *pooledClient) error {
	c.key.SecretKey = make([]byte, 4)
	var id [4]byte
	rand.Read(id[:])
	rand.Read(c.key.SecretKey)
	c.key.ProcessID = binary.BigEndian.Uint32(id[:]) >> 1
	p.mu.Lock()
	p.clients[c.key.ProcessID] = c
	closed := p.closed
	p.mu.Unlock()
	c.backend.Send(&pgproto3.AuthenticationOk{})
	for _, msg := range p.greeting {
		c.backend.Send(msg)
	}
	c.backend.Send(&c.key)
	c.backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := c.backend.Flush(); err != nil || closed {
		p.leave(c)
		return errors.Join(err, net.ErrClosed)
	}
	return nil
}

// leave ends a client's session. A transaction that it leaves open ends with the server
// connection.
func (p *Pooler) leave(c *pooledClient) {
	p.mu.Lock()
	delete(p.clients, c.key.ProcessID)
	p.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		c.server.Conn.Close()
		c.server = nil
	}
}

// ask hands what a client says to the server of its transaction, which it gets first.
func (p *Pooler) ask(c *pooledClient, msg pgproto3.FrontendMessage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		c.mu.Unlock()
		s := p.take()
		c.mu.Lock()
		if s == nil {
			return net.ErrClosed
		}
		c.server = s
		s.client.Store(c)
	}
	switch msg.(type) {
	case *pgproto3.Query, *pgproto3.Sync, *pgproto3.FunctionCall:
		c.awaited++
	}
	c.server.Frontend.Send(msg)
	return c.server.Frontend.Flush()
}

// take returns the server connection that has been free for the longest; nil at the end.
func (p *Pooler) take() *pooledServer {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.free) == 0 && !p.closed {
		p.freed.Wait()
	}
	if p.closed {
		return nil
	}
	s := p.free[0]
	p.free = p.free[1:]
	return s
}

// cancel has the server cancel what a client is doing.
func (p *Pooler) cancel(asked *pgproto3.CancelRequest) {
	p.mu.Lock()
	c := p.clients[asked.ProcessID]
	p.mu.Unlock()
	if c == nil || !slices.Equal(c.key.SecretKey, asked.SecretKey) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		return
	}
	network, address := pgconn.NetworkAddress(p.server.Host, p.server.Port)
	conn, err := net.Dial(network, address)
	if err != nil {
		return
	}
	defer conn.Close()
	text, err := (&pgproto3.CancelRequest{ProcessID: c.server.PID, SecretKey: c.server.SecretKey}).Encode(nil)
	if err == nil {
		conn.Write(text)
		conn.Read(make([]byte, 1)) // the server closes it when it has seen to it
	}
}
