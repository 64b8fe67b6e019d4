package counters

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/adopt"
)

// Adopting is where an adoption is: in one of [Survey.Steps].
type Adopting = adopt.Progress

// Adopt records how a table that was there before howdah counts: what the Config says,
// and of granularities and system rows, where it says nothing, what the rows say. With
// that every program of howdah's finds the numbers where they are. What else add asks
// for it adds beside whoever works on the table: an index is built beside writers, and
// no row is rewritten. [Store.Survey] names the steps. Each can be repeated, and the
// next call goes on where one was interrupted. Where nothing is missing it does
// nothing.
//
// What needs the table for a moment waits two seconds at a time for those who use it,
// and gives up after five times: the error is then Unavailable and names them. What
// cannot be adopted, and settings that contradict the rows, are a Conflict, a lack of
// rights Denied. Migrations must have run. The Store must be on a pool that leads
// through no pooler in transaction mode. told may be nil.
func (s *Store) Adopt(ctx context.Context, add Extras, told func(Adopting)) error {
	err := s.alone(ctx, told, func(a *adopt.Session) error {
		look := func(ctx context.Context) (*examined, error) {
			found, err := s.examine(ctx, a.Conn)
			if err == nil {
				err = refused(found.catalog, found.catalog.problems(s.named(), found.table.mode), fault.Conflict)
			}
			return found, err
		}
		return adopt.Run(ctx, a, s.steps(add), look, func(found *examined) error {
			if err := s.fits(ctx, found); err != nil {
				return err
			}
			if !found.catalog.Migrated {
				return fmt.Errorf("howdah's own tables are not there; run howdah migrate first: %w", fault.Unavailable)
			}
			return refused(found.catalog, found.catalog.rights(add != Extras{}), fault.Denied)
		})
	})
	s.found.set(nil, time.Time{})
	return pg.Wrap("counters: adopt", err)
}

// UndoAdopt takes back exactly what [Store.Adopt] added, and with it what
// [Survey.Loss] counts. It waits for others as Adopt does, and can be repeated.
func (s *Store) UndoAdopt(ctx context.Context, told func(Adopting)) error {
	err := s.alone(ctx, told, func(a *adopt.Session) error {
		found, err := s.examine(ctx, a.Conn)
		if err != nil || found.note.none() {
			return err
		}
		if err := refused(found.catalog, found.catalog.rights(found.note != note{Record: found.note.Record}), fault.Denied); err != nil {
			return err
		}
		return s.takeBack(ctx, a, found)
	})
	s.found.set(nil, time.Time{})
	return pg.Wrap("counters: undo adopt", err)
}

// alone runs do where no other adoption of the table is running.
func (s *Store) alone(ctx context.Context, told func(Adopting), do func(*adopt.Session) error) error {
	if s.bad != nil {
		return s.bad
	}
	return adopt.Alone(ctx, s.db, adopt.Table{Name: s.cfg.Table}, told, do)
}

func refused(c *catalog, why []string, kind fault.Kind) error {
	if len(why) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s: %w", c.name(), strings.Join(why, "; "), kind)
}

// steps are the parts of adopting.
func (s *Store) steps(add Extras) []adopt.Step[*examined] {
	return []adopt.Step[*examined]{
		{Words: "record how the table counts",
			Missing: func(found *examined) bool { return found.table.recorded == nil }, Do: s.addRecord},
		{Words: "make the ping table",
			Missing: func(found *examined) bool { return add.Ping && !found.table.ping }, Do: s.addPing},
		{Words: "leave room in its blocks from now on (fillfactor 70); no row is rewritten",
			Missing: func(found *examined) bool { return add.Fillfactor && !found.catalog.Filled }, Do: s.addFillfactor},
		{Words: "build an index of the keys in the order of their bytes, beside writers",
			Missing: func(found *examined) bool {
				valid := found.catalog.Index
				return add.Index && !found.table.bytewise || valid != nil && !*valid && found.note.Index != ""
			}, Do: s.addIndex},
	}
}

// fits reads the rows of a table whose settings are to be recorded, and refuses those
// that they contradict.
func (s *Store) fits(ctx context.Context, found *examined) (err error) {
	if found.table.recorded != nil {
		return nil
	}
	if found.evidence, err = s.evidence(ctx, found.table, found.catalog, longLook); err != nil {
		return err
	}
	return refused(found.catalog, found.evidence.contradicts(found.table), fault.Conflict)
}

