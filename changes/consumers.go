package changes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrParked reports that what was waited for is parked: it could not be handled.
var ErrParked = fmt.Errorf("a change could not be handled and is parked: howdah changes parked shows it: %w", fault.Conflict)

// Status is how a consumer stands.
type Status struct {
	Name       string    `json:"name" example:"billing"`
	State      string    `json:"state" example:"paused" doc:"running, away (nothing was heard of it for 5 minutes), stalled (nothing succeeds; it is tried again), paused or expired"`
	Reason     string    `json:"reason,omitempty" example:"prices are being mended"` // why it is not running, or the error that stalls it
	Shards     int       `json:"shards" example:"1"`
	NextShards int       `json:"next_shards,omitempty" example:"4"` // how many there will be, once these have come to one place and nothing is parked
	Patterns   []string  `json:"patterns" example:"[\"public.orders\"]"`
	Sink       string    `json:"sink,omitempty" example:"webhook https://example.com"` // of one that servers run; else a program of its own does
	Backfill   []string  `json:"backfill,omitempty" example:"[\"public.orders\"]"`     // tables that are still being read
	Position   Position  `json:"position" example:"1042.7"`                            // up to here all has been handled, or parked
	Lag        int64     `json:"lag" example:"8"`                                      // commits that it has not come to the end of yet; of one that has expired those that are gone, too
	Behind     float64   `json:"behind_seconds" example:"1.2"`                         // age of the first change that it has not come to yet, of those that are kept
	Parked     int64     `json:"parked" example:"3"`                                   // changes put aside, and those waiting behind them
	Dead       int64     `json:"dead" example:"1"`                                     // of these, those that are tried no more
	Seen       time.Time `json:"seen" example:"2026-11-20T14:18:31Z"`                  // about when an instance last ran
}

// Consumers returns how all consumers stand, by name, and how far behind all that had
// committed before the call; in a transaction and on a standby, behind what was numbered
// there.
func (l *Log) Consumers(ctx context.Context) ([]Status, error) {
	l.look(ctx, true)
	return l.statuses(ctx, "changes: consumers", nil)
}

// look numbers what has committed, where that can be: a consumer that stands still reads
// nothing, and perhaps nobody else does, and is behind all the same. Another who is at it
// may have begun too early: who wants all waits for him.
func (l *Log) look(ctx context.Context, wait bool) {
	if !pg.InTx(l.db) {
		l.tick(ctx, wait) // whoever reads on will be told why not
	}
}

// Consumer returns how one stands, or ErrNoConsumer.
func (l *Log) Consumer(ctx context.Context, name string) (Status, error) {
	const op = "changes: consumer"
	if err := pg.CheckText("name", name); err != nil {
		return Status{}, pg.Wrap(op, err)
	}
	l.look(ctx, true)
	found, err := l.statuses(ctx, op, &name)
	switch {
	case err != nil:
		return Status{}, err
	case len(found) == 0:
		return Status{}, pg.Wrap(op, noConsumer(name))
	}
	return found[0], nil
}

// How far place s is behind the last tick, t: in commits, less the numbers that an era
// left out; and in seconds, since the first change that is there and was not come to.
const (
	lag = `
				greatest(t.n - s.n + (s.id <> 0)::int - coalesce((
					SELECT sum(e.first - 1 - greatest(e.head, s.n))
					FROM howdah.change_era e
					WHERE e.first > s.n AND e.first <= t.n + 1), 0), 0)::bigint`
	behind = `
				coalesce((
					SELECT greatest(extract(epoch FROM clock_timestamp() - e.at), 0)
					FROM howdah.change_commit m
					CROSS JOIN LATERAL (
						SELECT l.id, l.at
						FROM howdah.change l
						WHERE l.xid = m.xid AND l.slot = m.slot
							AND l.id > CASE WHEN m.n = s.n THEN s.id ELSE 0 END -- what is left of a commit, too
						ORDER BY l.id
						LIMIT 1) e
					WHERE m.n >= s.n + (s.id = 0)::int
					ORDER BY m.n, e.id
					LIMIT 1), 0)::float8`
)

// retries is whether a parked change of shard g of consumer c is to be tried again. The
// first is found by an index; and parked changes, and dead ones, are counted each in one,
// not in the table, which has all of each change.
const retries = `(
						SELECT true
						FROM howdah.change_parked
						WHERE consumer = c.name AND shard = g.shard AND head AND NOT dead
						ORDER BY next_at
						LIMIT 1) IS NOT NULL`

