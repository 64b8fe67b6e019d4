package counters

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/adopt"
)

// Survey is what a look at a table found, and what adopting it would do.
type Survey struct {
	Settings           // that hold, and would be recorded
	Rows      int64    `json:"rows"`
	Estimated bool     `json:"estimated"` // whether Rows is
	Collation string   `json:"collation"` // of the keys
	Bytewise  bool     `json:"bytewise"`  // an index has the keys in the order of their bytes
	Ping      bool     `json:"ping"`      // there is a ping table
	Owner     string   `json:"owner"`
	Evidence           // what the rows say
	Steps     []string `json:"steps"`              // what Adopt would do
	Problems  []string `json:"problems,omitempty"` // why it cannot
	Loss      *Loss    `json:"loss,omitempty"`     // what UndoAdopt would lose
}

// Loss is what there is that only an adopted table has.
type Loss struct {
	IDs      int64 `json:"ids"`      // events that would be counted again
	Beams    int64 `json:"beams"`    // states in the ping table that Adopt made
	Settings bool  `json:"settings"` // the record
}

// Extras are what Adopt adds to a table when it is asked to.
type Extras struct {
	Index      bool // of the keys in the order of their bytes, which ranges of a full table read
	Fillfactor bool // 70, so that what is added to a row finds room beside it
	Ping       bool // the ping table
}

// Survey looks at the table and changes nothing. Of one over 16 MiB it reads a sample
// of the blocks, and some metrics by their index, which [Evidence] tells. It returns
// a NotFound error where there is no such table, and Invalid where it is none of
// counters.
func (s *Store) Survey(ctx context.Context, add Extras) (Survey, error) {
	v, err := s.survey(ctx, add)
	return v, pg.Wrap("counters: survey", err)
}

func (s *Store) survey(ctx context.Context, add Extras) (Survey, error) {
	found, err := s.examine(ctx, s.db)
	if err != nil {
		return Survey{}, err
	}
	t, c := found.table, found.catalog
	v := Survey{Collation: c.Collation, Bytewise: t.bytewise, Ping: t.ping, Owner: c.Owner, Steps: adopt.Todo(s.steps(add), found)}
	v.Problems = c.problems(s.named(), t.mode)
	if len(v.Problems) == 0 && len(v.Steps) > 0 {
		v.Problems = c.rights(add != Extras{})
	}
	if kinds[c.Kind] == "" {
		if v.Evidence, err = s.evidence(ctx, t, c, longLook); err != nil {
			return Survey{}, err
		}
		v.Rows, v.Estimated = v.rows(c)
		if t.recorded == nil {
			v.Problems = append(v.Problems, v.contradicts(t)...)
		}
	}
	t.learn(s.cfg, v.Evidence)
	v.Settings = t.settings()
	if !found.note.none() {
		v.Loss = &Loss{Settings: found.note.Record}
		err := s.db.QueryRow(ctx, `SELECT count(*) FROM howdah.counter_events WHERE tbl = $1`, t.name).Scan(&v.Loss.IDs)
		if err == nil && found.note.Ping && t.ping {
			err = s.db.QueryRow(ctx, s.names.SQL(`SELECT count(*) FROM {ping}`)).Scan(&v.Loss.Beams)
		}
		if err != nil {
			return Survey{}, s.told(err)
		}
	}
	return v, nil
}

// rows returns how many rows there are, and whether that is estimated.
func (e Evidence) rows(c *catalog) (n int64, estimated bool) {
	switch {
	case e.Sample == nil:
		return e.read, false
	case c.Pages > 0 && c.Tuples > 0:
		return int64(c.Tuples / float64(c.Pages) * float64(c.Blocks)), true
	}
	return e.read * c.Blocks / max(e.Sample.Blocks, 1), true
}

