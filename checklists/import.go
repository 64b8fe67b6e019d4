package checklists

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"iter"
	"slices"
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
	// ID names the source, as the path of a file does. An import that did not come
	// to its end is then gone on with by the next one of the same ID: what was
	// committed is read and passed over, so that items that were done meanwhile do
	// not come back. Without an ID, and in a transaction of the caller's, every
	// import begins at the start.
	ID string
	// Again begins at the start, whatever is known of the ID.
	Again bool
	// SkipBad is called for each item that cannot be stored, and each line that
	// [ReadItems] cannot read, which is then left out. Without it the first of them
	// ends the import.
	SkipBad func(error)
	// Progress is called after each chunk that was committed, with the sums so far.
	Progress func(Imported)

	chunk int // items; 0: chunkItems
}

// Imported says what an import did.
type Imported struct {
	Added   int64 `json:"added"`
	Skipped int64 `json:"skipped"`           // already on the list, or more than once in the source
	Resumed int64 `json:"resumed,omitempty"` // passed over: an earlier import with the same ID had committed them
	Bad     int64 `json:"bad,omitempty"`     // left out, see SkipBad
}

// Import puts the items of src on list, as many as there are, and skips those
// already there, or kept as done, so that an import that was interrupted is
// simply run again. Of an item its name, payload, priority and, unless it is leased
// in its source, Due count; what became of it elsewhere does not. Items without a
// Due may be claimed at once, in the order given, to the millisecond. Of several
// with the same name the first counts.
//
// It reads and commits chunks of up to 250,000 items; no connection waits for
// src. An error of src, or an item that cannot be stored (Invalid, with its
// number), ends it: what Imported counts was committed before and stays. In a
// caller's transaction it is all or nothing.
//
// It returns [ErrChanged] where src is not what the import with the same ID began
// with, another Conflict where one with the same ID is going on, and [ErrPlain]
// where items are more than their names and the table has no columns for that.
func (s *Store) Import(ctx context.Context, list string, src iter.Seq2[Item, error], opt ImportOptions) (sum Imported, err error) {
	const op = "checklists: import"
	if err := errors.Join(s.check(list, nil), checkID(list, opt.ID)); err != nil {
		return sum, pg.Wrap(op, err)
	}
	if tx, ok := s.db.(pgx.Tx); ok {
		opt.ID = "" // what there is of it commits with the transaction
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
	chunks := &chunkReader{list: list, next: next, size: cmp.Or(opt.chunk, chunkItems), skipBad: opt.SkipBad, id: opt.ID}
	defer func() { sum.Bad = chunks.bad }()
	if opt.ID != "" {
		began, err := s.openBookmark(ctx, list, opt)
		if err != nil {
			return sum, err
		}
		chunks.digest = sha256.New()
		if err := chunks.skip(ctx, began); err != nil {
			return sum, err
		}
		sum.Resumed = int64(began.items)
	}
	add := s.copyChunk
	for {
		chunk, err := chunks.read(ctx)
		if err != nil {
			return sum, err
		}
		if chunk.taken == 0 {
			return sum, s.closeBookmark(ctx, list, chunk.id, chunk.from)
		}
		added, err := add(ctx, list, chunk)
		if errors.Is(err, errKnown) {
			added, err = s.mergeChunk(ctx, list, chunk)
		}
		if err != nil {
			return sum, err // to repeat it does no harm, even where nobody knows whether it committed
		}
		// Where some were known, more may be: the next chunk is merged at once.
		if add = s.copyChunk; added < int64(len(chunk.items)) {
			add = s.mergeChunk
		}
		sum.Added += added
		sum.Skipped += int64(chunk.taken) - added
		sum.Bad = chunks.bad
		if opt.Progress != nil {
			opt.Progress(sum)
		}
	}
}

// errKnown reports that not every item of a chunk may be added.
var errKnown = errors.New("items are on the list already, or kept as done")

// copyChunk adds a chunk of which the list knows nothing, in half the time that
// mergeChunk takes. Otherwise it adds nothing and returns errKnown.
func (s *Store) copyChunk(ctx context.Context, list string, c *chunk) (int64, error) {
	added, err := s.inChunk(ctx, list, c, func(tx pgx.Tx, now time.Time, keeps bool) (int64, error) {
		if keeps {
			return 0, errKnown
		}
		columns := []string{"list", "item", "due", "priority", "payload"}
		switch {
		case now.IsZero():
			columns = columns[:2]
		case len(c.more) == 0:
			columns = columns[:3]
		}
		row := []any{list, nil, nil, nil, nil}[:len(columns)]
		return tx.CopyFrom(ctx, s.table, columns, pgx.CopyFromSlice(len(c.items), func(i int) ([]any, error) {
			row[1] = c.items[i].name
			switch len(row) {
			case 3:
				row[2] = c.items[i].due(now)
			case 5:
				item := c.item(c.items[i], now)
				row[2], row[3], row[4] = item.Due, item.Priority, nil
				if item.Payload != nil {
					row[4] = []byte(item.Payload)
				}
			}
			return row, nil
		}))
	})
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "23505" {
		err = errKnown
	}
	return added, err
}

// mergeChunk adds what the list does not know of a chunk.
func (s *Store) mergeChunk(ctx context.Context, list string, c *chunk) (int64, error) {
	return s.inChunk(ctx, list, c, func(tx pgx.Tx, now time.Time, _ bool) (added int64, err error) {
		for some := range slices.Chunk(c.items, mergeItems) {
			sql, args := c.merge(list, some, now)
			tag, err := tx.Exec(ctx, s.sql(sql), args...)
			if err != nil {
				return 0, err
			}
			added += tag.RowsAffected()
		}
		return added, nil
	})
}

// merge is the statement that adds some of a chunk's items, with as few columns as
// they need.
func (c *chunk) merge(list string, some []newItem, now time.Time) (sql string, args []any) {
	names := make([]string, len(some))
	for i, item := range some {
		names[i] = item.name
	}
	if now.IsZero() {
		return insertPlain, []any{list, names}
	}
	dues := make([]time.Time, len(some))
	if len(c.more) == 0 {
		for i, item := range some {
			dues[i] = item.due(now)
		}
		return insertNew, []any{list, names, dues}
	}
	priorities, payloads := make([]int16, len(some)), make([]*string, len(some))
	for i, one := range some {
		item := c.item(one, now)
		if dues[i], priorities[i] = item.Due, int16(item.Priority); item.Payload != nil {
			payloads[i] = new(string(item.Payload))
		}
	}
	return insertMore, []any{list, names, dues, priorities, payloads}
}

// insertNew puts items on a list that are due at given times.
var insertNew = `
	INSERT INTO {lists} (list, item, due)
	SELECT $1, u.item, u.due
	FROM unnest($2::text[], $3::timestamptz[]) AS u(item, due)
	WHERE ` + notDone("u.item") + `
	ON CONFLICT DO NOTHING`

// insertMore is insertNew of items that have priorities or payloads too.
var insertMore = `
	INSERT INTO {lists} (list, item, due, priority, payload)
	SELECT $1, u.item, u.due, u.priority, u.payload::jsonb
	FROM unnest($2::text[], $3::timestamptz[], $4::smallint[], $5::text[]) AS u(item, due, priority, payload)
	WHERE ` + notDone("u.item") + `
	ON CONFLICT DO NOTHING`

// inChunk runs what a chunk does, with the server's time, zero where the table has
// no column for it, and whether the list keeps items that are done. The bookmark
// moves with it.
func (s *Store) inChunk(ctx context.Context, list string, c *chunk, do func(tx pgx.Tx, now time.Time, keeps bool) (int64, error)) (added int64, err error) {
	if len(c.more) > 0 {
		if err := s.needColumns(ctx); err != nil {
			return 0, err
		}
	}
	full, err := s.full(ctx)
	if err != nil {
		return 0, err
	}
	err = pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		var now time.Time
		var keeps bool
		if full {
			err := tx.QueryRow(ctx, s.sql(`
				SELECT clock_timestamp(), EXISTS (SELECT FROM howdah.checklist WHERE relation = {relation} AND list = $1 AND keep_done)`), list).
				Scan(&now, &keeps)
			if err != nil {
				return err
			}
		}
		if added, err = do(tx, now, keeps); err != nil {
			return err
		}
		if c.id != "" {
			if err := s.moveBookmark(ctx, tx, list, c, added); err != nil {
				return err
			}
		}
		if !full || pg.InTx(s.db) {
			return nil
		}
		_, err = tx.Exec(ctx, ring)
		return err
	})
	return added, s.told(err)
}
