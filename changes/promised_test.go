package changes_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Promises that many tests lean on; a test for each that nothing else can fail.

// ids are the keys of changes of a table whose key is id.
func ids(all []changes.Change) (ids []string) {
	for _, c := range all {
		ids = append(ids, strings.Trim(string(c.Key), `{}"id:`))
	}
	return ids
}

// F2: what was rolled back is never seen, however that came about, and whether a tick met
// it before or not; what stood beside it is.
func TestF2RolledBackIsNeverSeen(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int CHECK (v < 9), u int UNIQUE DEFERRABLE INITIALLY DEFERRED)`)
	capture(t, l, changes.Capture{Table: "public.a", Wake: "poll"})
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var gid string
	if err := pool.QueryRow(t.Context(), `SELECT 'f2_' || current_database()`).Scan(&gid); err != nil {
		t.Fatal(err)
	}
	for _, script := range [][]string{
		{`BEGIN`, `INSERT INTO a VALUES (-1)`, `ROLLBACK`},
		{`BEGIN`, `INSERT INTO a VALUES (1)`, `SAVEPOINT s`, `INSERT INTO a VALUES (-2)`, `UPDATE a SET id = -1 WHERE id = 1`, `ROLLBACK TO s`, `INSERT INTO a VALUES (2)`, `COMMIT`},
		{`BEGIN`, `SAVEPOINT s`, `INSERT INTO a VALUES (3)`, `SAVEPOINT r`, `INSERT INTO a VALUES (-3)`, `ROLLBACK TO r`, `RELEASE s`, `COMMIT`},
		{`INSERT INTO a SELECT -g, g FROM generate_series(4, 9) g`}, // fails on the last of its rows
		{`BEGIN`, `SAVEPOINT s`, `INSERT INTO a VALUES (-4, 1), (-5, 9)`, `ROLLBACK TO s`, `INSERT INTO a VALUES (4)`, `COMMIT`},
		{`DO $$ BEGIN INSERT INTO a VALUES (5); BEGIN INSERT INTO a VALUES (-6); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END; END $$`},
		{`BEGIN`, `INSERT INTO a VALUES (-7, 1, 1), (-8, 1, 1)`, `COMMIT`}, // COMMIT fails
		{`BEGIN`, `INSERT INTO a VALUES (-9)`, `PREPARE TRANSACTION '` + gid + `'`, `ROLLBACK PREPARED '` + gid + `'`},
		{`BEGIN`, `INSERT INTO a VALUES (6)`, `PREPARE TRANSACTION '` + gid + `'`, `COMMIT PREPARED '` + gid + `'`},
		{`BEGIN`, `SELECT howdah.change_emit('no', '1')`, `ROLLBACK`},
		{`BEGIN`, `TRUNCATE a`, `ROLLBACK`},
		{`BEGIN`, `DELETE FROM a`, `INSERT INTO a VALUES (-10)`, `SELECT pg_terminate_backend(pg_backend_pid())`},
	} {
		for _, sql := range script {
			_, _ = conn.Exec(t.Context(), sql) // what fails is meant to
			if _, err := l.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	all, _ := readAll(t, l, changes.Position{}, 100, changes.Filter{})
	if diff := cmp.Diff([]string{"1", "2", "3", "4", "5", "6"}, ids(all)); diff != "" {
		t.Errorf("the feed is %s", diff)
	}
	for _, c := range all {
		if c.Op != changes.Insert {
			t.Errorf("%s", jsonOf(t, c))
		}
	}
}

// F7: whoever has a transaction open, here or elsewhere, wrote in it, looked, or prepared
// and forgot it, delays nobody's changes, by no tick; his come when he commits.
func TestF7OpenTransactionsDelayNobody(t *testing.T) {
	t.Parallel()
	url := migrated.Database(t)
	l, pool := logOf(t, url)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY)`)
	capture(t, l, changes.Capture{Table: "public.a", Wake: "poll"})
	var gid string
	if err := pool.QueryRow(t.Context(), `SELECT 'f7_' || current_database()`).Scan(&gid); err != nil {
		t.Fatal(err)
	}
	elsewhere := pgtest.Schema(t)
	exec(t, elsewhere, `CREATE TABLE e (id int)`)
	var open []*pgx.Conn
	for _, o := range []struct{ url, sql string }{
		{url, `BEGIN; INSERT INTO a VALUES (-1)`},
		{url, `BEGIN; SELECT pg_current_xact_id()`},
		{url, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM a`},
		{url, `BEGIN; INSERT INTO a VALUES (-2); PREPARE TRANSACTION '` + gid + `'`},
		{elsewhere.Config().ConnString(), `BEGIN; SELECT pg_current_xact_id()`},
	} {
		conn, err := pgx.Connect(t.Context(), o.url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		if _, err := conn.Exec(t.Context(), o.sql); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	t.Cleanup(func() { pool.Exec(context.WithoutCancel(t.Context()), `ROLLBACK PREPARED '`+gid+`'`) }) // where the test has failed
	var after changes.Position
	for i := range 3 {
		exec(t, pool, `INSERT INTO a VALUES ($1)`, i)
		page, next, err := l.Page(t.Context(), after, 10, changes.Filter{})
		if err != nil || !slices.Equal(ids(page), []string{fmt.Sprint(i)}) {
			t.Errorf("after change %d was committed the next page has %q, %v", i, ids(page), err)
		}
		after = next
	}
	if _, err := open[0].Exec(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `COMMIT PREPARED '`+gid+`'`)
	if page, _, err := l.Page(t.Context(), after, 10, changes.Filter{}); err != nil || !slices.Equal(ids(page), []string{"-1", "-2"}) {
		t.Errorf("once they have committed the next page has %q, %v", ids(page), err)
	}
}

// C2: what is done elsewhere is done at least once, and again where it cannot be known
// that it was, under the same id.
func TestC2EffectsElsewhereBearOneID(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `INSERT INTO a SELECT g, g FROM generate_series(1, 4) g`)
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	hook := changes.Webhook(r.config())
	var once sync.Once
	start(t, url, changes.ConsumerConfig{Name: "hook", From: "start"}, func(c *changes.Consumer) {
		c.Hurry()
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) (err error) {
			if err := hook(ctx, tx, cs); err != nil {
				return err
			}
			once.Do(func() { // all were posted, and nobody will know: the connection breaks before COMMIT
				var pid int
				err = errors.Join(tx.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid), func() error {
					_, err := pool.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid)
					return err
				}())
			})
			return err
		})
	})
	handled(t, l, "hook")
	posted := map[string]int{}
	repeats := 0
	for _, p := range r.received() {
		id := p.Get("webhook-id")
		if posted[id]++; posted[id] > 1 {
			repeats++
		}
	}
	want := map[string]int{}
	for _, position := range positions(t, l, changes.Filter{}) {
		id := strings.ReplaceAll(position, ".", "-")
		if want[id] = posted[id]; posted[id] == 0 {
			t.Errorf("%s was never posted", id)
		}
	}
	if diff := cmp.Diff(want, posted); diff != "" {
		t.Errorf("posted under ids that are no changes: %s", diff)
	}
	if repeats == 0 {
		t.Error("nothing was posted twice: what is tested did not happen")
	}
}

// L2: DDL is not told, although it may write every row anew.
func TestL2DDLIsNotTold(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	_, after := readAll(t, l, changes.Position{}, 10, changes.Filter{})
	exec(t, pool, `ALTER TABLE a ALTER v TYPE bigint USING v + 1; ALTER TABLE a ADD w int DEFAULT 7, DROP v`)
	if all, _ := readAll(t, l, after, 10, changes.Filter{}); len(all) != 0 {
		t.Errorf("%s", jsonOf(t, all))
	}
	exec(t, pool, `DELETE FROM a`)
	if all, _ := readAll(t, l, after, 10, changes.Filter{}); len(all) != 1 || string(all[0].Old) != `{"w":7,"id":1}` {
		t.Errorf("%s, want the row as it has come to be", jsonOf(t, all))
	}
}

// L4: money is spelled as the writer's lc_monetary has it, a timestamptz with the offset
// of his time zone. The instant is the same, the text is not.
func TestL4SpelledByTheWriter(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, price money, at timestamptz)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	rows, _ := pool.Query(t.Context(), `
		SELECT DISTINCT ON (collcollate) collcollate::text
		FROM pg_collation
		WHERE collprovider = 'c' AND collcollate IN ('C', 'en_US.utf8', 'en_US.UTF-8', 'de_DE.utf8', 'de_DE.UTF-8', 'ja_JP.utf8', 'ja_JP.UTF-8')
			AND collencoding IN (-1, pg_char_to_encoding('UTF8'))`)
	locales, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(locales, "C") {
		t.Fatalf("there are %q", locales)
	}
	instant := time.Date(2026, 7, 1, 12, 30, 0, 500_000_000, time.UTC)
	var want []string
	for i, locale := range locales {
		for j, zone := range []struct{ name, spelled string }{
			{"UTC", "2026-07-01T12:30:00.5+00:00"}, {"Asia/Kolkata", "2026-07-01T18:00:00.5+05:30"}, {"America/New_York", "2026-07-01T08:30:00.5-04:00"},
		} {
			var price string
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), `SELECT set_config('lc_monetary', $1, true), set_config('timezone', $2, true)`, locale, zone.name); err != nil {
					return err
				}
				return tx.QueryRow(t.Context(), `INSERT INTO a VALUES ($1, 1234.5::numeric::money, $2) RETURNING price::text`, 10*i+j, instant).Scan(&price)
			})
			if err != nil {
				t.Fatalf("%s, %s: %v", locale, zone.name, err)
			}
			if locale == "C" && price != "$1,234.50" {
				t.Errorf("in C it is %s", price)
			}
			want = append(want, fmt.Sprintf(`{"at":%q,"id":%d,"price":%q}`, zone.spelled, 10*i+j, price))
		}
	}
	all, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	var got []string
	for _, c := range all {
		got = append(got, string(c.New))
	}
	t.Logf("locales %q", locales)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