// away is whether nobody runs consumer c: an instance says every 30 s that it does.
const away = `c.seen_at < clock_timestamp() - interval '5 minutes'`

// noConsumer says which consumer there is none of.
func noConsumer(name string) error { return fmt.Errorf("%q: %w", name, ErrNoConsumer) }

func (l *Log) statuses(ctx context.Context, op string, name *string) (found []Status, err error) {
	err = pg.Retry(ctx, l.db, func() error {
		return byIndexes(ctx, l.db, func(rows pgx.Rows) (err error) {
			found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Status, err error) {
				err = row.Scan(&s.Name, &s.State, &s.Reason, &s.Shards, &s.NextShards, &s.Patterns, &s.Sink, &s.Backfill,
					&s.Position.Commit, &s.Position.ID, &s.Lag, &s.Behind, &s.Parked, &s.Dead, &s.Seen)
				if stmt, ok := strings.CutPrefix(s.Sink, "sql "); ok && name == nil {
					s.Sink = Sink{SQL: stmt}.String()
				}
				return s, err
			})
			return err
		}, `
			SELECT c.name, CASE WHEN c.state <> 'running' THEN c.state WHEN `+away+` THEN 'away' WHEN s.stalls THEN 'stalled' ELSE 'running' END,
				CASE WHEN c.state <> 'running' THEN c.reason
				WHEN `+away+` THEN 'nothing was heard of it since ' || date_trunc('second', c.seen_at AT TIME ZONE 'UTC') || '+00'
				ELSE coalesce((
					SELECT p.error
					FROM howdah.change_parked p
					WHERE s.stalls AND p.consumer = c.name AND p.shard = s.stalled AND p.head AND NOT p.dead
					ORDER BY p.next_at
					LIMIT 1), '') END,
				c.shards, coalesce(c.next_shards, 0), c.patterns, coalesce(c.sink, ''),
				ARRAY(
					SELECT DISTINCT jsonb_array_elements_text(k.backfill -> 'tables')
					FROM generate_series(0, c.shards - 1) AS g(shard)
					CROSS JOIN LATERAL howdah.change_place(c.name, g.shard) k
					ORDER BY 1),
				s.n, s.id,
				`+lag+`, `+behind+`,
				p.parked, d.dead, c.seen_at
			FROM howdah.change_consumer c
			CROSS JOIN (SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) t
			CROSS JOIN LATERAL (
				SELECT count(*) AS parked
				FROM howdah.change_parked
				WHERE consumer = c.name) p
			CROSS JOIN LATERAL (
				SELECT count(*) AS dead
				FROM howdah.change_parked
				WHERE consumer = c.name AND dead) d
			CROSS JOIN LATERAL (
				SELECT x.n, x.id, bool_or(x.stalls) OVER () AS stalls, min(x.shard) FILTER (WHERE x.stalls) OVER () AS stalled
				FROM generate_series(0, c.shards - 1) AS g(shard)
				CROSS JOIN LATERAL (
					SELECT k.n, k.id, k.shard, k.failures >= $2 AND `+retries+` AS stalls
					FROM howdah.change_place(c.name, g.shard) k) x
				ORDER BY x.n, x.id = 0, x.id
				LIMIT 1) s
			WHERE $1::text IS NULL OR c.name = $1
			ORDER BY c.name`, name, outage)
	})
	return found, pg.Wrap(op, err)
}

// Pause has a consumer stand still, on all shards, once what is being handled is;
// reason is for those who wonder. It does not wait for that. Its changes are kept. In a
// transaction of the caller's whoever else pauses or moves the consumer waits until that
// ends. It returns ErrNoConsumer, and Conflict where it has expired.
func (l *Log) Pause(ctx context.Context, name, reason string) error {
	const op = "changes: pause"
	if err := pg.CheckText("reason", reason); err != nil {
		return pg.Wrap(op, err)
	}
	return pg.Wrap(op, l.turn(ctx, name, "paused", reason))
}

// Resume has a paused consumer go on where it stands. It returns ErrNoConsumer, and
// Conflict where it has expired: it can only be moved, see [Log.Seek].
func (l *Log) Resume(ctx context.Context, name string) error {
	return pg.Wrap("changes: resume", l.turn(ctx, name, "running", ""))
}

