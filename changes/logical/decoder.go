package logical

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// What is kept, in bytes, as the log keeps it by default: of a row, old and new, or a
// message; of an origin; of meta.
const (
	mostBytes  = 1 << 20
	mostOrigin = 200
	mostMeta   = 8 << 10
)

var validTopic = regexp.MustCompile(`^[a-z0-9._-]{1,100}$`)

// receive waits for a message of the stream; nil is one that has nothing for us.
func (s *source) receive(ctx context.Context) ([]byte, error) {
	msg, err := s.stream.ReceiveMessage(ctx)
	if err != nil {
		return nil, err
	}
	switch msg := msg.(type) {
	case *pgproto3.CopyData:
		return msg.Data, nil
	case *pgproto3.ErrorResponse:
		return nil, pgconn.ErrorResponseToPgError(msg)
	case *pgproto3.CopyDone, *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
		return nil, fmt.Errorf("the source has ended its stream")
	}
	return nil, nil
}

// decoder makes changes of what pgoutput says.
type decoder struct {
	pump      *Pump
	source    *source
	writer    *writer
	relations map[uint32]*relation
	inside    bool // a transaction
}

// relation is a table as it was when the changes that follow were made.
type relation struct {
	schema, table string
	columns       []column
	ours          bool // howdah's own: not to be logged
}

type column struct {
	name     string
	typ      *jsonType
	key      bool
	identity bool // old values of it are sent
}

// take takes a message; asked reports whether the source wants an answer.
func (d *decoder) take(ctx context.Context, msg []byte) (asked bool, err error) {
	switch msg[0] {
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(msg[1:])
		if err == nil && !d.inside {
			d.writer.pass(k.ServerWALEnd)
		}
		return k.ReplyRequested, err
	case pglogrepl.XLogDataByteID:
		data, err := pglogrepl.ParseXLogData(msg[1:])
		if err != nil {
			return false, err
		}
		m, err := pglogrepl.Parse(data.WALData)
		if err != nil {
			return false, err
		}
		return false, d.message(ctx, m)
	}
	return false, nil
}

