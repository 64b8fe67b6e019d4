package pg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
)

const (
	hubRetryMin = 100 * time.Millisecond // halved at random
	hubRetryMax = 5 * time.Second
	hubAnswer   = 5 * time.Second // a server that takes longer is not there
	hubCheck    = time.Second     // how long the hub's own call may take
)

// hubRun is one run of a hub. It belongs to the goroutine of Run alone, which is
// also the one that pgconn calls OnNotification on.
type hubRun struct {
	hub  *Hub
	log  *slog.Logger
	conn *pgconn.PgConn
	due  time.Time // when the connection is to be tried again

	calls  uint64 // calls to itself so far
	called uint64 // the last of them that it heard

	down  bool // an outage has been logged
	muted bool // that notifications do not arrive has been logged
}

func (r *hubRun) run(ctx context.Context) {
	retry := hubRetryMin
	for {
		up, err := r.session(ctx)
		r.hub.lost()
		if ctx.Err() != nil {
			return
		}
		if !r.down {
			r.down = true
			r.log.Warn("hub has no connection to listen on; subscribers poll", "error", err)
		}
		if up > hubRetryMax { // a server that takes us and drops us is not a server that is back
			retry = hubRetryMin
		}
		t := time.NewTimer(retry/2 + rand.N(retry/2))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		retry = min(2*retry, hubRetryMax)
	}
}

// session connects, and listens until the connection or ctx ends. It returns how
// long it was connected.
func (r *hubRun) session(ctx context.Context) (up time.Duration, err error) {
	conn, hangUp, err := r.connect(ctx, r.notified)
	if err != nil {
		return 0, err
	}
	defer hangUp()
	r.conn = conn
	began := time.Now()
	err = r.listen(ctx)
	return time.Since(began), err
}

func (r *hubRun) notified(_ *pgconn.PgConn, n *pgconn.Notification) {
	if n.Channel == r.hub.voice {
		r.called, _ = strconv.ParseUint(n.Payload, 10, 64)
		return
	}
	r.hub.dispatch(Notice{Channel: n.Channel, Payload: n.Payload, PID: n.PID})
}

