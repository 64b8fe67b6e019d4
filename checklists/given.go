package checklists

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// InsertItems is [Store.Insert] of items with a payload, a priority, or a time from
// which they may be claimed (Due); what else an Item says is not looked at. Of
// several of a name the first counts. It returns an Invalid error, and adds
// nothing, where an item cannot be stored, and ErrPlain where the table has no
// columns for what they say.
func (s *Store) InsertItems(ctx context.Context, list string, items ...Item) (added int64, err error) {
	if names, bare := bareNames(items); bare {
		return s.Insert(ctx, list, names...)
	}
	const op = "checklists: insert"
	if err := s.checkGiven(list, items); err != nil {
		return 0, pg.Wrap(op, err)
	}
	added, _, err = s.give(ctx, op, list, items, `
			ON CONFLICT DO NOTHING`)
	return added, err
}

// Upsert puts items on list, and gives those already there this payload and this
// priority, or takes away what they are not given, and this Due where it is not
// zero. It returns how many were added and how many others it changed; the rest
// were as they were to be. It never touches attempts, leases and errors, nor the
// due time of an item that a worker has or had last, or that is dead. Of several
// of a name the last counts.
//
// What the list has kept as done stays done, and is not put on again. The error
// is Invalid, and nothing is written, where an item cannot be stored; it is
// ErrPlain on a plain table.
func (s *Store) Upsert(ctx context.Context, list string, items ...Item) (added, changed int64, err error) {
	const op = "checklists: upsert"
	if err := s.checkGiven(list, items); err != nil {
		return 0, 0, pg.Wrap(op, err)
	}
	last := make(map[string]int, len(items))
	for i, item := range items {
		last[item.Name] = i
	}
	folded, dated := make([]Item, 0, len(last)), map[string]bool{}
	for i, item := range items {
		if last[item.Name] != i {
			continue
		}
		folded = append(folded, item)
		if !item.Due.IsZero() {
			dated[item.Name] = true
		}
	}
	// Which due times were given is asked of an object, whose keys are found by
	// halving; a name of a million is not looked for in an array.
	given, err := json.Marshal(dated)
	if err != nil {
		return 0, 0, pg.Wrap(op, err)
	}
	const due = `CASE WHEN l.lease IS NULL AND l.due < 'infinity' AND $6::jsonb ? EXCLUDED.item THEN EXCLUDED.due ELSE l.due END`
	added, changed, err = s.give(ctx, op, list, folded, `
			ON CONFLICT (list, item) DO UPDATE
			SET payload = EXCLUDED.payload, priority = EXCLUDED.priority, due = `+due+`
			WHERE l.payload IS DISTINCT FROM EXCLUDED.payload OR l.priority <> EXCLUDED.priority OR l.due <> `+due, string(given))
	if changed > 0 {
		s.forgetMarks(list)
	}
	return added, changed, err
}

// give puts items on list with what they say; what happens to those already there
// is conflict's to say, with its arguments from $6.
func (s *Store) give(ctx context.Context, op, list string, items []Item, conflict string, more ...any) (added, changed int64, err error) {
	if len(items) == 0 {
		return 0, 0, nil
	}
	if err := s.needColumns(ctx); err != nil {
		return 0, 0, pg.Wrap(op, err)
	}
	names, priorities := make([]string, len(items)), make([]int16, len(items))
	dues, payloads := make([]*time.Time, len(items)), make([]*string, len(items))
	for i, item := range items {
		names[i], priorities[i] = item.Name, int16(item.Priority)
		if !item.Due.IsZero() {
			dues[i] = &item.Due
		}
		if hasPayload(item) {
			payloads[i] = new(string(item.Payload))
		}
	}
	// In the order of their bytes, as every statement locks items, and due in the
	// order given, as Insert has it.
	err = s.rowRinging(ctx, `
		WITH w AS (
			INSERT INTO {lists} AS l (list, item, priority, due, payload)
			SELECT $1, u.item, u.priority,
				coalesce(u.due, (SELECT date_trunc('milliseconds', statement_timestamp())) - (cardinality($2::text[]) - u.n) / 1000 * interval '1 millisecond'),
				u.payload::jsonb
			FROM unnest($2::text[], $3::smallint[], $4::timestamptz[], $5::text[]) WITH ORDINALITY AS u(item, priority, due, payload, n)
			WHERE `+notDone("u.item")+`
			ORDER BY u.item COLLATE "C", u.n`+conflict+`
			RETURNING xmax = 0 AS added)
		SELECT count(*) FILTER (WHERE added), count(*) FILTER (WHERE NOT added)
		FROM w`, append([]any{list, names, priorities, dues, payloads}, more...), &added, &changed)
	return added, changed, pg.Wrap(op, err)
}

// bareNames are the names of items that say nothing else.
func bareNames(items []Item) (names []string, bare bool) {
	names = make([]string, len(items))
	for i, item := range items {
		if item.Priority != 0 || !item.Due.IsZero() || hasPayload(item) {
			return nil, false
		}
		names[i] = item.Name
	}
	return names, true
}

// checkGiven refuses items that cannot be stored with what they say.
func (s *Store) checkGiven(list string, items []Item) error {
	names := make([]string, len(items))
	for i, item := range items {
		names[i] = item.Name
	}
	if err := s.checkNew(list, names); err != nil {
		return err
	}
	for i, item := range items {
		field := func(name string) string { return fmt.Sprintf("items[%d].%s", i, name) }
		if item.Priority < -5 || item.Priority > 5 {
			return pg.Refuse(field("priority"), "%d; want -5 to 5", item.Priority)
		}
		if year := item.Due.UTC().Year(); !item.Due.IsZero() && (year < 1 || year > 9999) {
			return pg.Refuse(field("due"), "in the year %d; want 1 to 9999 (Kill is what says never)", year)
		}
		if problem := badPayload(item); problem != "" {
			return pg.Refuse(field("payload"), "%s", problem)
		}
	}
	return nil
}
