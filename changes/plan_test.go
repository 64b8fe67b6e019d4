package changes_test

import (
	"encoding/json"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
)

// What Apply has done Plan finds done, whatever was captured before and whatever of it a
// Capture leaves to defaults; and what is refused has changed nothing.
func TestPlanAfterApplyIsEmpty(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `
		CREATE SCHEMA shop; CREATE SCHEMA late;
		CREATE TABLE shop.keyed (id int PRIMARY KEY, a int, b text, "C, d" json);
		CREATE TABLE shop.keyless (id int, a int, b text);
		CREATE TABLE shop.pair (id int, a int, b text, PRIMARY KEY (b, id));
		CREATE TABLE shop.whole (id int PRIMARY KEY, a int, b text) PARTITION BY RANGE (id);
		CREATE TABLE shop.part PARTITION OF shop.whole FOR VALUES FROM (0) TO (10);
		CREATE TABLE late.swapped (id int PRIMARY KEY DEFERRABLE, a int, b text)`)
	applied, refused, steps := 0, 0, 0
	rapid.Check(t, func(r *rapid.T) {
		want := rapid.SliceOfNDistinct(rapid.Custom(anyCapture), 1, 2, func(c changes.Capture) string { return c.Table }).Draw(r, "captures")
		prune := rapid.Bool().Draw(r, "prune")
		before := triggers(t, pool)
		did, err := l.Apply(t.Context(), want, prune)
		switch {
		case errors.Is(err, fault.Invalid):
			if got := triggers(t, pool); got != before {
				r.Fatalf("%v; and yet there were\n%s\nand are\n%s", err, before, got)
			}
			refused++
			return
		case err != nil:
			r.Fatal(err)
		}
		applied++
		steps += len(did)
		if left, err := l.Plan(t.Context(), want, prune); err != nil || len(left) > 0 {
			r.Fatalf("after Apply there is to do %s, %v", jsonOf(t, left), err)
		}
	})
	t.Logf("%d were applied in %d steps, %d refused", applied, steps, refused)
	if applied == 0 || steps == 0 {
		t.Error("all were refused, or nothing was to do")
	}
}

// anyCapture is a capture, which may be one that cannot be. Most of its fields are the
// defaults.
func anyCapture(r *rapid.T) changes.Capture {
	seldom := func(name string) bool { return rapid.IntRange(0, 11).Draw(r, name) == 11 }
	names := func(name string, from ...string) (some []string) {
		if seldom("has " + name) {
			some = rapid.SliceOfNDistinct(rapid.SampledFrom(from), 0, 2, rapid.ID).Draw(r, name)
		}
		return some
	}
	c := changes.Capture{
		Table:   rapid.SampledFrom([]string{"shop.keyed", "shop.keyless", "shop.pair", "shop.whole", "shop.*", "shop.part", "late.swapped"}).Draw(r, "table"),
		Columns: names("columns", "a", "b"),
		Except:  names("except", "a", "C, d"),
		Key:     names("key", "id", "a"),
		Bulk:    seldom("bulk"),
		Always:  seldom("always"),
	}
	if seldom("some ops") {
		c.Ops = rapid.SliceOfDistinct(rapid.SampledFrom([]changes.Op{changes.Insert, changes.Update, changes.Delete, changes.Truncate}), rapid.ID).Draw(r, "ops")
	}
	if seldom("conditional") {
		c.When = rapid.SampledFrom([]string{"true", "NEW.a > 1", "NEW.a IS DISTINCT FROM OLD.a", "true -- always"}).Draw(r, "when")
	}
	if seldom("sized") {
		c.MaxBytes = rapid.IntRange(0, 1<<20).Draw(r, "max_bytes")
	}
	c.Payload = rapid.SampledFrom([]changes.Payload{"", changes.PayloadKeys, changes.PayloadRow, changes.PayloadDiff, changes.PayloadFull}).Draw(r, "payload")
	c.Wake = rapid.SampledFrom([]string{"", "notify", "poll"}).Draw(r, "wake")
	return c
}

// What is listed can be given back, and nothing is done to the table: that it has no key, though there
// is one, is said; operations have no order, and none is there twice.
func TestWhatIsListedIsWhatIsThere(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
	steps, err := l.Apply(t.Context(), []changes.Capture{
		{Table: "public.a", Key: []string{}},
		{Table: "public.b", Ops: []changes.Op{changes.Update, changes.Insert, changes.Update}},
	}, false)
	if err != nil || len(steps) != 2 || steps[0].Triggers != 4 || steps[1].Triggers != 2 {
		t.Errorf("Apply = %+v, %v", steps, err)
	}
	captures, err := l.Captures(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	var listed []changes.Capture
	if err := json.Unmarshal([]byte(jsonOf(t, captures)), &listed); err != nil {
		t.Fatal(err)
	}
	listed[1].Ops = []changes.Op{changes.Update, changes.Insert}
	if did := planned(t, l, listed...); len(did) != 0 {
		t.Errorf("of what is listed, %s, Plan would %q", jsonOf(t, listed), did)
	}
}
