package checklists

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Layout is what a table of checklists is made of.
type Layout string

// The layouts of a table.
const (
	LayoutPlain    Layout = "plain"    // the original's three columns
	LayoutAdopting Layout = "adopting" // on the way to adopted; still used as plain
	LayoutAdopted  Layout = "adopted"  // the original's, with what Adopt added
	LayoutMade     Layout = "made"     // howdah's own
)

// Survey is what a look at a table found, and what adopting it would do.
type Survey struct {
	Table     string   `json:"table"`
	Layout    Layout   `json:"layout"`
	Iidy      string   `json:"iidy,omitempty"` // whose migrations made it: "2022" or "2025", where their version table is there
	Encoding  string   `json:"encoding"`       // of the database
	Collation string   `json:"collation"`      // of the items
	Order     string   `json:"order"`          // of "A", "B", "a" and "b" in it
	Items     int64    `json:"items"`
	Lists     int64    `json:"lists"`
	TooLong   int64    `json:"too_long,omitempty"` // items whose names are longer than MaxName: to be read, ticked and deleted only
	Owner     string   `json:"owner"`
	Writers   []string `json:"writers"`            // roles that may write; they need no new right
	Steps     []string `json:"steps"`              // what Adopt would do
	Problems  []string `json:"problems,omitempty"` // why it cannot
	Loss      *Loss    `json:"loss,omitempty"`     // what UndoAdopt would lose
}

// Loss is how many items or lists have what a plain table cannot hold.
type Loss struct {
	Leased     int64 `json:"leased"`     // items that workers have now
	Waiting    int64 `json:"waiting"`    // items that are not due yet
	Dead       int64 `json:"dead"`       // items that were given up, and would look like any other
	Errors     int64 `json:"errors"`     // items with the error of their last attempt
	Payloads   int64 `json:"payloads"`   // items with a payload
	Priorities int64 `json:"priorities"` // items that are not of priority 0
	Done       int64 `json:"done"`       // done items that are kept
	Settings   int64 `json:"settings"`   // lists with settings
}

// Survey looks at the table and changes nothing. It reads every item, once. It
// returns a NotFound error where there is no such table.
func (s *Store) Survey(ctx context.Context) (Survey, error) {
	const op = "checklists: survey"
	if err := s.names.Err(); err != nil {
		return Survey{}, pg.Wrap(op, err)
	}
	sh, err := s.look(ctx, s.db)
	if err != nil {
		return Survey{}, pg.Wrap(op, err)
	}
	v := Survey{Table: sh.name(), Layout: sh.layout(), Iidy: sh.Iidy, Encoding: sh.Encoding, Owner: sh.Owner, Writers: sh.Writers, Steps: sh.todo()}
	if v.Problems = sh.problems(); len(v.Problems) == 0 && len(v.Steps) > 0 {
		v.Problems = sh.rights()
	}
	if kinds[sh.Kind] != "" || len(sh.lacking) > 0 {
		return v, nil // nothing more need, or can, be asked
	}
	if err := s.survey(ctx, sh, &v); err != nil {
		return Survey{}, pg.Wrap(op, err)
	}
	return v, nil
}