// listen makes sure that notifications arrive, and then takes them in.
func (r *hubRun) listen(ctx context.Context) error {
	for {
		heard, err := r.check(ctx)
		if err != nil {
			return err
		}
		if r.down {
			r.down = false
			r.log.Info("hub is connected again")
		}
		if heard {
			break
		}
		if err := r.poll(ctx); err != nil {
			return err
		}
	}
	for ctx.Err() == nil { // the end of a wait is not an error
		if err := r.sync(ctx); err != nil {
			return err
		}
		if r.muted {
			r.muted = false
			r.log.Info("notifications reach the hub again")
		}
		if err := r.wait(ctx); err != nil {
			return err
		}
		if time.Now().Before(r.due) {
			continue
		}
		// Not a NOTIFY: that takes an xid and a lock of the whole cluster and writes WAL.
		if _, err := r.exec(ctx, r.conn, "-- ping"); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// check finds out whether the hub hears what is said to it while it is silent,
// which is all that matters, by calling itself.
//
// Without a pooler a NOTIFY on the connection itself shows it. PgBouncer 1.18 in
// transaction or statement mode was seen to do this: LISTEN succeeds; a session's
// own NOTIFY comes back, because the server sends it before the command is
// complete, while the client still has the server connection; a NOTIFY by
// anybody else is given to whoever has that server connection at the moment, or
// dropped with the warning "got packet 'A' from server when not linked". In
// session mode all is delivered. So behind a pooler another connection has to
// call. A pooler gives itself away by the process id it told at the start of the
// session: it makes that up (as the key for cancel requests, of which it needs
// one for each client).
func (r *hubRun) check(ctx context.Context) (heard bool, err error) {
	voice := pgx.Identifier{r.hub.voice}.Sanitize()
	rows, err := r.exec(ctx, r.conn, "LISTEN "+voice+"; SELECT pg_backend_pid()")
	if err != nil {
		return false, err
	}
	caller := r.conn
	if pid := strconv.FormatUint(uint64(r.conn.PID()), 10); len(rows) != 1 || rows[0] != pid {
		other, hangUp, err := r.connect(ctx, nil)
		if err != nil {
			return false, fmt.Errorf("no second connection through the pooler: %w", err)
		}
		defer hangUp()
		caller = other
	}
	r.calls++
	// With synchronous_commit off it neither flushes WAL nor waits for a standby.
	if _, err := r.exec(ctx, caller, fmt.Sprintf(
		"SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, '%d')", Literal(r.hub.voice), r.calls)); err != nil {
		return false, err
	}
	waitCtx, cancel := context.WithTimeout(ctx, hubCheck)
	defer cancel()
	if err := r.receive(waitCtx, func() bool { return r.called == r.calls }); err != nil {
		return false, err
	}
	if r.called == r.calls {
		return true, nil
	}
	// Behind a pooler the LISTEN stays with a server connection of all clients.
	_, err = r.exec(ctx, r.conn, "UNLISTEN "+voice)
	return false, err
}

// poll says that nothing is heard, and lets some time pass. It listens to no
// channel: behind a pooler that would only make noise on other people's
// connections.
func (r *hubRun) poll(ctx context.Context) error {
	r.hub.deaf()
	if !r.muted {
		r.muted = true
		r.log.Warn("notifications do not reach the hub (a pooler in transaction mode?); subscribers poll; give it a direct connection")
	}
	ctx, cancel := context.WithDeadline(ctx, r.due)
	defer cancel()
	return r.receive(ctx, func() bool { return false })
}

// sync sends the LISTENs and UNLISTENs that are due, all in one round trip.
func (r *hubRun) sync(ctx context.Context) error {
	statements, added := r.hub.pending()
	if len(statements) > 0 {
		if _, err := r.exec(ctx, r.conn, strings.Join(statements, ";")); err != nil {
			return err
		}
	}
	r.hub.heard(added)
	return nil
}

// wait takes in notifications until a ping is due or subscriptions change.
func (r *hubRun) wait(ctx context.Context) error {
	ctx, cancel := context.WithDeadline(ctx, r.due)
	defer cancel()
	if !r.hub.arm(cancel) {
		return nil
	}
	defer r.hub.disarm()
	return r.receive(ctx, func() bool { return false })
}

// receive takes in notifications until done or the end of ctx, which are no
// errors; an error means that the connection is lost.
//
// The end of ctx costs no notification: pgconn then sets a deadline on the
// socket (the watcher that connect chooses), the read fails with a timeout, which
// is the one error that does not close the connection, and the part of a message
// that had arrived stays in the reader's buffer, TLS's included, for the next read.
func (r *hubRun) receive(ctx context.Context, done func() bool) error {
	for !done() {
		err := r.conn.WaitForNotification(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil && !r.conn.IsClosed():
			return nil
		default:
			return err
		}
	}
	return nil
}

// exec runs sql in one round trip and returns the first column of its rows. No
// answer in time means that the connection is lost.
func (r *hubRun) exec(ctx context.Context, conn *pgconn.PgConn, sql string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, hubAnswer)
	defer cancel()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if conn == r.conn {
		r.due = time.Now().Add(r.hub.cfg.Ping)
	}
	var first []string
	for _, result := range results {
		for _, row := range result.Rows {
			first = append(first, string(row[0]))
		}
	}
	return first, nil
}

var errHungUp = errors.New("hung up")

// connect makes a connection. hangUp ends it and waits until nothing of it is left.
func (r *hubRun) connect(ctx context.Context, notified pgconn.NotificationHandler) (conn *pgconn.PgConn, hangUp func(), err error) {
	cfg := r.hub.cfg.Conn.Config.Copy()
	cfg.RuntimeParams["application_name"] = "howdah hub"
	cfg.RuntimeParams["client_encoding"] = "UTF8" // of the channels' names
	cfg.OnNotification = notified
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	// See receive; another handler could send cancel requests or close.
	cfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: c.Conn()}
	}
	// When a connection fails pgconn dials once more, to cancel what it was doing.
	// We were doing nothing, and that dial can hang for 15 s.
	var dialed atomic.Bool
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed.Load() {
			return nil, errHungUp
		}
		return dial(ctx, network, addr)
	}
	conn, err = pgconn.ConnectConfig(ctx, cfg)
	dialed.Store(true)
	if err != nil {
		return nil, nil, err
	}
	return conn, func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(bye)
		conn.Conn().Close() // where pgconn closes by itself, it listens for last words for 15 s
		<-conn.CleanupDone()
	}, nil
}
