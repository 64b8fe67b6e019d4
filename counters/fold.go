package counters

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// Fold adds to rows what their slots hold, one row after the other, each in a
// transaction of its own. In a transaction of the caller's it locks all of them before, and
// holds them until that ends, while those who count wait. It returns how many rows it
// added to. What others hold just now is left for the next time.
//
// What cannot be added because a field of the row is no number stays in its slots, until
// a number is put there; Fold returns [ErrNotNumber] then, and has folded the others.
func (s *Store) Fold(ctx context.Context) (int64, error) {
	n, err := s.foldAll(ctx)
	return n, pg.Wrap("counters: fold", err)
}

// maxFaults is how many rows that cannot be folded are told.
const maxFaults = 10

func (s *Store) foldAll(ctx context.Context) (folded int64, err error) {
	t, err := s.table(ctx)
	if err != nil || !t.migrated {
		return 0, err
	}
	var faults []error
	each := func(s *Store, rows []rowID) error {
		for _, id := range rows {
			did, err := s.foldRow(ctx, t, id)
			if did {
				folded++
			}
			switch {
			case err == nil:
			case !errors.Is(err, ErrNotNumber):
				return err
			case len(faults) < maxFaults:
				faults = append(faults, err)
			}
		}
		return nil
	}
	var all []rowID
	for after, more := "", true; more; {
		var keys []string
		if keys, more, err = s.waitingKeys(ctx, t, after); err != nil {
			break
		}
		var rows []rowID
		for _, after = range keys {
			if id, ok := t.rowOf(after); ok { // else of a store with another separator
				rows = append(rows, id)
			}
		}
		if pg.InTx(s.db) {
			all = append(all, rows...)
		} else if err := each(s, rows); err != nil {
			return folded, err
		}
	}
	if err == nil && len(all) > 0 {
		err = s.together(ctx, func(s *Store) error {
			return s.holding(ctx, t, all, func() error { return each(s, all) })
		})
		if err != nil {
			folded = 0
		}
	}
	return folded, errors.Join(append(faults, err)...)
}

// waitingKeys returns some of the keys that have slots, in order, and whether there may
// be more after the last.
func (s *Store) waitingKeys(ctx context.Context, t *table, after string) (keys []string, more bool, err error) {
	err = pg.Retry(ctx, s.db, func() error {
		rows, err := s.db.Query(ctx, `
			SELECT key
			FROM `+t.readable+`
			WHERE tbl = $1 AND key > $2
			ORDER BY key
			LIMIT $3`, t.name, after, maxPart)
		if err != nil {
			return err
		}
		keys, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return slices.Compact(keys), len(keys) == maxPart, err
}

// foldRow folds one row, and reports whether there was something to fold. It holds the
// row before its slots, as all do who hold both.
func (s *Store) foldRow(ctx context.Context, t *table, id rowID) (did bool, err error) {
	var g gathered
	err = pg.Retry(ctx, s.db, func() error {
		return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) (err error) {
			if !pg.InTx(s.db) {
				// All of it or nothing is lost in a crash, and somebody who holds one row for long does not keep all others.
				if _, err := tx.Exec(ctx, `SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)`); err != nil {
					return err
				}
			}
			if g, err = s.hold(ctx, tx, t, []rowID{id}, []rowID{id}, passing); err != nil {
				return err
			}
			if len(g.keys) == 0 {
				return errNothing // takes back the row, if it was made only to be held
			}
			b := s.batch(t, &g.sums)
			g.empty(b, t)
			return tx.SendBatch(ctx, b).Close()
		})
	})
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, errNothing), errors.As(err, &pgErr) && pgErr.Code == "55P03" && !pg.InTx(s.db): // lock_not_available
		return false, nil
	}
	return false, s.explain(ctx, t, &g.sums, s.told(err))
}

var errNothing = errors.New("nothing to fold")
