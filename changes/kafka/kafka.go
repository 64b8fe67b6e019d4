// Package kafka hands changes to topics of Kafka.
package kafka

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// Config says where changes go. The zero Config is right for most.
type Config struct {
	Prefix  string        // what topics begin with; default "howdah"
	Topic   string        // one topic for all changes; default: one for each table
	Timeout time.Duration // for the acks of what is produced at once; default 15 s
}

// Sink returns a Handler that produces each change as a record in the topic
// <prefix>.<schema>.<table>, in which _ stands for what Kafka does not allow there, and
// returns when all replicas in sync have it: at least once.
//
// A record is a CloudEvent in binary mode: its value is the change as JSON, its headers
// are content-type and ce_specversion, ce_id, ce_source, ce_type, ce_subject, ce_time and
// ce_partitionkey. Its key is the key's JSON, so that all changes of a row are in one
// partition, in the order of the feed: they are produced one after another, and none
// overtakes one that failed. A change without a key has none here and goes to any partition.
//
// client needs acks of all, which is its default.
func Sink(client *kgo.Client, cfg Config) changes.Handler {
	const op = "changes/kafka"
	if cfg.Prefix == "" {
		cfg.Prefix = "howdah"
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 15 * time.Second
	}
	return func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		if client.OptValue(kgo.RequiredAcks) != kgo.AllISRAcks() {
			return pg.Wrap(op, pg.Refuse("client", "it does not wait for all replicas; leave out kgo.RequiredAcks"))
		}
		events, err := changes.CloudEvents(ctx, tx, cs)
		if err != nil {
			return err
		}
		for len(events) > 0 {
			n := wave(events)
			if err := cfg.produce(ctx, client, events[:n]); err != nil {
				return fmt.Errorf("%s: %w", op, pg.Foreign(err))
			}
			events = events[n:]
		}
		return nil
	}
}

// wave is how many of events may be under way at once: no key twice, and a truncate alone.
func wave(events []changes.CloudEvent) int {
	keys := map[string]bool{}
	for i, e := range events {
		key := e.Data.Schema + "." + e.Data.Table + " " + e.PartitionKey
		if keys[key] || i > 0 && (e.Data.Op == changes.Truncate || events[0].Data.Op == changes.Truncate) {
			return i
		}
		if e.PartitionKey != "" {
			keys[key] = true
		}
	}
	return len(events)
}

// produce produces events and waits for their acks. The client may not forget a record
// that is under way, and does not when ctx ends: who waits for it does.
func (cfg *Config) produce(ctx context.Context, client *kgo.Client, events []changes.CloudEvent) error {
	within, cancel := context.WithTimeoutCause(ctx, cfg.Timeout, fmt.Errorf("no acks within %s", cfg.Timeout))
	defer cancel()
	results := make(chan error, len(events))
	for _, e := range events {
		record, err := cfg.record(&e)
		if err != nil {
			return err
		}
		client.Produce(within, record, func(r *kgo.Record, err error) {
			if err != nil {
				err = fmt.Errorf("%s: %s: %w", e.ID, r.Topic, err)
			}
			results <- err
		})
	}
	if client.Flush(within) != nil { // without it they would linger
		return context.Cause(within)
	}
	for range events {
		select {
		case err := <-results:
			if err != nil {
				return err
			}
		case <-within.Done():
			return context.Cause(within)
		}
	}
	return nil
}

func (cfg *Config) record(e *changes.CloudEvent) (*kgo.Record, error) {
	var value bytes.Buffer
	enc := json.NewEncoder(&value)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e.Data); err != nil {
		return nil, err
	}
	at, err := e.Time.MarshalText()
	if err != nil {
		return nil, err
	}
	r := &kgo.Record{Topic: cfg.topic(&e.Data), Timestamp: e.Time, Value: bytes.TrimSuffix(value.Bytes(), []byte("\n"))}
	header := func(name, text string) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(text)})
	}
	header("content-type", e.DataContentType)
	header("ce_specversion", e.SpecVersion)
	header("ce_id", e.ID)
	header("ce_source", e.Source)
	header("ce_type", e.Type)
	header("ce_subject", e.Subject)
	header("ce_time", string(at))
	if e.PartitionKey != "" {
		r.Key = []byte(e.PartitionKey)
		header("ce_partitionkey", e.PartitionKey)
	}
	return r, nil
}

func (cfg *Config) topic(c *changes.Change) string {
	if cfg.Topic != "" {
		return cfg.Topic
	}
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '_'
	}, cfg.Prefix+"."+c.Schema+"."+c.Table)
}