// survey asks the rows.
func (s *Store) survey(ctx context.Context, sh *shape, v *Survey) error {
	// A literal has no collation of its own and takes the column's.
	err := s.row(ctx, `
		SELECT string_agg(item, ' ' ORDER BY item)
		FROM (SELECT item FROM {lists} WHERE false UNION ALL VALUES ('A'), ('B'), ('a'), ('b')) AS sample(item)`, nil, &v.Order)
	if err != nil {
		return err
	}
	v.Collation = sh.Collation
	var l Loss
	more := `, 0::bigint AS leased, 0::bigint AS waiting, 0::bigint AS dead, 0::bigint AS errors, 0::bigint AS payloads, 0::bigint AS priorities`
	if sh.columns() {
		more = `,
				count(*) FILTER (WHERE lease IS NOT NULL AND due > statement_timestamp() AND due < 'infinity') AS leased,
				count(*) FILTER (WHERE lease IS NULL AND due > statement_timestamp() AND due < 'infinity') AS waiting,
				count(*) FILTER (WHERE due = 'infinity') AS dead, count(error) AS errors, count(payload) AS payloads,
				count(*) FILTER (WHERE priority <> 0) AS priorities`
	}
	err = s.row(ctx, `
		SELECT count(*), coalesce(sum(items), 0)::bigint, coalesce(sum(long), 0)::bigint,
			coalesce(sum(leased), 0)::bigint, coalesce(sum(waiting), 0)::bigint, coalesce(sum(dead), 0)::bigint,
			coalesce(sum(errors), 0)::bigint, coalesce(sum(payloads), 0)::bigint, coalesce(sum(priorities), 0)::bigint
		FROM (
			SELECT count(*) AS items, count(*) FILTER (WHERE octet_length(list) + octet_length(item) > $1) AS long`+more+`
			FROM {lists}
			GROUP BY list) AS l`, []any{MaxName},
		&v.Lists, &v.Items, &v.TooLong, &l.Leased, &l.Waiting, &l.Dead, &l.Errors, &l.Payloads, &l.Priorities)
	if err != nil || v.Layout == LayoutMade || !sh.touched() {
		return err
	}
	v.Loss = &l
	if !sh.Migrated || !sh.Executes {
		return nil
	}
	return s.row(ctx, `
		SELECT (SELECT count(*) FROM howdah.checklist_done WHERE relation = $1), (SELECT count(*) FROM howdah.checklist WHERE relation = $1)`,
		[]any{sh.OID}, &l.Done, &l.Settings)
}

// refusal is the error of a table that cannot be adopted.
func (sh *shape) refusal() error {
	return sh.refused(sh.problems(), fault.Conflict)
}

// denial is the error of a role that may not change the table.
func (sh *shape) denial() error {
	return sh.refused(sh.rights(), fault.Denied)
}

func (sh *shape) refused(why []string, kind fault.Kind) error {
	if len(why) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s: %w", sh.name(), strings.Join(why, "; "), kind)
}

// shape is what the catalogs say of the table.
type shape struct {
	OID                       uint32
	Schema, Relation          string
	Kind                      string // relkind
	Temporary, Parted         bool
	Owner, Role, Database     string
	Owns, Creates, Executes   bool
	Migrated, Imports         bool
	Left                      bool // rows of howdah's own tables are about it
	Comment                   string
	Options                   []string
	Types                     map[string]string // of the columns
	Nullable                  []string          // of the three
	Demanding                 []string          // further columns that an insert would have to give
	Keyed, Deterministic      bool
	Collation, Encoding, Iidy string
	Writers                   []string
	Checked                   *bool // the CHECK, where it is there: whether it is validated
	DueIndex, LeaseIndex      *bool // the index, where it is there: whether it is valid, and as it has to be
	Taken                     []string
	Triggers                  int

	lacking []string // of the three columns
}

var added = []struct{ name, kind string }{
	{"priority", "smallint"}, {"due", "timestamp with time zone"}, {"lease", "uuid"}, {"worker", "text"},
	{"tried", "timestamp with time zone"}, {"error", "text"}, {"payload", "jsonb"},
}

var originals = []struct{ name, kind string }{{"list", "text"}, {"item", "text"}, {"attempts", "integer"}}

