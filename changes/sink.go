package changes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Sink says what is done with changes, where that can be kept in the database: exactly
// one of its fields. It is how a server runs a consumer; see [Log.Save] and [Runner].
type Sink struct {
	Webhook *WebhookConfig `json:"webhook,omitempty"`
	SQL     string         `json:"sql,omitempty"`    // as [SQL] has it
	Notify  bool           `json:"notify,omitempty"` // as [Notify] does
}

// Check returns an Invalid error where the sink is none, or several.
func (s Sink) Check() error {
	kinds := 0
	if s.Webhook != nil {
		if err := s.Webhook.Check(); err != nil {
			return pg.Within("webhook", err)
		}
		kinds++
	}
	if s.SQL != "" {
		if err := pg.CheckText("sql", s.SQL); err != nil {
			return err
		}
		kinds++
	}
	if s.Notify {
		kinds++
	}
	if kinds != 1 {
		return pg.Refuse("sink", "%d kinds; want one of webhook, sql and notify", kinds)
	}
	return nil
}

// Handler returns the handler that the sink stands for. One that cannot be fails, and
// says why, when it is called.
func (s Sink) Handler() Handler {
	switch err := s.Check(); {
	case err != nil:
		return func(context.Context, pgx.Tx, []Change) error { return &stopError{err} }
	case s.Webhook != nil:
		return Webhook(*s.Webhook)
	case s.Notify:
		return Notify()
	}
	return SQL(s.SQL)
}

// String returns the kind of the sink and to where it leads: of a URL, which may have
// secrets, its host alone, and of a statement the first words.
func (s Sink) String() string {
	switch {
	case s.Webhook != nil:
		to, err := url.Parse(s.Webhook.URL)
		if err != nil {
			return "webhook"
		}
		return "webhook " + to.Scheme + "://" + to.Host // secrets are in all the rest
	case s.SQL != "":
		first := firstWords.FindString(strings.TrimSpace(s.SQL))
		if len(first) < len(s.SQL) {
			first = strings.TrimSpace(first + " …")
		}
		return "sql " + first
	case s.Notify:
		return "notify"
	}
	return ""
}

// firstWords are up to three of a statement: literals, which may be secrets, are none.
var firstWords = regexp.MustCompile(`^([A-Za-z_][\w.]*( [A-Za-z_][\w.]*){0,2})?`)

// whole is String with all of a statement.
func (s Sink) whole() string {
	if s.SQL != "" {
		return "sql " + s.SQL
	}
	return s.String()
}

// saved is a consumer as the database keeps it for whoever runs it: beside the shards
// and patterns, which all consumers have.
type saved struct {
	Sink
	Batch   int           `json:"batch,omitempty"`
	Chunk   int           `json:"chunk,omitempty"`
	Echo    bool          `json:"echo,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // ns
}

// label is the sink as everybody may see it; nil of none.
func (s *saved) label() *string {
	if s == nil {
		return nil
	}
	return new(strings.ToValidUTF8(s.whole(), "\uFFFD"))
}

// keptSink keeps $2 where it is the sink of a consumer that did has written.
const keptSink = `
			kept AS (
				INSERT INTO howdah.change_sink (consumer, sink)
				SELECT name, $2::jsonb
				FROM did
				WHERE $2::jsonb IS NOT NULL
				ON CONFLICT (consumer) DO UPDATE SET sink = EXCLUDED.sink)`

// Save keeps a consumer in the database, with the patterns of what it is handed and what
// is done with that, so that a [Runner], which every howdah serve has, runs it. One of
// the name that is there is changed, all of it or nothing: its place in the feed stays,
// From and Backfill are of no effect, and other patterns or shards wait for what is being
// handled, which may take as long as the Timeout. It returns Invalid for what cannot be,
// and Conflict where a program of its own runs one of the name.
func (l *Log) Save(ctx context.Context, cfg ConsumerConfig, patterns []string, sink Sink) error {
	const op = "changes: save"
	if err := sink.Check(); err != nil {
		return pg.Wrap(op, err)
	}
	pool, ok := l.db.(*pgxpool.Pool)
	if !ok {
		return pg.Wrap(op, ErrInTx)
	}
	if sink.Webhook != nil { // for one request at least
		request := cmp.Or(sink.Webhook.Timeout, webhookTimeout)
		if cfg.Timeout == 0 && request >= handlerTimeout {
			cfg.Timeout = request + request/2
		}
		if cfg.Timeout != 0 && cfg.Timeout < request {
			return pg.Wrap(op, pg.Refuse("timeout", "%s for what is handed over at once, and %s for a request; want as much at least", cfg.Timeout, request))
		}
	}
	c := NewConsumer(pool, nil, cfg)
	for _, pattern := range patterns {
		c.Handle(pattern, sink.Handler())
	}
	if err := c.checkSettings(); err != nil {
		return pg.Wrap(op, err)
	}
	keep := &saved{sink, cfg.Batch, cfg.Chunk, cfg.Echo, cfg.Timeout}
	err := c.change(ctx, keep)
	if errors.Is(err, ErrNoConsumer) {
		err = pg.Retry(ctx, pool, func() error { return c.create(ctx, keep) })
		if err == nil {
			err = c.change(ctx, keep) // another may have been first
		}
	}
	return pg.Wrap(op, pg.Written(l.db, err))
}

// change makes a consumer that is kept what c is, with keep as its sink.
func (c *Consumer) change(ctx context.Context, keep *saved) error {
	var kept, did bool // did where it has these shards and patterns
	err := pg.Retry(ctx, c.pool, func() error {
		return c.pool.QueryRow(ctx, `
			WITH did AS (
				UPDATE howdah.change_consumer
				SET sink = $3
				WHERE name = $1 AND sink IS NOT NULL AND patterns = $4 AND coalesce(next_shards, shards) = $5::int
				RETURNING name),`+keptSink+`
			SELECT sink IS NOT NULL, EXISTS (SELECT FROM did)
			FROM howdah.change_consumer
			WHERE name = $1`, c.cfg.Name, keep, keep.label(), c.names(), c.cfg.Shards).Scan(&kept, &did)
	})
	own := fmt.Errorf("%q is run by a program of its own: forget it first, or take another name: %w", c.cfg.Name, fault.Conflict)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return noConsumer(c.cfg.Name)
	case err == nil && !kept:
		return own
	case err != nil || did:
		return err
	}
	// A batch that is under way passes over what the patterns that it began with do not
	// name, also of what commits from now on.
	err = c.log.alone(ctx, c.cfg.Name, func(tx pgx.Tx, present int) error {
		var shards int // that there are to be
		err := tx.QueryRow(ctx, `
			WITH did AS (
				UPDATE howdah.change_consumer
				SET patterns = $4, sink = $3
				WHERE name = $1 AND sink IS NOT NULL
				RETURNING name, coalesce(next_shards, shards) AS shards),`+keptSink+`
			SELECT shards
			FROM did`, c.cfg.Name, keep, keep.label(), c.names()).Scan(&shards)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return own
		case err != nil || shards == c.cfg.Shards:
			return err
		}
		return reshard(ctx, tx, c.cfg.Name, present, c.cfg.Shards)
	})
	if err == nil {
		c.log.ring(ctx)
	}
	return err
}
