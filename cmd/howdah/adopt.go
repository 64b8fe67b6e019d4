package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
)

func (c *cli) adopt() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Let howdah do all it can on the tables of another system",
		Long: `Looks at the tables of another system, says what is there and what howdah would add
to them, and changes nothing. --yes adds it, beside whoever works on them; --undo
--yes takes exactly that back.`,
		Example: `  howdah adopt iidy`,
		Args:    cobra.NoArgs,
		RunE:    help,
	}
	// A line for each system.
	cmd.AddCommand(
		c.adoptSystem("iidy", "Leases, outcomes and progress on iidy's own table", "iidy.lists", iidy),
	)
	return cmd
}

// adoptee is a table that was looked at, in words; found is the same for programs.
type adoptee struct {
	found    any
	words    []string
	steps    []string // what adopting would do
	problems []string // why it cannot
	losses   []string // of an undo
	undoable bool

	adopt, undo func(context.Context, func(string)) error
}

// adoptSystem is the command that adopts a table of a system, by a look at it.
func (c *cli) adoptSystem(system, short, table string, look func(context.Context, *howdah.Client) (*adoptee, error)) *cobra.Command {
	var yes, undo bool
	cmd := &cobra.Command{
		Use:   system,
		Short: short,
		Example: fmt.Sprintf(`  howdah adopt %[1]s
  howdah adopt %[1]s --yes
  howdah adopt %[1]s --undo`, system),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set := func(cfg *howdah.Config) {
				cfg.Checklists.Table = identifier(table)
				if cfg.Database.ListenURL != "" { // past the pooler: an adoption holds a lock of its session
					cfg.Database.URL, cfg.Database.Pooler = cfg.Database.ListenURL, false
				}
			}
			return c.open(cmd, set, func(ctx context.Context, client *howdah.Client, _ bool) error {
				a, err := look(ctx, client)
				switch {
				case err != nil:
					return err
				case !yes:
					return c.surveyed(a, "howdah adopt "+system+otherTable(cmd), undo)
				case undo:
					return c.changed(ctx, table, "given_back", a.undo)
				}
				if len(a.problems) == 0 && len(a.steps) > 0 {
					if err := client.Migrate(ctx); err != nil {
						return err
					}
				}
				return c.changed(ctx, table, "adopted", a.adopt)
			})
		},
	}
	cmd.Flags().StringVar(&table, "table", table, "schema.table, as it is called, without quotes")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&undo, "undo", false, "say what taking it back would lose; with --yes, take it back")
	return cmd
}

// identifier is a table's name as it is typed: schema and table.
func identifier(name string) pgx.Identifier {
	schema, table, ok := strings.Cut(name, ".")
	if !ok {
		return pgx.Identifier{name}
	}
	return pgx.Identifier{schema, table}
}

// otherTable is the flag as it was given.
func otherTable(cmd *cobra.Command) string {
	if flag := cmd.Flags().Lookup("table"); flag.Changed {
		return " --table " + printable(flag.Value.String())
	}
	return ""
}

// surveyed prints what was found and what would be done.
func (c *cli) surveyed(a *adoptee, again string, undo bool) error {
	if c.wantsJSON() {
		return jsonLine(c.out, a.found)
	}
	lines := a.words
	switch {
	case undo && !a.undoable:
		lines = append(lines, "there is nothing to take back")
	case undo:
		lines = append(lines, "taking back what howdah added would lose")
		for _, loss := range a.losses {
			lines = append(lines, "  - "+loss)
		}
		lines = append(lines, "nothing was changed; "+again+" --undo --yes does it")
	case len(a.problems) > 0:
		lines = append(lines, "it cannot be adopted")
		for _, problem := range a.problems {
			lines = append(lines, "  - "+problem)
		}
	case len(a.steps) == 0:
		lines = append(lines, "nothing is missing")
	default:
		lines = append(lines, "adopting it would")
		for _, step := range a.steps {
			lines = append(lines, "  - "+step)
		}
		lines = append(lines, "nothing was changed; "+again+" --yes does it, and --undo takes it back")
	}
	_, err := fmt.Fprintln(c.out, strings.Join(lines, "\n"))
	return err
}

// changed runs an adoption or its undo, and says where it is.
func (c *cli) changed(ctx context.Context, table, past string, do func(context.Context, func(string)) error) error {
	steps := 0
	err := do(ctx, func(at string) {
		if !strings.HasPrefix(at, " ") { // what is indented is about the step before it
			steps++
		}
		c.note(at)
	})
	if err != nil {
		return err
	}
	words := strings.ReplaceAll(past, "_", " ") + " " + printable(table)
	if steps == 0 {
		words = "nothing to do on " + printable(table)
	}
	return c.result(words, map[string]any{past: table, "steps": steps})
}

// iidy looks at iidy's table.
func iidy(ctx context.Context, client *howdah.Client) (*adoptee, error) {
	s := client.Checklists
	v, err := s.Survey(ctx)
	if err != nil {
		return nil, err
	}
	said := func(tell func(string)) func(checklists.Adopting) {
		var last time.Time
		return func(a checklists.Adopting) {
			switch patient := time.Since(last) > 2*time.Second; {
			case a.Waiting == "" && a.Total == 0:
				tell(a.Step)
				return
			case !patient:
				return
			case a.Waiting != "":
				tell("  waits for " + a.Waiting)
			default:
				tell(fmt.Sprintf("  %d of %d blocks", a.Done, a.Total))
			}
			last = time.Now()
		}
	}
	a := &adoptee{
		found: v, words: iidyWords(v), steps: v.Steps, problems: v.Problems, undoable: v.Loss != nil,
		adopt: func(ctx context.Context, tell func(string)) error { return s.Adopt(ctx, said(tell)) },
		undo:  func(ctx context.Context, tell func(string)) error { return s.UndoAdopt(ctx, said(tell)) },
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
