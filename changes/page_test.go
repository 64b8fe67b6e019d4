package changes_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// F4, F6: wherever the feed is cut into pages, and wherever a reader goes on, the
// pieces together are the whole; wherever it ends for what it has looked at, too.
func TestF6PagesAtEveryCut(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `CREATE SEQUENCE chk.leaf`)
	exec(t, m.pool, `CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint LANGUAGE sql VOLATILE RETURN (nextval('chk.leaf') / 2 % 8)::smallint`)
	id := 0
	rapid.Check(t, func(r *rapid.T) {
		start := m.sync(t)
		for range 3 {
			n := rapid.IntRange(1, 4).Draw(r, "changes")
			exec(t, m.pool, `INSERT INTO chk.a SELECT g, g % 3 FROM generate_series($1::int, $2::int) g`, id, id+n-1)
			id += n
		}
		var f changes.Filter
		if rapid.Bool().Draw(r, "filtered") {
			f.Match = fmt.Appendf(nil, `{"v":%d}`, rapid.IntRange(0, 3).Draw(r, "v"))
		}
		whole, end := readAll(t, m.log, start, 1000, f)
		if end.Commit != start.Commit+3 {
			r.Fatalf("the end is %s, want 3 commits after %s", end, start)
		}
		for i, c := range whole {
			last := i+1 == len(whole) || whole[i+1].Position.Commit != c.Position.Commit
			if c.Last != last {
				r.Fatalf("%s: last = %v, want %v", c.Position, c.Last, last)
			}
		}
		limit := rapid.IntRange(1, 7).Draw(r, "limit")
		little, looked := *m.log, rapid.IntRange(1, 9).Draw(r, "looked at")
		little.Scan(looked)
		for cut := range len(whole) + 1 {
			after := start
			if cut > 0 {
				after = whole[cut-1].Position
			}
			rest, restEnd := readAll(t, &little, after, limit, f)
			for i := range min(len(rest), len(whole)-cut) {
				// Of a transaction that does not fit it may not know which is the last.
				if max(looked, limit+1) <= 4 && f.Match != nil && !rest[i].Last {
					rest[i].Last = whole[cut+i].Last
				}
			}
			if !slices.EqualFunc(rest, whole[cut:], equal) || restEnd != end {
				r.Fatalf("from %s by %d:\n%s", after, limit, cmp.Diff(whole[cut:], rest))
			}
		}
	})
}

