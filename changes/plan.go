package changes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Action is what a step does to a table.
type Action string

// The actions of a Step.
const (
	Create  Action = "create"  // begin to capture
	Replace Action = "replace" // capture otherwise, or mend triggers that were changed by hand
	Release Action = "release" // end the capture; what was logged stays
)

// Step is what Apply does, or did, to one table, in one transaction.
type Step struct {
	Table    string        `json:"table"`
	Action   Action        `json:"action"`
	Triggers int           `json:"triggers"` // that the table has afterwards
	SQL      []string      `json:"sql"`
	Locked   time.Duration `json:"-"` // how long the table was locked, once it was done

	relation uint32
	spec     string                // "" to release
	owner    string                // of the capture that is there
	when     string                // the condition, if there is one
	in       func(err error) error // names the capture in an error about it; nil to release
	patience time.Duration         // for the lock, each time
}

// Plan returns what [Log.Apply] would do, and changes nothing.
func (l *Log) Plan(ctx context.Context, want []Capture, prune bool) ([]Step, error) {
	steps, err := l.plan(ctx, want, prune)
	return steps, pg.Wrap("changes: plan", err)
}

// Apply makes the captures what want says: tables that are not captured yet begin
// to be, others are captured otherwise or mended; with prune, captures that want
// does not name end. So do those of tables that were dropped, with prune or where want is of their names. It returns the steps that were done.
//
// It goes table by table, each in a transaction of its own that waits for the
// table's lock for 2 s at most, or the session's lock_timeout if that is less, five
// times. A table that others keep locked is
// Unavailable, with their process ids; the other tables are done. An Invalid
// error names the field, of several captures as captures[1].key; nothing has been
// changed then, nor where a table is Conflict, because a service captures it for itself
// and otherwise. In a caller's transaction it waits once.
func (l *Log) Apply(ctx context.Context, want []Capture, prune bool) ([]Step, error) {
	const op = "changes: apply"
	steps, err := l.plan(ctx, want, prune)
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	if err := l.tryConditions(ctx, steps); err != nil {
		return nil, pg.Wrap(op, err)
	}
	done, err := l.carryOutAll(ctx, steps, func() ([]Step, error) { return l.plan(ctx, want, prune) })
	return done, pg.Wrap(op, errors.Join(err, l.remember(ctx, want, prune)))
}

// Release ends the capture of table, schema.table. What was logged stays. It returns
// NotFound where the table is not captured, and Conflict where a service captures it for
// itself. Of schema.*, where that was captured, it ends all captures of the schema but those of
// services, and once that is done Doctor knows the pattern no more.
func (l *Log) Release(ctx context.Context, table string) ([]Step, error) {
	done, err := l.release(ctx, table)
	return done, pg.Wrap("changes: release", err)
}

