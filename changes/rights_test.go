package changes_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What docs/operations.md says of rights, and of whom: who has these can do what it says.
const (
	readers = "Who only reads the feed"
	servers = "numbers come from sequences"
	writers = "To capture a table" // of captures
)

// rightsOf is the SQL that docs/operations.md has first behind some words.
func rightsOf(t *testing.T, words string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, behind, found := strings.Cut(string(text), words)
	_, behind, begins := strings.Cut(behind, "```sql\n")
	rights, _, ends := strings.Cut(behind, "```")
	if !found || !begins || !ends {
		t.Fatalf("docs/operations.md has no SQL behind %q", words)
	}
	return rights
}

// as is a role of the test's own that has been granted rights, its URL and its pool.
func as(t *testing.T, url string, owner *pgxpool.Pool, rights string) (string, *pgxpool.Pool) {
	t.Helper()
	var role string
	if err := owner.QueryRow(t.Context(), `SELECT 'app_' || current_database()`).Scan(&role); err != nil {
		t.Fatal(err)
	}
	exec(t, owner, `CREATE ROLE `+role+` LOGIN PASSWORD 'app'`)
	exec(t, owner, strings.NewReplacer("TO app", "TO "+role, "FROM app", "FROM "+role).Replace(rights))
	t.Cleanup(func() {
		if _, err := owner.Exec(context.WithoutCancel(t.Context()), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	url = pgtest.As(t, url, role, "app")
	return url, pgtest.Pool(t, url)
}

func TestRightsOfReaders(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	url, theirs := as(t, url, pool, rightsOf(t, readers))
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	reader := changes.New(theirs, changes.Config{})
	if all, _ := readAll(t, reader, changes.Position{}, 10, changes.Filter{}); len(all) != 1 {
		t.Errorf("read %d changes, want 1", len(all))
	}
	watch(t, newTail(t, url), changes.Position{}, changes.Filter{}, 1)
	(&auditedLog{log: l, pool: pool, url: url}).failover(t)
	exec(t, pool, `INSERT INTO a VALUES (2, 1)`)
	for _, name := range []string{"start", "now", "2026-01-01T00:00:00Z"} {
		if _, err := reader.Find(t.Context(), name); err != nil {
			t.Errorf("Find(%s): %v", name, err)
		}
	}
	if _, err := reader.Doctor(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := reader.Consumers(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := reader.Vitals(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who reads the feed sees how consumers stand, and nothing of the secrets that they have.
func TestReadersSeeNoSecrets(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	hook := &changes.WebhookConfig{
		URL:     "https://me:hidden@example.com/hidden?token=hidden",
		Secrets: []string{"whsec_aGlkZGVuaGlkZGVuaGlkZGVuaGlkZGVu"},
	}
	for range 2 { // made, and changed
		if err := l.Save(t.Context(), changes.ConsumerConfig{Name: "c"}, []string{"*"}, changes.Sink{Webhook: hook}); err != nil {
			t.Fatal(err)
		}
	}
	_, theirs := as(t, url, pool, rightsOf(t, readers))
	if s := status(t, changes.New(theirs, changes.Config{}), "c"); s.Sink != "webhook https://example.com" {
		t.Errorf("the sink is shown as %q", s.Sink)
	}
	read := func(pool *pgxpool.Pool) string {
		t.Helper()
		var text string
		if err := pool.QueryRow(t.Context(), `
			SELECT string_agg(query_to_xml('TABLE ' || oid::regclass, false, true, '')::text, '')
			FROM pg_class
			WHERE relnamespace = 'howdah'::regnamespace AND relkind IN ('r', 'p', 'v') AND has_table_privilege(oid, 'SELECT')`).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, secret := range []string{"hidden", "whsec_"} {
		if strings.Contains(read(theirs), secret) {
			t.Errorf("a reader sees %q", secret)
		}
		if !strings.Contains(read(pool), secret) {
			t.Errorf("%q is kept nowhere", secret)
		}
	}
}

// A server's role need not own anything to run consumers and to tend the log.
func TestRightsOfServers(t *testing.T) {
	t.Parallel()
	url, _, pool := consumed(t)
	url, theirs := as(t, url, pool, rightsOf(t, servers)+`GRANT INSERT ON effects TO app; GRANT USAGE ON effects_n_seq TO app`)
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	l := changes.New(theirs, changes.Config{})
	m := &auditedLog{log: l, pool: pool, url: url}
	start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) { c.Handle("*", effect("c")) })
	handled(t, l, "c")
	tx, err := theirs.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if err := l.WithTx(tx).Emit(t.Context(), "said", 1); err != nil {
		t.Error(err)
	}
	m.commit(t, tx)
	handled(t, l, "c")
	m.age(t)
	m.tend(t)
	if n := m.logged(t); n != 0 {
		t.Errorf("%d changes are left", n)
	}
	if err := l.Seek(t.Context(), "c", "now"); err != nil {
		t.Error(err)
	}
	if err := l.Retain(t.Context(), time.Hour, 0); !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), "the rights of the owner") || strings.Contains(err.Error(), "GRANT") {
		t.Errorf("Retain: %v", err)
	}
}

// Who owns a table captures it, once he may use howdah's triggers; until then, and of tables of
// others, he is told whose right he lacks.
func TestRightsToCapture(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	_, theirs := as(t, url, pool, rightsOf(t, servers)+`CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO app`)
	exec(t, theirs, `CREATE TABLE mine.a (id int PRIMARY KEY); CREATE TABLE mine.b (id int PRIMARY KEY)`)
	owner := changes.New(theirs, changes.Config{})
	want := []changes.Capture{{Table: "mine.a"}, {Table: "mine.b", Bulk: true}}
	denied := func(says string, c ...changes.Capture) {
		t.Helper()
		if _, err := owner.Apply(t.Context(), c, false); !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), says) {
			t.Errorf("Apply: %v, want %q", err, says)
		}
	}
	denied("GRANT EXECUTE ON FUNCTION howdah.change_capture(), howdah.change_capture_bulk() TO "+theirs.Config().ConnConfig.User, want...)
	exec(t, pool, strings.ReplaceAll(rightsOf(t, writers), "TO app", "TO "+theirs.Config().ConnConfig.User))
	capture(t, owner, want...)
	exec(t, theirs, `INSERT INTO mine.a VALUES (1); INSERT INTO mine.b VALUES (1)`)
	if diff := cmp.Diff([]string{`insert a {"id":1}`, `insert b {"id":1}`}, told(t, l)); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
	denied("the rights of the owner of public.a", changes.Capture{Table: "public.a", Payload: changes.PayloadFull})
	if _, err := owner.Release(t.Context(), "mine.a"); err != nil {
		t.Error(err)
	}
}

// Who may see but a part is told what is wrong with that, and what was not looked at.
func TestDoctorWithFewRights(t *testing.T) {
	t.Parallel()
	url, _, pool := consumed(t)
	exec(t, pool, `ALTER TABLE a DISABLE TRIGGER "!howdah_insert"`)
	_, theirs := as(t, url, pool, `GRANT USAGE ON SCHEMA howdah TO app; GRANT SELECT ON howdah.change_spec, howdah.change_pattern, howdah.change_tick TO app`)
	want := []string{"trigger-disabled public.a", "not-looked-at consumers", "not-looked-at log", "not-looked-at transactions of others", "not-looked-at unread changes"}
	if diff := cmp.Diff(want, codes(t, changes.New(theirs, changes.Config{}))); diff != "" {
		t.Errorf("(-want +found):\n%s", diff)
	}
	// In a transaction of the caller's it is an error, which has undone that.
	tx, err := theirs.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := changes.New(theirs, changes.Config{}).WithTx(tx).Doctor(t.Context()); !errors.Is(err, fault.Denied) {
		t.Errorf("Doctor in a transaction: %v", err)
	}
}
