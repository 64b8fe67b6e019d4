package logical

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/howdah-db/howdah/pg"
)

// source is the database that is read: one connection gives its changes, the other
// answers questions about its tables.
type source struct {
	stream *pgconn.PgConn
	conn   *pgx.Conn
	system int64
	types  map[uint32]*jsonType // by oid

	messages bool // it can send those that stand in transactions: PostgreSQL 14
	standby  bool
	timeline int32 // its history's number
}

func connect(ctx context.Context, cfg *pgx.ConnConfig) (*source, error) {
	s := &source{types: map[uint32]*jsonType{}}
	var err error
	if s.conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, err
	}
	replication := cfg.Config.Copy()
	// Values come as text, which must not depend on what the server has set.
	for name, value := range map[string]string{
		"replication": "database", "datestyle": "ISO, MDY", "intervalstyle": "postgres", "bytea_output": "hex",
		"extra_float_digits": "1", "timezone": "UTC", "client_encoding": "UTF8",
		"search_path": "pg_catalog, pg_temp", "quote_all_identifiers": "off",
	} {
		replication.RuntimeParams[name] = value
	}
	if s.stream, err = pgconn.ConnectConfig(ctx, replication); err != nil {
		s.close()
		return nil, err
	}
	if err := s.conn.QueryRow(ctx, `
		SELECT system_identifier, current_setting('server_version_num')::int >= 140000, pg_is_in_recovery()
		FROM pg_control_system()`).Scan(&s.system, &s.messages, &s.standby); err != nil {
		s.close()
		return nil, err
	}
	here, err := pglogrepl.IdentifySystem(ctx, s.stream)
	if err != nil {
		s.close()
		return nil, err
	}
	s.timeline = here.Timeline
	return s, nil
}

func (s *source) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if s.stream != nil {
		s.stream.Close(ctx)
	}
	s.conn.Close(ctx)
}

// prepare checks the source, makes the slot if this is the first time, and finds
// where the log ends.
func (p *Pump) prepare(ctx context.Context, s *source, w *writer) error {
	w.system = s.system
	known, err := w.locate(ctx)
	if err != nil {
		return err
	}
	var keep, level string
	var published, there bool
	err = s.conn.QueryRow(ctx, `
		SELECT current_setting('max_slot_wal_keep_size'), current_setting('wal_level'),
			EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
			EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $2)`, p.cfg.Publication, p.cfg.Slot).
		Scan(&keep, &level, &published, &there)
	switch {
	case err != nil:
		return err
	case s.standby && known: // it may be about to be the primary
		return errors.New("the source is a standby, from which nothing is pumped; it is waited for")
	case s.standby:
		return pg.Refuse("source", "a standby; want its primary")
	case level != "logical":
		return pg.Refuse("wal_level", "%q at the source; want logical: ALTER SYSTEM SET wal_level = logical, and a restart", level)
	case keep == "-1" && !p.cfg.Unbounded:
		return pg.Refuse("max_slot_wal_keep_size", "-1 at the source: a pump that stands still would fill its disk. ALTER SYSTEM SET max_slot_wal_keep_size = '50GB', or set Unbounded")
	case !published:
		return pg.Refuse("publication", "%q is not there: CREATE PUBLICATION %s FOR TABLE …", p.cfg.Publication, pgx.Identifier{p.cfg.Publication}.Sanitize())
	case known && !there:
		return fmt.Errorf("%w: %q is not there any more", ErrLost, p.cfg.Slot)
	case !there:
		if _, err := s.conn.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, p.cfg.Slot); err != nil {
			return err
		}
	}
	confirmed, err := p.check(ctx, s)
	if err != nil {
		return err
	}
	if known { // asked for after the slot was: another pump may just have moved on
		if _, err := w.locate(ctx); err != nil {
			return err
		}
	}
	if known && s.timeline != w.timeline {
		if err := s.follow(ctx, w); err != nil {
			return err
		}
	}
	if known && confirmed > w.told {
		return fmt.Errorf("%w: %q is another slot than it was, or was moved on: it begins at %s, and the log has all up to %s", ErrLost, p.cfg.Slot, confirmed, w.told)
	}
	if !known {
		if err := w.begin(ctx, confirmed, s.timeline); err != nil {
			return err
		}
	}
	if err := w.cutOff(ctx); err != nil {
		return err
	}
	w.flushed, w.end = confirmed, confirmed
	w.unsafe = true // what a pump before us wrote last, and we are not going to write again
	return w.flush(ctx)
}

