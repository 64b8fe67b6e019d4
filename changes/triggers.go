package changes

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Trigger is a trigger of the database, ours or somebody else's.
type Trigger struct {
	Table   string `json:"table_name" db:"table_name"`
	Name    string `json:"trigger_name" db:"trigger_name"`
	Events  string `json:"events" db:"events"`   // insert,update,delete,truncate
	Enabled string `json:"enabled" db:"enabled"` // yes, no, replica, always
	Owner   string `json:"whose" db:"whose"`     // howdah, or the schema and name of the function it calls
}

// Triggers returns every trigger of the database by table and name, also those of
// tables that the role does not own and those of TRUNCATE; the ones that foreign
// keys and partitions bring along are left out.
func (l *Log) Triggers(ctx context.Context) ([]Trigger, error) {
	rows, _ := l.db.Query(ctx, `
		SELECT n.nspname || '.' || c.relname AS table_name, t.tgname::text AS trigger_name,
			concat_ws(',', CASE WHEN t.tgtype & 4 > 0 THEN 'insert' END, CASE WHEN t.tgtype & 16 > 0 THEN 'update' END,
				CASE WHEN t.tgtype & 8 > 0 THEN 'delete' END, CASE WHEN t.tgtype & 32 > 0 THEN 'truncate' END) AS events,
			CASE t.tgenabled WHEN 'O' THEN 'yes' WHEN 'D' THEN 'no' WHEN 'R' THEN 'replica' ELSE 'always' END AS enabled,
			CASE pn.nspname WHEN 'howdah' THEN 'howdah' ELSE pn.nspname || '.' || p.proname END AS whose
		FROM pg_trigger t
		JOIN pg_class c ON c.oid = t.tgrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_proc p ON p.oid = t.tgfoid
		JOIN pg_namespace pn ON pn.oid = p.pronamespace
		WHERE NOT t.tgisinternal AND t.tgparentid = 0
		ORDER BY n.nspname, c.relname, t.tgname`)
	triggers, err := pgx.CollectRows(rows, pgx.RowToStructByName[Trigger])
	return triggers, pg.Wrap("changes: triggers", err)
}
