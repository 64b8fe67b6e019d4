package counters

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// outcome is what the flush of a seq came to. If it is repeated and finds that it had
// committed, that is its answer.
type outcome struct {
	seq     uint64
	results []answer
	errors  []error
}

// flush writes a batch, all in order of arrival, and records that it did.
func (w *Writer) flush(ctx context.Context, tx pgx.Tx, batch pg.Batch[struct{}, load, answer]) error {
	loads := batch.Entries[0] // there is but one key
	committed, err := w.receipt(ctx, tx, batch.Seq)
	if err != nil {
		return err
	}
	if committed {
		copy(loads.Results, w.last.results)
		copy(loads.Errors, w.last.errors)
		return nil
	}
	s := w.s.WithTx(tx)
	s.lane = w.lane
	f := flight{s: s, tx: tx}
	if f.t, err = s.table(ctx); err != nil {
		return err
	}
	f.split(loads.Values)
	if err := f.write(ctx); err != nil {
		return s.told(err)
	}
	for _, p := range f.parts {
		if loads.Values[p.load].each {
			loads.Results[p.load].each = append(loads.Results[p.load].each, Outcome{p.applied > 0, p.err})
		} else {
			loads.Results[p.load].applied, loads.Errors[p.load] = p.applied, p.err
		}
	}
	w.last = outcome{batch.Seq, loads.Results, loads.Errors}
	return nil
}

// receipt records the number of a flush, in its transaction, and reports whether that
// had committed before. What follows can be taken back without it.
func (w *Writer) receipt(ctx context.Context, tx pgx.Tx, seq uint64) (committed bool, err error) {
	var b pgx.Batch
	b.Queue(`
		INSERT INTO howdah.counter_writers AS w (id, seq)
		VALUES ($1, $2)
		ON CONFLICT (id) DO UPDATE
		SET seq = EXCLUDED.seq, at = EXCLUDED.at
		WHERE w.seq < EXCLUDED.seq`, w.id, int64(seq)).Exec(func(tag pgconn.CommandTag) error {
		committed = tag.RowsAffected() == 0
		return nil
	})
	b.Queue(`SAVEPOINT howdah_writer`)
	return committed, tx.SendBatch(ctx, &b).Close()
}

// keptReceipts is how long the last receipt of a Writer is kept.
const keptReceipts = 7 * 24 * time.Hour

// dropReceipts drops receipts of Writers that have not written for a week.
func (s *Store) dropReceipts(ctx context.Context) error {
	for {
		var n int64
		err := pg.Retry(ctx, s.db, func() error {
			tag, err := s.db.Exec(ctx, `
				DELETE FROM howdah.counter_writers
				WHERE id IN (
					SELECT id
					FROM howdah.counter_writers
					WHERE at < now() - $1::interval
					LIMIT $2
					FOR UPDATE SKIP LOCKED)`, keptReceipts, maxDropped)
			n = tag.RowsAffected()
			return err
		})
		if err != nil || n < maxDropped {
			return pg.Wrap("counters: drop receipts", err)
		}
	}
}

// flight is what one transaction of a Writer carries.
type flight struct {
	s      *Store
	tx     pgx.Tx
	t      *table
	parts  []part
	fold   fold
	stored map[rowID]map[string]any // what is known to be in rows, and is no number
}

// part is events that stand or fall together.
type part struct {
	events  []prepared
	load    int // which it belongs to
	applied int
	err     error
}

func (f *flight) split(loads []load) {
	for i, l := range loads {
		err := f.t.sameAs(l.t)
		if !l.each {
			f.parts = append(f.parts, part{events: l.events, load: i, err: err})
			continue
		}
		for n := range l.events {
			f.parts = append(f.parts, part{events: l.events[n : n+1], load: i, err: err})
		}
	}
}

// maxBlames is how often a transaction is begun anew without what was to blame.
const maxBlames = 10

