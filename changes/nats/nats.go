// Package nats hands changes to a stream of NATS JetStream.
package nats

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// Config says where changes are published. The zero Config is right for most.
type Config struct {
	Prefix  string        // what subjects begin with, of A-Z a-z 0-9 _ - and dots between; default "howdah"
	Timeout time.Duration // for the acks of what is published at once; default 15 s
}

// abreast is how many messages wait for their acks at once.
const abreast = 256

var validPrefix = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// Sink returns a Handler that publishes each change as JSON on the subject
// <prefix>.<schema>.<table>.<op>, in whose parts what is no letter, digit, _ or - stands as
// %2E does for a dot, and returns when a stream has acknowledged all: at least once.
//
// Nats-Msg-Id is <prefix>/<database>/<position>/<at in µs>, of which a stream keeps one
// within its window of duplicates; a log that was made anew has the positions of the old
// one, and other times. Changes of one key are published one after another, so
// that none overtakes one that failed; those of other keys do not wait for each other.
func Sink(js jetstream.JetStream, cfg Config) changes.Handler {
	const op = "changes/nats"
	if cfg.Prefix == "" {
		cfg.Prefix = "howdah"
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 15 * time.Second
	}
	return func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		if !validPrefix.MatchString(cfg.Prefix) {
			return pg.Wrap(op, pg.Refuse("prefix", "%q; want one such as howdah or events.shop", cfg.Prefix))
		}
		events, err := changes.CloudEvents(ctx, tx, cs)
		if err != nil {
			return err
		}
		for len(events) > 0 {
			n := wave(events)
			if err := cfg.publish(ctx, js, events[:n]); err != nil {
				return fmt.Errorf("%s: %w", op, pg.Foreign(err))
			}
			events = events[n:]
		}
		return nil
	}
}

// wave is how many of events may be under way at once. Where there is no key the table,
// or the topic, stands for it; a truncate is of all keys.
func wave(events []changes.CloudEvent) int {
	keys := map[string]bool{}
	for i, e := range events {
		key := e.Data.Schema + "." + e.Data.Table + " " + e.PartitionKey
		if i == abreast || keys[key] || i > 0 && (e.Data.Op == changes.Truncate || events[0].Data.Op == changes.Truncate) {
			return i
		}
		keys[key] = true
	}
	return len(events)
}

// publish publishes events and waits for their acks.
func (cfg *Config) publish(ctx context.Context, js jetstream.JetStream, events []changes.CloudEvent) error {
	within, cancel := context.WithTimeoutCause(ctx, cfg.Timeout, fmt.Errorf("no ack within %s", cfg.Timeout))
	defer cancel()
	acks := make([]jetstream.PubAckFuture, len(events))
	for i, e := range events {
		msg, err := cfg.message(&e)
		if err != nil {
			return err
		}
		if acks[i], err = js.PublishMsgAsync(msg); err != nil {
			return fmt.Errorf("%s: %s: %w", e.ID, msg.Subject, err)
		}
	}
	for i, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("%s: %s: %w", events[i].ID, ack.Msg().Subject, err)
		case <-within.Done():
			return fmt.Errorf("%s: %s: %w", events[i].ID, ack.Msg().Subject, context.Cause(within))
		}
	}
	return nil
}

func (cfg *Config) message(e *changes.CloudEvent) (*nats.Msg, error) {
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e.Data); err != nil {
		return nil, err
	}
	c := &e.Data
	msg := nats.NewMsg(strings.Join([]string{cfg.Prefix, token(c.Schema), token(c.Table), string(c.Op)}, "."))
	msg.Data = bytes.TrimSuffix(data.Bytes(), []byte("\n"))
	msg.Header.Set(jetstream.MsgIDHeader, cfg.Prefix+strings.TrimPrefix(e.Source, "/howdah")+"/"+e.ID+"/"+strconv.FormatInt(e.Time.UnixMicro(), 10))
	return msg, nil
}

// token is a name as a part of a subject.
func token(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
