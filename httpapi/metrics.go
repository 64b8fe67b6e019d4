package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/pg"
)

// metrics are the figures of a server, for Prometheus.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
}

func newMetrics(client *howdah.Client) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "howdah_http_request_seconds", Help: "Time until requests were answered; of streams, until they ended.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}, []string{"route", "status"}),
	}
	m.registry.MustRegister(m.requests, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		poolCollector{client.Pool}, feedCollector{client})
	return m
}

func (m *metrics) handler() http.Handler {
	// What cannot be had now is left out, and the rest is told.
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// timed measures what next answers, by route.
func (m *metrics) timed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		answer := &statusOf{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			m.requests.WithLabelValues(r.Pattern, strconv.Itoa(answer.status)).Observe(time.Since(began).Seconds())
		}()
		next.ServeHTTP(answer, r)
	})
}

// statusOf remembers the status of an answer.
type statusOf struct {
	http.ResponseWriter
	status int
}

// Unwrap is for http.ResponseController.
func (s *statusOf) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *statusOf) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// description describes a figure whose name begins with howdah_.
func description(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("howdah_"+name, help, labels, nil)
}

var (
	poolConns    = description("pool_connections", "Connections to the database.", "state")
	poolWaits    = description("pool_waits_total", "How often a connection had to be waited for.")
	poolWaitTime = description("pool_wait_seconds_total", "Time that connections were waited for.")
)

// poolCollector tells about the connections to the database.
type poolCollector struct{ pool *pgxpool.Pool }

func (c poolCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{poolConns, poolWaits, poolWaitTime} {
		ch <- d
	}
}

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.pool.Stat()
	ch <- prometheus.MustNewConstMetric(poolConns, prometheus.GaugeValue, float64(s.AcquiredConns()), "used")
	ch <- prometheus.MustNewConstMetric(poolConns, prometheus.GaugeValue, float64(s.IdleConns()), "idle")
	ch <- prometheus.MustNewConstMetric(poolConns, prometheus.GaugeValue, float64(s.MaxConns()), "most")
	ch <- prometheus.MustNewConstMetric(poolWaits, prometheus.CounterValue, float64(s.EmptyAcquireCount()))
	ch <- prometheus.MustNewConstMetric(poolWaitTime, prometheus.CounterValue, s.EmptyAcquireWaitTime().Seconds())
}

var (
	feedHead   = description("changes_head", "The last commit that is numbered.")
	feedFloor  = description("changes_floor", "The last commit that may be gone.")
	feedTicks  = description("changes_ticks_total", "Looks of this process for what has committed.")
	feedTick   = description("changes_tick_seconds", "Time that they took.")
	feedBytes  = description("changes_log_bytes", "Size of the log with its indexes.")
	feedOldest = description("changes_oldest_transaction_seconds", "How long the oldest transaction of the database has been open.")
	feedBell   = description("changes_doorbell_ok", "1 while notifications arrive, 0 while the feed is found by looking.")

	shardLag     = description("changes_lag_commits", "Commits that a shard of a consumer has not come to yet.", "consumer", "shard")
	shardBehind  = description("changes_lag_seconds", "Age of the first change that it has not come to yet.", "consumer", "shard")
	shardParked  = description("changes_parked", "Changes that it could not handle, and those behind them.", "consumer", "shard")
	shardDead    = description("changes_dead", "Of these, those that are tried no more.", "consumer", "shard")
	shardStalled = description("changes_stalled", "1 while it succeeds with nothing.", "consumer", "shard")
	shardHandled = description("changes_handled_total", "Changes that it has handled, in whatever process.", "consumer", "shard")
	shardFailed  = description("changes_failed_total", "Calls of its handler that failed, in whatever process.", "consumer", "shard")
)

// feedCollector tells about the feed of changes and its consumers.
type feedCollector struct{ client *howdah.Client }

func (c feedCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		feedHead, feedFloor, feedTicks, feedTick, feedBytes, feedOldest, feedBell,
		shardLag, shardBehind, shardParked, shardDead, shardStalled, shardHandled, shardFailed,
	} {
		ch <- d
	}
}

// Collect asks the database; while it is away, only what this process knows is told.
func (c feedCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(feedBell, one(c.client.Hub.State() == pg.HubListening))
	v, err := c.client.Changes.Vitals(ctx)
	ch <- prometheus.MustNewConstMetric(feedTicks, prometheus.CounterValue, float64(v.Ticks))
	ch <- prometheus.MustNewConstSummary(feedTick, uint64(v.Ticks), v.TickTime.Seconds(), nil)
	if err != nil {
		return
	}
	gauge(feedHead, float64(v.Head))
	gauge(feedFloor, float64(v.Floor))
	gauge(feedBytes, float64(v.Bytes))
	gauge(feedOldest, v.OldestTransaction.Seconds())
	for _, s := range v.Shards {
		labels := []string{s.Consumer, strconv.Itoa(s.Shard)}
		gauge(shardLag, float64(s.Lag), labels...)
		gauge(shardBehind, s.Behind, labels...)
		gauge(shardParked, float64(s.Parked), labels...)
		gauge(shardDead, float64(s.Dead), labels...)
		gauge(shardStalled, one(s.Stalled), labels...)
		ch <- prometheus.MustNewConstMetric(shardHandled, prometheus.CounterValue, float64(s.Handled), labels...)
		ch <- prometheus.MustNewConstMetric(shardFailed, prometheus.CounterValue, float64(s.Failed), labels...)
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
