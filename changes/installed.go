package changes

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Captures returns what is captured, by table; with all, also what services of howdah
// capture for themselves, which bears its Owner and ends with that.
func (l *Log) Captures(ctx context.Context, all bool) ([]Capture, error) {
	const op = "changes: captures"
	installed, err := l.installed(ctx)
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	captures := make([]Capture, 0, len(installed))
	for _, in := range installed {
		if in.Gone || in.Spec == "" || in.Owner != "" && !all {
			continue // triggers of ours without a record are an accident for Apply to mend
		}
		var c Capture
		if err := json.Unmarshal([]byte(in.Spec), &c); err != nil {
			return nil, pg.Wrap(op, err)
		}
		c.Table, c.Owner = in.name(), in.Owner // it may have been renamed since
		captures = append(captures, c)
	}
	return captures, nil
}

// installation is what is installed on a table.
type installation struct {
	Relation uint32
	Gone     bool // it was dropped: what is left is the record
	Schema   string
	Table    string
	Spec     string   // as recorded; "" if it is not
	Hash     string   // as recorded
	Owner    string   // the service whose capture it is; "" if people's
	Triggers []string // by name
	Current  string   // hash of the triggers as they are
}

// calls is whether trigger g logs changes, whoever made it and whatever its name is.
const calls = `g.tgfoid IN (to_regproc('howdah.change_capture'), to_regproc('howdah.change_capture_bulk'))`

// ours is whether trigger g is of a capture: by what it calls, or by its name, in the
// place of one that was.
const ours = `(` + calls + ` OR left(g.tgname, 8) = '!howdah_')`

// triggersOf hashes the triggers of table c.oid, so that what was changed by hand
// is seen, on a partition, too: as long as those there are like that of the table they do not
// count, however many there are.
const triggersOf = `
	SELECT array_agg(g.tgname::text ORDER BY g.tgname) AS triggers,
		md5(string_agg(howdah.change_trigger(g.oid) || g.tgenabled::text || coalesce(p.differing, ''), E'\n' ORDER BY g.tgname)) AS hash
	FROM pg_trigger g
	CROSS JOIN LATERAL (
		SELECT string_agg(concat_ws(' ', o.tgrelid, o.tgname, o.tgenabled), ', ' ORDER BY o.tgrelid, o.tgname) AS differing
		FROM pg_partition_tree(g.tgrelid) AS part
		JOIN pg_trigger o ON o.tgrelid = part.relid AND o.tgparentid <> 0 AND o.tgfoid = g.tgfoid AND o.tgtype = g.tgtype
		WHERE (o.tgname, o.tgenabled) <> (g.tgname, g.tgenabled)) p
	WHERE g.tgrelid = c.oid AND g.tgparentid = 0 AND NOT g.tgisinternal AND ` + ours

func (l *Log) installed(ctx context.Context) ([]*installation, error) {
	rows, _ := l.db.Query(ctx, `
		SELECT k.oid AS relation, c.oid IS NULL AS gone,
			coalesce(n.nspname, split_part(s.spec ->> 'table', '.', 1)) AS schema, coalesce(c.relname, substr(s.spec ->> 'table', strpos(s.spec ->> 'table', '.') + 1)) AS table,
			coalesce(s.spec::text, '') AS spec, coalesce(s.hash, '') AS hash, coalesce(s.owner, '') AS owner,
			coalesce(t.triggers, '{}') AS triggers, coalesce(t.hash, '') AS current
		FROM (
			SELECT relation::oid AS oid FROM howdah.change_spec
			UNION
			SELECT g.tgrelid FROM pg_trigger g WHERE g.tgparentid = 0 AND NOT g.tgisinternal AND `+ours+`) k
		LEFT JOIN pg_class c ON c.oid = k.oid
		LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN howdah.change_spec s ON s.relation = k.oid
		CROSS JOIN LATERAL (`+triggersOf+`) t
		ORDER BY 3, 4`)
	return pgx.CollectRows(rows, pgx.RowToAddrOfStructByName[installation])
}

func (in *installation) name() string { return in.Schema + "." + in.Table }

// free reports whether people may end the capture.
func (in *installation) free() bool { return in.Owner == "" || in.Gone }

// owned refuses people what a service captures for itself.
func (in *installation) owned() error {
	return fmt.Errorf("%q is captured for the service %s, which alone ends that or changes it: %w", in.name(), in.Owner, fault.Conflict)
}

// recordedAs reports whether the capture is recorded as spec.
func (in *installation) recordedAs(spec string) bool {
	var have, want recorded
	if in.Spec == "" || json.Unmarshal([]byte(in.Spec), &have) != nil || json.Unmarshal([]byte(spec), &want) != nil {
		return false
	}
	if have.Relation != want.Relation {
		have.Relation, have.Numbers = want.Relation, want.Numbers
	}
	a, errA := json.Marshal(have)
	b, errB := json.Marshal(want)
	return errA == nil && errB == nil && string(a) == string(b)
}

func (in *installation) drops() []string {
	var drops []string
	for _, name := range in.Triggers {
		drops = append(drops, fmt.Sprintf(`DROP TRIGGER %s ON %s`, pgx.Identifier{name}.Sanitize(), pgx.Identifier{in.Schema, in.Table}.Sanitize()))
	}
	return drops
}

func (in *installation) release() Step {
	return Step{Table: in.name(), Action: Release, SQL: in.drops(), relation: in.Relation, owner: in.Owner}
}
