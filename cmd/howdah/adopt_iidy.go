package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/pflag"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
)

func (c *cli) iidySystem() adopted {
	return adopted{
		name: "iidy", short: "Leases, outcomes and progress on iidy's own table", table: "iidy.lists",
		flags: func(*pflag.FlagSet) {},
		read:  func() error { return nil },
		set:   func(cfg *howdah.Config, table pgx.Identifier) { cfg.Checklists.Table = table },
		look:  iidy,
	}
}

// iidy looks at iidy's table.
func iidy(ctx context.Context, client *howdah.Client) (*adoptee, error) {
	s := client.Checklists
	v, err := s.Survey(ctx)
	if err != nil {
		return nil, err
	}
	a := &adoptee{
		found: v, words: iidyWords(v), steps: v.Steps, problems: v.Problems, undoable: v.Loss != nil,
		adopt: func(ctx context.Context, tell func(string)) error { return s.Adopt(ctx, told(tell)) },
		undo:  func(ctx context.Context, tell func(string)) error { return s.UndoAdopt(ctx, told(tell)) },
	}
	if l := v.Loss; l != nil {
		a.losses = []string{
			fmt.Sprintf("leases: %d, which their workers could no longer tick off", l.Leased),
			fmt.Sprintf("waiting items: %d, dead items: %d; they would be like any other", l.Waiting, l.Dead),
			fmt.Sprintf("errors: %d, payloads: %d, priorities: %d", l.Errors, l.Payloads, l.Priorities),
			fmt.Sprintf("done items that are kept: %d, lists with settings: %d, and all counts", l.Done, l.Settings),
		}
	}
	return a, nil
}

func iidyWords(v checklists.Survey) []string {
	made := map[checklists.Layout]string{
		checklists.LayoutPlain:    "was there before howdah, which has added nothing",
		checklists.LayoutAdopting: "is being adopted, or was when that was interrupted",
		checklists.LayoutAdopted:  "was there before howdah and is adopted",
		checklists.LayoutMade:     "was made by howdah",
	}
	words := []string{printable(v.Table) + " " + made[v.Layout]}
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf("  "+format, args...)) }
	if v.Order == "" {
		return words
	}
	say("items: %d, lists: %d, encoding: %s", v.Items, v.Lists, v.Encoding)
	say("order of items: %s (collation: %s)", v.Order, v.Collation)
	if v.TooLong > 0 {
		say("items longer than howdah would put on: %d; they can be read, ticked and deleted", v.TooLong)
	}
	say("owner: %s; may write: %s; nobody needs new rights", printable(v.Owner), cmp.Or(strings.Join(v.Writers, ", "), "nobody else"))
	if v.Iidy != "" {
		say("the version table of iidy %s is there, and stays as it is", v.Iidy)
	}
	say("iidy's own programs go on, now and after; they know no leases, so one that pages through a list may do what is leased")
	return words
}
