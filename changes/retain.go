package changes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Retention is for how long the log keeps changes.
type Retention struct {
	Keep time.Duration // changes are kept for this long, and up to a third and 8 s longer
	Hold time.Duration // and for consumers that are behind, for this long; then they expire
}

// minRetention lets each leaf of the log take a second at least.
const minRetention = 6 * time.Second

// Retain sets for how long the log keeps changes: at least 6 s, and for consumers that
// are behind at least that long. Zero leaves what was set. It is Denied to whoever does
// not own what is in schema howdah.
func (l *Log) Retain(ctx context.Context, keep, hold time.Duration) error {
	const op = "changes: retain"
	was, err := l.Retention(ctx)
	if err != nil {
		return err
	}
	if keep == 0 {
		keep = was.Keep
	}
	if hold == 0 {
		hold = max(was.Hold, keep)
	}
	if keep < minRetention {
		return pg.Wrap(op, pg.Refuse("retention", "%s; want %s or more", keep, minRetention))
	}
	if hold < keep {
		return pg.Wrap(op, pg.Refuse("hold", "%s; want the retention, %s, or more", hold, keep))
	}
	err = pg.Retry(ctx, l.db, func() error {
		_, err := l.db.Exec(ctx, `SELECT howdah.change_retain($1, $2)`, keep, hold)
		return err
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42501" { // it makes a function anew: no GRANT on tables is enough
		err = fmt.Errorf("%w: %w; it takes the rights of the owner of what is in schema howdah", fault.Denied, err)
	}
	return pg.Wrap(op, err)
}

// Retention returns for how long the log keeps changes.
func (l *Log) Retention(ctx context.Context) (r Retention, err error) {
	err = pg.Retry(ctx, l.db, func() error {
		return l.db.QueryRow(ctx, `SELECT retention, hold FROM howdah.change_state`).Scan(&r.Keep, &r.Hold)
	})
	return r, pg.Wrap("changes: retention", err)
}

// Tend lets go of what is kept no longer: it expires consumers that are behind for
// longer than they are waited for, empties the leaves of the log whose changes
// nobody needs any more, and deletes what told of them; before, it numbers what has
// committed, which perhaps nobody else does. Writers do not wait for it, and
// where it would have to wait for others it leaves the rest for the next time. Several
// at once do no harm. It returns ErrInTx in a transaction.
func (l *Log) Tend(ctx context.Context) error {
	return l.tend(ctx, nil)
}

// tend is Tend; away is of who does it again and again, or nil.
func (l *Log) tend(ctx context.Context, away *trouble) error {
	const op = "changes: tend"
	if pg.InTx(l.db) {
		return pg.Wrap(op, ErrInTx)
	}
	// What has no number is never old enough to go, nor is anyone behind it.
	err := away.ask(ctx, l, func(ctx context.Context) error { _, err := l.tick(ctx, false); return err })
	if errors.Is(err, context.DeadlineExceeded) { // of what else it may be the next step tells
		return pg.Wrap(op, err)
	}
	steps := []func(context.Context, pgx.Tx) error{func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, expire); return err }}
	for slot := range leaves {
		steps = append(steps, func(ctx context.Context, tx pgx.Tx) error { return empty(ctx, tx, slot) })
	}
	for _, step := range steps {
		alone, err := l.tending(ctx, away, func(ctx context.Context, tx pgx.Tx) error {
			if err := settled(ctx, tx); err != nil {
				return err
			}
			return step(ctx, tx)
		})
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Code == "55P03" {
			continue // somebody is at it, or has written there and not committed
		}
		if err != nil || !alone {
			return pg.Wrap(op, err)
		}
	}
	return pg.Wrap(op, errors.Join(l.forget(ctx, away, commits), l.forget(ctx, away, ticks)))
}

// leaves is how many parts the log has.
const leaves = 8

