package changes_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
)

// The truth is kept by triggers that know nothing of howdah: in the writer's own
// transaction they note what happened, numbered by a sequence of their own. Each
// fires right after howdah's trigger of the same row, under the same lock.
const truthSQL = `
	CREATE SCHEMA truth;
	CREATE TABLE truth.fact (
		seq bigint GENERATED ALWAYS AS IDENTITY,
		xid text NOT NULL DEFAULT pg_current_xact_id()::text,
		op text NOT NULL, tab text NOT NULL, old jsonb, new jsonb);
	CREATE FUNCTION truth.note() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO truth.fact (op, tab, old, new) VALUES (lower(TG_OP), TG_TABLE_NAME,
			CASE WHEN TG_OP IN ('UPDATE', 'DELETE') THEN to_jsonb(OLD) END, CASE WHEN TG_OP IN ('UPDATE', 'INSERT') THEN to_jsonb(NEW) END);
		RETURN NULL;
	END $$`

// audited creates table chk.name, whose key is id, watched by the truth.
func audited(t testing.TB, pool *pgxpool.Pool, name, columns string) {
	t.Helper()
	exec(t, pool, strings.ReplaceAll(`
		CREATE SCHEMA IF NOT EXISTS chk;
		CREATE TABLE chk.{t} (id int PRIMARY KEY, `+columns+`);
		CREATE TRIGGER "!truth_iu" AFTER INSERT OR DELETE ON chk.{t} FOR EACH ROW EXECUTE FUNCTION truth.note();
		CREATE TRIGGER "!truth_u" AFTER UPDATE ON chk.{t} FOR EACH ROW WHEN (OLD IS DISTINCT FROM NEW) EXECUTE FUNCTION truth.note();
		CREATE TRIGGER "!truth_t" AFTER TRUNCATE ON chk.{t} EXECUTE FUNCTION truth.note()`, "{t}", name))
}

// fact is a change as the truth has it, and as the feed should.
type fact struct{ op, table, key, old, new string }

func (f fact) String() string {
	return fmt.Sprintf("%s %s %s old=%s new=%s", f.op, f.table, f.key, f.old, f.new)
}

