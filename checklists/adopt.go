package checklists

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Adopting is where an adoption is.
type Adopting struct {
	Step        string // one of [Survey.Steps]
	Waiting     string // for whom, where it waits
	Done, Total int64  // blocks, while it builds an index and knows
}

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
	err := s.alone(ctx, told, func(a *adoption) error {
		for last := -1; ; {
			sh, err := s.look(ctx, a.conn)
			if err == nil {
				err = sh.refusal()
			}
			if err != nil {
				return err
			}
			next := slices.IndexFunc(steps, func(st step) bool { return st.missing(sh) })
			if next < 0 || sh.layout() == LayoutMade {
				return nil
			}
			if err := sh.denial(); err != nil {
				return err
			}
			if !sh.Migrated {
				return fmt.Errorf("howdah's own tables are not there; run howdah migrate first: %w", fault.Unavailable)
			}
			if next <= last {
				return fmt.Errorf("%q was undone by somebody else: %w", steps[next].words, fault.Conflict)
			}
			last = next
			a.at = steps[next].words
			a.told(Adopting{Step: a.at})
			if err := steps[next].do(a, ctx, sh); err != nil {
				return fmt.Errorf("%s: %w", a.at, err)
			}
		}
	})
	s.layout.forget()
	return pg.Wrap("checklists: adopt", err)
}

// UndoAdopt takes back exactly what [Store.Adopt] added, and with it what
// [Survey.Loss] counts. It waits for others as Adopt does, and can be repeated. A
// table that howdah made, or on whose columns other objects depend, is a Conflict.
func (s *Store) UndoAdopt(ctx context.Context, told func(Adopting)) error {
	err := s.alone(ctx, told, func(a *adoption) error {
		sh, err := s.look(ctx, a.conn)
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
		a.at = "take back columns, indexes and triggers"
		a.told(Adopting{Step: a.at})
		if err := a.locked(ctx, sh, func(tx pgx.Tx) error { return a.takeBack(ctx, tx, sh) }); err != nil {
			return err
		}
		if !sh.Migrated {
			return nil
		}
		// These may be many, and nobody need wait for them.
		a.at = "forget counts, settings and done items"
		a.told(Adopting{Step: a.at})
		sql := forget
		if sh.Imports {
			sql += `, c AS (DELETE FROM howdah.checklist_import WHERE relation = $1)`
		}
		_, err = a.conn.Exec(ctx, sql+` DELETE FROM howdah.checklist_count WHERE relation = $1`, sh.OID)
		return err
	})
	s.layout.forget()
	return pg.Wrap("checklists: undo adopt", err)
}

const forget = `
	WITH a AS (DELETE FROM howdah.checklist WHERE relation = $1), b AS (DELETE FROM howdah.checklist_done WHERE relation = $1)`

// step is a part of adopting, which can be repeated.
type step struct {
	words   string
	missing func(*shape) bool
	do      func(*adoption, context.Context, *shape) error
}

var steps = []step{
	{"add the columns priority, due, lease, worker, tried, error and payload; no row is rewritten",
		func(sh *shape) bool { return !sh.columns() || sh.Checked == nil }, (*adoption).addColumns},
	{"check the priorities that are there, beside writers",
		func(sh *shape) bool { return sh.Checked == nil || !*sh.Checked }, (*adoption).checkPriorities},
	{"build an index of what is due, beside writers",
		func(sh *shape) bool { return sh.DueIndex == nil || !*sh.DueIndex },
		index("lists_due", "(list, priority, due) WHERE due IS NOT NULL", func(sh *shape) *bool { return sh.DueIndex })},
	{"build an index of leases, beside writers",
		func(sh *shape) bool { return sh.LeaseIndex == nil || !*sh.LeaseIndex },
		index("lists_lease", "(list, lease) WHERE lease IS NOT NULL", func(sh *shape) *bool { return sh.LeaseIndex })},
	{"let triggers count what is put on and taken off, by whomever",
		func(sh *shape) bool { return sh.Triggers < 3 }, (*adoption).addTriggers},
	{"count the items that are there, beside writers",
		func(sh *shape) bool { note := readNote(sh.Comment); return !note.found || !note.ready }, (*adoption).count},
}

// todo is what adopting has to do.
func (sh *shape) todo() []string {
	todo := []string{}
	if sh.layout() == LayoutMade {
		return todo
	}
	for _, st := range steps {
		if st.missing(sh) {
			todo = append(todo, st.words)
		}
	}
	return todo
}

// storage is how a table whose rows change often is best kept.
var storage = []string{"fillfactor=85", "autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_threshold=1000"}

func option(setting string) string { name, _, _ := strings.Cut(setting, "="); return name }

// addColumns adds them with the note of what there was before, in one transaction.
func (a *adoption) addColumns(ctx context.Context, sh *shape) error {
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
		parts = append(parts, `ADD CONSTRAINT `+a.s.quoted("lists_priority")+` CHECK (priority BETWEEN -5 AND 5) NOT VALID`)
	}
	note.ready = false
	return a.locked(ctx, sh, func(tx pgx.Tx) error {
		return execAll(ctx, tx,
			a.s.sql(`ALTER TABLE {lists} `+strings.Join(parts, ", ")),
			a.s.sql(`
				COMMENT ON COLUMN {lists}.priority IS '5 is first, -5 last';
				COMMENT ON COLUMN {lists}.due IS 'From when the item may be claimed: with a lease, when that ends; infinity: dead.';
				COMMENT ON COLUMN {lists}.lease IS 'Token of the claim that has the item, or had it last.';
				COMMENT ON COLUMN {lists}.worker IS 'Who claimed it last.';
				COMMENT ON COLUMN {lists}.tried IS 'When it was claimed last.';
				COMMENT ON COLUMN {lists}.error IS 'Of the last attempt that failed.';
				COMMENT ON COLUMN {lists}.payload IS 'What the worker needs to know beside the name.'`),
			a.s.comment(note.String()))
	})
}

