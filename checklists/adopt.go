package checklists

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/adopt"
)

// Adopting is where an adoption is: in one of [Survey.Steps].
type Adopting = adopt.Progress

// Adopt gives a table that was there before howdah what leases and counts need,
// beside whoever works on it: columns that rewrite no row, indexes built beside
// writers, triggers that count. [Store.Survey] names the steps. Each can be
// repeated, and the next call goes on where one was interrupted; until the last is
// done the table is used as before. Where nothing is missing it does nothing.
//
// Adding columns and triggers waits two seconds at a time for those who use the
// table, and gives up after five times: the error is then Unavailable and names
// them. What cannot be adopted is a Conflict, a lack of rights Denied. Migrations
// must have run. The Store must be on a pool that leads through no pooler in
// transaction mode. told may be nil.
func (s *Store) Adopt(ctx context.Context, told func(Adopting)) error {
	err := s.alone(ctx, told, func(a *adopt.Session) error {
		look := func(ctx context.Context) (*shape, error) {
			sh, err := s.look(ctx, a.Conn)
			if err == nil {
				err = sh.refusal()
			}
			return sh, err
		}
		if sh, err := look(ctx); err != nil || sh.layout() == LayoutMade {
			return err
		}
		return adopt.Run(ctx, a, s.steps(), look, func(sh *shape) error {
			if err := sh.denial(); err != nil {
				return err
			}
			if !sh.Migrated {
				return fmt.Errorf("howdah's own tables are not there; run howdah migrate first: %w", fault.Unavailable)
			}
			return nil
		})
	})
	s.layout.forget()
	return pg.Wrap("checklists: adopt", err)
}

// UndoAdopt takes back exactly what [Store.Adopt] added, and with it what
// [Survey.Loss] counts. It waits for others as Adopt does, and can be repeated. A
// table that howdah made, or on whose columns other objects depend, is a Conflict.
func (s *Store) UndoAdopt(ctx context.Context, told func(Adopting)) error {
	err := s.alone(ctx, told, func(a *adopt.Session) error {
		sh, err := s.look(ctx, a.Conn)
		switch {
		case err != nil:
			return err
		case sh.layout() == LayoutMade:
			return fmt.Errorf("%s: howdah made it, and there is nothing before that: %w", sh.name(), fault.Conflict)
		case !sh.touched():
			return nil
		}
		if err := sh.denial(); err != nil {
			return err
		}
		a.Begin("take back columns, indexes and triggers")
		if err := a.Locked(ctx, func(tx pgx.Tx) error { return s.takeBack(ctx, tx, sh) }); err != nil {
			return err
		}
		if !sh.Migrated {
			return nil
		}
		// These may be many, and nobody need wait for them.
		a.Begin("forget counts, settings and done items")
		sql := forget
		if sh.Imports {
			sql += `, c AS (DELETE FROM howdah.checklist_import WHERE relation = $1)`
		}
		_, err = a.Conn.Exec(ctx, sql+` DELETE FROM howdah.checklist_count WHERE relation = $1`, sh.OID)
		return err
	})
	s.layout.forget()
	return pg.Wrap("checklists: undo adopt", err)
}

const forget = `
	WITH a AS (DELETE FROM howdah.checklist WHERE relation = $1), b AS (DELETE FROM howdah.checklist_done WHERE relation = $1)`

// alone runs do where no other adoption of the table is running.
func (s *Store) alone(ctx context.Context, told func(Adopting), do func(*adopt.Session) error) error {
	if err := s.names.Err(); err != nil {
		return err
	}
	return adopt.Alone(ctx, s.db, adopt.Table{Name: s.table, Patience: s.lockPatience}, told, do)
}