// look reads the catalogs.
func (s *Store) look(ctx context.Context, db pg.DB) (*shape, error) {
	rows, _ := db.Query(ctx, `
		SELECT c.oid, n.nspname AS schema, c.relname AS relation, c.relkind::text AS kind, c.relpersistence = 't' AS temporary,
			c.relispartition OR EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)) AS parted,
			pg_get_userbyid(c.relowner) AS owner, current_user::text AS role, d.datname AS database,
			pg_has_role(c.relowner, 'USAGE') AS owns, has_schema_privilege(n.oid, 'CREATE') AS creates,
			coalesce(has_function_privilege(to_regprocedure('howdah.checklist_inserted()'), 'EXECUTE')
				AND (SELECT bool_and(has_table_privilege(to_regclass('howdah.' || own), may))
					FROM unnest(ARRAY['checklist', 'checklist_count', 'checklist_done']) AS own, unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS may),
				true) AS executes,
			to_regprocedure('howdah.checklist_inserted()') IS NOT NULL AS migrated,
			coalesce(obj_description(c.oid, 'pg_class'), '') AS comment, coalesce(c.reloptions, '{}') AS options,
			(SELECT jsonb_object_agg(attname, format_type(atttypid, atttypmod)) FROM pg_attribute
				WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS types,
			ARRAY(SELECT attname::text FROM pg_attribute
				WHERE attrelid = c.oid AND attnum > 0 AND NOT attnotnull AND attname IN ('list', 'item', 'attempts') ORDER BY attnum) AS nullable,
			ARRAY(SELECT attname::text FROM pg_attribute
				WHERE attrelid = c.oid AND attnum > 0 AND attnotnull AND NOT atthasdef AND attidentity = '' AND NOT attisdropped
					AND attname NOT IN ('list', 'item') ORDER BY attnum) AS demanding,
			EXISTS (SELECT FROM pg_index i
				WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indnkeyatts = 2
					AND pg_get_indexdef(i.indexrelid, 1, true) = 'list' AND pg_get_indexdef(i.indexrelid, 2, true) = 'item') AS keyed,
			coalesce((SELECT bool_and(l.collisdeterministic) FROM pg_attribute a JOIN pg_collation l ON l.oid = a.attcollation
				WHERE a.attrelid = c.oid AND a.attname IN ('list', 'item')), true) AS deterministic,
			coalesce((SELECT CASE WHEN l.collname <> 'default' THEN l.collname
					ELSE 'the database''s, ' || coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale', d.datcollate)
						|| CASE to_jsonb(d)->>'datlocprovider' WHEN 'i' THEN ' of ICU' WHEN 'b' THEN ', built in' ELSE '' END END
				FROM pg_attribute a JOIN pg_collation l ON l.oid = a.attcollation WHERE a.attrelid = c.oid AND a.attname = 'item'), '') AS collation,
			pg_encoding_to_char(d.encoding)::text AS encoding,
			CASE WHEN to_regclass('public.iidy_schema_version') IS NOT NULL THEN '2025'
				WHEN to_regclass('public.schema_version') IS NOT NULL THEN '2022' ELSE '' END AS iidy,
			ARRAY(SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'everybody' ELSE pg_get_userbyid(a.grantee)::text END
				FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
				WHERE a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE') ORDER BY 1) AS writers,
			(SELECT convalidated FROM pg_constraint WHERE conrelid = c.oid AND conname = $2) AS checked,
			(SELECT i.indisvalid AND i.indpred IS NOT NULL FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
				WHERE i.indrelid = c.oid AND x.relname = $3) AS "dueIndex",
			(SELECT i.indisvalid FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
				WHERE i.indrelid = c.oid AND x.relname = $4) AS "leaseIndex",
			ARRAY(SELECT x.relname::text FROM pg_class x LEFT JOIN pg_index i ON i.indexrelid = x.oid
				WHERE x.relnamespace = n.oid AND x.relname IN ($3, $4) AND i.indrelid IS DISTINCT FROM c.oid) AS taken,
			to_regclass('howdah.checklist_import') IS NOT NULL AS imports,
			(SELECT count(*) FROM pg_trigger t
				WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A')
					AND (t.tgname, t.tgfoid) IN (('howdah_inserted', to_regproc('howdah.checklist_inserted')::oid),
						('howdah_deleted', to_regproc('howdah.checklist_deleted')), ('howdah_truncated', to_regproc('howdah.checklist_truncated')))) AS triggers
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_database d ON d.datname = current_database()
		WHERE c.oid = to_regclass($1)`, s.table.Sanitize(), s.named("lists_priority"), s.named("lists_due"), s.named("lists_lease"))
	sh, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByNameLax[shape])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("no table %s in this database: %w", s.table.Sanitize(), fault.NotFound)
	}
	if err != nil {
		return nil, err
	}
	for _, want := range originals {
		if sh.Types[want.name] != want.kind {
			sh.lacking = append(sh.lacking, want.name+" "+want.kind)
		}
	}
	if sh.Migrated && sh.Executes {
		err = db.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM howdah.checklist WHERE relation = $1) OR EXISTS (SELECT FROM howdah.checklist_count WHERE relation = $1)
				OR EXISTS (SELECT FROM howdah.checklist_done WHERE relation = $1)`, sh.OID).Scan(&sh.Left)
	}
	return sh, err
}

func (sh *shape) name() string { return sh.Schema + "." + sh.Relation }

// has says how many of howdah's columns are there, and which names of theirs are
// taken by others.
func (sh *shape) has() (n int, others []string) {
	for _, want := range added {
		switch kind := sh.Types[want.name]; kind {
		case "":
		case want.kind:
			n++
		default:
			others = append(others, want.name+" "+kind)
		}
	}
	return n, others
}

func (sh *shape) columns() bool { n, _ := sh.has(); return n == len(added) }

func (sh *shape) layout() Layout {
	switch note := readNote(sh.Comment); {
	case strings.HasPrefix(sh.Comment, "Made by howdah"):
		return LayoutMade
	case !sh.columns():
		return LayoutPlain
	case note.found && !note.ready:
		return LayoutAdopting
	}
	return LayoutAdopted
}

// touched reports whether there is anything that an undo would take back.
func (sh *shape) touched() bool {
	return sh.columns() || readNote(sh.Comment).found || sh.Triggers > 0 || sh.Left
}

var kinds = map[string]string{
	"p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index", "I": "an index", "c": "a type",
}

// problems says why the table cannot be adopted by anybody.
func (sh *shape) problems() (why []string) {
	say := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	n, others := sh.has()
	switch {
	case kinds[sh.Kind] != "":
		say("it is %s; only an ordinary table can be adopted", kinds[sh.Kind])
		return why
	case sh.Temporary:
		say("it is a temporary table, which only its own session can see")
	case sh.Parted:
		say("it is a part of another table, or has parts; counts of one would miss what is written to the other")
	}
	if len(sh.lacking) > 0 {
		say("it is no checklist: it has no column %s", strings.Join(sh.lacking, ", "))
		return why
	}
	switch {
	case len(others) > 0:
		say("it has columns of its own by the names of howdah's: %s", strings.Join(others, ", "))
	case n > 0 && n < len(added):
		say("it has %d of howdah's %d columns, which are no work of adopting: drop or rename them", n, len(added))
	case sh.layout() == LayoutMade && n == 0:
		say("howdah made it: howdah migrate adds its columns")
	}
	if len(sh.Nullable) > 0 {
		say("it lets %s be NULL", strings.Join(sh.Nullable, ", "))
	}
	if len(sh.Demanding) > 0 {
		say("nothing can be put on it without a value for %s: give it a default", strings.Join(sh.Demanding, ", "))
	}
	if !sh.Keyed {
		say("it has no unique index on (list, item)")
	}
	if !sh.Deterministic {
		say("its collation takes different names for the same (it is not deterministic)")
	}
	if len(sh.Taken) > 0 {
		say("the name %s is taken in its schema, by an index of another table: rename that", strings.Join(sh.Taken, ", "))
	}
	return why
}

// rights says what the role lacks.
func (sh *shape) rights() (why []string) {
	say := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	role, owner := pgx.Identifier{sh.Role}.Sanitize(), pgx.Identifier{sh.Owner}.Sanitize()
	if !sh.Owns {
		say("role %s does not own it: run this as %s or as a superuser, or let the one act for the other: GRANT %s TO %s", sh.Role, sh.Owner, owner, role)
	}
	if !sh.Creates && len(sh.todo()) > 0 {
		say("role %s may not make indexes: GRANT CREATE ON SCHEMA %s TO %s", sh.Role, pgx.Identifier{sh.Schema}.Sanitize(), role)
	}
	if !sh.Executes {
		say("role %s may not use howdah's functions and tables: run this as the role that ran howdah migrate, or as a superuser", sh.Role)
	}
	return why
}

// named is the name of an index or a constraint of the table.
func (s *Store) named(name string) string { return indexNames(s.table)[name][0] }

func (s *Store) quoted(name string) string { return pgx.Identifier{s.named(name)}.Sanitize() }
