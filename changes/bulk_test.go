package changes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/changes"
)

// Capture by statement says what capture by row says (F3, F5): the same
// statements on two tables that differ in that alone. Rows of one statement may
// come in another order; those of one key may not.
func TestF3BulkIsRow(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA row; CREATE SCHEMA bulk`)
	for _, schema := range []string{"row", "bulk"} {
		exec(t, pool, strings.ReplaceAll(`
			CREATE TABLE {s}.t (id int, part text, v numeric, j json, up int, PRIMARY KEY (part, id));
			CREATE TABLE {s}.tree (id int PRIMARY KEY, up int REFERENCES {s}.tree ON DELETE CASCADE, v int);
			CREATE TABLE {s}.named (id int PRIMARY KEY, tree int REFERENCES {s}.tree ON DELETE SET NULL ON UPDATE CASCADE)`, "{s}", schema))
	}
	for _, payload := range []changes.Payload{changes.PayloadFull, changes.PayloadRow, changes.PayloadKeys} {
		for _, table := range []string{"t", "tree", "named"} {
			capture(t, l, changes.Capture{Table: "row." + table, Payload: payload}, changes.Capture{Table: "bulk." + table, Payload: payload, Bulk: true})
		}
		rapid.Check(t, func(r *rapid.T) {
			start, err := l.Sync(t.Context())
			if err != nil {
				r.Fatal(err)
			}
			statements := rapid.SliceOfN(rapid.Custom(statement), 1, 6).Draw(r, "statements")
			failed := map[string]string{}
			for _, schema := range []string{"row", "bulk"} {
				failed[schema] = transact(t, pool, schema, statements)
			}
			if failed["row"] != failed["bulk"] {
				r.Fatalf("by row: %q; by statement: %q", failed["row"], failed["bulk"])
			}
			all, _ := readAll(t, l, start, 1000, changes.Filter{})
			rows, bulk := bySchema(all)
			if diff := cmp.Diff(rows, bulk); diff != "" {
				r.Fatalf("%s: -row +bulk\n%s", strings.Join(statements, ";\n"), diff)
			}
		})
	}
}

// transact runs statements in one transaction with a savepoint each, and returns
// the states of those that failed.
func transact(t *testing.T, pool interface {
	Begin(context.Context) (pgx.Tx, error)
}, schema string, statements []string) (failed string) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `SET LOCAL search_path = `+schema); err != nil {
		t.Fatal(err)
	}
	for _, sql := range statements {
		savepoint, err := tx.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		end := savepoint.Commit
		if _, err := savepoint.Exec(t.Context(), sql); err != nil {
			failed += " " + stateOf(err)
			end = savepoint.Rollback
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return failed
}

// statement is one of many.
func statement(r *rapid.T) string {
	n := func(most int) int { return rapid.IntRange(0, most).Draw(r, "n") }
	switch n(13) {
	case 0, 1:
		return fmt.Sprintf(`INSERT INTO t SELECT g, 'p' || g %% 2, g + %d, '{"a": 1}' FROM generate_series(%d, %d) g ON CONFLICT DO NOTHING`, n(3), n(3), n(8))
	case 2:
		return fmt.Sprintf(`INSERT INTO t SELECT g, 'p' || g %% 2, 1.0 FROM generate_series(%d, %d) g ON CONFLICT (part, id) DO UPDATE SET v = EXCLUDED.v`, n(3), n(6))
	case 3:
		return fmt.Sprintf(`UPDATE t SET v = v + %d WHERE id >= %d`, n(1), n(8)) // perhaps by nothing
	case 4:
		return `UPDATE t SET v = 1.00, j = '{"a":1}' WHERE v = 1.0` // equal, and another value
	case 5:
		return fmt.Sprintf(`UPDATE t SET id = id + 100 WHERE id = %d`, n(8))
	case 6:
		return fmt.Sprintf(`UPDATE t SET part = 'q' || id %% 2, v = NULL WHERE id %% 3 = %d`, n(2))
	case 7:
		return fmt.Sprintf(`DELETE FROM t WHERE id > %d`, n(10))
	case 8:
		return `TRUNCATE t`
	case 9:
		return fmt.Sprintf(`INSERT INTO tree SELECT g, nullif(g / 2, 0), 0 FROM generate_series(1, %d) g ON CONFLICT DO NOTHING`, n(9))
	case 10:
		return fmt.Sprintf(`INSERT INTO named SELECT g, id FROM generate_series(%d, %d) g, (SELECT id FROM tree ORDER BY id LIMIT 1) x ON CONFLICT DO NOTHING`, n(3), n(6))
	case 11:
		return fmt.Sprintf(`DELETE FROM tree WHERE id IN (%d, %d)`, n(9), n(9))
	case 12:
		return fmt.Sprintf(`UPDATE tree SET id = id + 1000, v = v + 1 WHERE id = %d`, n(9))
	default:
		return fmt.Sprintf(`WITH gone AS (DELETE FROM t WHERE id < %d RETURNING *) INSERT INTO t SELECT id + 200, part, v, j FROM gone ON CONFLICT DO NOTHING`, n(5))
	}
}

// bySchema sorts what happened to each key, in order, for both schemas.
func bySchema(all []changes.Change) (row, bulk map[string][]string) {
	sides := map[string]map[string][]string{"row": {}, "bulk": {}}
	for _, c := range all {
		name := c.Table + string(c.Key)
		sides[c.Schema][name] = append(sides[c.Schema][name], fmt.Sprintf("%s %s %s", c.Op, c.Old, c.New))
	}
	return sides["row"], sides["bulk"]
}

// F3: what the writer's connection has set does not show, by row or by statement.
func TestF3OddSettings(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA chk; CREATE TYPE chk.mood AS ENUM ('so so', 'Ünder'); CREATE DOMAIN chk.posint AS int CHECK (VALUE > 0)`)
	for _, table := range []string{"byrow", "bystatement"} {
		exec(t, pool, `CREATE TABLE chk.`+table+` (id int PRIMARY KEY, b bytea, i interval, f float8, r float4, d date, ts timestamp, n numeric, a text[], "Q q" regclass, m chk.mood, p chk.posint, e bool, x xml, u uuid, ip inet, rg int4range)`)
	}
	capture(t, l, changes.Capture{Table: "chk.byrow", Payload: "full"}, changes.Capture{Table: "chk.bystatement", Payload: "full", Bulk: true})
	settings := []string{
		`SELECT 1`,
		`SET bytea_output = escape`, `SET intervalstyle = sql_standard`, `SET intervalstyle = iso_8601`, `SET extra_float_digits = -15`, `SET extra_float_digits = 0`,
		`SET extra_float_digits = 3`, `SET datestyle = 'German, DMY'`, `SET timezone = 'Asia/Kathmandu'`, `SET search_path = ''`, `SET search_path = chk, pg_temp, pg_catalog`,
		`SET standard_conforming_strings = off`, `SET quote_all_identifiers = on`, `SET array_nulls = off`, `SET transform_null_equals = on`, `SET xmlbinary = hex`,
		`SET client_encoding = LATIN1`, `SET plan_cache_mode = force_generic_plan`, `SET enable_partition_pruning = off`, `SET row_security = off`, `SET jit_above_cost = 0`,
		`SET check_function_bodies = off`, `SET escape_string_warning = off`, `SET work_mem = 64`, `SET plpgsql.variable_conflict = use_variable`, `SET plpgsql.extra_errors = 'all'`,
		`SET plpgsql.variable_conflict = use_column`, `SET default_transaction_deferrable = on`, `SET constraint_exclusion = on`, `SET lc_messages = 'C'`,
		`CREATE TEMP TABLE jsonb_each (x int); CREATE TEMP TABLE change (x int); CREATE TEMP TABLE pg_attribute (x int)`,
		`CREATE FUNCTION pg_temp.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'`,
	}
	for i, set := range settings {
		conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		// Literals only: how values are sent must not hang on the setting.
		script := set
		for _, table := range []string{"byrow", "bystatement"} {
			script += fmt.Sprintf(`;
				INSERT INTO chk.%[1]s VALUES (%[2]d, '\x00ff41', interval '1 year 2 mons -3 days 4:05:06.7', 0.1::float8 + 0.2::float8, 1.1, '2026-01-02', '2026-01-02 03:04:05.678', 1.10,
					ARRAY['a', NULL, 'NULL', 'q"']::text[], 'pg_catalog.pg_class'::regclass, 'so so', 7, true, '<a>1</a>', '00000000-0000-0000-0000-000000000001', '::1', int4range(1, 5));
				UPDATE chk.%[1]s SET f = 'NaN', r = '-Infinity', n = 'NaN', i = '-1 day' WHERE id = %[2]d;
				DELETE FROM chk.%[1]s WHERE id = %[2]d`, table, i)
		}
		if _, err := conn.Exec(t.Context(), script, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Errorf("%s: %v", set, err)
		}
		conn.Close(t.Context())
	}
	all, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	images := map[string][]string{} // of each table and id
	for _, c := range all {
		var key struct{ ID int }
		if err := json.Unmarshal(c.Key, &key); err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf(`"id":%d`, key.ID)
		text := fmt.Sprintf("%s %s %s", c.Op, strings.ReplaceAll(string(c.Old), id, ""), strings.ReplaceAll(string(c.New), id, ""))
		name := fmt.Sprintf("%s %03d", c.Table, key.ID)
		images[name] = append(images[name], text)
	}
	want := images["byrow 000"]
	if len(want) != 3 || !strings.Contains(want[0], `0.30000000000000004`) || !strings.Contains(want[0], `\\x00ff41`) || !strings.Contains(want[0], `1 year 2 mons -3 days +04:05:06.7`) {
		t.Errorf("with nothing set: %s", want)
	}
	for i, set := range settings {
		for _, table := range []string{"byrow", "bystatement"} {
			if diff := cmp.Diff(want, images[fmt.Sprintf("%s %03d", table, i)]); diff != "" {
				t.Errorf("%s after %s:\n%s", table, set, diff)
			}
		}
	}
}