// learn takes over what rows say of settings that nobody has said anything of.
func (t *table) learn(cfg Config, e Evidence) {
	if t.recorded != nil || e.read == 0 {
		return
	}
	if len(cfg.Granularities) == 0 && len(e.Found) > 0 {
		t.granularities = nil
		for _, span := range e.Found {
			t.granularities = append(t.granularities, span.Granularity)
		}
	}
	if cfg.System == "" && !e.SystemRows {
		t.system = Off
	}
}

// contradicts says in what the settings of t are not those of its rows.
func (e Evidence) contradicts(t *table) (why []string) {
	say := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	for _, separator := range slices.Sorted(maps.Keys(e.others)) {
		n := e.others[separator]
		if n*2 > e.read {
			say("of %d keys %d are none with the separator %q, such as %s, and %d are with %q: say which it is (--separator)",
				e.read, e.Unparsed, t.separator, strings.Join(e.UnparsedSuch, ", "), n, separator)
			return why
		}
	}
	zone := zoneName(t.calendar.Location)
	if e.dayStarts > 0 && e.misfits[zone]*10 > e.dayStarts {
		fit := "none of the many that were tried fits"
		if len(e.Zones) > 0 {
			fit = "these fit, and others that keep the same time: " + strings.Join(e.Zones, ", ")
		}
		say("of %d starts of days and longer %d are at no midnight of %s: say which time zone it is (--time-zone); %s", e.dayStarts, e.misfits[zone], zone, fit)
		return why
	}
	weeks := 0
	for _, n := range e.WeekStarts {
		weeks += n
	}
	if off := weeks - e.WeekStarts[t.calendar.WeekStart]; off*10 > weeks {
		say("of %d weeks %d do not begin on %s: say on which day they do (--week-start)", weeks, off, t.calendar.WeekStart)
	}
	return why
}

// examined is all that a look at the table finds. Its rows are not looked at with it.
type examined struct {
	table    *table
	catalog  *catalog
	note     note
	evidence Evidence
}

// note is what an adoption has added, as it is kept beside the settings.
type note struct {
	Record     bool   `json:"record,omitempty"`
	Index      string `json:"index,omitempty"`
	Fillfactor bool   `json:"fillfactor,omitempty"`
	Ping       bool   `json:"ping,omitempty"`
}

func (n note) none() bool { return n == note{} }

// catalog is what the catalogs say of the table.
type catalog struct {
	OID               uint32
	Schema, Relation  string
	Kind              string // relkind
	Temporary         bool
	Owner, Role       string
	Owns, Creates     bool
	Reads             bool // the role may read it
	Migrated, Records bool // howdah's tables are there, and the role may write them
	Keyed             bool // by a unique index that adding needs
	Filled            bool // there is a fillfactor
	Made              bool // by howdah
	Index             *bool
	Taken             bool // the index's name, by another
	Collation         string
	Blocks, Pages     int64 // now, and when it was analyzed
	Tuples            float64
}

func (c *catalog) name() string { return c.Schema + "." + c.Relation }

