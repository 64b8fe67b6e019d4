package counters

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// taken are slots as one statement saw them.
type taken struct {
	keys  []string
	slots []int16
	data  []string
}

// readTaking returns the data of rows, and of their slots, nil of those that are not
// there, and takes away what the slots of others held at that very moment. Each event
// that was counted before is then in what is read and in what is taken; of each that is
// counted after, all is in slots that stay. So nobody has to wait.
//
// It is for a transaction that holds the rows of the slots, so that nobody folds them.
func (s *Store) readTaking(ctx context.Context, t *table, rows, others []rowID) ([][]byte, error) {
	var seen taken
	found := make([][]byte, len(rows))
	n, keys := t.slottedRows(rows)
	full := make([]string, len(others))
	for i, id := range others {
		full[i] = t.full(id)
	}
	stored, err := s.db.Query(ctx, s.names.SQL(fmt.Sprintf(`
		SELECT k.n, 0::smallint, '' AS key, t.data
		FROM unnest(%s) WITH ORDINALITY AS k(%s, n)
		JOIN {table} t ON %s
		UNION ALL
		SELECT k.n, 0, '', s.data
		FROM unnest($%[4]d::bigint[], $%[5]d::text[]) AS k(n, key)
		JOIN howdah.counter_slots s ON s.key = k.key AND s.tbl = $%[7]d
		UNION ALL
		SELECT 0, s.slot, s.key, s.data
		FROM unnest($%[6]d::text[]) AS k(key)
		JOIN howdah.counter_slots s ON s.key = k.key AND s.tbl = $%[7]d
		ORDER BY 1, 3, 2`, t.arrays, t.columns, t.join, t.next, t.next+1, t.next+2, t.next+3)), append(t.args(rows), n, keys, full, t.name)...)
	if err != nil {
		return nil, err
	}
	whole := parts[int64]{have: func(n int64, data []byte) error { found[n-1] = data; return nil }}
	var nth int64
	var slot int16
	var key string
	var data []byte
	_, err = pgx.ForEachRow(stored, []any{&nth, &slot, &key, &data}, func() error {
		if nth > 0 {
			return whole.add(nth, data)
		}
		seen.keys, seen.slots, seen.data = append(seen.keys, key), append(seen.slots, slot), append(seen.data, string(data))
		return nil
	})
	if err == nil {
		err = whole.end()
	}
	if err != nil {
		return nil, err
	}
	return found, s.take(ctx, t, seen)
}

// take deletes slots, and where more was added since they were seen, subtracts what
// they held.
func (s *Store) take(ctx context.Context, t *table, seen taken) error {
	if len(seen.keys) == 0 {
		return nil
	}
	less := make([]string, len(seen.data))
	for i, data := range seen.data {
		fields, err := storedFields([]byte(data))
		if err != nil {
			return err
		}
		for j := range fields {
			fields[j].number = whole(0).sub(fields[j].number)
		}
		less[i] = string(appendFields(nil, fields, OpAdd))
	}
	b := new(pgx.Batch)
	b.Queue(`
		DELETE FROM howdah.counter_slots s
		USING unnest($2::text[], $3::smallint[], $4::jsonb[]) AS k(key, slot, data)
		WHERE s.key = k.key AND s.tbl = $1 AND s.slot = k.slot AND s.data = k.data
		RETURNING s.key, s.slot`, t.name, seen.keys, seen.slots, seen.data).Query(func(gone pgx.Rows) error {
		type place struct {
			key  string
			slot int16
		}
		left := map[place]int{}
		for i, key := range seen.keys {
			left[place{key, seen.slots[i]}] = i
		}
		var at place
		if _, err := pgx.ForEachRow(gone, []any{&at.key, &at.slot}, func() error { delete(left, at); return nil }); err != nil {
			return err
		}
		var rest taken
		for at, i := range left {
			rest.keys, rest.slots, rest.data = append(rest.keys, at.key), append(rest.slots, at.slot), append(rest.data, less[i])
		}
		seen = rest
		return nil
	})
	if err := s.db.SendBatch(ctx, b).Close(); err != nil || len(seen.keys) == 0 {
		return err
	}
	_, err := s.db.Exec(ctx, `
		UPDATE howdah.counter_slots s
		SET data = howdah.counters_add(s.data, k.data)
		FROM unnest($2::text[], $3::smallint[], $4::jsonb[]) AS k(key, slot, data)
		WHERE s.key = k.key AND s.tbl = $1 AND s.slot = k.slot`, t.name, seen.keys, seen.slots, seen.data)
	return err
}

// lockSlots locks all slots of rows, those too that are not there, in the order in which
// all do: until the end of the transaction nobody counts in any of them.
func (s *Store) lockSlots(ctx context.Context, t *table, rows []rowID) error {
	_, keys := t.bySlots(rows)
	_, err := s.db.Exec(ctx, `
		INSERT INTO howdah.counter_slots AS t (tbl, key, slot, data)
		SELECT $1, k.key, slot, '{}'
		FROM unnest($2::text[]) WITH ORDINALITY AS k(key, n), generate_series(0, $3 - 1) AS slot
		ORDER BY k.n, slot
		ON CONFLICT (tbl, key, slot) DO UPDATE
		SET data = t.data`, t.name, keys, t.slots)
	return err
}

// slotKeys returns the rows of a metric, in any granularity, that have slots.
func (s *Store) slotKeys(ctx context.Context, t *table, name string) (rows []rowID, err error) {
	if !t.slotted(name) {
		return nil, nil
	}
	var keys []string
	err = pg.Retry(ctx, s.db, func() error {
		found, err := s.db.Query(ctx, `
			SELECT DISTINCT key
			FROM howdah.counter_slots
			WHERE tbl = $1 AND key >= $2 AND key < $3`, t.name, name+t.separator+"0", name+t.separator+":")
		if err != nil {
			return err
		}
		keys, err = pgx.CollectRows(found, pgx.RowTo[string])
		return err
	})
	for _, key := range keys {
		if of, _, _, ok := splitFull(t.separator, key); ok && of == name {
			if id, ok := t.rowOf(key); ok {
				rows = append(rows, id)
			}
		}
	}
	return rows, s.told(err)
}