// tending runs fn in a transaction, unless another process tends the log: then it
// reports false.
func (l *Log) tending(ctx context.Context, away *trouble, fn func(context.Context, pgx.Tx) error) (alone bool, err error) {
	err = away.ask(ctx, l, func(ctx context.Context) error {
		return pg.Retry(ctx, l.db, func() error {
			return l.begin(ctx, func(tx pgx.Tx) error {
				// What a crash undoes is done again. Only where a leaf was emptied is it waited for,
				// by PostgreSQL, which does so wherever a file is removed.
				if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(1752135524, 2), set_config('synchronous_commit', 'off', true)`).Scan(&alone, nil); err != nil || !alone {
					return err
				}
				return fn(ctx, tx)
			})
		})
	})
	return alone, err
}

// settled makes sure that nobody is about to make a consumer or to move one: who is
// holds the row until the consumer can be seen.
func settled(ctx context.Context, tx pgx.Tx) error {
	// Tables so small are never analyzed: to compile what they are taken for takes longer
	// than all of this.
	if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', '100ms', true), set_config('jit', 'off', true)`); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `SELECT FROM howdah.change_state FOR UPDATE`)
	return err
}

// A consumer's place is where its slowest shard is: after all of commit n, or in it.
const places = `
	places AS (
		SELECT k.consumer, min(CASE WHEN k.id = 0 THEN k.n ELSE k.n - 1 END) AS n
		FROM (
			SELECT DISTINCT ON (consumer, shard) consumer, n, id
			FROM howdah.change_checkpoint
			ORDER BY consumer, shard, seq DESC) k
		GROUP BY k.consumer)`

// What a consumer has to do next was numbered by the first tick after its place.
const expire = `
	WITH ` + places + `
	UPDATE howdah.change_consumer c
	SET state = 'expired', reason = format('it was behind for longer than %s', s.hold)
	FROM places p, howdah.change_state s
	WHERE c.name = p.consumer AND c.state <> 'expired'
		AND (SELECT t.at FROM howdah.change_tick t WHERE t.n > p.n ORDER BY t.n, t.tick LIMIT 1) < statement_timestamp() - s.hold`

// empty empties a leaf of the log if all in it lies below what is kept.
func empty(ctx context.Context, tx pgx.Tx, slot int) error {
	// Not where writers are, or are about to be. The next of the eight is as old as it is
	// kept, to its last change, just while it is the next: it has to be emptied then.
	var now, soon int
	err := tx.QueryRow(ctx, `
		SELECT howdah.change_slot(),
			extract(epoch FROM clock_timestamp() + least(retention / 24, '10 s'))::bigint / ceil(extract(epoch FROM retention) / 6)::bigint % 8
		FROM howdah.change_state`).Scan(&now, &soon)
	if err != nil || slot == now || slot == soon {
		return err
	}
	var n int64
	var xmin string
	err = tx.QueryRow(ctx, `
		WITH `+places+`, slowest AS (
			SELECT min(p.n) AS n
			FROM places p
			JOIN howdah.change_consumer c ON c.name = p.consumer AND c.state <> 'expired'
		), old AS (
			SELECT tick
			FROM howdah.change_tick
			WHERE at < statement_timestamp() - (SELECT retention FROM howdah.change_state)
			ORDER BY at DESC, tick DESC
			LIMIT 1
		), slow AS (
			SELECT tick
			FROM howdah.change_tick
			WHERE n <= (SELECT n FROM slowest)
			ORDER BY n DESC, tick DESC
			LIMIT 1
		)
		SELECT t.n, pg_snapshot_xmin(t.snap)::text
		FROM howdah.change_tick t
		WHERE t.tick = CASE WHEN (SELECT n FROM slowest) IS NULL THEN (SELECT tick FROM old) ELSE (SELECT least(old.tick, slow.tick) FROM old, slow) END
			AND t.n > 0`).Scan(&n, &xmin)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	leaf := pgx.Identifier{"howdah", "change_" + strconv.Itoa(slot)}.Sanitize()
	// All that had ended before the snapshot was taken is numbered, and not above n.
	below := func() (below bool, err error) {
		err = tx.QueryRow(ctx, `SELECT coalesce((SELECT xid < $1::text::xid8 FROM `+leaf+` ORDER BY xid DESC, id DESC LIMIT 1), false)`, xmin).Scan(&below)
		return below, err
	}
	if ok, err := below(); err != nil || !ok {
		return err
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+leaf+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		return err
	}
	if ok, err := below(); err != nil || !ok { // others may have written before the lock
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE howdah.change_state SET floor = greatest(floor, $1)`, n); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT setval('howdah.change_floor', floor) FROM howdah.change_state`); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `TRUNCATE ONLY `+leaf)
	return err
}

// A told is a table that tells of changes: a query of how far its next part goes, after
// $1, of what is to go, and what deletes that part.
type told struct{ upTo, forget string }

var (
	commits = told{`
		SELECT least(s.floor, f.n + 49999)
		FROM howdah.change_state s, (SELECT n FROM howdah.change_commit WHERE n > $1 ORDER BY n LIMIT 1) f
		WHERE f.n <= s.floor`, `
		DELETE FROM howdah.change_commit
		WHERE n > $1 AND n <= $2`}

	// All that are young are kept: each is the one that a leaf is emptied up to, when its
	// time comes.
	ticks = told{`
		WITH old AS (
			SELECT tick
			FROM howdah.change_tick
			WHERE n <= (SELECT floor FROM howdah.change_state) AND at < statement_timestamp() - (SELECT retention FROM howdah.change_state)
			ORDER BY n DESC, tick DESC
			LIMIT 1
		)
		SELECT least(old.tick - 1, f.tick + 49999)
		FROM old, (SELECT tick FROM howdah.change_tick WHERE tick > $1 ORDER BY tick LIMIT 1) f
		WHERE f.tick < old.tick`, `
		DELETE FROM howdah.change_tick
		WHERE tick > $1 AND tick <= $2`}
)

// forget deletes what told of changes that are gone, in parts, so that no transaction is
// long.
func (l *Log) forget(ctx context.Context, away *trouble, what told) error {
	after := int64(-1)
	for {
		var last int64
		alone, err := l.tending(ctx, away, func(ctx context.Context, tx pgx.Tx) (err error) {
			last, err = what.part(ctx, tx, after)
			return err
		})
		if err != nil || !alone || last == after {
			return err
		}
		after = last
	}
}

// part deletes one part, and returns where it ended, and where the next begins: beside an
// old snapshot what was deleted stays in the index, to be passed over.
func (what told) part(ctx context.Context, tx pgx.Tx, after int64) (last int64, err error) {
	// It is a stretch of the index, whatever was known when the table was analyzed.
	if _, err := tx.Exec(ctx, `SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)`); err != nil {
		return after, err
	}
	err = tx.QueryRow(ctx, what.upTo, after).Scan(&last)
	if errors.Is(err, pgx.ErrNoRows) {
		return after, nil
	}
	if err == nil {
		_, err = tx.Exec(ctx, what.forget, after, last)
	}
	return last, err
}

// soon is how long before a leaf is written to again it is not emptied any more: see empty.
func soon(keep time.Duration) time.Duration { return min(keep/24, 10*time.Second) }

// leaf is for how long a leaf of the log takes changes: howdah.change_retain has it so.
func leaf(keep time.Duration) time.Duration {
	return (keep/6 + time.Second - 1).Truncate(time.Second)
}

// between is how long a Keeper waits from one time to the next: it has to come by while a
// leaf is old and not yet the next. Where nobody else numbers what commits, that begins a
// pause later.
func between(keep time.Duration) time.Duration {
	return min((7*leaf(keep)-keep-soon(keep))/3, time.Minute)
}

// Keeper tends the log of a database for as long as it runs.
type Keeper struct{ log *Log }

// NewKeeper returns a Keeper of l. It starts nothing.
func NewKeeper(l *Log) *Keeper { return &Keeper{l} }

// Run tends the log until ctx is done: every minute, and more often where the retention is
// less than a quarter of an hour. A database that is away is waited for.
func (k *Keeper) Run(ctx context.Context) error {
	if pg.InTx(k.log.db) {
		return pg.Wrap("changes: keeper", ErrInTx)
	}
	away := trouble{of: "the log of changes cannot be tended"}
	// Not all processes at once, and not those that live but for a moment.
	for wait := time.Second + rand.N(10*time.Second); sleep(ctx, wait, nil); wait = k.pause(ctx, &away) {
		err := k.log.tend(ctx, &away)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !readOnly(err): // a standby: the primary is tended
			away.note(ctx, err)
		default:
			away.over()
		}
	}
	return nil
}

// pause is how long to wait for the next time.
func (k *Keeper) pause(ctx context.Context, away *trouble) time.Duration {
	var r Retention
	if err := away.ask(ctx, k.log, func(ctx context.Context) (err error) { r, err = k.log.Retention(ctx); return err }); err != nil {
		return time.Minute
	}
	return between(r.Keep)
}
