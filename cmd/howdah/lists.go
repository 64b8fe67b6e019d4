package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) checklistsInsert() *cobra.Command {
	var priority int
	var payload, due string
	var overwrite bool
	cmd := c.onItems("insert", "Put items on a list; those already there are skipped",
		func(ctx context.Context, s *checklists.Store, list string, names []string) (err error) {
			all := checklists.Item{Priority: priority, Payload: json.RawMessage(payload)}
			if due != "" {
				if all.Due, err = time.Parse(time.RFC3339Nano, due); err != nil {
					return pg.Refuse("--due", "%q; want a time such as 2026-11-20T14:00:00Z", due)
				}
			}
			items := make([]checklists.Item, len(names))
			for i, name := range names {
				items[i] = all
				items[i].Name = name
			}
			if !overwrite {
				added, err := s.InsertItems(ctx, list, items...)
				if err != nil {
					return err
				}
				return c.imported(checklists.Imported{Added: added, Skipped: int64(len(items)) - added})
			}
			added, changed, err := s.Upsert(ctx, list, items...)
			if err != nil {
				return err
			}
			skipped := int64(len(items)) - added - changed
			return c.result(fmt.Sprintf("added %d, changed %d, skipped %d", added, changed, skipped),
				map[string]int64{"added": added, "changed": changed, "skipped": skipped})
		})
	cmd.Example += `
  howdah checklists insert downloads c.txt --priority 5 --payload '{"size":1024}' --overwrite`
	cmd.Flags().IntVar(&priority, "priority", 0, "5 is claimed first, -5 last")
	cmd.Flags().StringVar(&payload, "payload", "", "JSON that a claim hands out with the item")
	cmd.Flags().StringVar(&due, "due", "", "may be claimed from this time on, such as 2026-11-20T14:00:00Z")
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "give priority, payload and due to those already there, too")
	return cmd
}

func (c *cli) checklistsLists() *cobra.Command {
	var page page
	cmd := &cobra.Command{
		Use:     "lists",
		Short:   "The lists, in order, and how far they are",
		Example: "  howdah checklists lists --limit 20",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				lists, err := client.Reads().Checklists.Lists(ctx, page.start(cmd), page.limit)
				if err != nil {
					return err
				}
				return rows(c, []string{"list", "total", "done", "left", "dead", "rate", "eta", "paused"}, listCells, sequence(lists))
			})
		},
	}
	page.flags(cmd)
	return cmd
}

func listCells(l checklists.List) []any {
	p := l.Progress
	if p == nil { // a plain table
		return []any{l.Name, "-", "-", "-", "-", "-", "-", "-"}
	}
	rate, eta, paused := "-", "-", "-"
	if p.Rate > 0 {
		rate, eta = fmt.Sprintf("%.3g/s", p.Rate), p.ETA.Round(time.Second).String()
	}
	if p.Paused {
		paused = "paused"
	}
	return []any{l.Name, grouped(p.Total), grouped(p.Done), grouped(p.Left), grouped(p.Dead), rate, eta, paused}
}

func (c *cli) checklistsRename() *cobra.Command {
	return &cobra.Command{
		Use:     "rename LIST NAME",
		Short:   "Give a list another name",
		Long:    "Gives a list another name, of no list with items. Who has claimed items of it loses them.",
		Example: "  howdah checklists rename downloads old",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if p, err := client.Checklists.Progress(ctx, args[0]); err == nil && p.Left+p.Dead > 100_000 { // else Rename tells what is wrong
					c.note(fmt.Sprintf("rewriting %s; until all of them are, nobody sees a difference", quantity(p.Left+p.Dead, "item")))
				}
				n, err := client.Checklists.Rename(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return c.told("renamed", n, nil)
			})
		},
	}
}

func (c *cli) checklistsDrop() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "drop LIST",
		Short: "Take a list away with all that is known of it",
		Long: `Takes a list away with its items, whoever has them, its settings, its counts and
what it kept as done. It asks before it does.`,
		Example: "  howdah checklists drop downloads --yes",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				words, err := dropping(ctx, client.Checklists, args[0])
				if err != nil {
					return err
				}
				if err := c.sure(ctx, yes, words); err != nil {
					return err
				}
				n, err := client.Checklists.Drop(ctx, args[0])
				if err != nil {
					return err
				}
				return c.result(fmt.Sprintf("dropped %s with %s", printable(args[0]), quantity(n, "item")), map[string]int64{"deleted": n})
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// dropping says what there is of a list that is to go.
func dropping(ctx context.Context, s *checklists.Store, list string) (string, error) {
	p, err := s.Progress(ctx, list)
	switch {
	case errors.Is(err, checklists.ErrPlain):
		return "drop " + printable(list), nil
	case err != nil:
		return "", err
	}
	return "drop " + printable(list) + " (" + progressWords(p) + ")", nil
}