// truth returns what committed, by transaction, in the order it was done.
func truth(t testing.TB, pool *pgxpool.Pool) map[string][]fact {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `SELECT xid, op, tab, old, new, old -> 'id' IS DISTINCT FROM new -> 'id' FROM truth.fact ORDER BY seq`)
	facts := map[string][]fact{}
	var xid, op, table string
	var old, new_ []byte
	var moved bool
	_, err := pgx.ForEachRow(rows, []any{&xid, &op, &table, &old, &new_, &moved}, func() error {
		was, is := image(old), image(new_)
		switch {
		case op == "update" && moved:
			facts[xid] = append(facts[xid], fact{"delete", table, keyOf(was), was, ""}, fact{"insert", table, keyOf(is), "", is})
		case op == "truncate":
			facts[xid] = append(facts[xid], fact{op: op, table: table})
		case op == "delete":
			facts[xid] = append(facts[xid], fact{op, table, keyOf(was), was, ""})
		default:
			facts[xid] = append(facts[xid], fact{op, table, keyOf(is), was, is})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func image(text []byte) string {
	var b bytes.Buffer
	if text != nil && json.Compact(&b, text) != nil {
		return "no JSON: " + string(text)
	}
	return b.String()
}

func keyOf(image string) string {
	var row struct{ ID json.Number }
	if json.Unmarshal([]byte(image), &row) != nil {
		return "no key in " + image
	}
	return `{"id":` + row.ID.String() + `}`
}

// span is when a transaction made its first change, or a little earlier, and
// when its COMMIT had returned.
type span struct{ began, ended time.Time }

// violations says which invariants feed, read from its start to its end with
// payload full, breaks.
func violations(feed []changes.Change, facts map[string][]fact, spans map[string]span) (broken []string) {
	say := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	place := map[string]int64{} // commit of each transaction
	var order []string
	rows := map[string]string{} // of each table and key
	var tx []fact
	for i, c := range feed {
		if i > 0 && c.Position.Compare(feed[i-1].Position) <= 0 {
			say("F6: %s stands after %s", c.Position, feed[i-1].Position)
		}
		first := i == 0 || feed[i-1].Position.Commit != c.Position.Commit
		last := i+1 == len(feed) || feed[i+1].Position.Commit != c.Position.Commit
		if first {
			if n, ok := place[c.XID]; ok {
				say("F1, F4: transaction %s is commit %d and commit %d", c.XID, n, c.Position.Commit)
			}
			place[c.XID] = c.Position.Commit
			order = append(order, c.XID)
			tx = nil
		} else if feed[i-1].XID != c.XID {
			say("F4: commit %d holds transactions %s and %s", c.Position.Commit, feed[i-1].XID, c.XID)
		}
		if c.Last != last {
			say("F4: last of %s is %v", c.Position, c.Last)
		}
		f := fact{string(c.Op), c.Table, string(c.Key), string(c.Old), string(c.New)}
		tx = append(tx, f)
		if problem := follows(rows, f); problem != "" {
			say("F5: %s: %s", c.Position, problem)
		}
		if last {
			if problem := sameFacts(facts[c.XID], tx); problem != "" {
				say("F1–F4: commit %d, transaction %s: %s", c.Position.Commit, c.XID, problem)
			}
		}
	}
	for xid, some := range facts {
		if _, ok := place[xid]; !ok {
			say("F1: transaction %s with %d changes is missing: %s", xid, len(some), some[0])
		}
	}
	return append(broken, overtaken(order, spans)...)
}

// follows applies f to rows, unless f cannot have happened to them.
func follows(rows map[string]string, f fact) string {
	if f.op == "truncate" {
		for name := range rows {
			if strings.HasPrefix(name, f.table+" ") {
				delete(rows, name)
			}
		}
		return ""
	}
	name := f.table + " " + f.key
	was, there := rows[name]
	switch {
	case f.op == "insert" && there:
		return fmt.Sprintf("%s, but the row is there", f)
	case f.op != "insert" && was != f.old:
		return fmt.Sprintf("%s, but the row is %q", f, was)
	}
	if f.op == "delete" {
		delete(rows, name)
	} else {
		rows[name] = f.new
	}
	return ""
}

func sameFacts(want, got []fact) string {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			return fmt.Sprintf("%d changes, want %d; the first too many: %s", len(got), len(want), got[i])
		case i >= len(got):
			return fmt.Sprintf("%d changes, want %d; the first missing: %s", len(got), len(want), want[i])
		case want[i] != got[i]:
			return fmt.Sprintf("change %d is %s, want %s", i, got[i], want[i])
		}
	}
	return ""
}

// overtaken finds transactions that stand before one which had committed before
// they began to change anything.
func overtaken(order []string, spans map[string]span) (broken []string) {
	var earliest time.Time // end of those that stand behind
	var whose string
	for i := len(order) - 1; i >= 0; i-- {
		s, ok := spans[order[i]]
		if !ok {
			continue
		}
		if whose != "" && earliest.Before(s.began) {
			broken = append(broken, fmt.Sprintf("F5: transaction %s stands before %s, which had committed %v before it changed anything", order[i], whose, s.began.Sub(earliest)))
		}
		if whose == "" || s.ended.Before(earliest) {
			earliest, whose = s.ended, order[i]
		}
	}
	return broken
}

// report fails the test with what is broken, not all of it.
func report(t testing.TB, broken []string) {
	t.Helper()
	for i, problem := range broken {
		if i == 10 {
			t.Errorf("and %d more", len(broken)-i)
			return
		}
		t.Error(problem)
	}
}
