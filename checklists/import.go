package checklists

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// An import commits a chunk at a time: large enough that sorting pays (in chunks
// of 10,000 it takes half as long again), small enough for anybody's memory.
const (
	chunkItems = 250_000
	chunkBytes = 64 << 20
	mergeItems = 25_000 // of a chunk, in one statement
)

// ImportOptions are settings of an import; the zero value is right for most.
type ImportOptions struct {
	Progress func(Imported) // called after each chunk that was committed, with the sums so far
}

// Imported says what an import did.
type Imported struct {
	Added   int64 `json:"added"`
	Skipped int64 `json:"skipped"` // already on the list, or more than once in the source
}

// Import puts the items of src on list, as many as there are, and skips those
// already there, or kept as done, so that an import that was interrupted is
// simply run again. Only their names count. They may be claimed at once, in the
// order given, to the millisecond.
//
// It reads and commits chunks of up to 250,000 items; no connection waits for
// src. An error of src, or an item that cannot be stored (Invalid, with its
// number), ends it: what Imported counts was committed before and stays. In a
// caller's transaction it is all or nothing.
func (s *Store) Import(ctx context.Context, list string, src iter.Seq2[Item, error], opt ImportOptions) (sum Imported, err error) {
	const op = "checklists: import"
	if err := s.check(list, nil); err != nil {
		return sum, pg.Wrap(op, err)
	}
	if tx, ok := s.db.(pgx.Tx); ok {
		err = pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
			sum, err = s.WithTx(savepoint).importAll(ctx, list, src, opt)
			return err
		})
		if err != nil {
			sum = Imported{} // all or nothing
		}
	} else {
		sum, err = s.importAll(ctx, list, src, opt)
	}
	return sum, pg.Wrap(op, err)
}

func (s *Store) importAll(ctx context.Context, list string, src iter.Seq2[Item, error], opt ImportOptions) (sum Imported, err error) {
	next, stop := iter.Pull2(src)
	defer stop()
	chunks := &chunkReader{list: list, next: next}
	add := s.copyChunk
	for {
		chunk, taken, err := chunks.read(ctx)
		if err != nil {
			return sum, err
		}
		if taken == 0 {
			return sum, nil
		}
		added, err := add(ctx, list, chunk)
		if errors.Is(err, errKnown) {
			added, err = s.mergeChunk(ctx, list, chunk)
		}
		if err != nil {
			return sum, err // to repeat it does no harm, even where nobody knows whether it committed
		}
		// Where some were known, more may be: the next chunk is merged at once.
		if add = s.copyChunk; added < int64(len(chunk)) {
			add = s.mergeChunk
		}
		sum.Added += added
		sum.Skipped += int64(taken) - added
		if opt.Progress != nil {
			opt.Progress(sum)
		}
	}
}

// errKnown reports that not every item of a chunk may be added.
var errKnown = errors.New("items are on the list already, or kept as done")

// copyChunk adds a chunk of which the list knows nothing, in half the time that
// mergeChunk takes. Otherwise it adds nothing and returns errKnown.
func (s *Store) copyChunk(ctx context.Context, list string, chunk []newItem) (added int64, err error) {
	err = s.inChunk(ctx, list, func(tx pgx.Tx, now time.Time, keeps bool) error {
		if keeps {
			return errKnown
		}
		columns := []string{"list", "item", "due"}
		if now.IsZero() {
			columns = columns[:2]
		}
		row := []any{list, nil, nil}[:len(columns)]
		added, err = tx.CopyFrom(ctx, s.table, columns, pgx.CopyFromSlice(len(chunk), func(i int) ([]any, error) {
			row[1] = chunk[i].name
			if len(row) > 2 {
				row[2] = chunk[i].due(now)
			}
			return row, nil
		}))
		return err
	})
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "23505" {
		err = errKnown
	}
	return added, err
}

// mergeChunk adds what the list does not know of a chunk.
func (s *Store) mergeChunk(ctx context.Context, list string, chunk []newItem) (added int64, err error) {
	err = s.inChunk(ctx, list, func(tx pgx.Tx, now time.Time, _ bool) error {
		added = 0
		for some := range slices.Chunk(chunk, mergeItems) {
			names, dues := make([]string, len(some)), make([]time.Time, len(some))
			for i, item := range some {
				names[i], dues[i] = item.name, item.due(now)
			}
			sql, args := insertNew, []any{list, names, dues}
			if now.IsZero() {
				sql, args = insertPlain, args[:2]
			}
			tag, err := tx.Exec(ctx, s.sql(sql), args...)
			if err != nil {
				return err
			}
			added += tag.RowsAffected()
		}
		return nil
	})
	return added, err
}

// insertNew puts items on a list that are due at given times.
var insertNew = `
	INSERT INTO {lists} (list, item, due)
	SELECT $1, u.item, u.due
	FROM unnest($2::text[], $3::timestamptz[]) AS u(item, due)
	WHERE ` + notDone("u.item") + `
	ON CONFLICT DO NOTHING`

// inChunk runs what a chunk does, with the server's time, zero where the table has
// no column for it, and whether the list keeps items that are done.
func (s *Store) inChunk(ctx context.Context, list string, do func(tx pgx.Tx, now time.Time, keeps bool) error) error {
	full, err := s.full(ctx)
	if err != nil {
		return err
	}
	return s.told(pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if !full {
			return do(tx, time.Time{}, false)
		}
		var now time.Time
		var keeps bool
		err := tx.QueryRow(ctx, s.sql(`
			SELECT clock_timestamp(), EXISTS (SELECT FROM howdah.checklist WHERE relation = {relation} AND list = $1 AND keep_done)`), list).
			Scan(&now, &keeps)
		if err != nil {
			return err
		}
		if err := do(tx, now, keeps); err != nil || pg.InTx(s.db) {
			return err
		}
		_, err = tx.Exec(ctx, ring)
		return err
	}))
}

// newItem is an item of a chunk.
type newItem struct {
	name string
	n    int // the n-th of the chunk, from 0, in the order given
}

// due is a microsecond after that of the one before, as in Insert, and in the past
// for all of the largest chunk.
func (i newItem) due(now time.Time) time.Time {
	return now.Add(time.Duration(i.n-chunkItems) * time.Microsecond).Truncate(time.Millisecond)
}

// chunkReader takes chunks from a source.
type chunkReader struct {
	list  string
	next  func() (Item, error, bool)
	chunk []newItem // used again for each
	taken int       // items so far
}

// read returns the next chunk and how many items it took from the source, none at
// the end. Each name is there once, in the order of the bytes: concurrent imports
// wait for each other in one direction only.
func (r *chunkReader) read(ctx context.Context) (chunk []newItem, taken int, err error) {
	chunk = r.chunk[:0]
	for bytes := 0; len(chunk) < chunkItems && bytes < chunkBytes; {
		item, err, ok := r.next()
		if !ok {
			break
		}
		r.taken++
		if err != nil {
			return nil, 0, pg.Foreign(err)
		}
		if err := checkNth("item", r.taken, r.list, item.Name); err != nil {
			return nil, 0, err
		}
		chunk = append(chunk, newItem{item.Name, len(chunk)})
		bytes += len(item.Name)
	}
	r.chunk, taken = chunk, len(chunk)
	slices.SortFunc(chunk, func(a, b newItem) int { return cmp.Or(strings.Compare(a.name, b.name), a.n-b.n) })
	chunk = slices.CompactFunc(chunk, func(a, b newItem) bool { return a.name == b.name })
	return chunk, taken, ctx.Err()
}