func (l *Log) release(ctx context.Context, table string) ([]Step, error) {
	if err := pg.CheckText("table", table); err != nil {
		return nil, err
	}
	schema, pattern := strings.CutSuffix(table, ".*")
	plan := func() ([]Step, error) {
		installed, err := l.installed(ctx)
		if err != nil {
			return nil, err
		}
		var steps []Step
		for _, in := range installed {
			switch {
			case pattern && in.Schema == schema && in.free():
				steps = append(steps, in.release())
			case in.name() == table && !in.free():
				return nil, in.owned()
			case in.name() == table:
				steps = append(steps, in.release())
			}
		}
		return steps, nil
	}
	steps, err := plan()
	if err != nil {
		return nil, err
	}
	there := len(steps) > 0
	if pattern {
		if err := l.db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM howdah.change_pattern WHERE pattern = $1)`, table).Scan(&there); err != nil {
			return nil, err
		}
	}
	if !there {
		return nil, fmt.Errorf("%q is not captured: howdah changes list shows what is: %w", table, fault.NotFound)
	}
	done, err := l.carryOutAll(ctx, steps, plan) // others may release it first
	if err != nil || !pattern {
		return done, err
	}
	forget := `DELETE FROM howdah.change_pattern WHERE pattern = ` + pg.Literal(table)
	if _, err := l.db.Exec(ctx, forget); err != nil {
		return done, err
	}
	return append(done, Step{Table: table, Action: Release, SQL: []string{forget}}), nil
}

func (l *Log) plan(ctx context.Context, want []Capture, prune bool) ([]Step, error) {
	installed, err := l.installed(ctx)
	if err != nil {
		return nil, err
	}
	var steps []Step
	named := map[uint32]string{}
	for i, c := range want {
		in := func(err error) error { return err }
		if len(want) > 1 {
			in = func(err error) error { return pg.Within(fmt.Sprintf("captures[%d]", i), err) }
		}
		if _, err := c.withDefaults(); err != nil {
			return nil, in(err) // whatever its tables are
		}
		pattern := strings.HasSuffix(c.Table, ".*")
		expanded, err := l.expand(ctx, c, want)
		if err != nil {
			return nil, in(err)
		}
		for _, c := range expanded {
			in := in
			if pattern {
				whole := in
				in = func(err error) error { return whole(ofTable(c.Table, err)) }
			}
			t, err := resolve(ctx, l.db, c)
			if err != nil {
				return nil, in(err)
			}
			if named[t.relation] != "" {
				return nil, in(pg.Refuse("table", "%q is there twice", c.Table))
			}
			named[t.relation] = c.Table
			for _, other := range t.family {
				if named[other] != "" {
					return nil, in(twice(c.Table, named[other]))
				}
			}
			step, err := t.step(installed)
			if errors.Is(err, fault.Conflict) && pattern {
				continue // a service's own is not meant
			}
			if err != nil {
				return nil, in(err)
			}
			if step != nil {
				step.in = in
				steps = append(steps, *step)
			}
		}
	}
	var gone []Step // tables that were dropped, of which others may have the names
	for _, in := range installed {
		switch {
		case in.Gone && (prune || slices.Contains(slices.Collect(maps.Values(named)), in.name())):
			gone = append(gone, in.release())
		case prune && named[in.Relation] == "" && in.free():
			steps = append(steps, in.release())
		}
	}
	return append(gone, steps...), nil
}

// ofTable returns err with the table in it, which a pattern stood for; where it is about a table it
// has that.
func ofTable(table string, err error) error {
	var input *pg.InputError
	if errors.As(err, &input) && input.Field != "table" {
		return pg.Refuse(input.Field, "%s: %s", table, input.Problem)
	}
	return err
}

// expand returns c, or where it is for schema.* one for each table of the schema that
// want does not name; partitions belong to their parents.
func (l *Log) expand(ctx context.Context, c Capture, want []Capture) ([]Capture, error) {
	schema, all := strings.CutSuffix(c.Table, ".*")
	if !all {
		return []Capture{c}, nil
	}
	rows, _ := l.db.Query(ctx, `
		SELECT c.relname::text
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1::text AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
		ORDER BY 1`, schema)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, pg.Refuse("table", "%q: there is no such schema, or no table in it", c.Table)
	}
	var tables []Capture
	for _, name := range names {
		table := schema + "." + name
		if slices.ContainsFunc(want, func(c Capture) bool { return c.Table == table }) {
			continue // named, so that it is captured otherwise
		}
		one := c
		one.Table = table
		tables = append(tables, one)
	}
	return tables, nil
}

// remember keeps the patterns of want, and with prune no others, for Doctor.
func (l *Log) remember(ctx context.Context, want []Capture, prune bool) error {
	patterns := []string{}
	for _, c := range want {
		if strings.HasSuffix(c.Table, ".*") {
			patterns = append(patterns, c.Table)
		}
	}
	if len(patterns) == 0 && !prune {
		return nil
	}
	_, err := l.db.Exec(ctx, `
		WITH gone AS (DELETE FROM howdah.change_pattern WHERE $2 AND pattern <> ALL($1::text[]))
		INSERT INTO howdah.change_pattern (pattern)
		SELECT unnest($1::text[])
		ON CONFLICT DO NOTHING`, patterns, prune)
	return err
}

// step is what makes the table captured as t says; nil where it is.
func (t *target) step(installed []*installation) (*Step, error) {
	spec, err := t.spec()
	if err != nil {
		return nil, err
	}
	step := &Step{Table: t.schema + "." + t.table, Action: Create, Triggers: len(t.Ops), relation: t.relation, spec: spec, when: t.When}
	i := slices.IndexFunc(installed, func(in *installation) bool { return in.Relation == t.relation })
	if i >= 0 {
		in := installed[i]
		switch same := in.recordedAs(spec); {
		case same && in.Hash == in.Current:
			return nil, nil
		case !same && in.Owner != "":
			return nil, in.owned()
		}
		step.Action = Replace
		step.owner = in.Owner
		step.SQL = in.drops()
	}
	step.SQL = append(step.SQL, t.triggers()...)
	return step, nil
}

const (
	lockPatience = 2 * time.Second
	lockTries    = 5
)

// tryConditions runs the steps with a condition and undoes them: only PostgreSQL can
// tell whether it is one, and where it is not nothing is to be done to other tables
// either.
func (l *Log) tryConditions(ctx context.Context, steps []Step) error {
	if len(steps) == 1 {
		return nil
	}
	for _, step := range steps {
		if step.when == "" {
			continue
		}
		undo := errors.New("undo")
		err := l.begin(ctx, func(tx pgx.Tx) error { return cmp.Or(step.run(ctx, tx), undo) })
		if errors.Is(err, fault.Invalid) {
			return err
		}
	}
	return nil // what else may be wrong is told when it is done
}

// errOvertaken: others have made or dropped triggers of the table since a step was planned.
var errOvertaken = fmt.Errorf("others capture or release it at the same time: %w", fault.Conflict)

// carryOutAll runs steps as carryOut does, the others, too, where one fails.
func (l *Log) carryOutAll(ctx context.Context, steps []Step, plan func() ([]Step, error)) (done []Step, err error) {
	var failed []error
	for _, step := range steps {
		did, err := l.carryOut(ctx, step, plan)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", step.Table, err))
		}
		done = append(done, did...)
	}
	return done, errors.Join(failed...)
}

// carryOut runs a step, or, where it was overtaken, what plan makes of its table then, which may be
// nothing. It returns what it did.
func (l *Log) carryOut(ctx context.Context, step Step, plan func() ([]Step, error)) ([]Step, error) {
	for try := 1; ; try++ {
		err := l.do(ctx, &step)
		switch {
		case err == nil:
			return []Step{step}, nil
		case try == lockTries || pg.InTx(l.db) || !errors.Is(err, errOvertaken):
			return nil, err
		}
		steps, err := plan()
		i := slices.IndexFunc(steps, func(s Step) bool { return s.relation == step.relation })
		if err != nil || i < 0 {
			return nil, err
		}
		step = steps[i]
	}
}

// do runs a step, again while others have the table locked.
func (l *Log) do(ctx context.Context, step *Step) error {
	for try := 1; ; try++ {
		err := l.begin(ctx, func(tx pgx.Tx) error { return step.run(ctx, tx) })
		var pgErr *pgconn.PgError
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &pgErr):
			return err
		case pgErr.Code == "42501":
			return fmt.Errorf("%w: %w; capture and release need the rights of the owner of %s", fault.Denied, err, step.Table)
		case pgErr.Code == "42710" || pgErr.Code == "42704" && pgErr.Position == 0: // a trigger is there, or is not
			return fmt.Errorf("%w: %w", errOvertaken, err)
		case pgErr.Code != "55P03" && pgErr.Code != "40P01":
			return err
		case try == lockTries || pg.InTx(l.db):
			return l.lockedBy(ctx, err, lockedTable, step.relation, step.Action != Create)
		}
		select {
		case <-ctx.Done():
			return l.lockedBy(context.WithoutCancel(ctx), err, lockedTable, step.relation, step.Action != Create)
		case <-time.After(time.Duration(try) * step.patience / 8):
		}
	}
}

// badCondition: nothing else in the statement can be wrong in these ways.
func badCondition(err *pgconn.PgError) bool {
	switch err.Code {
	case "42501", "42710": // no right, a trigger of that name
		return false
	case "42P01", "42704": // the table or a trigger is gone, or the condition names a table or a type
		return err.Position > 0
	case "0A000", "22P02": // a subquery, a literal that cannot be read
		return true
	}
	return strings.HasPrefix(err.Code, "42")
}

// condition says where a statement of the step that failed has a condition that is
// none: all its other parts are ours.
func (s *Step) condition(sql string, err error) error {
	var pgErr *pgconn.PgError
	if s.when == "" || !errors.As(err, &pgErr) || !badCondition(pgErr) {
		return err
	}
	where := ""
	before, _, _ := strings.Cut(sql, whenText(s.when))
	if at := int(pgErr.Position) - utf8.RuneCountInString(before) - 1; at > 0 && at <= utf8.RuneCountInString(s.when) {
		where = fmt.Sprintf(" at character %d", at)
	}
	return s.in(pg.Refuse("when", "%s%s", pgErr.Message, where))
}

func (s *Step) run(ctx context.Context, tx pgx.Tx) error {
	var was string
	var patience int   // in milliseconds
	var denied *string // who may not use our triggers, which is nothing that owners may by themselves
	if err := tx.QueryRow(ctx, `
		SELECT was, patience, set_config('lock_timeout', patience::text, true),
			CASE WHEN NOT (has_function_privilege('howdah.change_capture()', 'EXECUTE') AND has_function_privilege('howdah.change_capture_bulk()', 'EXECUTE')) THEN quote_ident(current_user) END
		FROM (
			SELECT current_setting('lock_timeout') AS was, least(nullif(setting::int, 0), $1) AS patience
			FROM pg_settings
			WHERE name = 'lock_timeout') AS s`, lockPatience.Milliseconds()).Scan(&was, &patience, nil, &denied); err != nil {
		return err
	}
	if denied != nil && s.spec != "" {
		return fmt.Errorf("%s may not make howdah's triggers, whoever owns the table: GRANT EXECUTE ON FUNCTION howdah.change_capture(), howdah.change_capture_bulk() TO %[1]s, if it is to be trusted with the feed: %w", *denied, fault.Denied)
	}
	s.patience = time.Duration(patience) * time.Millisecond
	var began time.Time
	for _, sql := range s.SQL {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return s.condition(sql, err)
		}
		if began.IsZero() {
			began = time.Now() // the first statement takes the lock
		}
	}
	if err := s.record(ctx, tx); err != nil {
		return err
	}
	if !began.IsZero() {
		s.Locked = time.Since(began)
	}
	_, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true)`, was) // it may be a transaction of the caller's
	return err
}

