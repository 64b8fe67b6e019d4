package counters

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
)

// ErrReused reports an ID that was applied before, with other values or another hash: it
// is not the same event.
var ErrReused = fmt.Errorf("the ID was used for something else: %w", fault.Conflict)

// ids are those of a transaction's events.
type ids struct {
	fresh  map[string][]byte // kept by this transaction, with their hashes
	hashes map[string][]byte // of the others, where they have one that was asked for
}

func hasIDs(events []prepared) bool {
	return slices.ContainsFunc(events, func(e prepared) bool { return e.ID != "" })
}

// hash gives events with an ID that have no Hash one of what they ask for: of all that
// share the ID, which stand or fall together; or the Hash that another of them has.
func hash(events []prepared) {
	var shared map[string][]byte
	for _, e := range events {
		if e.ID != "" && e.Hash == nil {
			if shared == nil {
				shared = map[string][]byte{}
			}
			shared[e.ID] = e.content(shared[e.ID])
		}
	}
	if shared == nil {
		return
	}
	for _, e := range slices.Backward(events) {
		if e.ID != "" && e.Hash != nil {
			shared[e.ID] = e.Hash
		}
	}
	for i, e := range events {
		if e.Hash == nil {
			events[i].Hash = shared[e.ID]
		}
	}
}

// content is a digest of what an event asks for, after that of what comes before it.
// When it happened is no part of it: who tries again may mean now.
func (p prepared) content(before []byte) []byte {
	b := bytes.NewBuffer(before[:len(before):len(before)])
	fmt.Fprintf(b, "%q %t %q ", p.Key, p.Untracked, p.write.named)
	p.write.values(b)
	sum := sha256.Sum256(b.Bytes())
	return sum[:16]
}

// canonical returns granularities in an order of their own, each once, nil of those of the
// table: who names these, or none, asks for the same.
func (t *table) canonical(granularities []Granularity) []Granularity {
	set := func(all []Granularity) []Granularity { return slices.Compact(slices.Sorted(slices.Values(all))) }
	if named := set(granularities); !slices.Equal(named, set(t.granularities)) {
		return named
	}
	return nil
}

// claim keeps the IDs of events that are not there. One that another transaction is
// about to keep is waited for.
func (s *Store) claim(ctx context.Context, tx pgx.Tx, t *table, events []prepared) (ids, error) {
	type id struct {
		text string
		hash []byte
	}
	var all []id
	for _, e := range events {
		if e.ID != "" {
			all = append(all, id{e.ID, e.Hash})
		}
	}
	// Two that share some wait for each other in one direction.
	slices.SortStableFunc(all, func(a, b id) int { return cmp.Compare(a.text, b.text) })
	all = slices.CompactFunc(all, func(a, b id) bool { return a.text == b.text })
	texts, hashes := make([]string, len(all)), make([][]byte, len(all))
	for i, id := range all {
		texts[i], hashes[i] = id.text, id.hash
	}
	found := ids{fresh: make(map[string][]byte, len(all))}
	rows, _ := tx.Query(ctx, `
		INSERT INTO howdah.counter_events AS e (tbl, id, hash)
		SELECT $1, id, hash
		FROM unnest($2::text[], $3::bytea[]) AS k(id, hash)
		ON CONFLICT (tbl, id) DO UPDATE
		SET at = EXCLUDED.at, hash = EXCLUDED.hash
		WHERE e.at < EXCLUDED.at - interval '7 days'
		RETURNING id, hash`, t.name, texts, hashes)
	var text string
	var hash []byte
	if _, err := pgx.ForEachRow(rows, []any{&text, &hash}, func() error { found.fresh[text] = bytes.Clone(hash); return nil }); err != nil {
		return found, err
	}
	var seen []string
	for _, id := range all {
		if _, fresh := found.fresh[id.text]; id.hash != nil && !fresh {
			seen = append(seen, id.text)
		}
	}
	if seen == nil {
		return found, nil
	}
	found.hashes = make(map[string][]byte, len(seen))
	rows, _ = tx.Query(ctx, `
		SELECT id, hash
		FROM howdah.counter_events
		WHERE tbl = $1 AND id = ANY($2) AND hash IS NOT NULL`, t.name, seen)
	_, err := pgx.ForEachRow(rows, []any{&text, &hash}, func() error { found.hashes[text] = bytes.Clone(hash); return nil })
	return found, err
}

// seen reports whether an event was applied before this transaction, or [ErrReused].
func (i ids) seen(e Event) (bool, error) {
	if _, fresh := i.fresh[e.ID]; fresh || e.ID == "" {
		return false, nil
	}
	return true, reused(e, i.hashes[e.ID])
}

// reused returns [ErrReused] of an event whose ID was kept with another hash.
func reused(e Event, kept []byte) error {
	if kept == nil || e.Hash == nil || bytes.Equal(kept, e.Hash) {
		return nil
	}
	return fmt.Errorf("%q: %w", shorten(e.ID), ErrReused)
}

// disclaim gives IDs back that were kept and then not used.
func (s *Store) disclaim(ctx context.Context, tx pgx.Tx, t *table, unused []string) error {
	_, err := tx.Exec(ctx, `
		DELETE FROM howdah.counter_events
		WHERE tbl = $1 AND id = ANY($2)`, t.name, unused)
	return err
}
