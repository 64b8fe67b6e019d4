package changes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
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

// String returns the kind of the sink and to where it leads, and nothing that is secret.
func (s Sink) String() string {
	switch {
	case s.Webhook != nil:
		to, err := url.Parse(s.Webhook.URL)
		if err != nil {
			return "webhook"
		}
		return "webhook " + to.Scheme + "://" + to.Host // secrets are in all the rest
	case s.SQL != "":
		return "sql " + s.SQL
	case s.Notify:
		return "notify"
	}
	return ""
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

// Save keeps a consumer in the database, with the patterns of what it is handed and what
// is done with that, so that a [Runner], which every howdah serve has, runs it. One of the
// name that is there is changed; its place in the feed stays, and From and Backfill are
// of no effect then, and it waits for what is being handled. It returns Invalid for what
// cannot be, and Conflict where a program of its own runs one of the name.
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
	shards := 0 // that there are, or are to be
	find := func() error {
		return pool.QueryRow(ctx, `SELECT coalesce(next_shards, shards) FROM howdah.change_consumer WHERE name = $1 AND sink IS NOT NULL`, cfg.Name).Scan(&shards)
	}
	err := pg.Retry(ctx, pool, func() error {
		if err := find(); !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if err := c.create(ctx, keep); err != nil {
			return err
		}
		return find() // another may have been first
	})
	if err == nil && shards != c.cfg.Shards { // first: it may be refused, and then nothing is changed
		err = l.Reshard(ctx, cfg.Name, c.cfg.Shards)
	}
	if err == nil {
		// A batch that is under way passes over what the patterns that it began with do not
		// name, also of what commits from now on.
		err = l.alone(ctx, cfg.Name, func(tx pgx.Tx, _ int) error {
			return tx.QueryRow(ctx, `
				UPDATE howdah.change_consumer
				SET patterns = $2, sink = $3
				WHERE name = $1 AND sink IS NOT NULL
				RETURNING shards`, cfg.Name, c.names(), keep).Scan(&shards)
		})
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = fmt.Errorf("%q is run by a program of its own: forget it first, or take another name: %w", cfg.Name, fault.Conflict)
	}
	return pg.Wrap(op, pg.Written(l.db, err))
}
