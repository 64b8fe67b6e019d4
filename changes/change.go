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
	Meta     json.RawMessage `json:"meta,omitempty"`    // what its transaction said of itself; a JSON string where that was no JSON, or none that jsonb can hold
	Trimmed  bool            `json:"trimmed,omitempty"` // old and new were larger than the capture allows, or nested more than 9,000 deep, and were left out; and such a key
	Missing  []string        `json:"missing,omitempty"` // columns that new lacks: large, unchanged, and so not told by logical capture
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
	Missing []byte
}

// change takes over what the line holds: it can be called once.
func (l *line) change() Change {
	c := Change{
		Position: Position{Commit: l.N, ID: l.ID},
		Schema:   l.Schema, Table: l.Table,
		At: l.At.UTC(), XID: l.XID, Origin: l.Origin, Trimmed: l.Trimmed,
	}
	for _, op := range ops {
		if op.code() == l.Op {
			c.Op = op
		}
	}
	if l.Missing != nil && json.Unmarshal(l.Missing, &c.Missing) != nil {
		c.Missing = nil // nobody but us writes it
	}
	if l.Meta != nil {
		c.Meta = asJSON(*l.Meta)
	}
	c.hold(l.Key, l.Old, l.New)
	return c
}

// maxDepth is how deep a key and a row may be nested. PostgreSQL takes more, and encoding/json,
// through which goes all that tells of a change, no more than 10,000, with what is around it.
const maxDepth = 9_000

// hold takes over JSON of the log, without what is nested too deep.
func (c *Change) hold(key, old, is []byte) {
	deepKey := deep(key)
	if deepKey {
		key = nil
	}
	if deepKey || deep(old) || deep(is) {
		old, is, c.Trimmed = nil, nil, true
	}
	c.Key, c.Old, c.New = compact(key), compact(old), compact(is)
}

// deep reports whether JSON is nested deeper than maxDepth, of which hardly any is even
// long enough.
func deep(b []byte) bool {
	if len(b) <= 2*maxDepth || bytes.Count(b, []byte("["))+bytes.Count(b, []byte("{")) <= maxDepth {
		return false
	}
	depth, quoted := 0, false
	for i := 0; i < len(b) && depth <= maxDepth; i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\':
			i++ // what it escapes, be it a quote
		case quoted:
		case c == '[', c == '{':
			depth++
		case c == ']', c == '}':
			depth--
		}
	}
	return depth > maxDepth
}

// compact takes out the blanks that PostgreSQL writes between the parts of a
// jsonb. It works in place: b is nobody else's.
func compact(b []byte) json.RawMessage {
	out, quoted := b[:0], false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			out = append(out, c) // and what it escapes, be it a quote
			i++
		case c == ' ' && !quoted:
			continue
		}
		out = append(out, b[i])
	}
	return out
}

// asJSON is text if that is JSON that a jsonb can be made of, as sinks do, else text as a JSON string.
func asJSON(text string) json.RawMessage {
	var out bytes.Buffer
	if json.Compact(&out, []byte(text)) == nil && checkJSON("meta", out.Bytes()) == nil { // written by whoever, with any blanks
		return out.Bytes()
	}
	quoted, err := json.Marshal(text)
	if err != nil {
		return nil // a string always can be
	}
	return quoted
}