// record keeps what is captured and the hash of its triggers. A capture that is another's
// than it was has been made since the step was planned.
func (s *Step) record(ctx context.Context, tx pgx.Tx) error {
	if s.spec == "" {
		if _, err := tx.Exec(ctx, `DELETE FROM howdah.change_spec WHERE relation = $1::oid AND coalesce(owner, '') = $2`, s.relation, s.owner); err != nil {
			return err
		}
		var left bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM howdah.change_spec WHERE relation = $1::oid)`, s.relation).Scan(&left)
		if err == nil && left {
			err = errOvertaken
		}
		return err
	}
	did, err := tx.Exec(ctx, `
		INSERT INTO howdah.change_spec AS s (relation, spec, hash)
		SELECT c.oid, $2::jsonb, t.hash
		FROM pg_class c
		CROSS JOIN LATERAL (`+triggersOf+`) t
		WHERE c.oid = $1::oid
		ON CONFLICT (relation) DO UPDATE SET spec = EXCLUDED.spec, hash = EXCLUDED.hash, changed_at = clock_timestamp()
		WHERE coalesce(s.owner, '') = $3`,
		s.relation, s.spec, s.owner)
	if err == nil && did.RowsAffected() == 0 {
		err = errOvertaken
	}
	return err
}

// lockedTable are locks on table $1, or a partition of it, that are in the way of a step:
// what makes a trigger goes beside readers, what drops one, which is $2, does not.
const lockedTable = `
			locktype = 'relation' AND relation IN (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid))
			AND ($2 OR mode NOT IN ('AccessShareLock', 'RowShareLock'))`

// lockedBy says who has locked what was waited for in vain: which is true of their locks.
func (l *Log) lockedBy(ctx context.Context, cause error, which string, args ...any) error {
	if pg.InTx(l.db) {
		return cause
	}
	rows, _ := l.db.Query(ctx, `
		SELECT DISTINCT pid
		FROM pg_locks
		WHERE granted AND pid <> pg_backend_pid() AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND (`+which+`)
		ORDER BY pid`, args...)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil || len(pids) == 0 {
		return fmt.Errorf("locked by others: %w", cause)
	}
	text := strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", ", "), "[]")
	return fmt.Errorf("locked by process %s (SELECT * FROM pg_stat_activity WHERE pid IN (%s)): %w: %w", text, text, fault.Unavailable, cause)
}
