package changes_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
)

// invalid checks that err is Invalid and says field.
func invalid(t *testing.T, what string, err error, field string) {
	t.Helper()
	if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), field) {
		t.Errorf("%s: %v, want Invalid with the word %q", what, err, field)
	}
}

func TestPageRefuses(t *testing.T) {
	t.Parallel()
	l, _ := newLog(t)
	for _, n := range []int{0, -1, 1001, math.MaxInt} {
		_, _, err := l.Page(t.Context(), changes.Position{}, n, changes.Filter{})
		invalid(t, "limit", err, "limit")
	}
	for _, match := range []string{``, `1`, `null`, `[]`, `"x"`, `{`, `{"a":1}{}`, `{"a":"\u0000"}`, `{"a":"` + "\xff" + `"}`} {
		_, _, err := l.Page(t.Context(), changes.Position{}, 1, changes.Filter{Match: json.RawMessage(match)})
		invalid(t, "match "+match, err, "match")
	}
	for _, op := range []changes.Op{"", "upsert", "i", "INSERT"} {
		_, _, err := l.Page(t.Context(), changes.Position{}, 1, changes.Filter{Ops: []changes.Op{changes.Insert, op}})
		invalid(t, "op "+string(op), err, "op")
	}
	for _, after := range []changes.Position{{Commit: -1}, {Commit: math.MinInt64}, {Commit: -1, ID: 7}} {
		if _, _, err := l.Page(t.Context(), after, 1, changes.Filter{}); err == nil {
			t.Errorf("Page(%s) went well", after)
		}
	}
}

