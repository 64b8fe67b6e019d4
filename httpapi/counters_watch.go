package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

func (a *api) watchKey(ctx context.Context, in *struct {
	KeyPath
	Granularity counters.Granularity `query:"granularity" required:"true" doc:"A number and a unit: s m h d w mo q y." example:"1h"`
	LastEventID string               `header:"Last-Event-ID" doc:"As browsers send it when they connect again: the buckets from that one come first." example:"2025-05-06T09:00:00Z"`
}) (*huma.StreamResponse, error) {
	var from time.Time
	if in.LastEventID != "" {
		var err error
		if from, err = parseTime("Last-Event-ID", in.LastEventID); err != nil {
			return nil, err
		}
	}
	which, asked := watched{in.Key, in.Granularity}, time.Now()
	missed, err := a.polls.read(ctx, which, from) // what cannot be had gets a proper answer
	if err != nil {
		return nil, err
	}
	return a.eventStream(ctx, "", func(ctx context.Context, send func(event) bool) {
		p, leave := a.polls.join(ctx, which)
		defer leave()
		told := map[string]json.RawMessage{}
		tell := func(buckets []bucket) bool {
			now := make(map[string]json.RawMessage, len(buckets))
			for _, b := range buckets {
				if now[b.id] = b.data; !bytes.Equal(told[b.id], b.data) && !send(event{ID: b.id, Name: "bucket", Data: b.data}) {
					return false
				}
			}
			told = now
			return true
		}
		if !tell(missed) {
			return
		}
		for {
			buckets, changed, err := p.seen(asked)
			if err != nil {
				send(event{Name: "error", Data: a.problem(ctx, &huma.Operation{OperationID: "counters-watch"}, err)})
				return
			}
			if buckets != nil && !tell(buckets) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}), nil
}

// watched is what a poll looks at.
type watched struct {
	key         string
	granularity counters.Granularity
}

// bucket is one as it is told.
type bucket struct {
	id   string // its start
	data json.RawMessage
}

// maxMissed is how many buckets a watcher that was away gets; the older ones are for
// counters-values.
const maxMissed = 1000

// newest returns what reads the newest two buckets, and from a time on those before
// them.
func newest(store *counters.Store) func(context.Context, watched, time.Time) ([]bucket, error) {
	return func(ctx context.Context, which watched, from time.Time) ([]bucket, error) {
		settings, err := store.Settings(ctx)
		if err != nil {
			return nil, err
		}
		loc, err := counters.LoadLocation(settings.TimeZone)
		if err != nil {
			return nil, err
		}
		if _, err := counters.ParseGranularity(string(which.granularity)); err != nil {
			return nil, err
		}
		calendar := counters.Calendar{Location: loc, WeekStart: settings.WeekStart}
		q := counters.Query{Key: which.key, To: time.Now(), Granularity: which.granularity, Limit: maxMissed}
		before := calendar.Floor(q.Granularity, calendar.Floor(q.Granularity, q.To).Add(-time.Second))
		if q.From = before; !from.IsZero() && from.Before(before) {
			q.From = from
		}
		series, err := store.Values(ctx, q)
		if errors.Is(err, fault.Invalid) && q.From != before {
			q.From = before
			series, err = store.Values(ctx, q)
		}
		if err != nil {
			return nil, err
		}
		buckets := make([]bucket, len(series.At))
		for i, at := range series.At {
			data, err := json.Marshal(counters.Point{At: at, Values: series.Values[i]})
			if err != nil {
				return nil, err
			}
			buckets[i] = bucket{at.Format(time.RFC3339), data}
		}
		return buckets, nil
	}
}

// polls look at the newest buckets of metrics that are watched: of each once in every,
// however many watch it.
type polls struct {
	every time.Duration
	read  func(ctx context.Context, which watched, from time.Time) ([]bucket, error)

	mu   sync.Mutex
	open map[watched]*poll
}

func newPolls(every time.Duration, read func(context.Context, watched, time.Time) ([]bucket, error)) *polls {
	return &polls{every: every, read: read, open: map[watched]*poll{}}
}

// poll is what was last seen of a metric. It runs while there are watchers.
type poll struct {
	watchers int // by polls.mu
	stop     context.CancelFunc
	ended    chan struct{}

	mu      sync.Mutex
	buckets []bucket
	err     error
	began   time.Time     // to read that
	changed chan struct{} // closed when there is something else to see
}

// join returns the poll of a metric. Who joins leaves; the last one ends it.
func (ps *polls) join(ctx context.Context, which watched) (p *poll, leave func()) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p = ps.open[which]
	if p == nil {
		p = &poll{ended: make(chan struct{}), changed: make(chan struct{})}
		ps.open[which] = p
		ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
		go p.run(ctx, ps.every, func(ctx context.Context, from time.Time) ([]bucket, error) { return ps.read(ctx, which, from) })
	}
	p.watchers++
	return p, func() {
		ps.mu.Lock()
		p.watchers--
		last := p.watchers == 0
		if last {
			delete(ps.open, which)
		}
		ps.mu.Unlock()
		if last {
			p.stop()
			<-p.ended
		}
	}
}

// seen returns what was seen last, unless that is older than what a watcher knows since
// a time, and when to ask again.
func (p *poll) seen(since time.Time) (buckets []bucket, changed <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.Before(since) {
		return nil, p.changed, nil
	}
	return p.buckets, p.changed, p.err
}

// run looks until ctx ends. While the database is away it goes on: who watches sees
// then what has changed.
func (p *poll) run(ctx context.Context, every time.Duration, read func(context.Context, time.Time) ([]bucket, error)) {
	defer close(p.ended)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var from time.Time
	for {
		began := time.Now()
		buckets, err := read(ctx, from)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && len(buckets) > 0:
			from, _ = time.Parse(time.RFC3339, buckets[max(len(buckets)-2, 0)].id) // as read wrote it
			p.show(buckets, nil, began)
		case !errors.Is(err, fault.Unavailable):
			p.show(nil, err, began)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// show lets watchers see what was read, if it is something else.
func (p *poll) show(buckets []bucket, err error, began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.began = began
	same := err == nil && p.err == nil && len(p.buckets) == len(buckets)
	for i := 0; same && i < len(buckets); i++ {
		same = p.buckets[i].id == buckets[i].id && bytes.Equal(p.buckets[i].data, buckets[i].data)
	}
	if same {
		return
	}
	p.buckets, p.err = buckets, err
	close(p.changed)
	p.changed = make(chan struct{})
}
