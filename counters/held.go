package counters

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Rows that are locked before they are written to. In a transaction of the caller's, which
// keeps its locks, all rows of a call are locked first, or what it has would come after
// what it still waits for.

// lock locks rows, in the order in which all do, makes those that are missing and returns
// them.
func (s *Store) lock(ctx context.Context, t *table, rows []rowID) (made map[rowID]bool, err error) {
	made = map[rowID]bool{}
	for part := range slices.Chunk(inOrder(slices.Values(rows)), maxNamed) {
		data := make([]string, len(part))
		for i := range data {
			data[i] = "{}"
		}
		found, err := s.db.Query(ctx, s.names.SQL(t.upsert(OpAdd)+`
			RETURNING `+t.columns), append(t.args(part), data)...)
		if err != nil {
			return nil, err
		}
		var id rowID
		var at time.Time
		columns := map[Mode][]any{Full: {&id.key}, Partial: {&id.key, &at}, Separated: {&id.key, &id.granularity, &at}}[t.mode]
		if _, err := pgx.ForEachRow(found, columns, func() error {
			if t.mode != Full {
				id.at = at.Unix()
			}
			made[id] = true
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// had takes out of the rows made those whose slots, of these keys, held something: they
// were there. It returns how many.
func (t *table) had(made map[rowID]bool, keys []string) (n int) {
	for _, key := range keys { // one for each slot
		if id, ok := t.rowOf(key); ok && made[id] {
			delete(made, id)
			n++
		}
	}
	return n
}

// holding runs fn with rows locked. Those that were missing, and that it leaves empty, are
// gone in the end.
func (s *Store) holding(ctx context.Context, t *table, rows []rowID, fn func() error) error {
	made, err := s.lock(ctx, t, rows)
	if err != nil {
		return s.told(err)
	}
	if err := fn(); err != nil || len(made) == 0 {
		return err
	}
	_, err = s.db.Exec(ctx, s.names.SQL(`
		DELETE FROM {table} t
		USING unnest(`+t.arrays+`) AS k(`+t.columns+`)
		WHERE `+t.join+` AND t.data = '{}'`), t.args(slices.Collect(maps.Keys(made)))...)
	return s.told(err)
}

// replace writes rows, each once, in the order given, whatever they held.
func (s *Store) replace(ctx context.Context, t *table, rows []rowID, data []string) error {
	if len(rows) == 0 {
		return nil
	}
	_, err := s.db.Exec(ctx, s.names.SQL(`
		INSERT INTO {table} AS t (`+t.columns+`, data)
		SELECT *
		FROM unnest(`+t.arrays+`, $`+strconv.Itoa(t.next)+`::jsonb[])
		ON CONFLICT (`+t.columns+`) DO UPDATE
		SET data = EXCLUDED.data`), append(t.args(rows), data)...)
	return err
}

// remove deletes rows that are held.
func (s *Store) remove(ctx context.Context, t *table, rows []rowID) error {
	if len(rows) == 0 {
		return nil
	}
	_, err := s.db.Exec(ctx, s.names.SQL(`
		DELETE FROM {table} t
		USING unnest(`+t.arrays+`) AS k(`+t.columns+`)
		WHERE `+t.join), t.args(rows)...)
	return err
}