// write writes the parts, and says of those which cannot be why.
func (f *flight) write(ctx context.Context) error {
	for try := 0; ; try++ {
		parts := append([]part(nil), f.parts...)
		err := f.attempt(ctx, parts)
		if err == nil {
			f.parts = parts
			return nil
		}
		var pgErr *pgconn.PgError
		if try == maxBlames || !errors.As(err, &pgErr) || pgErr.Code != notNumberState {
			return err
		}
		if found, lookErr := f.look(ctx); lookErr != nil || !found {
			return errors.Join(err, lookErr) // the Batcher halves
		}
	}
}

func (f *flight) attempt(ctx context.Context, parts []part) error {
	claimed, err := f.claim(ctx, parts)
	if err != nil {
		return err
	}
	f.fold = fold{stored: f.stored}
	owners := map[string]Event{} // by ID
	for i := range parts {
		if p := &parts[i]; p.err == nil {
			p.applied, p.err = f.take(p.events, claimed, owners)
		}
	}
	if err := f.disclaim(ctx, claimed, owners); err != nil {
		return err
	}
	return f.s.send(ctx, f.tx, f.t, &f.fold)
}

// claim keeps the IDs of all parts.
func (f *flight) claim(ctx context.Context, parts []part) (ids, error) {
	var all []prepared
	for _, p := range parts {
		if p.err == nil && hasIDs(p.events) {
			all = append(all, p.events...)
		}
	}
	if all == nil {
		return ids{}, nil
	}
	return f.s.claim(ctx, f.tx, f.t, all)
}

// take takes the events of a part whose IDs were not seen before, in this transaction
// or another, and returns their number; or none of them.
func (f *flight) take(events []prepared, claimed ids, owners map[string]Event) (int, error) {
	if hasIDs(events) {
		var fresh []prepared
		for i, e := range events {
			seen, err := claimed.seen(e.Event)
			if o, ok := owners[e.ID]; ok && err == nil {
				seen, err = true, reused(e.Event, o.Hash)
			}
			if err != nil {
				return 0, inEvent(i, len(events), err)
			}
			if !seen {
				fresh = append(fresh, e)
			}
		}
		events = fresh
	}
	if i, err := f.fold.all(events); err != nil {
		return 0, inEvent(i, len(events), err)
	}
	for _, e := range events {
		if e.ID != "" {
			owners[e.ID] = e.Event
		}
	}
	return len(events), nil
}

// disclaim gives IDs back that were kept for parts which then failed.
func (f *flight) disclaim(ctx context.Context, claimed ids, owners map[string]Event) error {
	var unused []string
	var others []prepared // whose part is not the one that the ID was kept for
	for id, hash := range claimed.fresh {
		e, ok := owners[id]
		if ok && bytes.Equal(e.Hash, hash) {
			continue
		}
		unused = append(unused, id)
		if ok {
			others = append(others, prepared{Event: e})
		}
	}
	if unused == nil {
		return nil
	}
	err := f.s.disclaim(ctx, f.tx, f.t, unused)
	if err == nil && others != nil {
		_, err = f.s.claim(ctx, f.tx, f.t, others)
	}
	return err
}

// look takes back what an attempt wrote, and looks for what in its rows is no number.
// It reports whether it found any that was not known.
func (f *flight) look(ctx context.Context) (found bool, err error) {
	if _, err := f.tx.Exec(ctx, `ROLLBACK TO SAVEPOINT howdah_writer`); err != nil {
		return false, err
	}
	if f.stored == nil {
		f.stored = map[rowID]map[string]any{}
	}
	err = f.s.words(ctx, f.t, f.fold.sorted(), func(id rowID, path string, leaf any) {
		_, known := f.stored[id][path]
		if known || f.fold.rows[id].rounds[0].find(path, 0) < 0 { // where every field comes first
			return
		}
		if f.stored[id] == nil {
			f.stored[id] = map[string]any{}
		}
		f.stored[id][path], found = leaf, true
	})
	return found, err
}
