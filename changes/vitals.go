package changes

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Vitals are figures about the log.
type Vitals struct {
	Head, Floor       int64         // the last commit that is numbered; up to where they are gone
	Bytes             int64         // of the log, with its indexes
	OldestTransaction time.Duration // how long the oldest of the database has been open; it delays retention, not the feed
	Ticks             int64         // looks at the log by this process
	TickTime          time.Duration // spent in them
	Shards            []ShardVitals // of all consumers, wherever they run
}

// ShardVitals are figures about a shard of a consumer.
type ShardVitals struct {
	Consumer        string
	Shard           int
	Lag             int64   // as in Status
	Behind          float64 // as in Status, seconds
	Parked, Dead    int64   // as in Status
	Stalled         bool    // it succeeds with nothing
	Handled, Failed int64   // changes; calls of a handler. They grow, until there are other shards: then the first has what all had
}

// Vitals returns figures about the log, without looking for what has committed since.
func (l *Log) Vitals(ctx context.Context) (v Vitals, err error) {
	var seconds float64
	v.Ticks = l.looks.n.Load()
	v.TickTime = time.Duration(l.looks.nanos.Load())
	err = pg.Retry(ctx, l.db, func() error {
		return l.db.QueryRow(ctx, `
			SELECT t.n, s.floor,
				(SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'howdah.change'::regclass)::bigint,
				coalesce((
					SELECT extract(epoch FROM clock_timestamp() - least(min(xact_start), (SELECT min(prepared) FROM pg_prepared_xacts WHERE database = current_database())))
					FROM pg_stat_activity
					WHERE datname = current_database() AND pid <> pg_backend_pid()), 0)::float8
			FROM (SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) t, howdah.change_state s`).
			Scan(&v.Head, &v.Floor, &v.Bytes, &seconds)
	})
	if err != nil {
		return v, pg.Wrap("changes: vitals", err)
	}
	v.OldestTransaction = time.Duration(seconds * float64(time.Second))
	err = pg.Retry(ctx, l.db, func() error {
		return byIndexes(ctx, l.db, func(rows pgx.Rows) (err error) {
			v.Shards, err = pgx.CollectRows(rows, pgx.RowToStructByName[ShardVitals])
			return err
		}, `
			SELECT c.name AS consumer, s.shard, `+lag+` AS lag, `+behind+` AS behind, p.parked, d.dead,
				c.state = 'running' AND s.failures >= $1 AND `+retries+` AS stalled, s.handled, s.failed
			FROM howdah.change_consumer c
			CROSS JOIN (SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) t
			CROSS JOIN generate_series(0, c.shards - 1) AS g(shard)
			CROSS JOIN LATERAL howdah.change_place(c.name, g.shard) s
			CROSS JOIN LATERAL (
				SELECT count(*) AS parked
				FROM howdah.change_parked
				WHERE consumer = c.name AND shard = g.shard) p
			CROSS JOIN LATERAL (
				SELECT count(*) AS dead
				FROM howdah.change_parked
				WHERE consumer = c.name AND shard = g.shard AND dead) d
			ORDER BY c.name, s.shard`, outage)
	})
	return v, pg.Wrap("changes: vitals", err)
}
