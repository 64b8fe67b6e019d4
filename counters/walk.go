package counters

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// walk asks for heads by jumps through the index: from each to the first key that is
// not of it. With an index by bytes it may begin at any key, end below one, and stop
// after some; without one it is of all.
//
// A metric whose name goes on, after that of another, with a granularity and a number,
// as a::1h::5 after a, is passed over with the buckets of that.
type walk struct {
	from  string
	below string // "" where there is no end
	limit int    // 0 where there is none
}

// within is the walk through a metric, and through others whose heads lie between.
func (t *table) within(name string) walk {
	if t.mode == Separated {
		return walk{from: name, below: name + "\x01"}
	}
	return walk{from: name + t.separator + "0", below: name + t.separator + ":"}
}

// past is the first key that may follow those of a head.
func (t *table) past(h head) string {
	if t.mode == Full {
		return t.prefix(h) + ":"
	}
	return t.prefix(h) + "\x01"
}

// walk returns the heads of w, and where those that follow begin, "" where none do.
func (s *Store) walk(ctx context.Context, t *table, w walk) (found []head, next string, err error) {
	if t.mode == Full && !t.bytewise {
		err := s.eachOfAll(ctx, t, func(h head, _, _ int64) { found = append(found, h) })
		return found, "", err
	}
	collate := ""
	if t.bytewise {
		collate = ` COLLATE "C"`
	}
	jump := `t.key` + collate + ` > w.key`
	if t.mode == Full {
		jump = `t.key COLLATE "C" >= coalesce(substring(w.key, $4) || ':', w.key || chr(1))`
	}
	below := ``
	if w.below != "" {
		below = ` AND t.key` + collate + ` < $2`
	}
	limit := ``
	if w.limit > 0 {
		limit = `
				LIMIT $3`
	}
	keys := `
			WITH RECURSIVE walk AS (
				(SELECT t.key::text
				FROM {table} t
				WHERE t.key` + collate + ` >= $1` + below + `
				ORDER BY t.key` + collate + `
				LIMIT 1)
				UNION ALL
				SELECT (
					SELECT t.key::text
					FROM {table} t
					WHERE ` + jump + below + `
					ORDER BY t.key` + collate + `
					LIMIT 1)
				FROM walk w
				WHERE w.key IS NOT NULL)
			SELECT key
			FROM walk
			WHERE key IS NOT NULL` + limit
	labels := `(VALUES ('')) AS g(granularity)`
	if t.mode == Separated {
		labels = `LATERAL (
			WITH RECURSIVE walk AS (
				(SELECT t.granularity::text
				FROM {table} t
				WHERE t.key = k.key
				ORDER BY t.granularity
				LIMIT 1)
				UNION ALL
				SELECT (
					SELECT t.granularity::text
					FROM {table} t
					WHERE t.key = k.key AND t.granularity > w.granularity
					ORDER BY t.granularity
					LIMIT 1)
				FROM walk w
				WHERE w.granularity IS NOT NULL)
			SELECT granularity
			FROM walk
			WHERE granularity IS NOT NULL) AS g`
	}
	sql := s.names.SQL(`
		SELECT k.key, g.granularity
		FROM (` + keys + `) AS k, ` + labels + `
		WHERE $2::text IS NOT NULL AND $3::int IS NOT NULL AND $4::text IS NOT NULL`)
	count, last := 0, ""
	err = pg.Retry(ctx, s.db, func() error {
		found, count, last = nil, 0, ""
		rows, err := s.db.Query(ctx, sql, w.from, w.below, w.limit, t.bucketPattern())
		if err != nil {
			return err
		}
		var key, label string
		_, err = pgx.ForEachRow(rows, []any{&key, &label}, func() error {
			if key != last {
				count++
				last = key
			}
			h := head{key, Granularity(label)}
			_, _, ok := h.g.parse()
			switch t.mode {
			case Full:
				h.name, h.g, _, ok = splitFull(t.separator, key)
			case Partial:
				h.name, h.g, ok = splitPartial(t.separator, key)
			}
			if ok {
				found = append(found, h)
			}
			return nil
		})
		return err
	})
	if err != nil || w.limit == 0 || count < w.limit {
		return found, "", s.told(err)
	}
	next = last + "\x01"
	if name, g, _, ok := splitFull(t.separator, last); ok && t.mode == Full {
		next = t.past(head{name, g})
	}
	return found, next, nil
}

// eachOfAll calls each with every head, its first and its last bucket, in one pass over
// a mode Full table whose index does not know the order of bytes: in others the buckets
// of a metric need not lie beside each other.
func (s *Store) eachOfAll(ctx context.Context, t *table, each func(h head, first, last int64)) error {
	type extent struct {
		prefix      string
		first, last int64
	}
	var all []extent
	err := pg.Retry(ctx, s.db, func() error {
		rows, err := s.db.Query(ctx, s.names.SQL(`
			SELECT prefix, min(right(key, -length(prefix))::bigint), max(right(key, -length(prefix))::bigint)
			FROM (SELECT key, substring(key, $1) AS prefix FROM {table} OFFSET 0) AS keys
			WHERE prefix IS NOT NULL
			GROUP BY prefix`), t.bucketPattern())
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e extent, err error) {
			return e, row.Scan(&e.prefix, &e.first, &e.last)
		})
		return err
	})
	for _, e := range all {
		if name, g, _, ok := splitFull(t.separator, e.prefix+"0"); ok {
			each(head{name, g}, e.first, e.last)
		}
	}
	return s.told(err)
}
