package changes

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Rebase makes the log usable where it came from another database, and where a
// tick returns ErrRestored. It empties the log and begins an era: every position from
// before is ErrExpired, and consumers have to be moved or begin again. A log that is this
// database's own is not emptied, which is Conflict. Unavailable is one that others have
// locked, with their process ids.
//
// With keep it keeps the log, and consumers go on where they were: after pg_upgrade,
// which takes the tables along as they are, with the transaction ids in them, and in a
// copy of the database in its own cluster. Of a log that was restored from a dump it returns
// a Conflict and changes nothing: its rows bear the id of who restored them.
func (l *Log) Rebase(ctx context.Context, keep bool) error {
	const op = "changes: rebase"
	if pg.InTx(l.db) {
		return pg.Wrap(op, ErrInTx)
	}
	err := pg.Retry(ctx, l.db, func() error {
		return l.begin(ctx, func(tx pgx.Tx) error {
			// Nobody ticks, tends, or makes or moves a consumer meanwhile.
			for _, sql := range []string{
				`SET LOCAL lock_timeout = '2s'`, // writers would queue behind us as long as one has a transaction open
				`SELECT pg_advisory_xact_lock(1752135524, 1)`,
				`SELECT FROM howdah.change_state FOR UPDATE`,
			} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			from, err := originOf(ctx, tx)
			switch {
			case err != nil:
				return err
			case keep:
				return rebaseKeeping(ctx, tx, from)
			case from == origin{line: from.line}:
				return fmt.Errorf("the log is this database's own and means something: it is not emptied; howdah changes retention says for how long it keeps what, and howdah changes seek NAME now has a consumer pass over it: %w", fault.Conflict)
			}
			for _, sql := range rebase {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "55P03" {
		err = l.lockedBy(ctx, err, `
			locktype = 'advisory' AND classid = 1752135524 AND objid = 1
			OR locktype = 'relation' AND relation IN (SELECT relid FROM pg_partition_tree('howdah.change') UNION SELECT 'howdah.change_commit'::regclass)
			OR locktype = 'relation' AND relation = 'howdah.change_state'::regclass AND mode <> 'AccessShareLock'`)
	}
	return pg.Wrap(op, err)
}

// nextEra is the first number of the era after n, as change_tick has it. An era that n is
// the end before may have begun, in the history that the log came from or in one that is
// lost: it is left out.
const nextEra = `((n + 1) / 1000000000000 + 1) * 1000000000000`

// The new tick is one of the new cluster; its number is the last before the new era,
// and the floor. What lies between is known as an era's beginning, as no commits.
var rebase = []string{
	`TRUNCATE howdah.change, howdah.change_commit`,
	`INSERT INTO howdah.change_era (first, head, timeline)
	SELECT ` + nextEra + `, n, ` + timeline + `
	FROM howdah.change_tick
	ORDER BY tick DESC
	LIMIT 1`,
	`INSERT INTO howdah.change_tick (tick, n, snap, next, seq, timeline)
	SELECT tick + 1, ` + nextEra + ` - 1, pg_current_snapshot(), pg_current_xact_id(),
		(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM howdah.change_id), ` + timeline + `
	FROM howdah.change_tick
	ORDER BY tick DESC
	LIMIT 1`,
	`DELETE FROM howdah.change_tick WHERE tick < (SELECT max(tick) FROM howdah.change_tick)`,
	atHome,
	`UPDATE howdah.change_state SET floor = (SELECT n FROM howdah.change_tick)`,
	`UPDATE howdah.change_consumer SET state = 'expired', reason = 'the log was emptied: it came from another database'`,
	`SELECT setval('howdah.change_floor', floor) FROM howdah.change_state`, // the last: it stays though the rest were rolled back
}

const (
	timeline = `substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)`

	// atHome says that the log belongs where it is.
	atHome = `
		UPDATE howdah.change_state
		SET system = (SELECT system_identifier FROM pg_control_system()), ticks = 'howdah.change_tick'::regclass,
			database = (SELECT oid FROM pg_database WHERE datname = current_database())`
)

// origin is what tells where a log came from.
type origin struct {
	backwards bool   // it has transaction ids that are still to come here
	restored  bool   // its rows were written anew
	elsewhere bool   // it began in another database
	line      string // the history that it goes on in
}

func originOf(ctx context.Context, tx pgx.Tx) (from origin, err error) {
	// A tick keeps the id of its transaction, which its row was written by: pg_upgrade
	// takes both along, and who restores a dump writes the row anew. The table's own
	// number is kept, too, by one, and given anew by the other.
	//
	// It makes another cluster, too. In the same one another timeline is another history,
	// which goes on in an era of its own, as it would without us: the tick keeps the old.
	err = tx.QueryRow(ctx, `
		SELECT pg_snapshot_xmax(pg_current_snapshot()) < t.next,
			t.xmin::text::bigint <> t.next::text::bigint % 4294967296 OR coalesce(s.ticks <> 'howdah.change_tick'::regclass, false),
			coalesce((SELECT `+foreign+` FROM howdah.change_state), false),
			CASE WHEN s.system = (SELECT system_identifier FROM pg_control_system()) THEN t.timeline ELSE `+timeline+` END
		FROM howdah.change_tick t, howdah.change_state s
		ORDER BY t.tick DESC
		LIMIT 1`).Scan(&from.backwards, &from.restored, &from.elsewhere, &from.line)
	return from, err
}

func rebaseKeeping(ctx context.Context, tx pgx.Tx, from origin) error {
	switch {
	case from.backwards:
		return fmt.Errorf("transaction ids run backwards here, so the log means nothing; rebase without keeping it: %w", fault.Conflict)
	case from.restored:
		return fmt.Errorf("the log was restored from a dump, so the transaction ids in it mean nothing here; rebase without keeping it: %w", fault.Conflict)
	}
	if _, err := tx.Exec(ctx, atHome); err != nil {
		return err
	}
	// What the last tick saw still holds; only the history has another name. In doubt is,
	// besides, who has changes that are not numbered, or is open: by name, because there
	// may have been any number of transactions since, of all databases.
	_, err := tx.Exec(ctx, `
		WITH last AS (
			SELECT *
			FROM howdah.change_tick
			ORDER BY tick DESC
			LIMIT 1
		), now AS MATERIALIZED (
			SELECT pg_current_snapshot() AS snap
		), doubt AS (
			SELECT pg_snapshot_xip(last.snap) AS xid
			FROM last
			UNION
			SELECT x
			FROM last, now, pg_snapshot_xip(now.snap) AS x
			WHERE x >= pg_snapshot_xmax(last.snap)
			UNION
			SELECT e.xid
			FROM howdah.change e
			WHERE e.xid >= (SELECT pg_snapshot_xmax(snap) FROM last)
		)
		INSERT INTO howdah.change_tick (tick, n, snap, next, seq, timeline)
		SELECT last.tick + 1, last.n,
			(SELECT format('%s:%s:%s', coalesce(min(xid::text::bigint)::text, pg_snapshot_xmax(now.snap)::text), pg_snapshot_xmax(now.snap),
				string_agg(xid::text, ',' ORDER BY xid)) FROM doubt)::pg_snapshot,
			pg_current_xact_id(), last.seq, $1
		FROM last, now`, from.line)
	return err
}