// hasExpired says that a consumer stands still until it is moved.
func hasExpired(name string) error {
	return fmt.Errorf("%q has expired, what it was to be handed is gone: seek: %w", name, fault.Conflict)
}

// turn sets the state of a consumer.
func (l *Log) turn(ctx context.Context, name, state, reason string) error {
	if err := pg.CheckText("name", name); err != nil {
		return err
	}
	var was string
	err := pg.Retry(ctx, l.db, func() error {
		return l.db.QueryRow(ctx, `
			UPDATE howdah.change_consumer
			SET state = CASE WHEN state = 'expired' THEN state ELSE $2 END,
				reason = CASE WHEN state = 'expired' THEN reason ELSE $3 END
			WHERE name = $1
			RETURNING state`, name, state, reason).Scan(&was)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return noConsumer(name)
	case err != nil:
		return pg.Written(l.db, err)
	case was == "expired":
		return hasExpired(name)
	}
	l.ring(ctx)
	return nil
}

// ring wakes the consumers, unless in a transaction of the caller's, which it would
// have queue with all that notify. They look by themselves before long.
func (l *Log) ring(ctx context.Context) {
	if !pg.InTx(l.db) {
		l.db.Exec(ctx, `SELECT pg_notify($1, '')`, bellOfTicks) // nothing is lost with it
	}
}

// Seek moves a consumer, all its shards, to where to stands: "start", "now", a time
// or a position; see [Log.Find]. Backwards it is handed again what it has handled,
// and what is parked from there on is forgotten, as it comes again; rows that a backfill
// read stay parked. Forwards it is never handed what lies between. One that has expired
// goes on. It waits for what is being handled. In a transaction in which the caller has
// paused it before, that may be for a handler that pauses it, too, and waits for him:
// PostgreSQL then ends one of the two (40P01), who begins anew. To move it first avoids that.
func (l *Log) Seek(ctx context.Context, name, to string) error {
	const op = "changes: seek"
	p, err := l.find(ctx, "to", to)
	if err != nil {
		return pg.Wrap(op, err)
	}
	err = pg.Retry(ctx, l.db, func() error {
		return l.begin(ctx, func(tx pgx.Tx) error {
			if err := held(ctx, tx, p); err != nil { // before all else: retention locks in the same order
				return err
			}
			return l.WithTx(tx).alone(ctx, name, func(tx pgx.Tx, shards int) error {
				for n := range shards { // rows that were read do not come again: they stay
					if _, err := release(ctx, tx, name, n, `(n, id) > ($3::bigint, $4::bigint) AND change ->> 'op' <> 'read'`, p.Commit, p.within()); err != nil {
						return err
					}
				}
				var b pgx.Batch
				b.Queue(`
					WITH `+newest+`, moved AS (
						INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id, backfill, handled, failed)
						SELECT consumer, shard, seq + 1, $3, $4, backfill, handled, failed
						FROM newest
					)
					`+replaced, name, shards, p.Commit, p.ID)
				b.Queue(`
					UPDATE howdah.change_consumer
					SET state = CASE WHEN state = 'expired' THEN 'running' ELSE state END,
						reason = CASE WHEN state = 'expired' THEN '' ELSE reason END,
						stop_at = CASE WHEN next_shards IS NOT NULL THEN $2::bigint END
					WHERE name = $1`, name, p.Commit)
				return tx.SendBatch(ctx, &b).Close()
			})
		})
	})
	if err == nil {
		l.ring(ctx)
	}
	return pg.Wrap(op, pg.Written(l.db, err))
}

// Forget takes a consumer away with all that is known of it; its instances end with
// ErrNoConsumer, which it returns where there is none.
func (l *Log) Forget(ctx context.Context, name string) error {
	err := l.alone(ctx, name, func(tx pgx.Tx, _ int) error {
		_, err := tx.Exec(ctx, `
			WITH parked AS (DELETE FROM howdah.change_parked WHERE consumer = $1),
				checkpoints AS (DELETE FROM howdah.change_checkpoint WHERE consumer = $1),
				sinks AS (DELETE FROM howdah.change_sink WHERE consumer = $1)
			DELETE FROM howdah.change_consumer WHERE name = $1`, name)
		return err
	})
	if err == nil {
		l.ring(ctx)
	}
	return pg.Wrap("changes: forget", pg.Written(l.db, err))
}

// Wait returns when a consumer has handled all up to upTo, as it is in the feed: for
// all that has committed, that of a Sync; and all rows of its backfill. It returns
// ErrParked at once where some of it is parked, unless that has not been tried since a
// [Log.Retry], or since what it waited for was handled; ErrAhead where the feed has not come to
// upTo (but on a standby, to which that may be on its way) or it was lost in a failover or
// restore, Conflict where the consumer has expired, ErrNoConsumer, and otherwise
// waits until ctx is done.
func (l *Log) Wait(ctx context.Context, consumer string, upTo Position) error {
	const op = "changes: wait"
	if err := pg.CheckText("name", consumer); err != nil {
		return pg.Wrap(op, err)
	}
	for pause := briefly; ; pause = min(2*pause, l.cfg.Idle) {
		var there, first, failed, expired *bool // first: whether the first that is parked waits behind no other
		var lost []int64
		var head *int64
		err := pg.Retry(ctx, l.db, func() error {
			return l.db.QueryRow(ctx, `
				SELECT bool_and(k.backfill IS NULL AND (k.n, CASE k.id WHEN 0 THEN 9223372036854775807 ELSE k.id END) >= ($2::bigint, $3::bigint)),
					(
						SELECT CASE WHEN (n, id) <= ($2::bigint, $3::bigint) THEN head END
						FROM howdah.change_parked
						WHERE consumer = $1
						ORDER BY n, id
						LIMIT 1),
					coalesce((
						SELECT (n, id) <= ($2::bigint, $3::bigint)
						FROM howdah.change_parked
						WHERE consumer = $1 AND attempts > 0
						ORDER BY n, id
						LIMIT 1), false), bool_or(c.state = 'expired'),
					(SELECT ARRAY[head, first] FROM howdah.change_era WHERE head < $2::bigint AND first - 1 > $2::bigint), -- first - 1 is where a rebase left off
					(SELECT n FROM howdah.change_tick WHERE NOT pg_is_in_recovery() ORDER BY tick DESC LIMIT 1)
				FROM howdah.change_consumer c
				CROSS JOIN generate_series(0, c.shards - 1) AS g(shard)
				CROSS JOIN LATERAL howdah.change_place(c.name, g.shard) k
				WHERE c.name = $1`, consumer, upTo.Commit, upTo.within()).Scan(&there, &first, &failed, &expired, &lost, &head)
		})
		switch {
		case err != nil:
			return pg.Wrap(op, err)
		case there == nil:
			return pg.Wrap(op, noConsumer(consumer))
		case lost != nil:
			return pg.Wrap(op, inGap(upTo, lost))
		case *failed, first != nil && !*first: // behind a row that was read, which a Seek left there
			return pg.Wrap(op, fmt.Errorf("%q: %w", consumer, ErrParked))
		case *there && first == nil:
			return nil
		case head != nil && upTo.Commit > *head:
			return pg.Wrap(op, neverReached(upTo, *head))
		case *expired:
			return pg.Wrap(op, hasExpired(consumer))
		}
		if !sleep(ctx, pause, nil) {
			return pg.Wrap(op, ctx.Err())
		}
	}
}

// Parked is a change that a consumer could not handle, or one that waits behind it.
type Parked struct {
	Change   Change    `json:"change"`
	Shard    int       `json:"shard"`
	Waits    bool      `json:"waits,omitempty"` // behind an earlier one of its key, unseen
	Attempts int       `json:"attempts"`
	Error    string    `json:"error,omitempty"` // of the last attempt
	Dead     bool      `json:"dead,omitempty"`  // it is tried no more, until a person has looked
	Next     time.Time `json:"next,omitzero"`   // when it is tried again
	Since    time.Time `json:"since"`
}

// Parked returns the parked changes of a consumer that follow after, in the order of
// the feed: n of them, fewer where they are as much as a page holds, or more where one
// position has several. It returns ErrNoConsumer.
func (l *Log) Parked(ctx context.Context, name string, after Position, n int) ([]Parked, error) {
	const op = "changes: parked"
	if err := pg.CheckText("name", name); err != nil {
		return nil, pg.Wrap(op, err)
	}
	if n < 1 || n > MaxPage {
		return nil, pg.Wrap(op, pg.Refuse("limit", "%d; want 1 to %d", n, MaxPage))
	}
	var found []Parked
	err := pg.Retry(ctx, l.db, func() error {
		rows, _ := l.db.Query(ctx, `
			SELECT change, shard, NOT head, attempts, error, dead, CASE WHEN head AND NOT dead THEN next_at END, parked_at
			FROM howdah.change_parked
			WHERE consumer = $1 AND (n, id) > ($2::bigint, $3::bigint)
			ORDER BY n, id
			FETCH FIRST $4 ROWS WITH TIES`, name, after.Commit, after.ID, n)
		found = []Parked{}
		var p Parked
		var text []byte
		var next *time.Time
		size, full := 0, false
		_, err := pgx.ForEachRow(rows, []any{&text, &p.Shard, &p.Waits, &p.Attempts, &p.Error, &p.Dead, &next, &p.Since}, func() error {
			if full {
				return nil
			}
			p.Change, p.Next, p.Since = Change{}, time.Time{}, p.Since.UTC()
			if next != nil {
				p.Next = next.UTC()
			}
			if err := json.Unmarshal(text, &p.Change); err != nil {
				return err
			}
			// The next page begins behind a position.
			if full = size >= l.bytes && p.Change.Position != found[len(found)-1].Change.Position; full {
				return nil
			}
			found, size = append(found, p), size+p.Change.size()+len(p.Error)
			return nil
		})
		return err
	})
	if err == nil && len(found) == 0 {
		err = l.known(ctx, name)
	}
	return found, pg.Wrap(op, err)
}

// Retry has parked changes tried again at once, with no attempts made: those at the
// positions, or, where none is named, all that do not wait behind another. It returns
// how many, and NotFound where none of the positions is such a one's.
func (l *Log) Retry(ctx context.Context, name string, at ...Position) (count int64, err error) {
	const op = "changes: retry"
	if err := pg.CheckText("name", name); err != nil {
		return 0, pg.Wrap(op, err)
	}
	again := `
		UPDATE howdah.change_parked p
		SET attempts = 0, dead = false, next_at = clock_timestamp()`
	args := []any{name}
	if at != nil {
		commits, ids := columns(at)
		args = append(args, commits, ids)
		again += `
		FROM unnest($2::bigint[], $3::bigint[]) AS a(n, id)
		WHERE p.consumer = $1 AND p.head AND p.n = a.n AND p.id = a.id`
	} else {
		again += `
		WHERE p.consumer = $1 AND p.head`
	}
	err = pg.Retry(ctx, l.db, func() error {
		tag, err := l.db.Exec(ctx, again, args...)
		count = tag.RowsAffected()
		return err
	})
	switch {
	case err != nil:
		err = pg.Written(l.db, err)
	case count == 0:
		if err = l.known(ctx, name); err == nil && len(at) > 0 {
			err = notParked(name)
		}
	default:
		l.ring(ctx)
	}
	return count, pg.Wrap(op, err)
}

// known returns ErrNoConsumer where there is none of the name, and with it nothing parked.
func (l *Log) known(ctx context.Context, name string) error {
	var there bool
	err := pg.Retry(ctx, l.db, func() error {
		return l.db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM howdah.change_consumer WHERE name = $1)`, name).Scan(&there)
	})
	if err == nil && !there {
		err = noConsumer(name)
	}
	return err
}

// Skip takes parked changes away, so that they are never handled: those at the
// positions, or, where none is named, all. What waited behind them is handled. It returns
// how many it took, and NotFound where nothing is parked at any of the positions.
func (l *Log) Skip(ctx context.Context, name string, at ...Position) (count int64, err error) {
	commits, ids := columns(at)
	err = l.alone(ctx, name, func(tx pgx.Tx, shards int) error {
		if at == nil {
			tag, err := tx.Exec(ctx, `DELETE FROM howdah.change_parked WHERE consumer = $1`, name)
			count = tag.RowsAffected()
			return err
		}
		count = 0
		for n := range shards {
			some, err := release(ctx, tx, name, n, `(n, id) IN (SELECT * FROM unnest($3::bigint[], $4::bigint[]))`, commits, ids)
			if err != nil {
				return err
			}
			count += some
		}
		if count == 0 && len(at) > 0 {
			return notParked(name)
		}
		return nil
	})
	if err == nil {
		l.ring(ctx)
	}
	return count, pg.Wrap("changes: skip", pg.Written(l.db, err))
}
