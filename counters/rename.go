package counters

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrExists reports that a metric cannot be renamed: there are rows of its new name.
var ErrExists = fmt.Errorf("there is such a metric: %w", fault.Conflict)

// Rename gives the rows of a metric another name, all at once, and returns how many
// there are. It returns [ErrExists], and renames nothing, where there is a row of that
// name. What is counted under the old name while it works begins anew there. System
// rows keep the old name. It locks all rows, of both names, before it writes.
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
	slotted, err := s.slotKeys(ctx, t, from) // before rows: what is folded meanwhile is in these
	if err != nil {
		return 0, err
	}
	heads, err := s.headsOf(ctx, t, from)
	if err != nil {
		return 0, err
	}
	spans := make([]span, len(heads))
	for i, h := range heads {
		spans[i] = span{h, everBefore, everAfter}
	}
	there, err := s.there(ctx, t, spans)
	if err != nil {
		return 0, err
	}
	olds := inOrder(slices.Values(slices.Concat(append(there, slotted)...)))
	news := make([]rowID, len(olds))
	for i, id := range olds {
		_, g, at, _ := splitFull(t.separator, t.full(id))
		var problem string
		if news[i], problem = t.bucket(to, g, at); problem != "" {
			return 0, pg.Refuse("to", "%s", problem)
		}
	}
	if err := s.unused(ctx, t, to); err != nil {
		return 0, err
	}
	made, err := s.lock(ctx, t, slices.Concat(olds, news))
	if err != nil {
		return 0, err
	}
	for _, id := range news {
		if !made[id] {
			return 0, fmt.Errorf("%w: %q was begun meanwhile", ErrExists, shorten(to))
		}
	}
	keys, err := s.gather(ctx, s.db, t, slotted...)
	if err != nil {
		return 0, err
	}
	t.had(made, keys)
	var gone []rowID // meanwhile
	n := 0
	for i, id := range olds {
		if made[id] {
			gone = append(gone, id, news[i])
			continue
		}
		olds[n], news[n] = id, news[i]
		n++
	}
	if err := s.remove(ctx, t, gone); err != nil {
		return 0, err
	}
	return int64(n), s.move(ctx, t, olds[:n], news[:n])
}

// unused returns [ErrExists] where there are rows of a metric, or slots.
func (s *Store) unused(ctx context.Context, t *table, name string) error {
	slotted, err := s.slotKeys(ctx, t, name)
	if err != nil {
		return err
	}
	heads, err := s.headsOf(ctx, t, name)
	if err != nil {
		return err
	}
	for _, id := range slotted {
		_, g, _, _ := splitFull(t.separator, t.full(id))
		heads = append(heads, head{name, g})
	}
	if len(heads) > 0 {
		return fmt.Errorf("%w: %q has buckets of %s", ErrExists, shorten(name), heads[0].g)
	}
	return nil
}

// move puts the data of rows into others of another key, and deletes them. It is for a
// transaction that holds both.
func (s *Store) move(ctx context.Context, t *table, from, to []rowID) error {
	moved := strings.NewReplacer("t.key = k.key", "moved.key = k.moved", "t.", "moved.").Replace(t.join)
	for len(from) > 0 {
		n := min(len(from), maxNamed)
		keys := make([]string, n)
		for i, id := range to[:n] {
			keys[i] = id.key
		}
		if _, err := s.db.Exec(ctx, s.names.SQL(`
			UPDATE {table} moved
			SET data = t.data
			FROM unnest(`+t.arrays+`, $`+strconv.Itoa(t.next)+`::text[]) AS k(`+t.columns+`, moved)
			JOIN {table} t ON `+t.join+`
			WHERE `+moved), append(t.args(from[:n]), keys)...); err != nil {
			return err
		}
		if err := s.remove(ctx, t, from[:n]); err != nil {
			return err
		}
		from, to = from[n:], to[n:]
	}
	return nil
}
