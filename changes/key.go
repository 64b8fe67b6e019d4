package changes

// zonedBy is whether the text of a key of table c, of the columns in an SQL array, depends on the time
// zone of who writes, or may.
func zonedBy(key string) string {
	return `EXISTS (
				SELECT FROM pg_attribute a
				JOIN pg_type y ON y.oid = a.atttypid
				WHERE a.attrelid = c.oid AND a.attname = ANY(` + key + `)
					AND y.typcategory IN ('D', 'R', 'A', 'C') AND y.typname NOT IN ('date', 'timestamp', 'time', 'timetz'))`
}

// looseBy is whether two rows of table c may have one key, of the columns in an SQL array: no unique index
// is of some of these alone.
func looseBy(key string) string {
	return `NOT EXISTS (
				SELECT FROM pg_index i
				WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND NOT EXISTS (
					SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS p(attnum, position)
					LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum AND p.attnum > 0 -- else it is of an expression
					WHERE p.position <= i.indnkeyatts AND coalesce(a.attname <> ALL(` + key + `), true)))`
}
