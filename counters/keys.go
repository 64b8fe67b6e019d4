package counters

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// KeyInfo is a metric of which there are rows.
type KeyInfo struct {
	Key           string   `json:"key"`
	Granularities []Extent `json:"granularities" nullable:"false"` // the shortest first
}

// Extent is which buckets there are of a metric in one granularity.
type Extent struct {
	Name  Granularity `json:"name"`
	First time.Time   `json:"first"`
	Last  time.Time   `json:"last"`
}

// Page returns up to n metrics of which there are rows, from the first or, where after
// is not empty, those that follow it. They come in the order of the bytes of their keys,
// so that orders-eu is before orders: what follows a name there is the separator. Rows
// whose keys are not those of buckets are passed over. What is striped is seen when it
// is folded.
//
// It goes from metric to metric by the index, however many buckets they have. A table
// without an index by bytes, which comes from elsewhere, is gone through as a whole;
// there metrics come in the order of their names.
func (s *Store) Page(ctx context.Context, after string, n int) ([]KeyInfo, error) {
	page, err := s.page(ctx, after, n)
	return page, pg.Wrap("counters: page", err)
}

func (s *Store) page(ctx context.Context, after string, n int) ([]KeyInfo, error) {
	t, err := s.table(ctx)
	if err != nil {
		return nil, err
	}
	if err := pg.CheckText("after", after); err != nil {
		return nil, err
	}
	if n < 1 {
		return nil, pg.Refuse("limit", "%d; want 1 or more", n)
	}
	if !t.bytewise {
		return s.pageOfAll(ctx, t, after, n)
	}
	w := walk{limit: min(max(n, 16), maxPart)} // enough where each has but one granularity
	if w.from, err = s.following(ctx, t, after); err != nil {
		return nil, err
	}
	page, told := []KeyInfo{}, map[string]bool{after: true}
	for {
		found, next, err := s.walk(ctx, t, w)
		if err != nil {
			return nil, err
		}
		found = slices.DeleteFunc(found, func(h head) bool { return told[h.name] })
		some := ofNames(found, n-len(page))
		heads, err := s.headsOfAll(ctx, t, some, found, w.from, next)
		if err != nil {
			return nil, err
		}
		more, err := s.infos(ctx, t, some, heads)
		if len(some) < len(found) {
			next = t.past(some[len(some)-1])
		}
		if page = append(page, more...); err != nil || len(page) >= n || next == "" {
			return page[:min(n, len(page))], err
		}
		for _, info := range more {
			told[info.Key] = true
		}
		w.from = next
		if len(more) > 0 { // as many granularities as those before
			w.limit = min(max((n-len(page))*w.limit/len(more)+1, 16), maxPart)
		} else { // rows of another kind
			w.limit = min(2*w.limit, maxPart)
		}
	}
}

// ofNames returns the first of heads, those of so many names.
func ofNames(heads []head, names int) []head {
	seen := map[string]bool{}
	for i, h := range heads {
		if seen[h.name] = true; len(seen) > names {
			return heads[:i]
		}
	}
	return heads
}

// pageOfAll is a page where the index does not know the order of bytes.
func (s *Store) pageOfAll(ctx context.Context, t *table, after string, n int) ([]KeyInfo, error) {
	all, _, err := s.walk(ctx, t, walk{})
	if err != nil {
		return nil, err
	}
	own := map[string][]head{}
	for _, h := range all {
		if h.name > after {
			own[h.name] = append(own[h.name], h)
		}
	}
	names := slices.Sorted(maps.Keys(own))
	names = names[:min(n, len(names))]
	var listed []head
	for _, name := range names {
		listed = append(listed, own[name]...)
	}
	extents, err := s.extents(ctx, t, listed)
	if err != nil {
		return nil, err
	}
	page := make([]KeyInfo, len(names))
	for i, name := range names {
		page[i] = infoOf(own[name], extents)
	}
	return page, nil
}

// following is where the metrics begin that follow one.
func (s *Store) following(ctx context.Context, t *table, after string) (from string, err error) {
	if after == "" {
		return "", nil
	}
	if t.mode == Separated {
		return after + "\x01", nil // no text is between the two
	}
	for labels := 1; ; labels *= 2 {
		own, more, err := s.someHeadsOf(ctx, t, after, labels)
		if err != nil {
			return "", err
		}
		extents, err := s.extents(ctx, t, own)
		if err != nil {
			return "", err
		}
		for _, h := range own {
			if _, ok := extents[h]; ok { // here it was told
				return t.past(h), nil
			}
		}
		if !more {
			return after + t.separator, nil
		}
	}
}

// headsOfAll returns the heads of the metrics of some, the first of those that were found
// from a key to the next. Between the heads of a metric there may be those of others:
// http::1h, http::404::1h, http::5m. One that is not from end to end in what was walked
// through is looked up: what is beyond may be of any granularity. These are few, of each
// end those whose names the key there begins with.
func (s *Store) headsOfAll(ctx context.Context, t *table, some, found []head, from, next string) (all []head, err error) {
	if t.mode == Separated {
		return some, nil
	}
	open := map[string]bool{} // of each name, whether it is not all there
	for _, h := range some {
		if _, seen := open[h.name]; seen {
			continue
		}
		begin := h.name + t.separator
		if open[h.name] = begin < from || next != "" && begin+":" > next; !open[h.name] {
			continue
		}
		own, err := s.headsOf(ctx, t, h.name)
		if err != nil {
			return nil, err
		}
		all = append(all, own...)
	}
	for _, h := range found {
		if beyond, listed := open[h.name]; listed && !beyond {
			all = append(all, h)
		}
	}
	return all, nil
}