func TestEmitAndMarkRefuse(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	if err := l.Emit(t.Context(), "x", 1); !errors.Is(err, changes.ErrNeedsTx) || !errors.Is(err, fault.Invalid) {
		t.Errorf("Emit outside a transaction: %v, want ErrNeedsTx", err)
	}
	if err := l.Mark(t.Context(), "x", nil); !errors.Is(err, changes.ErrNeedsTx) {
		t.Errorf("Mark outside a transaction: %v, want ErrNeedsTx", err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	in := l.WithTx(tx)
	for _, topic := range []string{"", "A", "a b", "ö", "a/b", "a\x00", "*", strings.Repeat("a", 101)} {
		invalid(t, "topic "+topic, in.Emit(t.Context(), topic, 1), "topic")
	}
	for name, payload := range map[string]any{
		"NUL": "a\x00b", "not UTF-8": json.RawMessage(`"` + "\xff" + `"`), "too large": strings.Repeat("x", 1<<20-1),
		"a channel": make(chan int), "not JSON": json.RawMessage(`{`), "NaN": math.NaN(), "half a pair": json.RawMessage(`"\ud800"`),
		"too large a number": json.RawMessage(`{"1e9":[1e131072]}`), "of too many digits": json.RawMessage(`-10.1E-16383`), "beyond all": json.RawMessage(`1e9223372036854775807`),
	} {
		invalid(t, "payload "+name, in.Emit(t.Context(), "x", payload), "payload")
	}
	for _, origin := range []string{"", "a,b", "a b", "ö", "a\x00", strings.Repeat("a", 64)} {
		invalid(t, "origin "+origin, in.Mark(t.Context(), origin, nil), "origin")
	}
	for name, meta := range map[string]any{"NUL": "\x00", "too large": strings.Repeat("x", 8191), "not JSON": json.RawMessage(`[`), "too large a number": json.RawMessage(`1e+200000`)} {
		invalid(t, "meta "+name, in.Mark(t.Context(), "x", meta), "meta")
	}
	// Nothing of this has spoilt the transaction, and the largest of all passes.
	if err := errors.Join(
		in.Mark(t.Context(), strings.Repeat("Z", 63), strings.Repeat("x", 8190)),
		in.Emit(t.Context(), strings.Repeat("a", 100), strings.Repeat("x", 1<<20-2)),
		in.Emit(t.Context(), "null", nil),
		in.Emit(t.Context(), "numbers", json.RawMessage(`{"1e999999":"\"1e999999","n":[1e131071,9.9E+131071,1e-16383,0.1e-16382,-1.50]}`)),
		tx.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	page, _, err := l.Page(t.Context(), changes.Position{}, 10, changes.Filter{})
	if err != nil || len(page) != 3 || len(page[0].New) != 1<<20 || len(page[0].Meta) != 8192 || len(page[0].Origin) != 63 || string(page[1].New) != "null" {
		t.Errorf("%d changes, %v", len(page), err)
	}
}

func TestCaptureRefuses(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE TABLE public.t (id int PRIMARY KEY, v int, g int UNIQUE);
		CREATE TABLE public.late (id int PRIMARY KEY DEFERRABLE, v int);
		CREATE TABLE public.nokey (v int);
		CREATE TABLE public.busy (id int PRIMARY KEY);
		CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER own AFTER INSERT ON public.busy FOR EACH ROW EXECUTE FUNCTION public.f();
		CREATE VIEW public.v AS SELECT 1 AS id;
		CREATE MATERIALIZED VIEW public.mv AS SELECT 1 AS id;
		CREATE SEQUENCE public.s;
		CREATE TABLE public.parts (id int PRIMARY KEY) PARTITION BY LIST (id);
		CREATE TABLE public.part PARTITION OF public.parts FOR VALUES IN (1)`)
	before := triggers(t, pool)
	for _, c := range []struct {
		field string
		c     changes.Capture
	}{
		{"table", changes.Capture{}},
		{"table", changes.Capture{Table: "t"}},
		{"table", changes.Capture{Table: "public."}},
		{"table", changes.Capture{Table: ".t"}},
		{"table", changes.Capture{Table: "public.nothing"}},
		{"table", changes.Capture{Table: "public.t\x00"}},
		{"table", changes.Capture{Table: "public.\xff"}},
		{"table", changes.Capture{Table: "public.v"}},
		{"table", changes.Capture{Table: "public.mv"}},
		{"table", changes.Capture{Table: "public.s"}},
		{"table", changes.Capture{Table: "pg_catalog.pg_class"}},
		{"table", changes.Capture{Table: "information_schema.sql_features"}},
		{"table", changes.Capture{Table: "howdah.change"}},
		{"ops", changes.Capture{Table: "public.t", Ops: []changes.Op{}}},
		{"ops", changes.Capture{Table: "public.t", Ops: []changes.Op{changes.Read}}},
		{"ops", changes.Capture{Table: "public.t", Ops: []changes.Op{""}}},
		{"payload", changes.Capture{Table: "public.t", Payload: "all"}},
		{"wake", changes.Capture{Table: "public.t", Wake: "never"}},
		{"max_bytes", changes.Capture{Table: "public.t", MaxBytes: -1}},
		{"max_bytes", changes.Capture{Table: "public.t", MaxBytes: 1 << 30}},
		{"columns", changes.Capture{Table: "public.t", Columns: []string{"w"}}},
		{"except", changes.Capture{Table: "public.t", Except: []string{"w"}}},
		{"except", changes.Capture{Table: "public.t", Except: []string{"id"}}},
		{"key", changes.Capture{Table: "public.t", Key: []string{"w"}}},
		{"key", changes.Capture{Table: "public.late"}},
		{"when", changes.Capture{Table: "public.t", When: "NEW.v >"}},
		{"when", changes.Capture{Table: "public.t", When: "NEW.w > 1"}},
		{"when", changes.Capture{Table: "public.t", When: "OLD.v > 1"}},
		{"when", changes.Capture{Table: "public.t", When: "nosuch(NEW.v)"}},
		{"when", changes.Capture{Table: "public.t", When: "NEW.v"}},
		{"when", changes.Capture{Table: "public.t", When: "NEW.v > (SELECT 1)"}},
		{"when", changes.Capture{Table: "public.t", When: "NEW.v > 'x'"}},
		{"when", changes.Capture{Table: "public.t", When: "max(NEW.v) > 1"}},
		{"when", changes.Capture{Table: "public.t", When: "public.none.v > 1"}},
		{"when", changes.Capture{Table: "public.t", When: "true) EXECUTE FUNCTION public.f() --"}},
		{"bulk", changes.Capture{Table: "public.t", Bulk: true, When: "true"}},
		{"bulk", changes.Capture{Table: "public.t", Bulk: true, Columns: []string{"v"}}},
		{"bulk", changes.Capture{Table: "public.t", Bulk: true, Except: []string{"v"}}},
		{"bulk", changes.Capture{Table: "public.t", Bulk: true, Payload: changes.PayloadDiff}},
		{"bulk", changes.Capture{Table: "public.nokey", Bulk: true}},
		{"bulk", changes.Capture{Table: "public.busy", Bulk: true}},
		{"bulk", changes.Capture{Table: "public.parts", Bulk: true}},
		{"bulk", changes.Capture{Table: "public.part", Bulk: true}},
	} {
		_, err := l.Apply(t.Context(), []changes.Capture{c.c}, false)
		invalid(t, jsonOf(t, c.c), err, c.field)
		if got := triggers(t, pool); got != before {
			t.Fatalf("%s was refused and left %s", jsonOf(t, c.c), got)
		}
	}
	// Nothing is paired by the key, which any columns may be.
	capture(t, l, changes.Capture{Table: "public.t", Bulk: true, Key: []string{"v"}})
	// Twice in one call, and one bad among good ones: nothing is changed.
	_, err := l.Apply(t.Context(), []changes.Capture{{Table: "public.nokey"}, {Table: "public.nokey"}}, false)
	invalid(t, "twice", err, "table")
	_, err = l.Apply(t.Context(), []changes.Capture{{Table: "public.nokey"}, {Table: "public.v"}}, false)
	invalid(t, "one of two", err, "captures[1].table")
	if captured, err := l.Captures(t.Context(), false); err != nil || len(captured) != 1 {
		t.Errorf("%d captures, %v, want 1", len(captured), err)
	}
}

// A key under which NULL may stand is no order for a backfill, which would pass rows over:
// also where NOT NULL has been said but not looked for, as PostgreSQL 18 allows.
func TestKeyWithNULLIsRefused(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `CREATE TABLE g (u int UNIQUE, v int); INSERT INTO g VALUES (1), (NULL)`)
	if m.number(t, `SELECT current_setting('server_version_num')::bigint`) >= 180000 {
		exec(t, m.pool, `ALTER TABLE g ADD CONSTRAINT soon NOT NULL u NOT VALID`)
	}
	capture(t, m.log, changes.Capture{Table: "public.g", Key: []string{"u"}})
	c := changes.NewConsumer(m.pool, nil, filling("public.g"))
	c.Handle("*", effect("fill"))
	invalid(t, "a backfill", c.Register(t.Context()), "backfill")

	exec(t, m.pool, `DELETE FROM g WHERE u IS NULL; ALTER TABLE g ALTER u SET NOT NULL`)
	if err := c.Register(t.Context()); err != nil {
		t.Errorf("a backfill, once there is no NULL: %v", err)
	}
}

func TestTemporaryTableIsRefused(t *testing.T) {
	t.Parallel()
	_, pool := newLog(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	var schema string
	if err := tx.QueryRow(t.Context(), `CREATE TEMP TABLE passing (id int)`).Scan(); err != nil && !strings.Contains(err.Error(), "no rows") {
		t.Fatal(err)
	}
	if err := tx.QueryRow(t.Context(), `SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'passing'`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	_, err = changes.New(tx, changes.Config{}).Apply(t.Context(), []changes.Capture{{Table: schema + ".passing"}}, false)
	invalid(t, schema, err, "table")
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// vectors are the known answers that need no database.
type vectors struct {
	Position      [][2]*string
	PositionOrder []string `json:"position_order"`
	Pattern       []struct {
		Patterns []string
		Change   [3]string
		Winner   *string
	}
	PatternRefused []string `json:"pattern_refused"`
}

func readVectors(t *testing.T) (v vectors) {
	t.Helper()
	readGolden(t, "vectors.json", &v)
	if len(v.Position)*len(v.PositionOrder)*len(v.Pattern)*len(v.PatternRefused) == 0 {
		t.Fatalf("vectors: %+v", v)
	}
	return v
}

// readGolden reads a file of known answers.
func readGolden(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile("testdata/golden/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestPositionVectors(t *testing.T) {
	t.Parallel()
	v := readVectors(t)
	for _, pair := range v.Position {
		p, err := changes.ParsePosition(*pair[0])
		if pair[1] == nil {
			invalid(t, *pair[0], err, "position")
			continue
		}
		if err != nil || p.String() != *pair[1] {
			t.Errorf("ParsePosition(%q) = %s, %v, want %s", *pair[0], p, err, *pair[1])
		}
	}
	var all []changes.Position
	for _, text := range v.PositionOrder {
		p, err := changes.ParsePosition(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	for i, p := range all {
		for j, q := range all {
			if got, want := p.Compare(q), min(max(i-j, -1), 1); got != want {
				t.Errorf("%s.Compare(%s) = %d, want %d", p, q, got, want)
			}
		}
	}
}

func TestPatternVectors(t *testing.T) {
	t.Parallel()
	v := readVectors(t)
	for _, c := range v.Pattern {
		patterns, err := changes.ParsePatterns(c.Patterns...)
		if err != nil {
			t.Fatal(err)
		}
		change := changes.Change{Schema: c.Change[0], Table: c.Change[1], Op: changes.Op(c.Change[2])}
		for range 2 {
			winner := ""
			if i := changes.MostSpecific(patterns, &change); i >= 0 {
				winner = patterns[i].String()
			}
			if want := c.Winner; want == nil && winner != "" || want != nil && winner != *want {
				t.Errorf("%v of %v: %q wins", c.Change, patterns, winner)
			}
			slices.Reverse(patterns) // the order they are given in does not matter
		}
	}
	for _, text := range append(v.PatternRefused, "public.us\x00ers", "public.\xff", "*:", "message.a.*.b", ":insert") {
		_, err := changes.ParsePattern(text)
		invalid(t, text, err, "pattern")
	}
}

func FuzzParsePosition(f *testing.F) {
	for _, text := range []string{"", "1", "1.2", "-1", "1.", "9223372036854775807.9223372036854775807", "0x1", "+1", "1e3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := changes.ParsePosition(text)
		if err != nil {
			if !errors.Is(err, fault.Invalid) {
				t.Errorf("ParsePosition(%q): %v", text, err)
			}
			return
		}
		if p.String() != text {
			t.Errorf("ParsePosition(%q).String() = %q", text, p)
		}
		var again changes.Position
		if b, err := json.Marshal(p); err != nil || json.Unmarshal(b, &again) != nil || again != p {
			t.Errorf("%q does not survive JSON: %s", text, b)
		}
	})
}

func FuzzParsePattern(f *testing.F) {
	for _, text := range []string{"", "*", "a.b", "a.*:insert", "message.x.*", ":", "a.b:"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := changes.ParsePattern(text)
		if err == nil && p.String() != text {
			t.Errorf("ParsePattern(%q).String() = %q", text, p)
		}
		p.Matches(&changes.Change{Schema: "a", Table: text, Op: changes.Insert})
	})
}
