package checklists

import (
	"context"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// An import commits a chunk at a time: large enough that sorting pays (in chunks
// of 10,000 it takes half as long again), small enough for the server's memory.
const (
	chunkItems = 250_000
	chunkBytes = 64 << 20
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
// already there, or kept as done, so that an import that was interrupted is simply run again. Only
// their names count.
//
// It commits chunks of up to 250,000 items. An error of src, or an item that
// cannot be stored (Invalid, with its number), ends it: what Imported counts was
// committed before and stays. In a caller's transaction it is one chunk, all or
// nothing.
func (s *Store) Import(ctx context.Context, list string, src iter.Seq2[Item, error], opt ImportOptions) (Imported, error) {
	const op = "checklists: import"
	var sum Imported
	if err := s.check(list, nil); err != nil {
		return sum, pg.Wrap(op, err)
	}
	next, stop := iter.Pull2(src)
	defer stop()
	full, err := s.full(ctx)
	if err != nil {
		return sum, pg.Wrap(op, err)
	}
	feed := &itemFeed{list: list, next: next, bounded: !pg.InTx(s.db)}
	for !feed.ended {
		feed.items, feed.bytes = 0, 0
		var added int64
		err := pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) (err error) {
			added, err = s.importChunk(ctx, tx, list, full, feed)
			return err
		})
		if err != nil {
			return sum, pg.Wrap(op, s.told(err))
		}
		sum.Added += added
		sum.Skipped += feed.items - added
		if opt.Progress != nil {
			opt.Progress(sum)
		}
	}
	return sum, nil
}

// importChunk copies items aside and inserts them in the order of their bytes,
// so that concurrent imports wait for each other in one direction only.
func (s *Store) importChunk(ctx context.Context, tx pgx.Tx, list string, full bool, feed *itemFeed) (added int64, err error) {
	if _, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE howdah_import (item text COLLATE "C" NOT NULL) ON COMMIT DROP`); err != nil {
		return 0, err
	}
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{"pg_temp", "howdah_import"}, []string{"item"}, feed); err != nil {
		if feed.err != nil { // the server only says that the client gave up
			return 0, feed.err
		}
		return 0, err
	}
	skip := ""
	if full {
		skip = "WHERE " + notDone("i.item")
	}
	tag, err := tx.Exec(ctx, s.sql(`
		INSERT INTO {lists} (list, item)
		SELECT $1, item
		FROM pg_temp.howdah_import i
		`+skip+`
		ORDER BY item
		ON CONFLICT DO NOTHING`), list)
	if err != nil {
		return 0, err
	}
	// A caller's transaction may import again before it commits.
	_, err = tx.Exec(ctx, `DROP TABLE pg_temp.howdah_import`)
	return tag.RowsAffected(), err
}

// itemFeed hands items to COPY until a chunk is full or the source has ended.
type itemFeed struct {
	list    string
	next    func() (Item, error, bool)
	bounded bool

	read         int64 // items taken from the source so far
	items, bytes int64 // of this chunk
	row          [1]any
	err          error
	ended        bool
}

// Next implements pgx.CopyFromSource.
func (f *itemFeed) Next() bool {
	if f.err != nil || f.bounded && (f.items == chunkItems || f.bytes >= chunkBytes) {
		return false
	}
	item, err, ok := f.next()
	if !ok {
		f.ended = true
		return false
	}
	f.read++
	if err == nil {
		err = f.check(item)
	}
	if err != nil {
		f.err = err
		return false
	}
	f.items++
	f.bytes += int64(len(item.Name))
	f.row[0] = item.Name
	return true
}

func (f *itemFeed) check(item Item) error {
	return checkName(fmt.Sprintf("item %s", thousands(int(f.read))), f.list, item.Name)
}

// Values implements pgx.CopyFromSource.
func (f *itemFeed) Values() ([]any, error) { return f.row[:], nil }

// Err implements pgx.CopyFromSource.
func (f *itemFeed) Err() error { return f.err }
