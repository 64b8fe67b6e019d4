package changes_test

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// foreign is a transaction of many changes of which a reader of table a is told nothing,
// and of others before and after these.
func foreign(before, after string, many int) string {
	return fmt.Sprintf(`DO $$ BEGIN
		%s;
		%s;
		%s;
	END $$`, cmp.Or(before, "NULL"), strings.ReplaceAll(loadSQL, "$1", strconv.Itoa(many)), cmp.Or(after, "NULL"))
}

// A page with a filter ends inside of a transaction that is large, and the next goes on
// from there. Whether the last change before is the last of its transaction it cannot tell;
// who watches is told all the same.
func TestPagesInsideALargeTransaction(t *testing.T) {
	t.Parallel()
	url, l, pool := watched(t)
	exec(t, pool, foreign("", `INSERT INTO a VALUES (1, 0)`, 5000))
	exec(t, pool, `INSERT INTO a VALUES (2, 0)`)
	exec(t, pool, foreign(`INSERT INTO a VALUES (3, 0)`, "", 5000))
	f := changes.Filter{Patterns: patterns(t, "public.a")}
	all, end := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	var pages []string
	for after := (changes.Position{}); after != end; {
		page, next, err := l.Page(t.Context(), after, 10, f)
		if err != nil || next == after {
			t.Fatalf("Page(%s): %v, %v", after, next, err)
		}
		at := slices.IndexFunc(all, func(c changes.Change) bool { return c.Position.Compare(next) > 0 })
		says := fmt.Sprintf("%d of %d, inside: %t", at, len(all), next.ID != 0)
		for _, c := range page {
			says += fmt.Sprintf(", %s last: %t", c.Key, c.Last)
		}
		pages, after = append(pages, says), next
	}
	want := []string{"2000 of 10003, inside: true", "4000 of 10003, inside: true", `5002 of 10003, inside: true, {"id":1} last: true, {"id":2} last: true`,
		`7002 of 10003, inside: true, {"id":3} last: false`, "9002 of 10003, inside: true", "-1 of 10003, inside: false"}
	if diff := gocmp.Diff(want, pages); diff != "" {
		t.Error(diff)
	}
	for _, c := range watch(t, newTail(t, url), changes.Position{}, f, 3) {
		if !c.Last {
			t.Errorf("who watches is not told that %s is the last of its transaction", c.Key)
		}
	}
}

// A consumer keeps how far it has looked into a large transaction of which it is told
// nothing: who takes over goes on from there.
func TestConsumersPassALargeTransactionInSteps(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, foreign("", `INSERT INTO a VALUES (1, 0)`, 9000))
	exec(t, pool, `INSERT INTO a VALUES (2, 0)`)
	var batches atomic.Int64
	second, looked := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(looked) })
	defer goOn()
	run := func() *running {
		return start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, func(c *changes.Consumer) {
			c.Hurry()
			c.Handle("public.a", effect("c"))
			c.Failpoint(func(b changes.Batch) {
				if b.Step == "committed" && batches.Add(1) == 2 {
					close(second)
					<-looked
				}
			})
		})
	}
	first := run()
	pgtest.Receive(t, second, "the second batch")
	at, err := l.Consumer(t.Context(), "c")
	if err != nil || at.Position.Commit != 1 || at.Position.ID == 0 {
		t.Errorf("after two batches it stands at %s, %v; want inside of the first transaction", at.Position, err)
	}
	goOn()
	first.stop()
	run()
	handled(t, l, "c")
	if n := batches.Load(); n < 5 {
		t.Errorf("9,002 changes were looked at in %d batches, want 5 or more", n)
	}
	if got := effectsOf(t, pool, "c"); len(got) != 2 {
		t.Errorf("it was handed %v, want two changes", got)
	}
}

var looked = regexp.MustCompile(`Scan using change_\d_xid_id_idx on change_\d .*\(actual rows=(\d+)(?:\.\d+)? loops=(\d+)\)`)

// What a page with a filter looks at has a bound, in a large transaction as in small ones,
// and is read in the order of the index, no further than it takes to fill the page.
func TestCostOfAFilter(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	const large = 20_000
	exec(t, m.pool, `DO $$ BEGIN
		FOR i IN 1..3000 LOOP
			INSERT INTO howdah.change (slot, op, schema_name, table_name) VALUES (howdah.change_slot(), 'i', 'chk', 'single');
			COMMIT;
		END LOOP;
	END $$`)
	exec(t, m.pool, loadSQL, large)
	m.sync(t)
	for _, statistics := range []bool{false, true} {
		if statistics {
			exec(t, m.pool, `ANALYZE howdah.change, howdah.change_commit`)
		}
		e := pgtest.Explain(t, m.pool)
		l := m.log.WithTx(e)
		for _, c := range []struct {
			after     int64
			pattern   string
			n         int
			rows      int // looked at
			atMost    int // pages touched
			commit    int64
			insideOf  bool
			letsThose int
		}{
			{0, "chk.nothing", 1000, 2000, 12_000, 2000, true, 0},
			{0, "chk.single", 1000, 1001, 7000, 1000, true, 1000},
			{0, "chk.single", 100, 101, 1000, 100, true, 100},
			{3000, "chk.nothing", 1000, 2000, 300, 3001, true, 0},
			{3000, "chk.load", 1000, 2000, 300, 3001, true, 1000},
		} {
			page, next, err := l.Page(t.Context(), changes.Position{Commit: c.after}, c.n, changes.Filter{Patterns: patterns(t, c.pattern)})
			plan := pagePlan(t, e)
			if err != nil || len(page) != c.letsThose || next.Commit != c.commit || (next.ID != 0) != c.insideOf {
				t.Fatalf("%s after %d: %d changes up to %s, %v", c.pattern, c.after, len(page), next, err)
			}
			rows := 0
			for _, m := range looked.FindAllStringSubmatch(plan, -1) {
				each, err := strconv.Atoi(m[1])
				loops, err2 := strconv.Atoi(m[2])
				if err := errors.Join(err, err2); err != nil {
					t.Fatal(err)
				}
				rows += each * loops
			}
			probes(t, plan)
			if rows < c.rows || rows > c.rows+40 { // an incremental sort takes 32 at a time
				t.Errorf("%s after %d looks at %d changes, want %d; with statistics: %t\n%s", c.pattern, c.after, rows, c.rows, statistics, plan)
			}
			if n := buffers(t, plan); n > c.atMost || strings.Contains(plan, "temp written") {
				t.Errorf("%s after %d touches %d pages; with statistics: %t\n%s", c.pattern, c.after, n, statistics, plan)
			}
		}
	}
}
