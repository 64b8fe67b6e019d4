package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/pg/adopt"
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
		c.adoptSystem(c.iidySystem()),
		c.adoptSystem(c.trifleSystem()),
	)
	return cmd
}

// adopted is a system whose tables can be adopted.
type adopted struct {
	name, short, table string
	example            string               // beside those that all have
	flags              func(*pflag.FlagSet) // of its own
	read               func() error         // reads them
	set                func(*howdah.Config, pgx.Identifier)
	look               func(context.Context, *howdah.Client) (*adoptee, error)
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
func (c *cli) adoptSystem(system adopted) *cobra.Command {
	var yes, undo bool
	table := system.table
	cmd := &cobra.Command{
		Use:   system.name,
		Short: system.short,
		Example: fmt.Sprintf(`  howdah adopt %[1]s
  howdah adopt %[1]s --yes
  howdah adopt %[1]s --undo%[2]s`, system.name, system.example),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := system.read(); err != nil {
				return err
			}
			set := func(cfg *howdah.Config) {
				if cfg.Database.ListenURL != "" { // past the pooler: an adoption holds a lock of its session
					cfg.Database.URL, cfg.Database.Pooler = cfg.Database.ListenURL, false
				}
				system.set(cfg, identifier(table))
			}
			return c.open(cmd, set, func(ctx context.Context, client *howdah.Client, _ bool) error {
				a, err := system.look(ctx, client)
				switch {
				case err != nil:
					return err
				case !yes:
					return c.surveyed(a, "howdah adopt "+system.name+given(cmd), undo)
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
	system.flags(cmd.Flags())
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

// given are the flags that say what is adopted and how, as they were given.
func given(cmd *cobra.Command) (flags string) {
	cmd.LocalNonPersistentFlags().VisitAll(func(flag *pflag.Flag) {
		switch {
		case !flag.Changed || flag.Name == "yes" || flag.Name == "undo":
		case flag.Value.Type() == "bool":
			flags += " --" + flag.Name
		default:
			flags += " --" + flag.Name + " " + printable(flag.Value.String())
		}
	})
	return flags
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

// told passes on where an adoption is, what it waits for every two seconds.
func told(tell func(string)) func(adopt.Progress) {
	var last time.Time
	return func(p adopt.Progress) {
		switch patient := time.Since(last) > 2*time.Second; {
		case p.Waiting == "" && p.Total == 0:
			tell(p.Step)
			return
		case !patient:
			return
		case p.Waiting != "":
			tell("  waits for " + p.Waiting)
		default:
			tell(fmt.Sprintf("  %d of %d blocks", p.Done, p.Total))
		}
		last = time.Now()
	}
}
