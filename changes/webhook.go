package changes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// WebhookConfig says where changes are posted.
type WebhookConfig struct {
	URL          string        `json:"url"`                     // http or https; what stands before an @ is sent as basic authorization
	Secrets      []string      `json:"secrets,omitempty"`       // "whsec_" and base64, or as they are; 24 bytes at least; the newest first; none: not signed
	Batch        bool          `json:"batch,omitempty"`         // one request for all changes that are handed over, rather than one for each
	Timeout      time.Duration `json:"timeout,omitempty"`       // of a request; default 15 s
	AllowPrivate bool          `json:"allow_private,omitempty"` // hosts of one's own network, too, and the proxy that the environment names
}

const (
	leastSecret = 24        // bytes, as https://www.standardwebhooks.com has it
	mostLater   = time.Hour // that a receiver may ask for
	mostAnswer  = 64 << 10  // bytes of an answer that are read
	mostQuoted  = 512       // and that an error repeats

	webhookTimeout = 15 * time.Second // if none is set
)

// Check returns an Invalid error where nothing can be posted with cfg.
func (cfg WebhookConfig) Check() error {
	_, _, err := cfg.parse()
	return err
}

// parse returns the URL and the keys. Errors repeat neither: both may be secret.
func (cfg WebhookConfig) parse() (*url.URL, [][]byte, error) {
	to, err := url.Parse(cfg.URL)
	switch {
	case err != nil || to.Hostname() == "" || to.Scheme != "http" && to.Scheme != "https":
		return nil, nil, pg.Refuse("url", "want one such as https://example.com/hook")
	case cfg.Timeout < 0:
		return nil, nil, pg.Refuse("timeout", "%s; want more than 0", cfg.Timeout)
	}
	if ip, err := netip.ParseAddr(to.Hostname()); err == nil && !cfg.AllowPrivate && !public(ip) {
		return nil, nil, pg.Refuse("url", "%v", &privateError{ip})
	}
	var keys [][]byte
	for i, secret := range cfg.Secrets {
		key := []byte(secret)
		if text, ok := strings.CutPrefix(secret, "whsec_"); ok {
			if key, err = base64.StdEncoding.DecodeString(text); err != nil {
				return nil, nil, pg.Refuse(fmt.Sprintf("secrets[%d]", i), "what follows whsec_ is not base64")
			}
		}
		if len(key) < leastSecret {
			return nil, nil, pg.Refuse(fmt.Sprintf("secrets[%d]", i), "%d bytes; want %d or more: echo whsec_$(openssl rand -base64 32)", len(key), leastSecret)
		}
		keys = append(keys, key)
	}
	return to, keys, nil
}

// Webhook returns a Handler that posts changes as CloudEvents 1.0 in JSON, signed as
// Standard Webhooks has it, and takes an answer of 2xx for done: at least once. A
// repeat bears the webhook-id of the first; that of a batch names its first and its
// last change, and is another where the batch is: each event has an id of its own.
//
// An answer of 410 pauses the consumer, one with Retry-After is believed up to an
// hour, redirects are not followed. Addresses that are not public are refused as they
// are dialled, whatever name led there.
func Webhook(cfg WebhookConfig) Handler {
	const op = "changes: webhook"
	to, keys, err := cfg.parse()
	if err != nil {
		return func(context.Context, pgx.Tx, []Change) error { return &stopError{pg.Wrap(op, err)} }
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, webhookTimeout)
	hook := &webhook{to: to, keys: keys, timeout: cfg.Timeout, client: newWebhookClient(cfg.AllowPrivate)}
	post := hook.each
	if cfg.Batch {
		post = hook.batch
	}
	return func(ctx context.Context, tx pgx.Tx, cs []Change) error {
		events, err := CloudEvents(ctx, tx, cs)
		if err != nil || len(events) == 0 {
			return err
		}
		if err := post(ctx, events); err != nil {
			return fmt.Errorf("%s: %s: %w", op, to.Host, pg.Foreign(err))
		}
		return nil
	}
}

