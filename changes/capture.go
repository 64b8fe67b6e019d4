package changes

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Payload is how much of a row its changes carry.
type Payload string

// The payloads. Whatever the payload, the key is there.
const (
	PayloadKeys Payload = "keys" // nothing of the row
	PayloadRow  Payload = "row"  // the row as it is; of a delete, as it was
	PayloadDiff Payload = "diff" // of an update the columns that changed, old and new; else as row
	PayloadFull Payload = "full" // the row as it was and as it is
)

// Capture says what is logged of one table. Its zero fields are the defaults.
type Capture struct {
	Table    string   `json:"table"`               // schema.table, or schema.* for all its tables; the schema ends at the first dot
	Ops      []Op     `json:"ops,omitempty"`       // insert, update, delete, truncate; default all
	Columns  []string `json:"columns,omitempty"`   // an update counts only if one of these, or of the key, changed; default any
	Except   []string `json:"except,omitempty"`    // columns left out of old and new; those that are VIRTUAL always are
	When     string   `json:"when,omitempty"`      // SQL condition over NEW and OLD
	Key      []string `json:"key,omitzero"`        // columns of the key, [] for none; default primary key, else replica identity, else none
	Payload  Payload  `json:"payload,omitempty"`   // default row
	MaxBytes int      `json:"max_bytes,omitempty"` // old and new above it, together, are left out; default 1 MiB
	Bulk     bool     `json:"bulk,omitempty"`      // log by statement, not by row
	Always   bool     `json:"always,omitempty"`    // also what replication applies (session_replication_role = replica)
	Wake     string   `json:"wake,omitempty"`      // notify (default), or poll: for tables written in prepared transactions
	Owner    string   `json:"owner,omitempty"`     // the service that captures it for itself; told, never asked for
}

const defaultMaxBytes = 1 << 20

