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
// already there, or kept as done, so that an import that was interrupted is
// simply run again. Only their names count.
//
// It reads and commits chunks of up to 250,000 items; no connection waits for
// src. An error of src, or an item that cannot be stored (Invalid, with its
// number), ends it: what Imported counts was committed before and stays. In a
// caller's transaction it is all or nothing. The role needs the right to make
// temporary tables.
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
	for {
		names, err := chunks.read(ctx)
		if err != nil {
			return sum, err
		}
		if len(names) == 0 {
			return sum, nil
		}
		added, err := s.importChunk(ctx, list, names)
		if err != nil {
			return sum, err // to repeat it does no harm, even where nobody knows whether it committed
		}
		sum.Added += added
		sum.Skipped += int64(len(names)) - added
		if opt.Progress != nil {
			opt.Progress(sum)
		}
	}
}

// importChunk copies names aside and inserts them in the order of their bytes, so
// that concurrent imports wait for each other in one direction only.
func (s *Store) importChunk(ctx context.Context, list string, names []string) (added int64, err error) {
	full, err := s.full(ctx)
	if err != nil {
		return 0, err
	}
	unkept := ""
	if full {
		unkept = "WHERE " + notDone("i.item")
	}
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE howdah_import (item text COLLATE "C" NOT NULL) ON COMMIT DROP`); err != nil {
			return err
		}
		rows := pgx.CopyFromSlice(len(names), func(i int) ([]any, error) { return []any{names[i]}, nil })
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"pg_temp", "howdah_import"}, []string{"item"}, rows); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, s.sql(`
			INSERT INTO {lists} (list, item)
			SELECT $1, item
			FROM pg_temp.howdah_import i
			`+unkept+`
			ORDER BY item
			ON CONFLICT DO NOTHING`), list)
		if err != nil {
			return err
		}
		added = tag.RowsAffected()
		// A caller's transaction may import again before it commits.
		_, err = tx.Exec(ctx, `DROP TABLE pg_temp.howdah_import`)
		return err
	})
	return added, s.told(err)
}

// chunkReader takes chunks from a source.
type chunkReader struct {
	list  string
	next  func() (Item, error, bool)
	names []string // used again for each chunk
	taken int64    // items so far
}

// read returns the names of the next chunk, none at the end.
func (r *chunkReader) read(ctx context.Context) ([]string, error) {
	r.names = r.names[:0]
	for bytes := 0; len(r.names) < chunkItems && bytes < chunkBytes; {
		item, err, ok := r.next()
		if !ok {
			break
		}
		r.taken++
		if err != nil {
			return nil, pg.Foreign(err)
		}
		if err := checkName(fmt.Sprintf("item %s", thousands(int(r.taken))), r.list, item.Name); err != nil {
			return nil, err
		}
		r.names = append(r.names, item.Name)
		bytes += len(item.Name)
	}
	return r.names, ctx.Err()
}
