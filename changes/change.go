package changes

import (
	"bytes"
	"encoding/json"
	"time"
)

// Op is what happened to a row.
type Op string

// The kinds of change. Read is a row as a backfill found it, Message what was
// put into the feed with [Log.Emit].
const (
	Insert   Op = "insert"
	Update   Op = "update"
	Delete   Op = "delete"
	Truncate Op = "truncate"
	Read     Op = "read"
	Message  Op = "message"
)

var ops = []Op{Insert, Update, Delete, Truncate, Read, Message}

// code is the op as the log has it.
func (o Op) code() string { return string(o[:1]) }

// Change is one change of the feed. What is absent is nil or zero, and absent
// from its JSON too.
type Change struct {
	Position Position        `json:"position"`
	Op       Op              `json:"op"`
	Schema   string          `json:"schema"`            // "message" of a message
	Table    string          `json:"table"`             // the topic of a message
	Key      json.RawMessage `json:"key,omitempty"`     // object of the key's columns; absent without a key and of a truncate
	Old      json.RawMessage `json:"old,omitempty"`     // object of columns: the row as it was, as far as the capture's payload says
	New      json.RawMessage `json:"new,omitempty"`     // the row as it is; the payload of a message
	At       time.Time       `json:"at"`                // the wall clock when it was made; orders nothing
	XID      string          `json:"xid,omitempty"`     // the writer's transaction
	Origin   string          `json:"origin,omitempty"`  // whose transaction it was: see [Log.Mark]
	Meta     json.RawMessage `json:"meta,omitempty"`    // what its transaction said of itself; a JSON string where that was no JSON
	Trimmed  bool            `json:"trimmed,omitempty"` // old and new were larger than the capture allows and were left out
	Last     bool            `json:"last,omitempty"`    // the last change of its transaction, as far as the filter lets through
}

// line is a change as the log has it.
type line struct {
	N       int64
	ID      int64
	Op      string
	Schema  string
	Table   string
	Key     []byte
	Old     []byte
	New     []byte
	At      time.Time
	XID     string
	Origin  string
	Meta    *string
	Trimmed bool
}

// head is what a line says of itself without being decoded.
func (l *line) head() Change {
	c := Change{Position: l.position(), Schema: l.Schema, Table: l.Table}
	for _, op := range ops {
		if op.code() == l.Op {
			c.Op = op
		}
	}
	return c
}

func (l *line) change() Change {
	c := l.head()
	c.Key, c.Old, c.New = compact(l.Key), compact(l.Old), compact(l.New)
	c.At, c.XID, c.Origin, c.Trimmed = l.At.UTC(), l.XID, l.Origin, l.Trimmed
	if l.Meta != nil {
		c.Meta = asJSON(*l.Meta)
	}
	return c
}

// compact takes out the blanks that PostgreSQL writes.
func compact(b []byte) json.RawMessage {
	if b == nil {
		return nil
	}
	var out bytes.Buffer
	if json.Compact(&out, b) != nil {
		return b // it came from a jsonb column
	}
	return out.Bytes()
}

// asJSON is text if that is JSON, else text as a JSON string.
func asJSON(text string) json.RawMessage {
	if json.Valid([]byte(text)) {
		return compact([]byte(text))
	}
	quoted, err := json.Marshal(text)
	if err != nil {
		return nil // a string always can be
	}
	return quoted
}
