package changes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Reshard has a consumer handled in so many shards: the present ones run to one commit
// that all of them reach, and from there on the new ones go on. Meanwhile instances
// with either number run; then those with the old one end, with Conflict. It
// returns at once; [Status] tells how many there are. Where a change is parked on the way,
// the present ones go on until that has been handled or skipped. As many as there are call off a
// change to others that is not done. Conflict also says that something
// is parked, which would change its shard, or that a backfill is not done, and NotFound that there is no such consumer.
func (l *Log) Reshard(ctx context.Context, name string, shards int) error {
	const op = "changes: reshard"
	if shards < 1 || shards > maxShards {
		return pg.Wrap(op, pg.Refuse("shards", "%d; want 1 to %d", shards, maxShards))
	}
	err := l.alone(ctx, name, func(tx pgx.Tx, present int) error { return reshard(ctx, tx, name, present, shards) })
	if err == nil {
		l.ring(ctx)
	}
	return pg.Wrap(op, pg.Written(l.db, err))
}

// reshard begins to give a consumer so many shards, or calls that off, in a transaction
// that holds all shards.
func reshard(ctx context.Context, tx pgx.Tx, name string, present, shards int) error {
	if shards == present { // none, and what was under way ends
		_, err := tx.Exec(ctx, `UPDATE howdah.change_consumer SET next_shards = NULL, stop_at = NULL WHERE name = $1`, name)
		return err
	}
	var parked bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM howdah.change_parked WHERE consumer = $1)`, name).Scan(&parked); err != nil {
		return err
	}
	if parked {
		return fmt.Errorf("changes are parked for %q: retry or skip them first: %w", name, fault.Conflict)
	}
	var filling bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM howdah.change_checkpoint WHERE consumer = $1 AND backfill IS NOT NULL)`, name).Scan(&filling); err != nil {
		return err
	}
	if filling {
		return fmt.Errorf("%q still reads tables: wait until its backfill is done: %w", name, fault.Conflict)
	}
	_, err := tx.Exec(ctx, `
		UPDATE howdah.change_consumer c
		SET next_shards = $2::int,
			stop_at = (SELECT max(k.n) FROM howdah.change_checkpoint k WHERE k.consumer = $1)
		WHERE c.name = $1`, name, shards)
	if err != nil {
		return err
	}
	return resharded(ctx, tx, name)
}

// ready is the consumer $1 where all its shards have come to the commit that they are
// to stop at and nothing is parked.
const ready = `
	SELECT c.name, c.next_shards, c.stop_at, max(k.seq) AS seq, sum(k.handled)::bigint AS handled, sum(k.failed)::bigint AS failed
	FROM howdah.change_consumer c
	CROSS JOIN generate_series(0, c.shards - 1) AS g(shard)
	CROSS JOIN LATERAL howdah.change_place(c.name, g.shard) k
	WHERE c.name = $1 AND c.next_shards IS NOT NULL AND NOT EXISTS (SELECT FROM howdah.change_parked WHERE consumer = $1)
	GROUP BY c.name
	HAVING bool_and(k.n = c.stop_at AND k.id = 0)`

// resharded makes the new shards, if all is ready, in a transaction that holds all
// shards.
func resharded(ctx context.Context, tx pgx.Tx, name string) error {
	_, err := tx.Exec(ctx, `
		WITH ready AS (`+ready+`
		), gone AS (
			DELETE FROM howdah.change_checkpoint k
			USING ready r
			WHERE k.consumer = r.name
		), made AS (
			INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, handled, failed)
			SELECT r.name, g.shard, r.seq + 1, r.stop_at, CASE g.shard WHEN 0 THEN r.handled ELSE 0 END, CASE g.shard WHEN 0 THEN r.failed ELSE 0 END
			FROM ready r, generate_series(0, r.next_shards - 1) AS g(shard)
		)
		UPDATE howdah.change_consumer c
		SET shards = r.next_shards, next_shards = NULL, stop_at = NULL
		FROM ready r
		WHERE c.name = r.name`, name)
	return err
}

// reshard is tried by a shard that has come to where it is to stop. Where something is
// parked, and may be for long, the present shards go on: only its key is to wait for it.
func (s *shard) reshard(b *batch) error {
	var all, parked bool // others may have a way to go, and are not to be held up
	err := b.tx.QueryRow(b.ctx, `SELECT EXISTS (`+ready+`), EXISTS (SELECT FROM howdah.change_parked WHERE consumer = $1)`, s.cfg.Name).Scan(&all, &parked)
	switch {
	case err != nil:
		return err
	case parked:
		return s.putOff(b)
	case all:
		return s.alone(b, func(ctx context.Context, tx pgx.Tx, _ int) error { return resharded(ctx, tx, s.cfg.Name) })
	}
	return nil
}

// putOff lets the shards go on that were to stop, until nothing is parked any more: see
// resume. It passes over a consumer that somebody is changing, and is tried again.
func (s *shard) putOff(b *batch) error {
	b.rollback() // or who changes the consumer may wait for this shard
	ctx, cancel := context.WithTimeout(b.parent, s.cfg.Timeout+s.pace.grace)
	defer cancel()
	put, err := s.pool.Exec(ctx, `
		UPDATE howdah.change_consumer
		SET stop_at = NULL
		WHERE name = (SELECT name FROM howdah.change_consumer WHERE name = $1 AND stop_at IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED)
			AND EXISTS (SELECT FROM howdah.change_parked WHERE consumer = $1)`, s.cfg.Name)
	if err == nil && put.RowsAffected() > 0 {
		slog.WarnContext(ctx, "a consumer of changes has another number of shards only once nothing is parked", "consumer", s.cfg.Name)
	}
	return err
}

// resume has the shards stop again, for another number of them that was put off, if
// nothing is parked any more. It reports whether it has ended the batch for that.
func (s *shard) resume(b *batch) (bool, error) {
	var parked bool
	err := b.tx.QueryRow(b.ctx, `SELECT EXISTS (SELECT FROM howdah.change_parked WHERE consumer = $1)`, s.cfg.Name).Scan(&parked)
	if err != nil || parked {
		return false, err
	}
	err = s.alone(b, func(ctx context.Context, tx pgx.Tx, present int) error {
		var next *int // nil where another shard was first
		if err := tx.QueryRow(ctx, `SELECT CASE WHEN stop_at IS NULL THEN next_shards END FROM howdah.change_consumer WHERE name = $1`, s.cfg.Name).Scan(&next); err != nil || next == nil {
			return err
		}
		return reshard(ctx, tx, s.cfg.Name, present, *next)
	})
	if errors.Is(err, fault.Conflict) { // something was parked meanwhile
		err = nil
	}
	return true, err
}

// alone runs fn as [Log.alone] does, in the place of the batch, which holds its shard.
func (s *shard) alone(b *batch, fn func(ctx context.Context, tx pgx.Tx, shards int) error) error {
	b.rollback()
	ctx, cancel := context.WithTimeout(b.parent, s.cfg.Timeout+s.pace.grace)
	defer cancel()
	return s.log.alone(ctx, s.cfg.Name, func(tx pgx.Tx, shards int) error { return fn(ctx, tx, shards) })
}
