package changes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// CloudEvent is a change as CloudEvents 1.0 has it; its JSON is the structured
// mode. Source and ID together name a change wherever and however often it is sent.
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
type CloudEvent struct {
	SpecVersion     string    `json:"specversion"`            // "1.0"
	ID              string    `json:"id"`                     // the position; of a read "1042.…", with 16 digits for its table and key
	Source          string    `json:"source"`                 // "/howdah/shopdb"
	Type            string    `json:"type"`                   // "howdah.change.update"
	Subject         string    `json:"subject"`                // "public.users/2": the table, and the values of the key with commas between
	Time            time.Time `json:"time"`                   // when the change was made
	DataContentType string    `json:"datacontenttype"`        // "application/json"
	PartitionKey    string    `json:"partitionkey,omitempty"` // the key's JSON; absent without a key
	Data            Change    `json:"data"`
}

// CloudEvents returns an event for each change; the database is the one of tx.
func CloudEvents(ctx context.Context, tx pgx.Tx, cs []Change) ([]CloudEvent, error) {
	var database string // as the server calls it: a pooler may have another name for it
	if err := tx.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return nil, pg.Wrap("changes: cloud events", err)
	}
	events := make([]CloudEvent, len(cs))
	for i, c := range cs {
		events[i] = cloudEvent(database, c)
	}
	return events, nil
}

func cloudEvent(database string, c Change) CloudEvent {
	return CloudEvent{
		SpecVersion:     "1.0",
		ID:              c.eventID(),
		Source:          "/howdah/" + url.PathEscape(database),
		Type:            "howdah.change." + string(c.Op),
		Subject:         c.subject(),
		Time:            c.At,
		DataContentType: "application/json",
		PartitionKey:    c.partitionKey(),
		Data:            c,
	}
}

// eventID is the position, and of a read, which shares its position with others, one
// of its own.
func (c *Change) eventID() string {
	if c.Op != Read {
		return c.Position.String()
	}
	sum := sha256.Sum256([]byte(c.Schema + "." + c.Table + c.partitionKey()))
	return c.Position.String() + "." + hex.EncodeToString(sum[:8])
}

// partitionKey is the key as its JSON in the shortest form: PostgreSQL has put the
// names of a jsonb in an order of its own, which is always the same.
func (c *Change) partitionKey() string {
	var b bytes.Buffer
	if c.Key == nil || json.Compact(&b, c.Key) != nil {
		return string(c.Key)
	}
	return b.String()
}

func (c *Change) subject() string {
	subject, between := c.Schema+"."+c.Table, "/"
	for _, value := range keyValues(c.Key) {
		text := string(value)
		if value[0] == '"' && json.Unmarshal(value, &text) != nil {
			text = string(value)
		}
		subject += between + text
		between = ","
	}
	if !strings.ContainsFunc(subject, unicode.IsControl) {
		return subject
	}
	var b strings.Builder
	for _, r := range subject {
		if unicode.IsControl(r) { // no attribute may hold these
			fmt.Fprintf(&b, "%%%02X", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// keyValues are the values of a key, in the order they stand there.
func keyValues(key json.RawMessage) (values []json.RawMessage) {
	d := json.NewDecoder(bytes.NewReader(key))
	if _, err := d.Token(); err != nil {
		return nil
	}
	for d.More() {
		var value json.RawMessage
		if _, err := d.Token(); err != nil {
			return nil
		}
		if err := d.Decode(&value); err != nil {
			return nil
		}
		values = append(values, value)
	}
	return values
}
