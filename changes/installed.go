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
		if in.Spec == "" || in.Owner != "" && !all {
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
	Schema   string
	Table    string
	Spec     string   // as recorded; "" if it is not
	Hash     string   // as recorded
	Owner    string   // the service whose capture it is; "" if people's
	Triggers []string // by name
	Current  string   // hash of the triggers as they are
}

// triggersOf hashes the triggers of table c.oid, so that what was changed by hand
// is seen.
const triggersOf = `
	SELECT array_agg(tgname::text ORDER BY tgname) AS triggers,
		md5(string_agg(pg_get_triggerdef(oid) || tgenabled::text, E'\n' ORDER BY tgname)) AS hash
	FROM pg_trigger
	WHERE tgrelid = c.oid AND NOT tgisinternal AND tgparentid = 0 AND left(tgname, 8) = '!howdah_'`

func (l *Log) installed(ctx context.Context) ([]*installation, error) {
	rows, _ := l.db.Query(ctx, `
		SELECT c.oid AS relation, n.nspname::text AS schema, c.relname::text AS table,
			coalesce(s.spec::text, '') AS spec, coalesce(s.hash, '') AS hash, coalesce(s.owner, '') AS owner,
			coalesce(t.triggers, '{}') AS triggers, coalesce(t.hash, '') AS current
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN howdah.change_spec s ON s.relation = c.oid
		CROSS JOIN LATERAL (`+triggersOf+`) t
		WHERE s.relation IS NOT NULL OR t.triggers IS NOT NULL
		ORDER BY 2, 3`)
	return pgx.CollectRows(rows, pgx.RowToAddrOfStructByName[installation])
}

func (in *installation) name() string { return in.Schema + "." + in.Table }

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