// steps are the parts of adopting.
func (s *Store) steps() []adopt.Step[*shape] {
	return []adopt.Step[*shape]{
		{Words: "add the columns priority, due, lease, worker, tried, error and payload; no row is rewritten",
			Missing: func(sh *shape) bool { return !sh.columns() || sh.Checked == nil }, Do: s.addColumns},
		{Words: "check the priorities that are there, beside writers",
			Missing: func(sh *shape) bool { return sh.Checked == nil || !*sh.Checked }, Do: s.checkPriorities},
		{Words: "build an index of what is due, beside writers",
			Missing: func(sh *shape) bool { return sh.DueIndex == nil || !*sh.DueIndex },
			Do:      s.index("lists_due", "(list, priority, due) WHERE due IS NOT NULL", func(sh *shape) *bool { return sh.DueIndex })},
		{Words: "build an index of leases, beside writers",
			Missing: func(sh *shape) bool { return sh.LeaseIndex == nil || !*sh.LeaseIndex },
			Do:      s.index("lists_lease", "(list, lease) WHERE lease IS NOT NULL", func(sh *shape) *bool { return sh.LeaseIndex })},
		{Words: "let triggers count what is put on and taken off, by whomever",
			Missing: func(sh *shape) bool { return sh.Triggers < 3 }, Do: s.addTriggers},
		{Words: "count the items that are there, beside writers",
			Missing: func(sh *shape) bool { note := readNote(sh.Comment); return !note.found || !note.ready }, Do: s.count},
	}
}

// storage is how a table whose rows change often is best kept.
var storage = []string{"fillfactor=85", "autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_threshold=1000"}

func option(setting string) string { name, _, _ := strings.Cut(setting, "="); return name }

// addColumns adds them with the note of what there was before, in one transaction.
func (s *Store) addColumns(ctx context.Context, a *adopt.Session, sh *shape) error {
	note := readNote(sh.Comment)
	var parts []string
	if !sh.columns() {
		parts = append(parts,
			`ADD COLUMN priority smallint NOT NULL DEFAULT 0`,
			`ADD COLUMN due timestamptz NOT NULL DEFAULT '-infinity'`, // of the rows that are there; a constant rewrites none
			`ADD COLUMN lease uuid`,
			`ADD COLUMN worker text`,
			`ADD COLUMN tried timestamptz`,
			`ADD COLUMN error text`,
			`ADD COLUMN payload jsonb`,
			`ALTER COLUMN due SET DEFAULT date_trunc('milliseconds', clock_timestamp())`)
		note.set = nil
		for _, setting := range storage {
			if name := option(setting); !slices.ContainsFunc(sh.Options, func(has string) bool { return option(has) == name }) {
				note.set = append(note.set, name)
				parts = append(parts, `SET (`+setting+`)`)
			}
		}
	}
	if sh.Checked == nil {
		parts = append(parts, `ADD CONSTRAINT `+s.quoted("lists_priority")+` CHECK (priority BETWEEN -5 AND 5) NOT VALID`)
	}
	note.ready = false
	return a.Locked(ctx, func(tx pgx.Tx) error {
		return adopt.Exec(ctx, tx,
			s.sql(`ALTER TABLE {lists} `+strings.Join(parts, ", ")),
			s.sql(`
				COMMENT ON COLUMN {lists}.priority IS '5 is first, -5 last';
				COMMENT ON COLUMN {lists}.due IS 'From when the item may be claimed: with a lease, when that ends; infinity: dead.';
				COMMENT ON COLUMN {lists}.lease IS 'Token of the claim that has the item, or had it last.';
				COMMENT ON COLUMN {lists}.worker IS 'Who claimed it last.';
				COMMENT ON COLUMN {lists}.tried IS 'When it was claimed last.';
				COMMENT ON COLUMN {lists}.error IS 'Of the last attempt that failed.';
				COMMENT ON COLUMN {lists}.payload IS 'What the worker needs to know beside the name.'`),
			s.comment(note.String()))
	})
}

func (s *Store) checkPriorities(ctx context.Context, a *adopt.Session, sh *shape) error {
	return a.Locked(ctx, func(tx pgx.Tx) error {
		return adopt.Exec(ctx, tx, s.sql(`ALTER TABLE {lists} VALIDATE CONSTRAINT `+s.quoted("lists_priority")))
	})
}

// index builds an index without locking anybody out.
func (s *Store) index(name, on string, valid func(*shape) *bool) func(context.Context, *adopt.Session, *shape) error {
	return func(ctx context.Context, a *adopt.Session, sh *shape) error {
		return a.Index(ctx, pgx.Identifier{sh.Schema, s.named(name)}, valid(sh) != nil, s.sql(`CREATE INDEX CONCURRENTLY `+s.quoted(name)+` ON {lists} `+on))
	}
}