// withDefaults checks what can be checked without the table; the error is Invalid
// and names the field.
func (c Capture) withDefaults() (Capture, error) {
	if c.Owner != "" {
		return c, pg.Refuse("owner", "%q; only howdah's own services have captures that bear one", c.Owner)
	}
	all := []Op{Insert, Update, Delete, Truncate}
	for _, op := range c.Ops {
		if !slices.Contains(all, op) {
			return c, pg.Refuse("ops", "%q; want some of insert, update, delete, truncate", op)
		}
	}
	if given := c.Ops; given != nil { // they have no order, and none is there twice
		all = slices.DeleteFunc(all, func(op Op) bool { return !slices.Contains(given, op) })
	}
	if c.Ops = all; len(c.Ops) == 0 {
		return c, pg.Refuse("ops", "is empty: nothing would be captured")
	}
	switch c.Payload {
	case "":
		c.Payload = PayloadRow
	case PayloadKeys, PayloadRow, PayloadDiff, PayloadFull:
	default:
		return c, pg.Refuse("payload", "%q; want keys, row, diff or full", c.Payload)
	}
	switch c.Wake {
	case "":
		c.Wake = "notify"
	case "notify", "poll":
	default:
		return c, pg.Refuse("wake", "%q; want notify or poll", c.Wake)
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultMaxBytes
	}
	if c.MaxBytes < 1 || c.MaxBytes > 255<<20 {
		return c, pg.Refuse("max_bytes", "%d; want 1 to %d", c.MaxBytes, 255<<20)
	}
	if c.Bulk {
		switch {
		case c.Always:
			return c, pg.Refuse("bulk", "cannot be had with always: what replication applies fires no triggers by statement")
		case c.When != "":
			return c, pg.Refuse("bulk", "cannot be had with when")
		case len(c.Columns) > 0:
			return c, pg.Refuse("bulk", "cannot be had with columns")
		case len(c.Except) > 0:
			return c, pg.Refuse("bulk", "cannot be had with except")
		case c.Payload == PayloadDiff:
			return c, pg.Refuse("bulk", "cannot be had with payload diff")
		}
	}
	schema, table, ok := strings.Cut(c.Table, ".")
	if !ok || schema == "" || table == "" {
		return c, pg.Refuse("table", "%q; want schema.table", c.Table)
	}
	for _, field := range []struct {
		name  string
		texts []string
	}{{"table", []string{c.Table}}, {"when", []string{c.When}}, {"columns", c.Columns}, {"except", c.Except}, {"key", c.Key}} {
		for _, text := range field.texts {
			if err := pg.CheckText(field.name, text); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

// target is a capture and the table it is for.
type target struct {
	Capture
	relation    uint32
	schema      string
	table       string
	partitioned bool
	zoned       bool           // the text of its key depends on a time zone
	loose       bool           // two rows may have one key
	numbers     map[string]int // of its columns
	family      []uint32       // its partitions, and what it is one of, however far away
}

// tornByStatement: a foreign key of table c deletes its rows and another one updates them, so that
// one statement may do both to a row, while triggers by statement fire for all updates at once
// and for all deletes, in either order.
const tornByStatement = `EXISTS (
	SELECT FROM pg_constraint d
	JOIN pg_constraint u ON u.conrelid = d.conrelid AND u.oid <> d.oid AND u.contype = 'f' AND (u.confdeltype IN ('n', 'd') OR u.confupdtype IN ('c', 'n', 'd'))
	WHERE d.conrelid = c.oid AND d.contype = 'f' AND d.confdeltype = 'c')`

// resolve looks up the table and refuses what cannot be captured.
func resolve(ctx context.Context, db pg.DB, c Capture) (*target, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &target{Capture: c}
	t.schema, t.table, _ = strings.Cut(c.Table, ".")
	var kind, persistence string
	var partition, heir, parent, torn bool // a partition itself; one that inherits; inherited from; see tornByStatement
	var columns, virtual, key []string
	var numbers []int                             // of columns
	var rowTriggers, deferrable, related []string // the last are those of its family that are captured
	err = db.QueryRow(ctx, `
		SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relispartition, howdah.change_key(c.oid),
			ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
			ARRAY(SELECT attnum::int FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
			ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attgenerated = 'v' AND NOT attisdropped ORDER BY attnum),
			ARRAY(SELECT g.tgname::text FROM pg_trigger g
				WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 3 = 1 AND NOT `+ours+`), -- AFTER … FOR EACH ROW
			ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey::int2[])
				WHERE i.indrelid = c.oid AND NOT i.indimmediate),
			EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid),
			c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid),
			`+tornByStatement+`,
			`+zonedBy(`coalesce($3::text[], howdah.change_key(c.oid))`)+`, `+looseBy(`coalesce($3::text[], howdah.change_key(c.oid))`)+`,
			f.family, ARRAY(SELECT rn.nspname || '.' || r.relname
				FROM howdah.change_spec s
				JOIN pg_class r ON r.oid = s.relation
				JOIN pg_namespace rn ON rn.oid = r.relnamespace
				WHERE s.relation = ANY(f.family)
				ORDER BY 1)
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		CROSS JOIN LATERAL (
			SELECT ARRAY(
				SELECT relid::oid FROM pg_partition_ancestors(c.oid) WHERE relid <> c.oid
				UNION
				SELECT relid::oid FROM pg_partition_tree(c.oid) WHERE relid <> c.oid) AS family) f
		WHERE n.nspname = $1::text AND c.relname = $2::text`, t.schema, t.table, c.Key).
		Scan(&t.relation, &kind, &persistence, &partition, &key, &columns, &numbers, &virtual, &rowTriggers, &deferrable, &heir, &parent, &torn, &t.zoned, &t.loose, &t.family, &related)
	switch {
	case err == pgx.ErrNoRows:
		return nil, pg.Refuse("table", "%q does not exist", c.Table)
	case err != nil:
		return nil, err
	case t.schema == "howdah", t.schema == "information_schema", strings.HasPrefix(t.schema, "pg_"):
		return nil, pg.Refuse("table", "%q is a table of PostgreSQL or of howdah", c.Table)
	case persistence == "t":
		return nil, pg.Refuse("table", "%q is temporary", c.Table)
	case kind != "r" && kind != "p":
		return nil, pg.Refuse("table", "%q is no table (a view, or foreign)", c.Table)
	}
	t.partitioned = kind == "p"
	t.numbers = map[string]int{}
	for i, name := range columns {
		t.numbers[name] = numbers[i]
	}
	if parent {
		return nil, pg.Refuse("table", "%q has tables that inherit from it, whose rows its statements change without its triggers", c.Table)
	}
	if len(related) > 0 {
		return nil, twice(c.Table, strings.Join(related, ", "))
	}
	if t.partitioned && slices.Contains(c.Ops, Update) && !(slices.Contains(c.Ops, Insert) && slices.Contains(c.Ops, Delete)) {
		return nil, pg.Refuse("ops", "a row that moves between partitions is a delete and an insert: capture these too")
	}
	for _, list := range []struct {
		field string
		names []string
	}{{"columns", c.Columns}, {"except", c.Except}, {"key", c.Key}} {
		for _, name := range list.names {
			if !slices.Contains(columns, name) {
				return nil, pg.Refuse(list.field, "%q is no column of %s", name, c.Table)
			}
		}
	}
	if t.Key == nil {
		t.Key = key
	}
	// To a trigger what is computed when it is read is NULL, which a change must not say.
	for _, name := range virtual {
		switch {
		case slices.Contains(t.Key, name):
			return nil, pg.Refuse("key", "%q is computed when it is read (VIRTUAL): a trigger does not see it", name)
		case t.Bulk:
			return nil, pg.Refuse("bulk", "cannot be had with a column that is computed when it is read (VIRTUAL), as %q is: it is left out", name)
		case !slices.Contains(t.Except, name):
			t.Except = append(slices.Clone(t.Except), name)
		}
	}
	for _, name := range t.Key {
		if slices.Contains(t.Except, name) {
			return nil, pg.Refuse("except", "%q is a column of the key", name)
		}
		if slices.Contains(deferrable, name) {
			return nil, pg.Refuse("key", "%q is in a key that is DEFERRABLE: two transactions may swap it without waiting for each other", name)
		}
	}
	if t.Bulk {
		switch {
		case t.partitioned, partition:
			return nil, pg.Refuse("bulk", "cannot be had with partitions")
		case heir:
			return nil, pg.Refuse("bulk", "cannot be had with INHERITS: statements of a parent change the table's rows, and fire none of its triggers by statement")
		case len(t.Key) == 0:
			return nil, pg.Refuse("bulk", "needs a key")
		case torn:
			return nil, pg.Refuse("bulk", "cannot be had with a foreign key ON DELETE CASCADE beside another that sets columns: where one statement does both to a row, its deletion may be logged first")
		case len(rowTriggers) > 0:
			return nil, pg.Refuse("bulk", "cannot be had beside the table's own trigger %q, which fires before it", rowTriggers[0])
		}
	}
	return t, nil
}

// twice refuses to capture a table beside a partition of it, or the other way round.
func twice(table, other string) error {
	return pg.Refuse("table", "%q and %q, of which one is a partition of the other, cannot both be captured: each change would be logged twice; release one: howdah changes release", table, other)
}

// name is the table, quoted.
func (t *target) name() string { return pgx.Identifier{t.schema, t.table}.Sanitize() }

// recorded is a capture as it is kept, with what its triggers depend on besides.
type recorded struct {
	Capture
	Zoned    bool           `json:"zoned,omitempty"`
	Loose    bool           `json:"loose,omitempty"`
	Relation uint32         `json:"relation,omitempty"` // whose columns' numbers these are: where it was restored it is another
	Numbers  map[string]int `json:"numbers,omitempty"`  // of the columns that are picked by name, which may come to be another's
}

// spec is the capture as it is recorded.
func (t *target) spec() (string, error) {
	numbers := map[string]int{}
	for _, name := range slices.Concat(t.Key, t.Except) {
		numbers[name] = t.numbers[name]
	}
	text, err := json.Marshal(recorded{t.Capture, t.zoned, t.loose && len(t.Key) > 0, t.relation, numbers})
	return string(text), err
}

// triggers are the statements that install the capture, in the order they run.
func (t *target) triggers() []string {
	args := []string{t.schema, t.table, string(t.Payload), fmt.Sprint(t.MaxBytes), t.Wake, textArray(t.Key), textArray(t.Except)}
	switch {
	case t.zoned:
		args = append(args, "")
	case len(t.Key) == 1 && len(t.Except) == 0 && t.Payload != PayloadKeys:
		args = append(args, t.Key[0])
	}
	for i, arg := range args {
		args[i] = pg.Literal(arg)
	}
	call := strings.Join(args, ", ")
	var statements []string
	for _, op := range t.Ops {
		statements = append(statements, t.trigger(op, call))
		if t.Always {
			statements = append(statements, fmt.Sprintf(`ALTER TABLE %s ENABLE ALWAYS TRIGGER %s`, t.name(), triggerName(op)))
		}
	}
	return statements
}

// triggerName sorts before every name that people give: AFTER triggers fire in
// the order of their names' bytes, and one that changes the row again must not
// have its change logged first.
func triggerName(op Op) string { return `"!howdah_` + string(op) + `"` }

func (t *target) trigger(op Op, call string) string {
	event := strings.ToUpper(string(op))
	function, each := "howdah.change_capture", "FOR EACH ROW"
	switch {
	case op == Truncate:
		each = "FOR EACH STATEMENT"
	case t.Bulk:
		function, each = "howdah.change_capture_bulk", "FOR EACH STATEMENT"
		switch op {
		case Insert:
			each = "REFERENCING NEW TABLE AS howdah_new " + each
		case Update:
			each = "REFERENCING OLD TABLE AS howdah_old NEW TABLE AS howdah_new " + each
		case Delete:
			each = "REFERENCING OLD TABLE AS howdah_old " + each
		}
	}
	var conditions []string
	if op == Update && !t.Bulk {
		// *<> compares images: json, point and xml have no equality. It and its operands' type are PostgreSQL's
		// own, whatever of that name there is for the table's row type, or where the path looks first.
		conditions = append(conditions, `OLD.* OPERATOR(pg_catalog.*<>) NEW.*`)
		if len(t.Columns) > 0 {
			// And the key: who follows one must see it end.
			counts := slices.Clone(t.Columns)
			for _, name := range t.Key {
				if !slices.Contains(counts, name) {
					counts = append(counts, name)
				}
			}
			conditions = append(conditions, fmt.Sprintf(`ROW(%s)::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW(%s)::pg_catalog.record`, prefixed("OLD", counts), prefixed("NEW", counts)))
		}
	}
	if t.When != "" && op != Truncate {
		conditions = append(conditions, whenText(t.When))
	}
	when := ""
	if len(conditions) > 0 {
		when = " WHEN (" + strings.Join(conditions, " AND ") + ")"
	}
	return fmt.Sprintf(`CREATE TRIGGER %s AFTER %s ON %s %s%s EXECUTE FUNCTION %s(%s)`,
		triggerName(op), event, t.name(), each, when, function, call)
}

func prefixed(row string, columns []string) string {
	quoted := make([]string, len(columns))
	for i, name := range columns {
		quoted[i] = row + "." + pgx.Identifier{name}.Sanitize()
	}
	return strings.Join(quoted, ", ")
}

// whenText is a condition as it stands in a statement. A comment at its end ends there.
func whenText(when string) string { return "(" + when + "\n)" }

// textArray writes names as PostgreSQL reads an array.
func textArray(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}
