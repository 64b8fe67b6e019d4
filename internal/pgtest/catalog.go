package pgtest

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Catalog describes the database's objects a line each, as a dump of the schema
// would. It needs no pg_dump, which a server's programs come without at times and
// which refuses a server newer than itself.
func Catalog(t testing.TB, pool *pgxpool.Pool) []string {
	t.Helper()
	return lines(t, pool, `
		SELECT line
		FROM (
			SELECT format('%s %s %s %s %s %s %s %s', c.oid::regclass, c.relkind, c.relowner, c.relacl, c.reloptions, c.relreplident, c.relrowsecurity, c.relispartition) AS line
			FROM pg_class c
			UNION ALL SELECT format('%s.%s %s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attcollation, attnotnull, attacl) FROM pg_attribute WHERE NOT attisdropped
			UNION ALL SELECT format('%s.%s default %s', adrelid::regclass, adnum, pg_get_expr(adbin, adrelid)) FROM pg_attrdef
			UNION ALL SELECT format('%s valid %s', pg_get_indexdef(indexrelid), indisvalid) FROM pg_index
			UNION ALL SELECT format('%s %s %s', pg_get_triggerdef(oid), tgenabled, tgisinternal) FROM pg_trigger
			UNION ALL SELECT format('%s: %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
			UNION ALL SELECT format('%s %s %s', oid::regprocedure, md5(prosrc), proacl) FROM pg_proc
			UNION ALL SELECT format('%s %s %s', classoid, objoid, description) FROM pg_description
			UNION ALL SELECT format('%s %s', nspname, nspacl) FROM pg_namespace
			UNION ALL SELECT format('%s %s', evtname, evtevent) FROM pg_event_trigger
			UNION ALL SELECT pubname FROM pg_publication
			UNION ALL SELECT typname FROM pg_type) everything
		WHERE line !~ '^(pg_temp|pg_toast)'
		ORDER BY line`)
}

// Rows gives every row of every table that is not PostgreSQL's, after its table's
// name, sorted: what a dump of the data holds.
func Rows(t testing.TB, pool *pgxpool.Pool) (rows []string) {
	t.Helper()
	for _, table := range lines(t, pool, `
		SELECT c.oid::regclass::text
		FROM pg_class c
		WHERE relkind = 'r' AND relpersistence <> 't' AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
		ORDER BY 1`) {
		rows = append(rows, lines(t, pool, `SELECT $1::text || ' ' || r::text FROM `+table+` r ORDER BY 1`, table)...)
	}
	return rows
}

func lines(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) []string {
	t.Helper()
	rows, _ := pool.Query(t.Context(), sql, args...)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return all
}
