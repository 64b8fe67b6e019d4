package counters

import (
	"context"
	"fmt"
	"strconv"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrExists reports that a metric cannot be renamed: there are rows of its new name.
var ErrExists = fmt.Errorf("there is such a metric: %w", fault.Conflict)

// Rename gives the rows of a metric another name, all at once, and returns how many
// there are. It returns [ErrExists], and renames nothing, where there is a row of that
// name. What is counted under the old name while it works begins anew there. System
// rows keep the old name.
func (s *Store) Rename(ctx context.Context, from, to string) (renamed int64, err error) {
	err = s.together(ctx, func(s *Store) (err error) {
		renamed, err = s.rename(ctx, from, to)
		return err
	})
	return renamed, pg.Wrap("counters: rename", s.told(pg.Written(s.db, err)))
}

func (s *Store) rename(ctx context.Context, from, to string) (int64, error) {
	t, err := s.table(ctx)
	if err != nil {
		return 0, err
	}
	if err := checkKey(from); err != nil {
		return 0, err
	}
	if to == "" {
		return 0, pg.Refuse("to", "empty")
	}
	if err := pg.CheckText("to", to); err != nil {
		return 0, err
	}
	if from == to {
		return 0, pg.Refuse("to", "%q is its name", shorten(to))
	}
	for _, name := range []string{from, to} {
		if err := s.foldMetric(ctx, t, name); err != nil {
			return 0, err
		}
	}
	heads, err := s.headsOf(ctx, t, from)
	if err != nil {
		return 0, err
	}
	for _, h := range heads {
		if _, problem := t.bucket(to, h.g, firstRanged); problem != "" {
			return 0, pg.Refuse("to", "%s", problem)
		}
	}
	there, err := s.headsOf(ctx, t, to)
	if err != nil {
		return 0, err
	}
	if len(there) > 0 {
		return 0, fmt.Errorf("%w: %q has buckets of %s", ErrExists, shorten(to), there[0].g)
	}
	t.inLockOrder(heads)
	renamed := int64(0)
	for _, h := range heads {
		for n := int64(maxSwept); n == maxSwept; renamed += n {
			if n, err = s.move(ctx, t, h, to); err != nil {
				return 0, err
			}
		}
	}
	return renamed, nil
}

// move gives up to 10,000 rows of a head another name, unless one is there that another
// made meanwhile.
func (s *Store) move(ctx context.Context, t *table, h head, to string) (moved int64, err error) {
	l := spans[t.mode]
	args := t.spanArgs([]span{{h, everBefore, everAfter}})
	args = append(args, maxSwept, t.prefix(head{to, h.g}))
	limit, key := `$`+strconv.Itoa(len(args)-1), `$`+strconv.Itoa(len(args))+`::text`
	rest := ``
	switch t.mode {
	case Full:
		key += ` || right(r.key, -s.n)`
	case Partial:
		rest = `, t.at`
	case Separated:
		rest = `, t.granularity, t.at`
	}
	var placed int64
	err = s.db.QueryRow(ctx, s.names.SQL(`
		WITH theirs AS MATERIALIZED (
			SELECT `+key+` AS renamed, r.*
			FROM unnest(`+l.arrays+`) AS s(`+l.columns+`), LATERAL (
				SELECT `+t.columns+`
				FROM {table}
				WHERE`+l.where+`
				ORDER BY `+l.order+`
				LIMIT `+limit+`
				FOR UPDATE) AS r),
		gone AS (
			DELETE FROM {table} t
			USING theirs k
			WHERE `+t.join+`
			RETURNING k.renamed`+rest+`, t.data),
		placed AS (
			INSERT INTO {table} (`+t.columns+`, data)
			SELECT *
			FROM gone
			ORDER BY 1
			ON CONFLICT DO NOTHING
			RETURNING 1)
		SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM placed)`), args...).Scan(&moved, &placed)
	if err == nil && placed < moved {
		err = fmt.Errorf("%w: %q was begun meanwhile", ErrExists, shorten(to))
	}
	return moved, err
}
