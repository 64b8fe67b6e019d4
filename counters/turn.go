package counters

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// turn is somebody's on a task. Its row says when the task was last begun, by who
// finished it or is on it, and when it was last finished.
type turn struct {
	store      *Store
	tbl, task  string
	at, before time.Time
}

var errGone = errors.New("it is recorded, and not there; if it is to stay so, delete it from howdah.counter_tables and howdah.counter_slots")

// turn is that of the Store; a table that was recorded has to be there.
func (k *Keeper) turn(ctx context.Context, of task) (*turn, error) {
	if k.recorded {
		t, err := k.store.tableIfAny(ctx)
		if err == nil && t == nil {
			err = errGone
		}
		if err != nil {
			return nil, err
		}
	}
	return k.store.turn(ctx, of)
}

// turn returns the turn where it is time for a task, and nobody else's: who has it is on
// it. A turn that is not finished is somebody's again next time. There is none where
// there is no table, or nothing of howdah's, and none for a role that may not do it.
func (s *Store) turn(ctx context.Context, of task) (*turn, error) {
	mine := &turn{store: s, task: of.name}
	wanted := []string{"SELECT", "INSERT", "UPDATE"} // of whichever task, so that all that is missing is told at once
	if of.common {
		wanted = nil
		if migrated, err := s.hasTurns(ctx); err != nil || !migrated {
			return nil, err
		}
	} else {
		t, err := s.tableIfAny(ctx)
		if err != nil || t == nil || !t.migrated || of.name == pruneTask && len(t.retention) == 0 {
			return nil, err
		}
		if len(t.retention) > 0 {
			wanted = append(wanted, "DELETE")
		}
		mine.tbl = t.name
	}
	var role string
	var lacking []string
	var before *time.Time
	err := pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `
			SELECT quote_ident(current_user),
				ARRAY(SELECT may
					FROM unnest($3::text[]) AS may
					WHERE NOT CASE may
						WHEN 'DELETE' THEN has_table_privilege(to_regclass(nullif($1, '')), may)
						ELSE has_any_column_privilege(to_regclass(nullif($1, '')), may)
					END),
				(SELECT at FROM howdah.counter_turns WHERE tbl = $1 AND task = $2)`,
			mine.tbl, of.name, wanted).Scan(&role, &lacking, &before)
	})
	if err != nil {
		return nil, s.told(err)
	}
	if slices.ContainsFunc(of.needs, func(right string) bool { return slices.Contains(lacking, right) }) {
		missing := strings.Join(lacking, ", ")
		return nil, fmt.Errorf("%w: role %s may not %s there; GRANT %s ON %s TO %s", fault.Denied, role, missing, missing, mine.tbl, role)
	}
	mine.before = time.Unix(0, 0)
	if before != nil {
		mine.before = *before
	}
	err = pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `
			INSERT INTO howdah.counter_turns AS t (tbl, task, at)
			VALUES ($1, $2, clock_timestamp())
			ON CONFLICT (tbl, task) DO UPDATE
			SET at = EXCLUDED.at
			WHERE abs(extract(epoch FROM EXCLUDED.at - t.at)) >= $3
			RETURNING at`, // whatever the clock did
			mine.tbl, of.name, 0.9*of.every.Seconds()).Scan(&mine.at) // one that comes a moment early has its turn
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, s.told(err)
	}
	return mine, nil
}

// hasTurns reports whether howdah's tables of counters are there.
func (s *Store) hasTurns(ctx context.Context) (yes bool, err error) {
	err = pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `
			SELECT EXISTS (SELECT
				FROM pg_class r
				JOIN pg_namespace h ON h.oid = r.relnamespace
				WHERE h.nspname = 'howdah' AND r.relname = 'counter_turns')`).Scan(&yes)
	})
	return yes, err
}

// done notes that the task was finished. Where that fails it is noted next time.
func (t *turn) done(ctx context.Context) {
	t.end(ctx, `
		UPDATE howdah.counter_turns
		SET done = clock_timestamp()
		WHERE tbl = $1 AND task = $2`, t.tbl, t.task)
}

// giveBack leaves a task that failed to whoever comes next, and says of it what was said
// before. Where that fails, too, the turn is somebody's again when it would have been.
func (t *turn) giveBack(ctx context.Context) {
	t.end(ctx, `
		UPDATE howdah.counter_turns
		SET at = $4
		WHERE tbl = $1 AND task = $2 AND at = $3`, t.tbl, t.task, t.at, t.before)
}

// end says how a turn went, though its keeper be on the way out.
func (t *turn) end(ctx context.Context, sql string, args ...any) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastly)
	defer cancel()
	_, _ = t.store.db.Exec(ctx, sql, args...)
}