// examine looks at the table, with db.
func (s *Store) examine(ctx context.Context, db pg.DB) (*examined, error) {
	if s.bad != nil {
		return nil, s.bad
	}
	on := *s
	on.db = db
	t, err := on.look(ctx)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, fmt.Errorf("no table %s in this database: %w", s.cfg.Table.Sanitize(), fault.NotFound)
	}
	columns := strings.Split(t.columns, ", ")
	slices.Sort(columns)
	rows, _ := db.Query(ctx, `
		SELECT c.oid, n.nspname AS schema, c.relname AS relation, c.relkind::text AS kind, c.relpersistence = 't' AS temporary,
			pg_get_userbyid(c.relowner) AS owner, current_user::text AS role,
			pg_has_role(c.relowner, 'USAGE') AS owns, has_schema_privilege(n.oid, 'CREATE') AS creates,
			(SELECT bool_and(has_column_privilege(c.oid, attnum, 'SELECT')) FROM pg_attribute WHERE attrelid = c.oid AND attname = ANY ($2::name[] || 'data'::name)) AS reads,
			to_regclass('howdah.counter_turns') IS NOT NULL AS migrated,
			coalesce((SELECT bool_and(has_table_privilege(to_regclass('howdah.counter_tables'), may)) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS may), true) AS records,
			EXISTS (SELECT FROM pg_index i
				WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
					AND ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) ORDER BY 1) = $2::text[]) AS keyed,
			coalesce(array_to_string(c.reloptions, ','), '') LIKE '%fillfactor=%' AS filled,
			coalesce(obj_description(c.oid, 'pg_class'), '') LIKE 'Made by howdah%' AS made,
			(SELECT i.indisvalid FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid AND x.relname = $3) AS index,
			EXISTS (SELECT FROM pg_class x LEFT JOIN pg_index i ON i.indexrelid = x.oid
				WHERE x.relnamespace = n.oid AND x.relname = $3 AND i.indrelid IS DISTINCT FROM c.oid) AS taken,
			coalesce((SELECT CASE WHEN l.collname <> 'default' THEN l.collname
					ELSE 'the database''s, ' || coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale', d.datcollate) END
				FROM pg_attribute a JOIN pg_collation l ON l.oid = a.attcollation WHERE a.attrelid = c.oid AND a.attname = 'key'), '') AS collation,
			CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) / current_setting('block_size')::bigint ELSE 0 END AS blocks,
			c.relpages::bigint AS pages, c.reltuples::float8 AS tuples
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_database d ON d.datname = current_database()
		WHERE c.oid = to_regclass($1)`, s.names.SQL("{table}"), columns, s.named())
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByNameLax[catalog])
	if err != nil {
		return nil, err
	}
	found := &examined{table: t, catalog: c}
	if t.recorded != nil {
		found.note, err = on.noted(ctx, t)
	}
	return found, err
}

// noted returns what was noted of an adoption.
func (s *Store) noted(ctx context.Context, t *table) (n note, err error) {
	var text []byte
	err = s.db.QueryRow(ctx, `SELECT settings -> 'adopted' FROM `+t.records+` WHERE tbl = $1`, t.name).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && text == nil {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	return n, err
}

var kinds = map[string]string{"p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table"}

// problems says why the table cannot be adopted by anybody.
func (c *catalog) problems(index string, mode Mode) (why []string) {
	say := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	switch {
	case kinds[c.Kind] != "":
		say("it is %s; only an ordinary table can be adopted, howdah counters setup records the settings of any", kinds[c.Kind])
		return why
	case c.Temporary:
		say("it is a temporary table, which only its own session can see")
	}
	if !c.Keyed {
		say("it has no unique index on (%s), without which nothing can be added to it", layouts[mode].columns)
	}
	if c.Taken {
		say("the name %s is taken in its schema: rename what has it", index)
	}
	return why
}

// rights says what the role lacks, to record settings, and where more is to be added
// to the table.
func (c *catalog) rights(more bool) (why []string) {
	say := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	role, owner := pgx.Identifier{c.Role}.Sanitize(), pgx.Identifier{c.Owner}.Sanitize()
	if more && !c.Owns {
		say("role %s does not own it: run this as %s or as a superuser, or let the one act for the other: GRANT %s TO %s", c.Role, c.Owner, owner, role)
	}
	if more && !c.Creates {
		say("role %s may not make indexes and tables: GRANT CREATE ON SCHEMA %s TO %s", c.Role, pgx.Identifier{c.Schema}.Sanitize(), role)
	}
	if !c.Records {
		say("role %s may not use howdah's tables: run this as the role that ran howdah migrate, or as a superuser", c.Role)
	}
	return why
}

// named is the name of the index that Adopt builds.
func (s *Store) named() string {
	const suffix, maxName = "_bytewise", 63
	table := s.cfg.Table[len(s.cfg.Table)-1]
	return strings.ToValidUTF8(table[:min(len(table), maxName-len(suffix))], "") + suffix
}

// Span is from the first to the last bucket of a granularity.
type Span struct {
	Granularity Granularity `json:"granularity"`
	First       time.Time   `json:"first"`
	Last        time.Time   `json:"last"`
}