// addTriggers waits for writers, so that each is counted by the triggers or seen by
// the count that follows.
func (s *Store) addTriggers(ctx context.Context, a *adopt.Session, sh *shape) error {
	note := readNote(sh.Comment)
	note.ready = false
	return a.Locked(ctx, func(tx pgx.Tx) error {
		return adopt.Exec(ctx, tx, s.sql(dropTriggers+`;
			CREATE TRIGGER howdah_inserted AFTER INSERT ON {lists}
			REFERENCING NEW TABLE AS howdah_new FOR EACH STATEMENT EXECUTE FUNCTION howdah.checklist_inserted();
			CREATE TRIGGER howdah_deleted AFTER DELETE ON {lists}
			REFERENCING OLD TABLE AS howdah_old FOR EACH STATEMENT EXECUTE FUNCTION howdah.checklist_deleted();
			CREATE TRIGGER howdah_truncated AFTER TRUNCATE ON {lists}
			FOR EACH STATEMENT EXECUTE FUNCTION howdah.checklist_truncated()`),
			s.comment(note.String()))
	})
}

const dropTriggers = `
	DROP TRIGGER IF EXISTS howdah_inserted ON {lists};
	DROP TRIGGER IF EXISTS howdah_deleted ON {lists};
	DROP TRIGGER IF EXISTS howdah_truncated ON {lists}`

// count makes the counts right, and then the table may be used.
func (s *Store) count(ctx context.Context, a *adopt.Session, sh *shape) error {
	if _, err := a.Conn.Exec(ctx, s.sql(`ANALYZE {lists}`)); err != nil { // nothing is known of the new columns
		return err
	}
	if _, err := a.Conn.Exec(ctx, s.sql(recount), ""); err != nil {
		return err
	}
	note := readNote(sh.Comment)
	note.ready = true
	return a.Locked(ctx, func(tx pgx.Tx) error { return adopt.Exec(ctx, tx, s.comment(note.String())) })
}

// takeBack undoes all of it but howdah's own rows.
func (s *Store) takeBack(ctx context.Context, tx pgx.Tx, sh *shape) error {
	parts := []string{}
	if sh.columns() {
		for _, column := range added {
			parts = append(parts, `DROP COLUMN `+column.name)
		}
	}
	note := readNote(sh.Comment)
	if len(note.set) > 0 {
		parts = append(parts, `RESET (`+strings.Join(note.set, ", ")+`)`)
	}
	if err := adopt.Exec(ctx, tx, s.sql(dropTriggers)); err != nil {
		return err
	}
	if len(parts) > 0 {
		if err := adopt.Exec(ctx, tx, s.sql(`ALTER TABLE {lists} `+strings.Join(parts, ", "))); err != nil {
			return err
		}
	}
	if !note.found {
		return nil
	}
	return adopt.Exec(ctx, tx, s.comment(note.before))
}

// comment is the statement that gives the table a comment.
func (s *Store) comment(text string) string {
	if text == "" {
		return s.sql(`COMMENT ON TABLE {lists} IS NULL`)
	}
	return s.sql(`COMMENT ON TABLE {lists} IS `) + pg.Literal(text)
}

// note is the first line of an adopted table's comment: what an undo has to know.
// It follows the table wherever that goes.
type note struct {
	found, ready bool
	set          []string // storage parameters
	before       string   // the table's own comment
}

var noteLine = regexp.MustCompile(`^(Being adopted|Adopted) by howdah(?:, which set ([a-z_, ]+))?\.(?:\n|$)`)

func readNote(comment string) note {
	m := noteLine.FindStringSubmatch(comment)
	if m == nil {
		return note{before: comment}
	}
	n := note{found: true, ready: m[1] == "Adopted", before: comment[len(m[0]):]}
	if m[2] != "" {
		n.set = strings.Split(m[2], ", ")
	}
	return n
}

func (n note) String() string {
	text := "Being adopted by howdah"
	if n.ready {
		text = "Adopted by howdah"
	}
	if len(n.set) > 0 {
		text += ", which set " + strings.Join(n.set, ", ")
	}
	text += "."
	if n.before != "" {
		text += "\n" + n.before
	}
	return text
}