// infos returns the metrics of found, each where the first of all of its heads is one of
// them, and passes over it at others.
func (s *Store) infos(ctx context.Context, t *table, found, all []head) ([]KeyInfo, error) {
	extents, err := s.extents(ctx, t, all)
	if err != nil {
		return nil, err
	}
	own := map[string][]head{}
	for h := range extents {
		own[h.name] = append(own[h.name], h)
	}
	var infos []KeyInfo
	for _, h := range found {
		heads := own[h.name] // none where it went away meanwhile, or was told
		delete(own, h.name)
		if t.inByteOrder(heads); len(heads) > 0 && (heads[0] == h || t.mode == Separated) {
			infos = append(infos, infoOf(heads, extents))
		}
	}
	return infos, nil
}

// infoOf is what is known of a metric with these heads.
func infoOf(own []head, extents map[head]Extent) KeyInfo {
	info := KeyInfo{Key: own[0].name}
	for _, h := range own {
		info.Granularities = append(info.Granularities, extents[h])
	}
	slices.SortFunc(info.Granularities, func(a, b Extent) int {
		return cmp.Or(cmp.Compare(a.Name.length(), b.Name.length()), strings.Compare(string(a.Name), string(b.Name)))
	})
	return info
}

// extents returns the first and the last bucket of those of heads that have some. In a
// mode Full table they are those of the order of bytes while that is the order of time:
// for times of ten digits.
func (s *Store) extents(ctx context.Context, t *table, heads []head) (map[head]Extent, error) {
	extents := make(map[head]Extent, len(heads))
	if t.mode == Full && !t.bytewise {
		return extents, s.eachOfAll(ctx, t, func(h head, first, last int64) {
			if slices.Contains(heads, h) {
				extents[h] = t.extent(h, first, last)
			}
		})
	}
	sql := `
		SELECT k.n,
			(SELECT at FROM {table} t WHERE ` + strings.TrimSuffix(t.join, " AND t.at = k.at") + ` AND isfinite(at) ORDER BY at LIMIT 1) AS first,
			(SELECT at FROM {table} t WHERE ` + strings.TrimSuffix(t.join, " AND t.at = k.at") + ` AND isfinite(at) ORDER BY at DESC LIMIT 1) AS last
		FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(key, granularity, n)`
	if t.mode == Full {
		sql = `
		SELECT k.n,
			(SELECT key::text FROM {table} WHERE key COLLATE "C" >= k.key AND key COLLATE "C" < k.key || ':' ORDER BY key COLLATE "C" LIMIT 1) AS first,
			(SELECT key::text FROM {table} WHERE key COLLATE "C" >= k.key AND key COLLATE "C" < k.key || ':' ORDER BY key COLLATE "C" DESC LIMIT 1) AS last
		FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(key, granularity, n)`
	}
	sql = s.names.SQL(`
		SELECT *
		FROM (` + sql + `
			OFFSET 0) AS ends -- or first would be looked for twice
		WHERE first IS NOT NULL`)
	for done := 0; done < len(heads); done += maxNamed {
		part := heads[done:min(done+maxNamed, len(heads))]
		keys, granularities := make([]string, len(part)), make([]string, len(part))
		for i, h := range part {
			keys[i], granularities[i] = t.prefix(h), string(h.g)
		}
		var odd []head
		err := pg.Retry(ctx, s.db, func() error {
			odd = nil
			rows, err := s.db.Query(ctx, sql, keys, granularities)
			if err != nil {
				return err
			}
			var n int64
			if t.mode != Full {
				var first, last time.Time
				_, err = pgx.ForEachRow(rows, []any{&n, &first, &last}, func() error {
					extents[part[n-1]] = t.extent(part[n-1], first.Unix(), last.Unix())
					return nil
				})
				return err
			}
			var first, last string
			_, err = pgx.ForEachRow(rows, []any{&n, &first, &last}, func() error {
				h := part[n-1]
				_, _, from, fine := splitFull(t.separator, first)
				_, _, to, ok := splitFull(t.separator, last)
				if fine && ok && from >= firstRanged && to <= lastRanged && len(first) == len(last) {
					extents[h] = t.extent(h, from, to)
				} else {
					odd = append(odd, h)
				}
				return nil
			})
			return err
		})
		if err != nil {
			return nil, s.told(err)
		}
		for _, h := range odd {
			if err := s.oddExtent(ctx, t, h, extents); err != nil {
				return nil, s.told(err)
			}
		}
	}
	return extents, nil
}

func (t *table) extent(h head, first, last int64) Extent {
	return Extent{h.g, time.Unix(first, 0).In(t.calendar.Location), time.Unix(last, 0).In(t.calendar.Location)}
}

// oddExtent reads the times of a head whose order is not that of their bytes.
func (s *Store) oddExtent(ctx context.Context, t *table, h head, extents map[head]Extent) error {
	l := spans[Full]
	sql := s.names.SQL(`
		SELECT min(right(key, -s.n)::bigint), max(right(key, -s.n)::bigint)
		FROM unnest(` + l.arrays + `) AS s(` + l.columns + `), LATERAL (
			SELECT key
			FROM {table}
			WHERE` + l.where + `
			OFFSET 0) AS r
		HAVING count(*) > 0`)
	var first, last int64
	err := pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, sql, t.spanArgs([]span{{h, everBefore, everAfter}})...).Scan(&first, &last)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil {
		extents[h] = t.extent(h, first, last)
	}
	return err
}