// check returns up to where the slot knows that we have everything; ErrLost where it
// has thrown away what follows.
func (p *Pump) check(ctx context.Context, s *source) (confirmed pglogrepl.LSN, err error) {
	var status, plugin string
	var text *string
	err = s.conn.QueryRow(ctx, `
		SELECT coalesce(wal_status, 'lost'), coalesce(plugin, ''), confirmed_flush_lsn::text
		FROM pg_replication_slots
		WHERE slot_name = $1`, p.cfg.Slot).Scan(&status, &plugin, &text)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, fmt.Errorf("%w: %q is not there any more", ErrLost, p.cfg.Slot)
	case err != nil:
		return 0, err
	case status == "lost":
		return 0, fmt.Errorf("%w: %q needed WAL that max_slot_wal_keep_size or idle_replication_slot_timeout did not keep", ErrLost, p.cfg.Slot)
	case plugin != "pgoutput":
		return 0, pg.Refuse("slot", "%q is one of %s; want one of pgoutput", p.cfg.Slot, plugin)
	case text == nil:
		return 0, fmt.Errorf("%q is still being made, which waits for the transactions that are open", p.cfg.Slot)
	}
	return pglogrepl.ParseLSN(*text)
}

// stream carries changes over until something fails or ctx is done.
func (p *Pump) stream(ctx context.Context, s *source, w *writer) error {
	args := []string{"proto_version '1'", "publication_names " + pg.Literal(pgx.Identifier{p.cfg.Publication}.Sanitize())}
	if s.messages {
		args = append(args, "messages 'true'")
	}
	if err := w.ask(ctx, func(ctx context.Context) error {
		return pglogrepl.StartReplication(ctx, s.stream, p.cfg.Slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: args})
	}); err != nil {
		return err
	}
	defer func() { // what was written is not to be sent again
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		w.abandon(ctx)
		if w.flush(ctx) == nil && s.confirm(ctx, w, false) == nil {
			s.end(ctx)
		}
	}()
	d := &decoder{pump: p, source: s, writer: w, relations: map[uint32]*relation{}}
	beat, unheard := time.Now(), 0 // and so many since the source has said something
	for {
		if time.Since(beat) > p.stopped/beats {
			beat = time.Now()
			if unheard++; unheard > silent {
				return errors.New("the stream of the source says nothing any more")
			}
			if err := w.ask(ctx, func(ctx context.Context) error { return p.beat(ctx, s, w) }); err != nil {
				return err
			}
		}
		until := beat.Add(p.stopped/beats + time.Millisecond)
		if w.pending() && w.due.Before(until) {
			until = w.due
		}
		receiving, cancel := context.WithDeadline(ctx, until)
		msg, err := s.receive(receiving)
		cancel()
		if err != nil && !(pgconn.Timeout(err) && ctx.Err() == nil) {
			return err
		}
		asked := false
		if msg != nil {
			unheard = 0
			if asked, err = d.take(ctx, msg); err != nil {
				return err
			}
		}
		if asked || w.pending() && !time.Now().Before(w.due) {
			if err := w.ask(ctx, func(ctx context.Context) error { return s.confirm(ctx, w, false) }); err != nil {
				return err
			}
		}
	}
}

// beat shows that both databases, and the pump, are there.
func (p *Pump) beat(ctx context.Context, s *source, w *writer) error {
	if err := w.live(ctx); err != nil {
		return err
	}
	if _, err := p.check(ctx, s); err != nil {
		return err
	}
	if _, err := s.conn.Exec(ctx, `SELECT pg_logical_emit_message(false, 'howdah', '')`); err != nil {
		return err
	}
	return s.confirm(ctx, w, true)
}

// end ends the stream, so that the slot is free when it returns.
func (s *source) end(ctx context.Context) {
	s.stream.Frontend().Send(&pgproto3.CopyDone{})
	if s.stream.Frontend().Flush() != nil {
		return
	}
	for {
		msg, err := s.stream.ReceiveMessage(ctx)
		if _, ready := msg.(*pgproto3.ReadyForQuery); ready || err != nil {
			return
		}
	}
}

// confirm tells the source what is on the log's disk: it need not keep that. The log
// says before what the slot is told, so that a slot that knows of more is another. The
// source may be asked to answer.
func (s *source) confirm(ctx context.Context, w *writer, ask bool) error {
	if w.tx == nil { // which has that row locked
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	if s.stream.IsClosed() { // pgx may still be taking leave on it
		return net.ErrClosed
	}
	return pglogrepl.SendStandbyStatusUpdate(ctx, s.stream, pglogrepl.StandbyStatusUpdate{WALWritePosition: w.told, ReplyRequested: ask})
}
