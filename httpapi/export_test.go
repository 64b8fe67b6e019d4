package httpapi

import (
	"context"
	"encoding/json"
	"iter"
	"maps"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah"
)

// NewWith is New with one more operation, GET /test, that does what a test wants.
func NewWith(client *howdah.Client, cfg Config, handle func(context.Context) error) http.Handler {
	a := newAPI(client, cfg)
	a.routes()
	add(a, http.MethodGet, "/test", "test", "A test", func(ctx context.Context, _ *struct{}) (*struct{}, error) {
		return nil, handle(ctx)
	})
	add(a, http.MethodGet, "/test/stream", "test-stream", "A stream", func(ctx context.Context, _ *struct{}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hctx huma.Context) {
			hctx.BodyWriter().Write([]byte("begun"))
			if err := handle(ctx); err != nil {
				panic(err)
			}
		}}, nil
	})
	return a.handler()
}

// Impatient is cfg with so long for the reader of an answer to take a part of it.
func Impatient(cfg Config, progress time.Duration) Config {
	cfg.slowReader = progress
	return cfg
}

// Lively is cfg with so long between signs of life on a quiet stream.
func Lively(cfg Config, every time.Duration) Config {
	cfg.keepAlive = every
	return cfg
}

// Polls are those of watched metrics, each of one bucket that holds what read returns.
type Polls struct{ *polls }

func NewPolls(read func() (string, error)) Polls {
	return Polls{newPolls(time.Millisecond, func(context.Context, watched, time.Time) ([]bucket, error) {
		text, err := read()
		return []bucket{{id: "2025-05-06T09:00:00Z", data: json.RawMessage(text)}}, err
	})}
}

// Join watches a metric: seen waits for what is to be seen.
func (ps Polls) Join(ctx context.Context, key string) (seen func() (string, error), leave func()) {
	since := time.Now()
	p, leave := ps.join(ctx, watched{key: key})
	var next <-chan struct{}
	return func() (string, error) {
		for {
			if next != nil {
				select {
				case <-next:
				case <-ctx.Done():
					return "", ctx.Err()
				}
			}
			buckets, changed, err := p.seen(since)
			if next = changed; err != nil || buckets != nil {
				if err != nil {
					return "", err
				}
				return string(buckets[0].data), nil
			}
		}
	}, leave
}

// Open is how many run.
func (ps Polls) Open() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.open)
}

// Types are the kinds of failure that programs tell apart.
func Types() (types []string) {
	for _, names := range []iter.Seq[string]{maps.Values(kindNames), maps.Values(sentinels)} {
		for name := range names {
			types = append(types, "urn:howdah:"+name)
		}
	}
	return types
}