func (a *adoption) checkPriorities(ctx context.Context, sh *shape) error {
	return a.locked(ctx, sh, func(tx pgx.Tx) error {
		return execAll(ctx, tx, a.s.sql(`ALTER TABLE {lists} VALIDATE CONSTRAINT `+a.s.quoted("lists_priority")))
	})
}

// index builds an index without locking anybody out. It waits for transactions
// that are older than itself, as long as they take; one that was interrupted
// leaves an index that is not valid.
func index(name, on string, valid func(*shape) *bool) func(*adoption, context.Context, *shape) error {
	return func(a *adoption, ctx context.Context, sh *shape) error {
		watching, stop := context.WithCancel(ctx)
		var watch sync.WaitGroup
		defer watch.Wait()
		defer stop()
		watch.Go(func() { a.watch(watching, sh) })
		if valid(sh) != nil {
			if _, err := a.conn.Exec(ctx, `DROP INDEX CONCURRENTLY `+pgx.Identifier{sh.Schema, a.s.named(name)}.Sanitize()); err != nil {
				return err
			}
		}
		_, err := a.conn.Exec(ctx, a.s.sql(`CREATE INDEX CONCURRENTLY `+a.s.quoted(name)+` ON {lists} `+on))
		return err
	}
}

// watch tells how far an index is, and for whom it waits; what it cannot find out it
// does not tell.
func (a *adoption) watch(ctx context.Context, sh *shape) {
	pid := a.conn.PgConn().PID()
	for pause(ctx, time.Second) == nil {
		at := Adopting{Step: a.at}
		var waits bool
		err := a.s.db.QueryRow(ctx, `
			SELECT coalesce(max(blocks_done), 0), coalesce(max(blocks_total), 0), pg_blocking_pids($2) <> '{}'
			FROM pg_stat_progress_create_index
			WHERE relid = $1`, sh.OID, pid).Scan(&at.Done, &at.Total, &waits)
		if err == nil && waits {
			at.Waiting, err = sessions(ctx, a.s.db, `SELECT nullif(unnest(pg_blocking_pids($1)), 0)`, pid)
		}
		if err == nil && (at.Total > 0 || waits) {
			a.told(at)
		}
	}
}

// addTriggers waits for writers, so that each is counted by the triggers or seen by
// the count that follows.
func (a *adoption) addTriggers(ctx context.Context, sh *shape) error {
	note := readNote(sh.Comment)
	note.ready = false
	return a.locked(ctx, sh, func(tx pgx.Tx) error {
		return execAll(ctx, tx, a.s.sql(dropTriggers+`;
			CREATE TRIGGER howdah_inserted AFTER INSERT ON {lists}
			REFERENCING NEW TABLE AS howdah_new FOR EACH STATEMENT EXECUTE FUNCTION howdah.checklist_inserted();
			CREATE TRIGGER howdah_deleted AFTER DELETE ON {lists}
			REFERENCING OLD TABLE AS howdah_old FOR EACH STATEMENT EXECUTE FUNCTION howdah.checklist_deleted();
			CREATE TRIGGER howdah_truncated AFTER TRUNCATE ON {lists}
			FOR EACH STATEMENT EXECUTE FUNCTION howdah.checklist_truncated()`),
			a.s.comment(note.String()))
	})
}

const dropTriggers = `
	DROP TRIGGER IF EXISTS howdah_inserted ON {lists};
	DROP TRIGGER IF EXISTS howdah_deleted ON {lists};
	DROP TRIGGER IF EXISTS howdah_truncated ON {lists}`

// count makes the counts right, and then the table may be used.
func (a *adoption) count(ctx context.Context, sh *shape) error {
	if _, err := a.conn.Exec(ctx, a.s.sql(`ANALYZE {lists}`)); err != nil { // nothing is known of the new columns
		return err
	}
	if _, err := a.conn.Exec(ctx, a.s.sql(recount), ""); err != nil {
		return err
	}
	note := readNote(sh.Comment)
	note.ready = true
	return a.locked(ctx, sh, func(tx pgx.Tx) error { return execAll(ctx, tx, a.s.comment(note.String())) })
}

// takeBack undoes all of it but howdah's own rows.
func (a *adoption) takeBack(ctx context.Context, tx pgx.Tx, sh *shape) error {
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
	if err := execAll(ctx, tx, a.s.sql(dropTriggers)); err != nil {
		return err
	}
	if len(parts) > 0 {
		if err := execAll(ctx, tx, a.s.sql(`ALTER TABLE {lists} `+strings.Join(parts, ", "))); err != nil {
			return err
		}
	}
	if !note.found {
		return nil
	}
	return execAll(ctx, tx, a.s.comment(note.before))
}

func execAll(ctx context.Context, tx pgx.Tx, statements ...string) error {
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}
