package changes

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// mostNotified is the most bytes that PostgreSQL lets a payload have.
const mostNotified = 7999

// notice is the payload of the talk "Call Me Back, Postgres", its four names first.
type notice struct {
	KlassName            string          `json:"klass_name"`
	CrudMethod           string          `json:"crud_method"`
	RecordID             json.RawMessage `json:"record_id,omitempty"`               // the value of the key; of several columns an object
	DatabaseTriggerLogID int64           `json:"database_trigger_log_id,omitempty"` // absent of a read, which is not in the log
	Schema               string          `json:"schema"`
	Record               json.RawMessage `json:"record,omitempty"` // as it is; of a delete as it was
}

// Notify returns a Handler that announces each change as the talk "Call Me Back,
// Postgres" does: on the channels create_or_update_record and delete_record, with a
// payload that has klass_name (the table), crud_method, record_id and
// database_trigger_log_id, and also schema and record. The notifications leave as the
// consumer's transaction commits: once, to whoever listens then. A payload that would be longer than
// 7,999 bytes goes without the record, and if need be without its id: the log has
// both. A truncate and messages are not announced.
func Notify() Handler {
	return func(ctx context.Context, tx pgx.Tx, cs []Change) error {
		var channels, payloads, short, least []string
		for i := range cs {
			n, channel := newNotice(&cs[i])
			if channel == "" {
				continue
			}
			channels = append(channels, channel)
			payloads = append(payloads, n.text())
			n.Record = nil
			short = append(short, n.text())
			n.RecordID = nil
			least = append(least, n.text())
		}
		if len(channels) == 0 {
			return nil
		}
		// In the encoding of the server's, which may want more bytes than ours.
		_, err := tx.Exec(ctx, `
			SELECT pg_notify(channel, CASE
				WHEN octet_length(payload) <= $5 THEN payload
				WHEN octet_length(short) <= $5 THEN short
				ELSE least END)
			FROM (
				SELECT *
				FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS n(channel, payload, short, least, place)
				ORDER BY place) n`, channels, payloads, short, least, mostNotified)
		return pg.Wrap("changes: notify", err)
	}
}

// newNotice returns what is said of c, and where; "" where nothing is.
func newNotice(c *Change) (n notice, channel string) {
	n = notice{KlassName: c.Table, Schema: c.Schema, RecordID: c.Key, DatabaseTriggerLogID: c.Position.ID}
	if values := keyValues(c.Key); len(values) == 1 {
		n.RecordID = values[0]
	}
	switch c.Op {
	case Insert, Update, Read:
		n.CrudMethod, n.Record = "create_or_update", c.New
		return n, "create_or_update_record"
	case Delete:
		n.CrudMethod, n.Record = "delete", c.Old
		return n, "delete_record"
	}
	return n, ""
}

// text is the payload. What cannot fit is not sent to the server to find that out.
func (n *notice) text() string {
	if len(n.Record) > 4*mostNotified {
		n.Record = nil
	}
	if len(n.RecordID) > 4*mostNotified {
		n.RecordID = nil
	}
	var b bytes.Buffer
	if writeJSON(&b, n) != nil {
		return "" // JSON of the log always can be
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}
