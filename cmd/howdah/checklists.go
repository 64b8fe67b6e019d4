package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
)

func (c *cli) checklists() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checklists",
		Short: "Items to get through, and how often each was attempted",
		Example: `  howdah checklists import downloads urls.txt
  howdah checklists page downloads --limit 10
  howdah checklists increment downloads a.txt
  howdah checklists delete downloads b.txt`,
		Args: cobra.NoArgs,
		RunE: help,
	}
	cmd.AddCommand(
		c.checklistsInsert(),
		c.checklistsIncrement(),
		c.checklistsDelete(),
		c.checklistsGet(),
		c.checklistsPage(),
		c.checklistsImport(),
		c.checklistsExport(),
		c.checklistsLists(),
		c.checklistsRename(),
		c.checklistsDrop(),
		c.checklistsClaim(),
		c.checklistsDone(),
		c.checklistsFail(),
		c.checklistsRelease(),
		c.checklistsExtend(),
		c.checklistsWork(),
		c.checklistsKill(),
		c.checklistsRedrive(),
		c.checklistsFind(),
		c.checklistsProgress(),
		c.checklistsRecount(),
		c.checklistsDoctor(),
		c.checklistsSet(),
		c.checklistsPause("pause", "Let claims get nothing; all else goes on", true),
		c.checklistsPause("resume", "Let claims get what is ready again", false),
	)
	return cmd
}

func (c *cli) checklistsIncrement() *cobra.Command {
	return c.onItems("increment", "Add an attempt to items",
		func(ctx context.Context, s *checklists.Store, list string, items []string) error {
			n, err := s.Increment(ctx, list, items...)
			if err != nil {
				return err
			}
			return c.result(fmt.Sprintf("incremented %d", n), map[string]int64{"incremented": n})
		})
}

func (c *cli) checklistsDelete() *cobra.Command {
	return c.onItems("delete", "Take items off a list",
		func(ctx context.Context, s *checklists.Store, list string, items []string) error {
			n, err := s.Delete(ctx, list, items...)
			if err != nil {
				return err
			}
			return c.result(fmt.Sprintf("deleted %d", n), map[string]int64{"deleted": n})
		})
}

// onItems is a command about items that are named on the line, or on stdin
// where the only one is "-".
func (c *cli) onItems(verb, short string, do func(context.Context, *checklists.Store, string, []string) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " LIST ITEM...",
		Short: short,
		Long:  short + ". A single - reads the items from stdin, one a line.",
		Example: fmt.Sprintf(`  howdah checklists %[1]s downloads a.txt b.txt
  howdah checklists %[1]s downloads - < names.txt`, verb),
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			items := args[1:]
			if len(items) == 1 && items[0] == "-" {
				var err error
				if items, err = c.readNames(cmd.Context()); err != nil {
					return err
				}
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return do(ctx, client.Checklists, args[0], items)
			})
		},
	}
}

func (c *cli) checklistsGet() *cobra.Command {
	return &cobra.Command{
		Use:     "get LIST ITEM",
		Short:   "One item",
		Example: "  howdah checklists get downloads a.txt",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				item, err := client.Checklists.Get(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return c.result(itemWords(item), item)
			})
		},
	}
}

func itemWords(item checklists.Item) string {
	words := fmt.Sprintf("%s  attempts %d", printable(item.Name), item.Attempts)
	if item.Priority != 0 {
		words += fmt.Sprintf("  priority %d", item.Priority)
	}
	if !item.State.IsZero() {
		words += "  " + string(item.State)
	}
	if !item.Due.IsZero() {
		words += " until " + clock(item.Due)
	}
	if item.Error != "" {
		words += "  error: " + printable(item.Error)
	}
	if item.Payload != nil {
		words += "  payload: " + printable(string(item.Payload))
	}
	return words
}

func (c *cli) checklistsPage() *cobra.Command {
	var page page
	cmd := &cobra.Command{
		Use:     "page LIST",
		Short:   "A page of items, in order",
		Example: "  howdah checklists page downloads --limit 2 --after a.txt",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				items, err := client.Reads().Checklists.Page(ctx, args[0], page.start(cmd), page.limit)
				if err != nil {
					return err
				}
				return rows(c, []string{"item", "attempts", "state"}, func(i checklists.Item) []any {
					return []any{i.Name, i.Attempts, orDash(string(i.State))}
				}, sequence(items))
			})
		},
	}
	page.flags(cmd)
	return cmd
}

// page is the flags of commands that print one.
type page struct {
	after string
	limit int
}

func (p *page) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.after, "after", "", "begin after this name; the empty name is a name too")
	cmd.Flags().IntVar(&p.limit, "limit", 100, fmt.Sprintf("at most so many, 1 to %d", checklists.MaxPage))
}

// start is nil where --after was not given.
func (p *page) start(cmd *cobra.Command) *string {
	if cmd.Flags().Changed("after") {
		return &p.after
	}
	return nil
}