func (d *decoder) message(ctx context.Context, m pglogrepl.Message) error {
	switch m := m.(type) {
	case *pglogrepl.BeginMessage:
		d.inside = true
		d.writer.open(m.FinalLSN, m.CommitTime)
	case *pglogrepl.OriginMessage:
		d.writer.origin = m.Name
	case *pglogrepl.LogicalDecodingMessage:
		if m.Transactional {
			return d.told(ctx, m.Prefix, m.Content)
		}
	case *pglogrepl.CommitMessage:
		d.inside = false
		return d.writer.done(ctx, m.TransactionEndLSN)
	case *pglogrepl.RelationMessage:
		return d.writer.ask(ctx, func(ctx context.Context) error { return d.relation(ctx, m) })
	case *pglogrepl.InsertMessage:
		return d.row(ctx, m.RelationID, "i", nil, false, m.Tuple)
	case *pglogrepl.UpdateMessage:
		return d.row(ctx, m.RelationID, "u", m.OldTuple, m.OldTupleType == pglogrepl.UpdateMessageTupleTypeOld, m.NewTuple)
	case *pglogrepl.DeleteMessage:
		return d.row(ctx, m.RelationID, "d", m.OldTuple, m.OldTupleType == pglogrepl.DeleteMessageTupleTypeOld, nil)
	case *pglogrepl.TruncateMessage:
		for _, id := range m.RelationIDs {
			if r, err := d.known(id); err != nil {
				return err
			} else if !r.ours {
				if err := d.writer.add(ctx, change{op: "t", schema: r.schema, table: r.table}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// told takes what a transaction says of itself by pg_logical_emit_message, as Log.Mark
// and Log.Emit do where the log is: the origin and meta of the changes that follow, or
// a message.
func (d *decoder) told(ctx context.Context, prefix string, content []byte) error {
	text := strings.ReplaceAll(strings.ToValidUTF8(string(content), "\uFFFD"), "\x00", "")
	switch topic, message := strings.CutPrefix(prefix, "howdah.message."); {
	case prefix == "howdah.origin":
		d.writer.origin = strings.ToValidUTF8(text[:min(len(text), mostOrigin)], "")
	case prefix == "howdah.meta" && len(text) <= mostMeta: // what is larger is left out, as with triggers
		d.writer.meta = text
	case message && validTopic.MatchString(topic):
		if !storable(text) {
			text = string(quoted(nil, text))
		}
		c := change{op: "m", schema: "message", table: topic, new: &text}
		if len(text) > mostBytes {
			c.new, c.trimmed = nil, true
		}
		return d.writer.add(ctx, c)
	case message && !d.writer.skip: // Log.Emit would refuse it; here it has been committed
		d.pump.odd.Do(func() {
			d.pump.cfg.Log.Warn("a message was left out: its topic is not up to 100 of a-z 0-9 . _ -; of others that are nothing is said", "slot", d.pump.cfg.Slot, "topic", topic)
		})
	}
	return nil
}

func (d *decoder) known(id uint32) (*relation, error) {
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("the source sent a row of table %d, which it never described", id)
	}
	return r, nil
}

// relation remembers a table. Of one with REPLICA IDENTITY FULL all columns are sent as
// its key, and the catalog says which are.
func (d *decoder) relation(ctx context.Context, m *pglogrepl.RelationMessage) error {
	r := &relation{schema: m.Namespace, table: m.RelationName, ours: m.Namespace == "howdah"}
	var oids []uint32
	for _, c := range m.Columns {
		oids = append(oids, c.DataType)
	}
	if err := d.source.learn(ctx, oids); err != nil {
		return err
	}
	primary := map[string]bool{}
	if full := m.ReplicaIdentity == 'f'; full {
		var names []string
		if err := d.source.conn.QueryRow(ctx, `
			SELECT coalesce((
				SELECT array_agg(a.attname::text)
				FROM pg_index i
				JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey[0:i.indnkeyatts - 1])
				WHERE i.indrelid = $1 AND i.indisprimary), '{}')`, m.RelationID).Scan(&names); err != nil {
			return err
		}
		for _, name := range names {
			primary[name] = true
		}
	}
	for _, c := range m.Columns {
		flagged := c.Flags&1 != 0
		r.columns = append(r.columns, column{
			name: c.Name, typ: d.source.types[c.DataType], identity: flagged,
			key: flagged && (m.ReplicaIdentity != 'f' || primary[c.Name]),
		})
	}
	d.relations[m.RelationID] = r
	return nil
}

// row adds the change of a row; whole reports that the old one is all there.
func (d *decoder) row(ctx context.Context, id uint32, op string, old *pglogrepl.TupleData, whole bool, now *pglogrepl.TupleData) error {
	r, err := d.known(id)
	if err != nil || r.ours || d.writer.skip {
		return err
	}
	was, _ := r.image(old, nil, !whole)
	is, missing := r.image(now, old, false)
	wasKey, isKey := r.keyOf(was), r.keyOf(is)
	if !whole {
		was = nil // it has the key alone, which stands for itself
	}
	c := change{op: op, schema: r.schema, table: r.table, key: isKey, old: object(was), new: object(is), missing: missing}
	if now == nil {
		c.key = wasKey
	}
	if c.old != nil && c.new != nil && len(*c.old)+len(*c.new) > mostBytes || c.old != nil && len(*c.old) > mostBytes || c.new != nil && len(*c.new) > mostBytes {
		c.old, c.new, c.missing, c.trimmed = nil, nil, nil, true
	}
	if op == "u" && wasKey != nil && isKey != nil && *wasKey != *isKey {
		// Who follows the old key sees it end, who follows the new one sees it begin.
		ended, begun := c, c
		ended.op, ended.key, ended.new, ended.missing = "d", wasKey, nil, nil
		begun.op, begun.old = "i", nil
		if err := d.writer.add(ctx, ended); err != nil {
			return err
		}
		return d.writer.add(ctx, begun)
	}
	return d.writer.add(ctx, c)
}

// member is a column of a row in JSON.
type member struct {
	column *column
	json   []byte
}

// image is a tuple in JSON, with the names of columns that neither it nor the old one
// has; of a tuple that is only a key, its columns.
func (r *relation) image(t, old *pglogrepl.TupleData, identity bool) (members []member, missing *string) {
	if t == nil {
		return nil, nil
	}
	var lacks []string
	for i, value := range t.Columns {
		c := &r.columns[i]
		if identity && !c.identity {
			continue
		}
		if value.DataType == pglogrepl.TupleDataTypeToast && old != nil && c.identity {
			value = old.Columns[i]
		}
		switch value.DataType {
		case pglogrepl.TupleDataTypeNull:
			members = append(members, member{c, []byte("null")})
		case pglogrepl.TupleDataTypeText:
			members = append(members, member{c, c.typ.append(nil, string(value.Data))})
		default:
			lacks = append(lacks, c.name)
		}
	}
	if lacks != nil {
		text, err := json.Marshal(lacks)
		if err == nil { // strings always can be
			missing = new(string(text))
		}
	}
	return members, missing
}

// keyOf is the key of a row; nil where the table has none.
func (r *relation) keyOf(row []member) *string {
	var key []member
	for _, m := range row {
		if m.column.key {
			key = append(key, m)
		}
	}
	return object(key)
}

// object is a JSON object; nil of nothing.
func object(members []member) *string {
	if members == nil {
		return nil
	}
	var b bytes.Buffer
	for i, m := range members {
		b.WriteByte("{,"[min(i, 1)])
		b.Write(quoted(nil, m.column.name))
		b.WriteByte(':')
		b.Write(m.json)
	}
	b.WriteByte('}')
	return new(b.String())
}
