package changes_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
)

// What patterns are made of here: few names, so that many of them match.
var (
	places     = []string{"public.a", "public.b", "message.a", "message.a.b", "message.a.b.c", "message.b"}
	wider      = []string{"*", "public.*", "message.*", "message.a.*", "message.a.b.*"}
	operations = []string{"", ":insert", ":update,delete", ":message", ":insert,message"}
)

// meant is the pattern that a change belongs to, as the documents say it: its table or
// topic before a longer beginning of one before a shorter, before the schema, before *;
// then one with operations before one without; of equals the first.
func meant(texts []string, c changes.Change) string {
	place := c.Schema + "." + c.Table
	names := []string{place}
	for name := place; strings.Contains(name, "."); {
		name = name[:strings.LastIndex(name, ".")]
		names = append(names, name+".*")
	}
	for _, name := range append(names, "*") {
		for _, text := range texts {
			if of, ops, ok := strings.Cut(text, ":"); ok && of == name && slices.Contains(strings.Split(ops, ","), string(c.Op)) {
				return text
			}
		}
		if slices.Contains(texts, name) {
			return name
		}
	}
	return ""
}

// Lists come cut at commas, from a flag or a query: what is only an operation belongs to the
// pattern before.
func TestPatternsCutAtCommas(t *testing.T) {
	t.Parallel()
	got, err := changes.ParsePatterns("public.a:insert", "update", "public.b", "*:delete", "message")
	if want := "[public.a:insert,update public.b *:delete,message]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v, want %s", got, err, want)
	}
	for _, texts := range [][]string{{"insert"}, {"public.a", "insert"}, {"public.a:insert", "upsert"}} {
		if got, err := changes.ParsePatterns(texts...); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v, want Invalid", texts, got, err)
		}
	}
}

func TestMostSpecificPatternWins(t *testing.T) {
	t.Parallel()
	text := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom(append(places, wider...)).Draw(t, "names") + rapid.SampledFrom(operations).Draw(t, "ops")
	})
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(text, 1, 8).Draw(t, "patterns")
		schema, table, _ := strings.Cut(rapid.SampledFrom(places).Draw(t, "place"), ".")
		c := changes.Change{Schema: schema, Table: table, Op: changes.Op(rapid.SampledFrom([]string{"insert", "update", "delete", "truncate", "read", "message"}).Draw(t, "op"))}
		patterns, err := changes.ParsePatterns(texts...)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if i := changes.MostSpecific(patterns, &c); i >= 0 {
			got = patterns[i].String()
		}
		if want := meant(texts, c); got != want {
			t.Errorf("%s of %s.%s goes to %q, want %q", c.Op, c.Schema, c.Table, got, want)
		}
	})
}

// The server and consumers mean the same by patterns: a page has what any of them
// matches, and the handler of the most specific is called.
func TestPatternsOnTheServerAndInConsumers(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	for _, place := range places {
		schema, table, _ := strings.Cut(place, ".")
		if schema == "message" {
			exec(t, pool, `SELECT howdah.change_emit($1, '1')`, table)
			continue
		}
		exec(t, pool, `INSERT INTO `+table+` VALUES (1, 1)`)
		exec(t, pool, `UPDATE `+table+` SET v = 2`)
		exec(t, pool, `DELETE FROM `+table)
	}
	feed, _ := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
	seed := chaosSeed(t)
	t.Logf("HOWDAH_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	one := func(some []string) string { return some[random.IntN(len(some))] }
	for i := range 10 {
		var texts []string
		for range 1 + random.IntN(6) {
			if text := one(append(places, wider...)) + one(operations); !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
		var want []string
		wanted := map[string][]string{}
		for _, c := range feed {
			if text := meant(texts, c); text != "" {
				want = append(want, c.Position.String())
				wanted[text] = append(wanted[text], c.Position.String())
			}
		}
		if diff := cmp.Diff(want, positions(t, l, changes.Filter{Patterns: patterns(t, texts...)})); diff != "" {
			t.Errorf("a page of %q: %s", texts, diff)
		}
		if i > 2 {
			continue
		}
		got := map[string][]string{}
		name := fmt.Sprint("c", i)
		r := start(t, url, changes.ConsumerConfig{Name: name, From: "start"}, func(c *changes.Consumer) {
			for _, text := range texts {
				c.Handle(text, func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
					for _, c := range cs {
						got[text] = append(got[text], c.Position.String())
					}
					return nil
				})
			}
		})
		handled(t, l, name)
		r.stop()
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("handlers of %q: %s", texts, diff)
		}
	}
}