// addRecord keeps the settings, unless others are kept meanwhile: those must then be
// no others than the Config's.
func (s *Store) addRecord(ctx context.Context, a *adopt.Session, found *examined) error {
	t := found.table
	t.learn(s.cfg, found.evidence)
	r, err := t.record()
	if err != nil {
		return err
	}
	kept, err := json.Marshal(struct {
		record
		Adopted note `json:"adopted"`
	}{r, note{Record: true}})
	if err != nil {
		return err
	}
	_, err = a.Conn.Exec(ctx, `
		INSERT INTO howdah.counter_tables (tbl, settings)
		VALUES ($1, $2)
		ON CONFLICT DO NOTHING`, t.name, kept)
	return err
}

func (s *Store) addPing(ctx context.Context, a *adopt.Session, found *examined) error {
	return a.Locked(ctx, func(tx pgx.Tx) error {
		if err := s.note(ctx, tx, found, func(n *note) { n.Ping = true }); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT howdah.counters_setup($1, $2, $3)`, s.names.SQL("{table}"), s.names.SQL("{ping}"), found.table.mode)
		return err
	})
}

func (s *Store) addFillfactor(ctx context.Context, a *adopt.Session, found *examined) error {
	return a.Locked(ctx, func(tx pgx.Tx) error {
		if err := s.note(ctx, tx, found, func(n *note) { n.Fillfactor = true }); err != nil {
			return err
		}
		return adopt.Exec(ctx, tx, s.names.SQL(`ALTER TABLE {table} SET (fillfactor = 70)`))
	})
}

// addIndex notes the index before there is one: of what an interruption leaves, an undo
// has to know.
func (s *Store) addIndex(ctx context.Context, a *adopt.Session, found *examined) error {
	err := a.Locked(ctx, func(tx pgx.Tx) error {
		return s.note(ctx, tx, found, func(n *note) { n.Index = s.named() })
	})
	if err != nil {
		return err
	}
	columns := map[Mode]string{Full: `key COLLATE "C"`, Partial: `key COLLATE "C", at`, Separated: `key COLLATE "C", granularity COLLATE "C", at`}[found.table.mode]
	return a.Index(ctx, pgx.Identifier{found.catalog.Schema, s.named()}, found.catalog.Index != nil,
		s.names.SQL(`CREATE INDEX CONCURRENTLY `+pgx.Identifier{s.named()}.Sanitize()+` ON {table} (`+columns+`)`))
}

// note notes something that an adoption adds, in the transaction that adds it.
func (s *Store) note(ctx context.Context, tx pgx.Tx, found *examined, add func(*note)) error {
	n := found.note
	add(&n)
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, `
		UPDATE howdah.counter_tables
		SET settings = settings || jsonb_build_object('adopted', $2::jsonb)
		WHERE tbl = $1`, found.table.name, string(text))
	if err == nil && tag.RowsAffected() == 0 {
		err = fmt.Errorf("its record is gone: %w", fault.Conflict)
	}
	return err
}

// takeBack undoes what was noted, and last the note.
func (s *Store) takeBack(ctx context.Context, a *adopt.Session, found *examined) error {
	n := found.note
	if n.Index != "" {
		a.Begin("drop the index, beside writers")
		if err := a.DropIndex(ctx, pgx.Identifier{found.catalog.Schema, n.Index}); err != nil {
			return err
		}
	}
	// What waits in slots only howdah sees, and of striped names only while they are recorded.
	a.Begin("add what waits in slots to the rows")
	if _, err := s.foldAll(ctx); err != nil {
		return err
	}
	a.Begin("take back the record and what else was added")
	err := a.Locked(ctx, func(tx pgx.Tx) error {
		if n.Fillfactor {
			if err := adopt.Exec(ctx, tx, s.names.SQL(`ALTER TABLE {table} RESET (fillfactor)`)); err != nil {
				return err
			}
		}
		if n.Ping {
			if err := adopt.Exec(ctx, tx, s.names.SQL(`DROP TABLE IF EXISTS {ping}`)); err != nil {
				return err
			}
		}
		if !n.Record {
			_, err := tx.Exec(ctx, `UPDATE howdah.counter_tables SET settings = settings - 'adopted' WHERE tbl = $1`, found.table.name)
			return err
		}
		_, err := tx.Exec(ctx, `
			WITH ids AS (DELETE FROM howdah.counter_events WHERE tbl = $1), turns AS (DELETE FROM howdah.counter_turns WHERE tbl = $1)
			DELETE FROM howdah.counter_tables WHERE tbl = $1`, found.table.name)
		return err
	})
	if err == nil {
		_, err = s.foldAll(ctx) // and what came meanwhile
	}
	return err
}