type webhook struct {
	to      *url.URL
	keys    [][]byte
	timeout time.Duration
	client  *http.Client
}

func (h *webhook) each(ctx context.Context, events []CloudEvent) error {
	for _, e := range events {
		if err := h.post(ctx, e.webhookID(), "application/cloudevents+json", e); err != nil {
			return fmt.Errorf("%s: %w", e.ID, err)
		}
	}
	return nil
}

func (h *webhook) batch(ctx context.Context, events []CloudEvent) error {
	id := events[0].webhookID()
	if last := len(events) - 1; last > 0 {
		id += "-" + events[last].webhookID()
	}
	return h.post(ctx, id, "application/cloudevents-batch+json", events)
}

// webhookID has no dot, which stands between the parts that are signed.
func (e *CloudEvent) webhookID() string { return strings.ReplaceAll(e.ID, ".", "-") }

func (h *webhook) post(ctx context.Context, id, contentType string, content any) error {
	var body bytes.Buffer
	if err := writeJSON(&body, content); err != nil {
		return err
	}
	body.Truncate(body.Len() - 1) // the end of line
	within, cancel := context.WithTimeoutCause(ctx, h.timeout, errNoAnswer)
	defer cancel()
	r, err := http.NewRequestWithContext(within, http.MethodPost, h.to.String(), bytes.NewReader(body.Bytes()))
	if err != nil {
		return errors.New("cannot make a request of the URL") // that error holds it
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	r.Header.Set("Content-Type", contentType+"; charset=utf-8")
	r.Header.Set("User-Agent", "howdah")
	r.Header.Set("Webhook-Id", id)
	r.Header.Set("Webhook-Timestamp", at)
	if len(h.keys) > 0 {
		r.Header.Set("Webhook-Signature", signatures(h.keys, id, at, body.Bytes()))
	}
	answer, err := h.client.Do(r)
	if err != nil {
		if context.Cause(within) == errNoAnswer {
			return fmt.Errorf("%w within %s", errNoAnswer, h.timeout)
		}
		var full *url.Error // has the URL
		if errors.As(err, &full) {
			return full.Err
		}
		return err
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, mostAnswer)) // to its end, so that the connection is used again
	return verdict(answer, text)
}

var errNoAnswer = errors.New("no answer")

// verdict is what an answer means.
func verdict(answer *http.Response, text []byte) error {
	if answer.StatusCode/100 == 2 {
		return nil
	}
	problem := fmt.Sprintf("%d %s", answer.StatusCode, http.StatusText(answer.StatusCode)) // the receiver's own words have no end
	if answer.StatusCode/100 == 3 {
		problem += "; redirects are not followed"
	}
	if quoted := strings.TrimSpace(strings.ToValidUTF8(string(text[:min(len(text), mostQuoted)]), "")); quoted != "" {
		problem += ": " + quoted
	}
	err := errors.New(strings.ReplaceAll(problem, "\x00", "")) // it is going to be stored
	if answer.StatusCode == http.StatusGone {
		return &stopError{err}
	}
	if after := retryAfter(answer.Header.Get("Retry-After"), time.Now()); after > 0 {
		return &laterError{err, after}
	}
	return err
}

// retryAfter is how long to wait: seconds, or until a date; 0 where it says nothing.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(text, 10, 63); err == nil {
		return time.Duration(min(seconds, uint64(mostLater/time.Second))) * time.Second
	}
	if date, err := http.ParseTime(text); err == nil {
		return min(max(date.Sub(now), 0), mostLater)
	}
	return 0
}

// signatures are those of Standard Webhooks, one for each key.
func signatures(keys [][]byte, id, at string, body []byte) string {
	var all []string
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + at + "."))
		mac.Write(body)
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(all, " ")
}
