package checklists

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrChanged reports that a source is not the one of which an earlier import with
// the same ID has put a part on the list.
var ErrChanged = fmt.Errorf("import it again from the start: %w", fault.Conflict)

// bookmark is how far the import of a source has come. It is kept, with the chunk
// that brought it there and in the same transaction, in howdah.checklist_import.
type bookmark struct {
	items  int
	digest []byte // of their names
}

// openBookmark returns where the import opt.ID has to go on: at the start where
// there was none, or where it is to begin again.
func (s *Store) openBookmark(ctx context.Context, list string, opt ImportOptions) (b bookmark, err error) {
	if opt.Again {
		_, err := s.run(ctx, `DELETE FROM howdah.checklist_import WHERE relation = {relation} AND list = $1 AND id = $2`, list, opt.ID)
		return b, err
	}
	err = s.row(ctx, `SELECT items, digest FROM howdah.checklist_import WHERE relation = {relation} AND list = $1 AND id = $2`,
		[]any{list, opt.ID}, &b.items, &b.digest)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return b, err
}

// moveBookmark moves the bookmark of an import over a chunk of which so many were
// added, unless it is no longer where the chunk began: another import with the same
// ID has moved it meanwhile, or the list was dropped, and what the chunk did must
// not be. It comes last, because others that take both lock items first.
func (s *Store) moveBookmark(ctx context.Context, tx pgx.Tx, list string, c *chunk, added int64) error {
	sql, args := `
		INSERT INTO howdah.checklist_import (relation, list, id, items, digest, added, skipped)
		VALUES ({relation}, $1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING`, []any{list, c.id, c.to.items, c.to.digest, added, int64(c.taken) - added}
	if c.from.items > 0 {
		sql, args = `
		UPDATE howdah.checklist_import
		SET items = $3, digest = $4, added = added + $5, skipped = skipped + $6, at = clock_timestamp()
		WHERE relation = {relation} AND list = $1 AND id = $2 AND items = $7 AND digest = $8`, append(args, c.from.items, c.from.digest)
	}
	tag, err := tx.Exec(ctx, s.sql(sql), args...)
	if err == nil && tag.RowsAffected() == 0 {
		err = fmt.Errorf("another import with the id %q has gone on meanwhile, or the list was dropped; leave it to the other, or try again: %w", c.id, fault.Conflict)
	}
	return err
}

// closeBookmark forgets an import that has come to its end.
func (s *Store) closeBookmark(ctx context.Context, list, id string, at bookmark) error {
	if at.items == 0 {
		return nil
	}
	forget := func() error {
		_, err := s.run(ctx, `
			DELETE FROM howdah.checklist_import
			WHERE relation = {relation} AND list = $1 AND id = $2 AND items = $3 AND digest = $4`, list, id, at.items, at.digest)
		return err
	}
	err := forget()
	if pg.LostConnection(err) {
		err = forget() // twice does no harm; not at all, and the next import would find itself at its end
	}
	return err
}

// checkID refuses an ID that cannot be kept. It may be as long as an item's name.
func checkID(list, id string) error {
	if err := pg.CheckText("id", id); err != nil {
		return err
	}
	if n := len(list) + len(id); id != "" && n > MaxName {
		return pg.Refuse("id", "%s bytes; list and id together may have %s", thousands(n), thousands(MaxName))
	}
	return nil
}
