package changes

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// Finding is something about the captures or the log that somebody should know.
type Finding struct {
	Code     string `json:"code" db:"code" example:"trigger-disabled"`
	Severity string `json:"severity" db:"severity" example:"error"` // error: changes are lost; warning: they may be, or something is in the way
	Object   string `json:"object" db:"object" example:"public.users"`
	Problem  string `json:"problem" db:"problem" example:"trigger !howdah_insert is disabled"`
	Cure     string `json:"cure" db:"cure" example:"howdah changes apply"`
}

// Doctor looks at the captures and the log and returns what is wrong with them,
// the worst first; what the role may not look at is a warning, too, and in a transaction
// of the caller's Denied. Where the log was never made that is all it finds. It changes nothing.
func (l *Log) Doctor(ctx context.Context) ([]Finding, error) {
	const op = "changes: doctor"
	findings := []Finding{}
	var migrated, standby bool
	err := l.db.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'change' AND relnamespace = to_regnamespace('howdah')), pg_is_in_recovery()`).Scan(&migrated, &standby)
	switch {
	case err != nil:
		return nil, pg.Wrap(op, err)
	case !migrated:
		return append(findings, Finding{"not-migrated", "error", "howdah.change", "the log is not there: nothing can be captured", "howdah migrate"}), nil
	}
	for _, look := range []struct {
		at   string
		sql  string
		args []any
	}{
		{"triggers", doctorTriggers, nil}, {"keys", doctorKeys, nil}, {"tables", doctorTables, nil}, {"server", doctorServer, []any{l.old, l.full}}, {"roles", doctorRoles, nil},
		{"log", doctorLog, []any{l.large}}, {"unread changes", doctorUnread, nil}, {"consumers", doctorConsumers, nil},
	} {
		var some []Finding
		err := uncompiled(ctx, l.db, func(rows pgx.Rows) (err error) {
			some, err = pgx.CollectRows(rows, pgx.RowToStructByName[Finding])
			return err
		}, look.sql, look.args...)
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr) && pgErr.Code == "42501" && !pg.Begun(l.db): // the others are heard
			some = []Finding{{"not-looked-at", "warning", look.at, pgErr.Message + ": what is wrong there is not known", "GRANT SELECT ON what is in schema howdah, or run this as a role that may"}}
		case err != nil:
			return nil, pg.Wrap(op, err)
		}
		findings = append(findings, some...)
	}
	if pool, ok := l.db.(*pgxpool.Pool); ok && !standby { // there nobody rings
		silent, err := l.silent(ctx, pool)
		switch {
		case ctx.Err() != nil:
			return nil, pg.Wrap(op, ctx.Err())
		case err != nil:
			findings = append(findings, Finding{"not-looked-at", "warning", "notifications", err.Error() + ": whether they arrive is not known", "see that the URL that is listened on (--listen-url) leads to the database, and that the role may connect"})
		case silent:
			findings = append(findings, Finding{"doorbell-silent", "warning", "notifications", "they do not arrive, as through a pooler in transaction mode: readers find changes by looking, ten times a second",
				"give the server a connection of its own to listen on: --listen-url"})
		}
	}
	sortFindings(findings)
	return findings, nil
}

// sortFindings puts errors first, then goes by code and object.
func sortFindings(findings []Finding) {
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Object, b.Object))
	})
}

// captured are the tables that are recorded as captured.
const captured = `
	captured AS (
		SELECT s.relation AS oid, n.nspname || '.' || c.relname AS name, s.spec, s.hash
		FROM howdah.change_spec s
		JOIN pg_class c ON c.oid = s.relation
		JOIN pg_namespace n ON n.oid = c.relnamespace)`

const doctorTriggers = `
	WITH ` + captured + `, wanted AS (
		SELECT t.oid, t.name, '!howdah_' || op AS trigger, CASE op WHEN 'insert' THEN 4 WHEN 'delete' THEN 8 WHEN 'update' THEN 16 ELSE 32 END AS event
		FROM captured t, jsonb_array_elements_text(t.spec -> 'ops') AS op),
	made AS (
		SELECT t.oid, t.name, g.tgname, g.tgfoid, g.tgtype, g.tgenabled IN ('D', 'R') AS off
		FROM captured t
		JOIN pg_trigger g ON g.tgrelid = t.oid AND g.tgparentid = 0 AND ` + calls + `),
	missing AS (
		SELECT *
		FROM wanted w
		WHERE NOT EXISTS (SELECT FROM made m WHERE m.oid = w.oid AND m.tgtype & w.event > 0)),
	disabled AS (
		SELECT oid, tgname, oid AS relid, '' AS partition
		FROM made
		WHERE off
		UNION ALL
		SELECT m.oid, g.tgname, g.tgrelid, ' on this partition of ' || m.name -- the rows are there
		FROM made m
		CROSS JOIN LATERAL pg_partition_tree(m.oid) p
		JOIN pg_trigger g ON g.tgrelid = p.relid AND g.tgparentid <> 0 AND g.tgfoid = m.tgfoid AND g.tgtype = m.tgtype
		JOIN pg_trigger above ON above.oid = g.tgparentid
		WHERE g.tgenabled IN ('D', 'R') AND above.tgenabled NOT IN ('D', 'R')) -- by itself, not with that above it
	SELECT 'trigger-missing' AS code, 'error' AS severity, name AS object, 'trigger ' || trigger || ' is gone: these changes are not logged' AS problem,
		'howdah changes apply, with this capture' AS cure
	FROM missing
	UNION ALL
	SELECT 'trigger-disabled', 'error', n.nspname || '.' || c.relname, 'trigger ' || d.tgname || ' is disabled' || d.partition || ': these changes are not logged',
		'howdah changes apply, with ' || CASE d.partition WHEN '' THEN 'this capture' ELSE 'the capture of that table' END
	FROM disabled d
	JOIN pg_class c ON c.oid = d.relid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	UNION ALL
	SELECT 'trigger-drift', 'warning', t.name,
		CASE WHEN t.spec ->> 'table' <> t.name THEN 'it was renamed: its changes bear the name ' || (t.spec ->> 'table') || ' still'
			WHEN o.names IS NOT NULL THEN 'triggers of its capture were renamed, to ' || o.names || ': where others of the table fire before them, changes come out in the wrong order'
			ELSE 'its triggers are not as they were made' END, 'howdah changes apply, with this capture'
	FROM captured t
	CROSS JOIN LATERAL (SELECT t.oid) AS c(oid)
	CROSS JOIN LATERAL (` + triggersOf + `) h
	CROSS JOIN LATERAL (SELECT string_agg(tgname, ', ' ORDER BY tgname) AS names FROM made WHERE oid = t.oid AND left(tgname, 8) <> '!howdah_') o
	WHERE h.hash IS DISTINCT FROM t.hash AND t.oid NOT IN (SELECT oid FROM missing UNION ALL SELECT oid FROM disabled)
	UNION ALL
	SELECT 'trigger-foreign-order', 'warning', n.nspname || '.' || c.relname,
		'trigger ' || g.tgname || CASE g.tgtype & 2 WHEN 0 THEN ' fires after the row too: if it changes rows that the same statement changes, the two come out in the wrong order'
			ELSE ' fires before the row and writes to its table: what it changes of rows that the same statement has changed comes out before that' END,
		'let it change no other rows of its own table (columns of its own row a BEFORE trigger sets in NEW), do that in a constraint trigger that is INITIALLY DEFERRED, or take changes/logical'
	FROM captured t
	JOIN pg_class w ON w.oid = t.oid
	CROSS JOIN LATERAL (SELECT t.oid::oid AS relid UNION SELECT relid FROM pg_partition_tree(t.oid)) p
	JOIN pg_class c ON c.oid = p.relid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_trigger g ON g.tgrelid = p.relid AND (g.tgparentid = 0 OR g.tgrelid = t.oid) -- on a partition, that of its table was named
		AND g.tgtype & 1 = 1 AND NOT g.tginitdeferred AND NOT ` + ours + `
	JOIN pg_proc f ON f.oid = g.tgfoid
	WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.oid = g.tgconstraint AND k.contype <> 't') -- tgisinternal is, in PostgreSQL 14, any that a partition has of its table
		-- Nearly all that fire before only set NEW: those are named whose text says that they do more.
		AND (g.tgtype & 2 = 0 OR f.prosrc ~* concat('\m(update|delete\s+from|merge\s+into)\s+(only\s+)?([\w"]+\.)?"?(',
			regexp_replace(w.relname, '(\W)', '\\\1', 'g'), '|', regexp_replace(c.relname, '(\W)', '\\\1', 'g'), ')(\W|$)'))`

// renamed gives a row where column k of table t is not what it was when the table was captured: what it is
// called now, where another may bear its name, or NULL.
const renamed = `LATERAL (
		SELECT max(a.attname::text) FILTER (WHERE a.attname <> k) AS now
		FROM pg_attribute a
		WHERE a.attrelid = t.oid AND NOT a.attisdropped
			AND (a.attname = k OR t.spec ->> 'relation' = t.oid::oid::text AND a.attnum = (t.spec -> 'numbers' ->> k)::int)
		HAVING count(*) FILTER (WHERE a.attname = k) = 0 OR count(*) > 1) AS r`

var doctorKeys = `
	WITH ` + captured + `
	SELECT 'no-key' AS code, 'warning' AS severity, t.name AS object, 'it has no key: its changes cannot be told apart by row' AS problem,
		'add a primary key, or name columns with --key' AS cure
	FROM captured t
	WHERE coalesce(t.spec -> 'key', '[]') = '[]'
	UNION ALL
	SELECT 'key-renamed', 'warning', t.name, 'column ' || k || ' of its key is ' || coalesce('called ' || r.now || ' now', 'gone or renamed'), 'howdah changes apply, with the key as it is now'
	FROM captured t, jsonb_array_elements_text(t.spec -> 'key') AS k, ` + renamed + `
	UNION ALL
	SELECT 'key-changed', 'error', t.name, w.problem, 'howdah changes apply, with the key as it is now'
	FROM captured t
	CROSS JOIN LATERAL (SELECT t.oid) AS c(oid)
	CROSS JOIN LATERAL (SELECT ARRAY(SELECT jsonb_array_elements_text(t.spec -> 'key')) AS key) its
	CROSS JOIN LATERAL (
		VALUES ((t.spec ->> 'zoned')::boolean IS NOT TRUE AND ` + zonedBy("its.key") + `, 'its key has an instant in it now, which each writer spells by his time zone: one row has several'),
			((t.spec ->> 'loose')::boolean IS NOT TRUE AND ` + looseBy("its.key") + `, 'its key (' || array_to_string(its.key, ', ') || ') is not unique any more: several rows may have one')) AS w(so, problem)
	WHERE w.so AND its.key <> '{}' AND NOT EXISTS (SELECT FROM unnest(its.key) AS k CROSS JOIN ` + renamed + `) -- by another they are looked up
	UNION ALL
	SELECT 'except-renamed', 'error', t.name, 'column ' || k || ', which is not to be logged, is ' || coalesce('called ' || r.now || ' now', 'gone or renamed') || ': under another name it is logged', 'howdah changes apply, with except as it is now'
	FROM captured t, jsonb_array_elements_text(coalesce(t.spec -> 'except', '[]')) AS k, ` + renamed + `
	UNION ALL
	SELECT 'key-deferrable', 'error', t.name, 'its key is DEFERRABLE: two transactions may swap it, and their changes come out turned around', 'make the constraint NOT DEFERRABLE'
	FROM captured t
	WHERE EXISTS (
		SELECT FROM pg_index i
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey::int2[])
		WHERE i.indrelid = t.oid AND NOT i.indimmediate AND t.spec -> 'key' ? a.attname)
	UNION ALL
	SELECT 'bulk-order', 'error', t.name, 'it is captured by statement, and one foreign key of it deletes rows while another sets columns: where one statement does both to a row, its deletion may be logged first',
		'howdah changes apply, with this capture without bulk'
	FROM captured t
	CROSS JOIN LATERAL (SELECT t.oid) AS c(oid)
	WHERE (t.spec ->> 'bulk')::boolean AND ` + tornByStatement + `
	UNION ALL
	SELECT 'virtual-column', 'warning', t.name, 'column ' || a.attname || ' is computed when it is read, and was added to a table that is captured: changes say null of it',
		'howdah changes apply, with this capture' || CASE WHEN (t.spec ->> 'bulk')::boolean THEN ' without bulk, which cannot leave it out' ELSE '' END
	FROM captured t
	JOIN pg_attribute a ON a.attrelid = t.oid AND a.attgenerated = 'v' AND NOT a.attisdropped
	WHERE NOT coalesce(t.spec -> 'except', '[]') ? a.attname AND t.spec ->> 'payload' IS DISTINCT FROM 'keys'`

const doctorTables = `
	WITH RECURSIVE ` + captured + `, reached AS ( -- what TRUNCATE … CASCADE of a captured table takes along
		SELECT t.oid, t.name, f.conrelid
		FROM captured t
		JOIN pg_constraint f ON f.confrelid = t.oid AND f.contype = 'f' AND f.conrelid <> t.oid
		UNION
		SELECT r.oid, r.name, f.conrelid
		FROM reached r
		JOIN pg_constraint f ON f.confrelid = r.conrelid AND f.contype = 'f'),
	heirs AS (
		SELECT t.name, (t.spec ->> 'bulk')::boolean AS bulk, i.inhrelid, i.inhparent
		FROM captured t
		JOIN pg_class c ON c.oid = t.oid AND c.relkind = 'r' -- a partition's rows fire its triggers
		JOIN pg_inherits i ON i.inhparent = t.oid
		UNION
		SELECT h.name, h.bulk, i.inhrelid, i.inhparent
		FROM heirs h
		JOIN pg_inherits i ON i.inhparent = h.inhrelid)
	SELECT 'truncate-cascade' AS code, 'warning' AS severity, n.nspname || '.' || c.relname AS object,
		'TRUNCATE … CASCADE of ' || string_agg(DISTINCT r.name, ', ') || ' empties it without a word: it ' || CASE WHEN c.relispartition THEN 'has a foreign key by itself, which the whole table has not' ELSE 'is not captured' END AS problem,
		CASE WHEN c.relispartition THEN 'put the foreign key on the whole table' ELSE 'howdah changes capture ' || n.nspname || '.' || c.relname END || ', or never say CASCADE' AS cure
	FROM reached r
	JOIN pg_class c ON c.oid = r.conrelid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE NOT EXISTS (SELECT FROM captured t WHERE t.oid = r.conrelid)
		AND NOT EXISTS ( -- with a partition that is reached as its table is, it is told of that
			SELECT FROM reached whole
			JOIN pg_partition_ancestors(r.conrelid) a ON a.relid = whole.conrelid
			WHERE whole.oid = r.oid AND a.relid <> r.conrelid)
	GROUP BY n.nspname, c.relname, c.relispartition
	UNION ALL
	SELECT 'new-child', 'error', n.nspname || '.' || c.relname, 'it inherits from ' || string_agg(DISTINCT h.name, ', ') || ', whose statements change its rows, too, and is not captured: these changes are not logged',
		string_agg(DISTINCT format('ALTER TABLE %I.%I NO INHERIT %I.%I', n.nspname, c.relname, pn.nspname, p.relname), '; ') || '; or capture it, too, and neither with --bulk'
	FROM heirs h
	JOIN pg_class c ON c.oid = h.inhrelid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_class p ON p.oid = h.inhparent
	JOIN pg_namespace pn ON pn.oid = p.relnamespace
	WHERE h.bulk OR NOT EXISTS (SELECT FROM captured t WHERE t.oid = c.oid) -- by statement, rows of both are logged under the name that it bears
	GROUP BY n.nspname, c.relname
	UNION ALL
	SELECT 'bulk-parent', 'error', t.name, 'it is captured by statement and belongs to ' || string_agg(n.nspname || '.' || p.relname, ', ') || ', whose statements change its rows and fire none of its triggers: these changes are not logged',
		'howdah changes apply, with this capture without bulk; or take it out of there (ALTER TABLE … NO INHERIT, DETACH PARTITION)'
	FROM captured t
	JOIN pg_inherits i ON i.inhrelid = t.oid
	JOIN pg_class p ON p.oid = i.inhparent
	JOIN pg_namespace n ON n.oid = p.relnamespace
	WHERE (t.spec ->> 'bulk')::boolean
	GROUP BY t.name
	UNION ALL
	SELECT 'table-gone', CASE WHEN NOT b.captured THEN 'error' ELSE 'warning' END, s.spec ->> 'table',
		'it was dropped' || CASE WHEN NOT b.captured THEN ', and the table that bears its name now is not captured: these changes are not logged' ELSE ', and its capture is recorded still' END,
		'howdah changes ' || CASE WHEN b.captured IS NULL THEN 'release ' || (s.spec ->> 'table') ELSE 'apply, with this capture' END
	FROM howdah.change_spec s
	LEFT JOIN LATERAL (
		SELECT EXISTS (SELECT FROM captured t WHERE t.oid = c.oid) AS captured
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname || '.' || c.relname = s.spec ->> 'table' AND c.relkind IN ('r', 'p')
		LIMIT 1) b ON true
	WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.relation)
	UNION ALL
	SELECT 'new-table', 'warning', n.nspname || '.' || c.relname, 'it is one of ' || p.pattern || ' and is not captured', 'howdah changes apply, with this pattern, or end it: howdah changes release ''' || p.pattern || ''''
	FROM howdah.change_pattern p
	JOIN pg_namespace n ON n.nspname || '.*' = p.pattern
	JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
	WHERE NOT EXISTS (SELECT FROM captured t WHERE t.oid = c.oid)
	UNION ALL
	SELECT 'unlogged', 'warning', t.name, 'it is UNLOGGED: after a crash of the server it is empty, and no change says so', string_agg(format('ALTER TABLE %I.%I SET LOGGED', n.nspname, c.relname), '; ') || ', or have readers begin anew after a crash'
	FROM captured t
	CROSS JOIN LATERAL (SELECT t.oid::oid AS relid UNION SELECT relid FROM pg_partition_tree(t.oid)) p
	JOIN pg_class c ON c.oid = p.relid AND c.relkind = 'r' AND c.relpersistence = 'u'
	JOIN pg_namespace n ON n.oid = c.relnamespace
	GROUP BY t.name
	UNION ALL
	SELECT 'prepared-transactions', 'warning', 'max_prepared_transactions',
		'prepared transactions are possible here, and one that writes ' || min(t.name) || CASE count(*) WHEN 1 THEN '' ELSE ', or one of ' || count(*) - 1 || ' more that notify,' END || ' cannot be prepared: its trigger notifies',
		'capture tables that are written in them with --wake poll'
	FROM captured t
	WHERE t.spec ->> 'wake' = 'notify' AND current_setting('max_prepared_transactions')::int > 0
	HAVING count(*) > 0`

const doctorServer = `
	SELECT 'old-transaction' AS code, 'warning' AS severity, 'process ' || pid AS object,
		'its transaction is open since ' || date_trunc('seconds', xact_start) || ': it keeps VACUUM from its work (the feed does not wait for it)' AS problem,
		'end it: SELECT pg_terminate_backend(' || pid || ')' AS cure
	FROM pg_stat_activity
	WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND xact_start < clock_timestamp() - $1::interval
	UNION ALL
	SELECT 'old-transaction', 'warning', 'prepared ' || gid, 'it is prepared since ' || date_trunc('seconds', prepared) || ' and has not ended: it keeps VACUUM from its work (the feed does not wait for it)',
		format('end it: COMMIT PREPARED %L, or ROLLBACK PREPARED %1$L', gid)
	FROM pg_prepared_xacts
	WHERE database = current_database() AND prepared < clock_timestamp() - $1::interval
	UNION ALL
	SELECT 'notify-queue', 'warning', 'notifications', round(100 * q::numeric) || ' % of the queue of NOTIFY is taken, because a session that listens has a transaction open, or was stopped: once it is full no transaction that notifies can commit',
		'end that session: one whose transaction in pg_stat_activity is old'
	FROM pg_notification_queue_usage() AS q
	WHERE q > $2::float8
	UNION ALL
	SELECT 'not-looked-at', 'warning', 'transactions of others', 'other roles are connected, and their transactions are not shown to ' || current_user || ': how old they are is not known',
		'GRANT pg_read_all_stats TO ' || quote_ident(current_user)
	WHERE NOT pg_has_role('pg_read_all_stats', 'USAGE') AND EXISTS (
		SELECT FROM pg_stat_activity
		WHERE datname = current_database() AND usesysid IS NOT NULL AND NOT pg_has_role(usesysid, 'USAGE'))`

const doctorRoles = `
	WITH ` + captured + `, set AS (
		SELECT coalesce(r.rolname, 'everybody') || coalesce(' in ' || d.datname, '') AS who
		FROM pg_db_role_setting s
		LEFT JOIN pg_roles r ON r.oid = s.setrole
		LEFT JOIN pg_database d ON d.oid = s.setdatabase
		CROSS JOIN unnest(s.setconfig) AS c
		WHERE lower(c) = 'session_replication_role=replica' AND coalesce(d.datname, current_database()) = current_database()
		UNION ALL
		SELECT CASE source WHEN 'client' THEN 'this connection' ELSE 'everybody' END -- the URL, or the configuration of the server
		FROM pg_settings
		WHERE name = 'session_replication_role' AND reset_val = 'replica' AND source NOT IN ('database', 'user', 'database user'))
	SELECT 'replica-role' AS code, 'error' AS severity, s.who AS object,
		'session_replication_role is set to replica: ordinary triggers do not fire, and nothing is logged of ' || t.name || CASE t.others WHEN 0 THEN '' ELSE ', nor of ' || t.others || ' more' END AS problem,
		'reset it, or capture with --always, and without --bulk' AS cure
	FROM set s
	CROSS JOIN (
		SELECT min(name) AS name, count(*) - 1 AS others
		FROM captured
		WHERE (spec ->> 'always')::boolean IS NOT TRUE
		HAVING count(*) > 0) t`

const doctorLog = `
	SELECT 'sequence-cache' AS code, 'error' AS severity, 'howdah.change_id' AS object, 'the sequence hands out numbers ahead of time: changes come out late and in the wrong order' AS problem,
		'ALTER SEQUENCE howdah.change_id CACHE 1' AS cure
	FROM pg_sequence
	WHERE seqrelid = 'howdah.change_id'::regclass AND seqcache > 1
	UNION ALL
	SELECT 'log-large', 'warning', 'howdah.change', 'the log has ' || pg_size_pretty(s.bytes), 'howdah changes retention with a shorter time, or look who is behind: howdah changes consumers'
	FROM (SELECT sum(pg_total_relation_size(inhrelid)) AS bytes FROM pg_inherits WHERE inhparent = 'howdah.change'::regclass) s
	WHERE s.bytes > $1::bigint
	UNION ALL
	SELECT 'restored', 'error', 'howdah.change', 'the log came from another database, where the feed ended: nothing is numbered, and nothing handled',
		'howdah changes rebase --yes begins a new feed; after pg_upgrade howdah changes rebase --keep goes on with this one'
	FROM howdah.change_state
	WHERE ` + foreign + `
	UNION ALL
	SELECT 'era', 'warning', 'commit ' || e.first, 'the feed went on in another history (a failover or restore) at ' || date_trunc('seconds', e.at) || ': what stood after ' || e.head || ' is lost',
		'whoever had read further has to begin anew'
	FROM howdah.change_era e
	WHERE e.at > clock_timestamp() - interval '7 days' AND e.head >= (SELECT floor FROM howdah.change_state) -- else all of that is gone`

const doctorUnread = `
	SELECT 'unread' AS code, 'warning' AS severity, 'howdah.change' AS object, 'tables are captured and nobody has looked at the feed since ' || date_trunc('seconds', t.at) AS problem, 'run a reader, or release the captures' AS cure
	FROM (SELECT at, seq FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) t
	WHERE t.at < clock_timestamp() - interval '1 hour' AND EXISTS (SELECT FROM howdah.change_spec)
		AND t.seq < (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM howdah.change_id)`

const doctorConsumers = `
	WITH ` + places + `
	SELECT 'consumer-behind' AS code, 'warning' AS severity, c.name AS object,
		'it has handled nothing of what is there since ' || date_trunc('seconds', t.at) || ', and expires ' || s.hold || ' after that' AS problem,
		'see that it runs, and what it fails on: howdah changes consumers' AS cure
	FROM howdah.change_consumer c
	JOIN places p ON p.consumer = c.name
	CROSS JOIN howdah.change_state s
	CROSS JOIN LATERAL (SELECT at FROM howdah.change_tick WHERE n > p.n ORDER BY n, tick LIMIT 1) t
	WHERE c.state <> 'expired' AND t.at < clock_timestamp() - s.hold / 2
	UNION ALL
	SELECT 'consumer-expired', 'error', name, 'the log does not wait for it any more: ' || reason, 'howdah changes seek ' || name || ' now --yes, or forget it: howdah changes forget ' || name || ' --yes'
	FROM howdah.change_consumer
	WHERE state = 'expired'
	UNION ALL
	SELECT CASE WHEN dead THEN 'dead' ELSE 'parked' END, CASE WHEN dead THEN 'error' ELSE 'warning' END, consumer,
		count(*) || CASE WHEN dead THEN ' changes failed so often that they are not tried again' ELSE ' changes failed, or wait behind one that did' END,
		'howdah changes parked ' || consumer || ', then retry or skip'
	FROM howdah.change_parked
	GROUP BY consumer, dead`

// unheard is how long a ring may take; a busy server takes its time.
const unheard = 5 * time.Second

// silent rings, and listens where a Hub does: on a connection of its own. Through a
// pooler in transaction mode nobody hears but, sometimes, who rings.
func (l *Log) silent(ctx context.Context, pool *pgxpool.Pool) (bool, error) {
	direct := l.cfg.Direct
	if direct == nil {
		direct = pool.Config().ConnConfig
	}
	conn, err := pgx.ConnectConfig(ctx, direct)
	if err != nil {
		return false, err
	}
	const channel = "howdah_doctor"
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Exec(ctx, "UNLISTEN "+channel) // or it stays with the pooler's connection
		conn.Close(ctx)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return false, err
	}
	if _, err := pool.Exec(ctx, "NOTIFY "+channel); err != nil {
		return false, err
	}
	within, cancel := context.WithTimeout(ctx, unheard)
	defer cancel()
	_, err = conn.WaitForNotification(within)
	if err != nil && within.Err() != nil {
		return true, nil
	}
	return false, err
}
