package changes

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// What the tests of sinks look at.
var (
	CloudEventOf = cloudEvent
	Public       = public
	RetryAfter   = retryAfter
	Signatures   = signatures
)

// Keys are the keys of the secrets.
func (cfg WebhookConfig) Keys() ([][]byte, error) {
	_, keys, err := cfg.parse()
	return keys, err
}

// WebhookID is the id a webhook gives an event.
func (e *CloudEvent) WebhookID() string { return e.webhookID() }

// Notice is what is announced of c.
func Notice(c Change) (payload json.RawMessage, channel string) {
	n, channel := newNotice(&c)
	return json.RawMessage(n.text()), channel
}

// Stops reports whether err pauses a consumer.
func Stops(err error) bool { return errors.As(err, new(*stopError)) }

// After returns when err wants to be tried again, 0 where it does not say.
func After(err error) time.Duration {
	var later *laterError
	if errors.As(err, &later) {
		return later.after
	}
	return 0
}

// InBilling is ctx as the consumer billing gives it to its handlers.
func InBilling(ctx context.Context) context.Context { return withConsumer(ctx, "billing") }