// A page shows what committed before it was asked for, even where another reader
// is numbering and began before that.
func TestPageShowsWhatIsCommitted(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	other, err := m.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.in(t, other, `SELECT howdah.change_tick(true)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	paged := make(chan []changes.Change, 1)
	go func() {
		page, _, err := m.log.Page(t.Context(), changes.Position{}, 10, changes.Filter{})
		if err != nil {
			t.Error(err)
		}
		paged <- page
	}()
	err = waiting(t.Context(), m.pool, 1752135524)
	m.commit(t, other)
	if page := pgtest.Receive(t, paged, "the page"); len(page) != 1 || err != nil {
		t.Errorf("%d changes, want 1 (%v)", len(page), err)
	}
}

// equal is cmp.Equal, which takes many times as long.
func equal(a, b changes.Change) bool { return reflect.DeepEqual(a, b) || cmp.Equal(a, b) }

// A filter that the server applies lets through what it does in Go.
func TestFilterIsAppliedByTheServer(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA "S.x"; CREATE SCHEMA s`)
	for _, table := range []string{`s.t`, `s.tt`, `s."t.u"`, `s."T_%"`, `public.t`} {
		exec(t, pool, `CREATE TABLE `+table+` (id int PRIMARY KEY, v jsonb)`)
	}
	capture(t, l, changes.Capture{Table: "s.t", Payload: "full"}, changes.Capture{Table: "s.tt"}, changes.Capture{Table: "s.t.u"},
		changes.Capture{Table: "s.T_%", Payload: "keys"}, changes.Capture{Table: "public.t", Payload: "diff"})
	for _, table := range []string{`s.t`, `s.tt`, `s."t.u"`, `s."T_%"`, `public.t`} {
		exec(t, pool, `INSERT INTO `+table+` VALUES (1, '{"a":1}'), (2, '[1]')`)
		exec(t, pool, `UPDATE `+table+` SET v = '{"a":2,"b":{"c":1}}'; DELETE FROM `+table+` WHERE id = 1`) // two commits: of one statement each
		exec(t, pool, `TRUNCATE `+table)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"orders", "orders.shipped", "orders.shipped.late", "ordersx", "t"} {
		if err := l.WithTx(tx).Emit(t.Context(), topic, map[string]int{"a": 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})

	texts := []string{"*", "*:delete", "s.*", "s.t", "s.tt:insert,update", "s.t.u", "s.T_%", "public.*:truncate", "public.t", "s.x", "S.t",
		"message.*", "message.orders.*", "message.orders.shipped.*", "message.orders", "message.t:message", "message.t:insert", "S.x.t"}
	ops := []changes.Op{changes.Insert, changes.Update, changes.Delete, changes.Truncate, changes.Message, changes.Read}
	rapid.Check(t, func(r *rapid.T) {
		var f changes.Filter
		for _, text := range rapid.SliceOfN(rapid.SampledFrom(texts), 0, 3).Draw(r, "patterns") {
			p, err := changes.ParsePattern(text)
			if err != nil {
				r.Fatal(err)
			}
			f.Patterns = append(f.Patterns, p)
		}
		f.Ops = rapid.SliceOfNDistinct(rapid.SampledFrom(ops), 0, 3, rapid.ID).Draw(r, "ops")
		match := rapid.SampledFrom([]string{"", `{}`, `{"id":2}`, `{"v":{"a":1}}`, `{"v":{"b":{}}}`, `{"a":1}`, `{"id":"2"}`}).Draw(r, "match")
		if match != "" {
			f.Match = json.RawMessage(match)
		}
		var want []changes.Position
		for _, c := range all {
			if lets(f, &c) {
				want = append(want, c.Position)
			}
		}
		got, _ := readAll(t, l, changes.Position{}, rapid.IntRange(1, 9).Draw(r, "limit"), f)
		for i, c := range got {
			if i >= len(want) || c.Position != want[i] {
				r.Fatalf("the server lets %+v through; want %v", c, want)
			}
			if last := i+1 == len(want) || want[i+1].Commit != c.Position.Commit; c.Last != last {
				r.Fatalf("%s: last = %v, want %v", c.Position, c.Last, last)
			}
		}
		if len(got) != len(want) {
			r.Fatalf("%d changes, want %d", len(got), len(want))
		}
	})
}

// lets is the filter in Go.
func lets(f changes.Filter, c *changes.Change) bool {
	if len(f.Patterns) > 0 && !slices.ContainsFunc(f.Patterns, func(p changes.Pattern) bool { return p.Matches(c) }) {
		return false
	}
	if len(f.Ops) > 0 && !slices.Contains(f.Ops, c.Op) {
		return false
	}
	return f.Match == nil || contains(c.Old, f.Match) || contains(c.New, f.Match)
}

// contains is @> of objects, as far as the test's values go.
func contains(whole, part json.RawMessage) bool {
	var a, b any
	if json.Unmarshal(whole, &a) != nil || json.Unmarshal(part, &b) != nil {
		return false
	}
	return within(a, b)
}

func within(a, b any) bool {
	object, ok := b.(map[string]any)
	if !ok {
		return cmp.Equal(a, b)
	}
	whole, ok := a.(map[string]any)
	for name, value := range object {
		if there, has := whole[name]; !has || !within(there, value) {
			return false
		}
	}
	return ok
}

// A filter that lets nothing through moves on all the same, and ends.
func TestPageMovesOnThroughNothing(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO howdah.change_commit (n, slot, xid) SELECT g, 0, '1' FROM generate_series(1, 25000) g`)
	exec(t, m.pool, `UPDATE howdah.change_tick SET n = 25000`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	var steps []changes.Position
	after := changes.Position{}
	for {
		page, next, err := m.log.Page(t.Context(), after, 10, changes.Filter{Ops: []changes.Op{changes.Truncate}})
		if err != nil || len(page) > 0 {
			t.Fatal(len(page), err)
		}
		if next == after {
			break
		}
		steps, after = append(steps, next), next
	}
	want := []changes.Position{{Commit: 9999}, {Commit: 19998}, {Commit: 25000}, {Commit: 25001}}
	if !slices.Equal(steps, want) {
		t.Errorf("went %v, want %v", steps, want)
	}
}
