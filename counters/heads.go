package counters

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// headsOf returns the heads of one metric, each once.
func (s *Store) headsOf(ctx context.Context, t *table, name string) ([]head, error) {
	heads, _, err := s.someHeadsOf(ctx, t, name, 0)
	return heads, err
}

// someHeadsOf returns the heads of one metric that are under the first labels, and
// whether there may be others; under all where labels is 0.
//
// Between them lie the keys of others whose names go on with digits: http::1h,
// http::404::1h, http::5m. However many rows and granularities these have, it takes one
// step for each of their numbers, or for the first six digits of longer ones.
func (s *Store) someHeadsOf(ctx context.Context, t *table, name string, labels int) (heads []head, more bool, err error) {
	if t.mode == Separated || !t.bytewise || !ofSigns(t.separator) {
		w := t.within(name)
		if !t.bytewise && t.mode != Separated {
			w = walk{}
		}
		heads, _, err := s.walk(ctx, t, w)
		return slices.DeleteFunc(heads, func(h head) bool { return h.name != name }), false, err
	}
	firsts, err := s.labelled(ctx, t, name, labels)
	if err != nil {
		return nil, false, err
	}
	for _, key := range firsts {
		var h head
		var ok bool
		if t.mode == Partial {
			h.name, h.g, ok = splitPartial(t.separator, key)
		} else {
			h.name, h.g, _, ok = splitFull(t.separator, key)
		}
		if !ok || h.name != name { // of another, as http::5m::15m::0 of http::5m: those of 5m may follow
			label, _, _ := strings.Cut(key[len(name)+len(t.separator):], t.separator)
			h = head{name, Granularity(label)}
			among, _, err := s.walk(ctx, t, walk{from: t.prefix(h), below: t.past(h)})
			if err != nil {
				return nil, false, err
			}
			if !slices.Contains(among, h) {
				continue
			}
		}
		heads = append(heads, h)
	}
	return heads, labels > 0 && len(firsts) == labels, nil
}

// ofSigns reports whether a separator has no letters and digits, which might be taken
// for some of a label, and only characters that another of ASCII comes after.
func ofSigns(separator string) bool {
	return !strings.ContainsFunc(separator, func(r rune) bool {
		return r <= ' ' || r >= '~' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	})
}

// labelled returns, for each label that follows a name in keys, as 5m in http::5m::…,
// the first of these keys, and no more than limit of them where that is not 0.
func (s *Store) labelled(ctx context.Context, t *table, name string, limit int) (firsts []string, err error) {
	// r is what follows the name, p the number in front of it, no longer than that of a
	// label, and m all of a label, where there is one. The next own key after r begins,
	// in the order of bytes, with a longer number, with p and a unit, of which d is the
	// first, or with what follows p.
	label, ended, next := `^[0-9]{1,6}(?:mo|[smhdwqy])`, t.separator, `left(m, -1) || chr(ascii(right(m, 1)) + 1)`
	pattern := label + quoted(t.separator)
	if t.mode == Partial {
		pattern, ended, next = label+`$`, ``, `m || chr(1)`
	}
	sql := `
		WITH RECURSIVE walk AS (
			(SELECT t.key::text
			FROM {table} t
			WHERE t.key COLLATE "C" >= $1 || '1' AND t.key COLLATE "C" < $1 || ':'
			ORDER BY t.key COLLATE "C"
			LIMIT 1)
			UNION ALL
			SELECT (
				SELECT t.key::text
				FROM {table} t
				WHERE t.key COLLATE "C" >= $1 || (
					SELECT CASE
						WHEN r < p || '0' THEN p || '0'
						WHEN r < p || 'd' THEN p || 'd'
						WHEN m IS NOT NULL THEN ` + next + `
						ELSE coalesce((
							SELECT min(p || unit || $4)
							FROM unnest(ARRAY['s', 'm', 'h', 'd', 'w', 'mo', 'q', 'y']) AS unit
							WHERE p || unit || $4 > r), left(p, -1) || chr(ascii(right(p, 1)) + 1))
						END
					FROM substr(w.key COLLATE "C", $2) AS r, substring(r, '^[0-9]{1,6}') AS p, substring(r, $3) AS m)
					AND t.key COLLATE "C" < $1 || ':'
				ORDER BY t.key COLLATE "C"
				LIMIT 1)
			FROM walk w
			WHERE w.key IS NOT NULL)
		SELECT key
		FROM walk
		WHERE substr(key, $2) ~ $3
		LIMIT nullif($5, 0)`
	begin := name + t.separator
	err = pg.Retry(ctx, s.db, func() error {
		rows, err := s.db.Query(ctx, s.names.SQL(sql), begin, len([]rune(begin))+1, pattern, ended, limit)
		if err != nil {
			return err
		}
		firsts, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return firsts, s.told(err)
}