// F3: a column may be called what a variable or an alias of ours is.
func TestF3ColumnsOfAnyName(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA chk`)
	names := []string{"r", "n", "o", "i", "p", "x", "c", "e", "w", "image", "key", "plain", "columns", "payload", "most", "whole", "ours", "was", "is_", "op", "moved", "large",
		"old", "new", "howdah_old", "howdah_new", "size", "later", "tg_op", "found", "table", "t", "ä \"', {", "NULL"}
	for _, table := range []string{"byrow", "bystatement"} {
		sql := `CREATE TABLE chk.` + table + ` (id int PRIMARY KEY`
		for _, name := range names {
			sql += `, ` + pgx.Identifier{name}.Sanitize() + ` int NOT NULL DEFAULT 5`
		}
		exec(t, pool, sql+`)`)
	}
	for _, key := range [][]string{nil, append([]string{"id"}, names...)} {
		capture(t, l, changes.Capture{Table: "chk.byrow", Payload: changes.PayloadFull, Key: key, Columns: names}, changes.Capture{Table: "chk.bystatement", Payload: changes.PayloadFull, Key: key, Bulk: true})
		start, err := l.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"byrow", "bystatement"} {
			exec(t, pool, `INSERT INTO chk.`+table+` (id) VALUES (1); UPDATE chk.`+table+` SET "r" = 6; UPDATE chk.`+table+` SET id = 2; DELETE FROM chk.`+table)
		}
		all, _ := readAll(t, l, start, 100, changes.Filter{})
		if want := map[bool]int{true: 10, false: 12}[key == nil]; len(all) != want { // a changed key is two, though no column that counts has changed
			t.Fatalf("%d changes, want %d", len(all), want)
		}
		for i, c := range all[:len(all)/2] {
			d := all[len(all)/2+i]
			if c.Op != d.Op || string(c.Key) != string(d.Key) || string(c.Old) != string(d.Old) || string(c.New) != string(d.New) {
				t.Errorf("by row %s, by statement %s", jsonOf(t, c), jsonOf(t, d))
			}
			for _, image := range []string{string(c.Old), string(c.New)} {
				if got := strings.Count(image, ":5") + strings.Count(image, ":6"); image != "" && got != len(names) {
					t.Errorf("%d columns, want %d: %s", got, len(names), image)
				}
			}
		}
	}
}

// F3: the table may change under its capture.
func TestF3TableIsAltered(t *testing.T) {
	t.Parallel()
	for _, bulk := range []bool{false, true} {
		t.Run(fmt.Sprint("bulk ", bulk), func(t *testing.T) {
			t.Parallel()
			l, pool := newLog(t)
			exec(t, pool, `CREATE SCHEMA chk; CREATE TABLE chk.t (id int PRIMARY KEY, a int, b int); INSERT INTO chk.t VALUES (1, 1, 1)`)
			capture(t, l, changes.Capture{Table: "chk.t", Payload: changes.PayloadFull, Bulk: bulk})
			for _, sql := range []string{
				`ALTER TABLE chk.t ADD COLUMN c int DEFAULT 7`, `UPDATE chk.t SET c = 8`,
				`ALTER TABLE chk.t DROP COLUMN a`, `UPDATE chk.t SET b = 2`,
				`ALTER TABLE chk.t ALTER COLUMN b TYPE text`, `UPDATE chk.t SET b = 'x'`,
				`ALTER TABLE chk.t RENAME COLUMN c TO "d d"`, `UPDATE chk.t SET "d d" = 9`,
				`ALTER TABLE chk.t RENAME COLUMN id TO no`, `UPDATE chk.t SET b = 'y'`,
				`ALTER TABLE chk.t RENAME TO u`, `UPDATE chk.u SET b = 'z'`,
			} {
				exec(t, pool, sql)
			}
			all, _ := readAll(t, l, changes.Position{}, 100, changes.Filter{})
			var got []string
			for _, c := range all {
				got = append(got, fmt.Sprintf("%s %s %s", c.Key, c.Old, c.New))
			}
			want := []string{
				`{"id":1} {"a":1,"b":1,"c":7,"id":1} {"a":1,"b":1,"c":8,"id":1}`,
				`{"id":1} {"b":1,"c":8,"id":1} {"b":2,"c":8,"id":1}`,
				`{"id":1} {"b":"2","c":8,"id":1} {"b":"x","c":8,"id":1}`,
				`{"id":1} {"b":"x","id":1,"d d":8} {"b":"x","id":1,"d d":9}`,
				`{"no":1} {"b":"x","no":1,"d d":9} {"b":"y","no":1,"d d":9}`,
				`{"no":1} {"b":"y","no":1,"d d":9} {"b":"z","no":1,"d d":9}`,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// stateOf is the SQLSTATE of err.
func stateOf(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return err.Error()
}
