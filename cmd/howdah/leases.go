package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) checklistsClaim() *cobra.Command {
	var n int
	var lease, wait time.Duration
	var worker string
	cmd := &cobra.Command{
		Use:   "claim LIST",
		Short: "Take items that are ready, for some time",
		Long: `Takes items that are ready, so that nobody else gets them until the lease ends.
In a pipe the first line is the lease, whose token the other commands want, then
comes an item a line.`,
		Example: "  howdah checklists claim downloads -n 100 --lease 5m --worker w1 > batch.jsonl",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				var claim checklists.Claim
				take := func(ctx context.Context, _ *changes.Tail) (err error) {
					claim, err = checklists.NewWaiter(client.Checklists, client.Hub).Claim(ctx, args[0], worker, n, lease, wait)
					return err
				}
				var err error
				if wait == 0 {
					err = take(ctx, nil)
				} else {
					err = client.Following(ctx, take)
				}
				if err != nil {
					return err
				}
				items := claim.Items
				switch claim.Items = nil; {
				case len(items) > 0:
					err = c.result(fmt.Sprintf("lease %s until %s", claim.Token, clock(claim.Until)), struct {
						Lease string    `json:"lease"`
						Until time.Time `json:"until"`
					}{claim.Token, claim.Until})
				case claim.Paused:
					c.note("paused")
				case claim.Limited:
					c.note("the limits of the list allow no more now (set shows them)")
				default:
					c.note("nothing is ready")
				}
				if err != nil || len(items) == 0 {
					return err
				}
				return rows(c, []string{"item", "attempts"}, func(i checklists.Item) []any {
					return []any{i.Name, i.Attempts}
				}, sequence(items))
			})
		},
	}
	cmd.Flags().IntVarP(&n, "count", "n", 1, fmt.Sprintf("at most so many, 1 to %d", checklists.MaxClaim))
	cmd.Flags().DurationVar(&lease, "lease", time.Minute, "for so long, 1s to 24h")
	cmd.Flags().DurationVar(&wait, "wait", 0, "while nothing is ready, wait so long for something, up to 1m")
	cmd.Flags().StringVar(&worker, "worker", defaultWorker(), "who has them")
	return cmd
}

func defaultWorker() string {
	host, _ := os.Hostname()
	return host
}

// onLease is a command about items of a lease; without any on the line they are
// read from stdin, or, where whole is possible and asked for, all that it holds
// are meant.
func (c *cli) onLease(verb, past, short string, whole bool, do func(context.Context, *checklists.Store, checklists.Lease, []string) (int64, error)) *cobra.Command {
	var token string
	var all bool
	cmd := &cobra.Command{
		Use:   verb + " LIST [ITEM...]",
		Short: short,
		Long:  short + ". Without items they are read from stdin, one a line.",
		Example: fmt.Sprintf(`  howdah checklists %[1]s downloads --lease 0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e a.txt
  echo a.txt | howdah checklists %[1]s downloads --lease 0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e`, verb),
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			items := args[1:]
			if all && len(items) > 0 {
				return pg.Refuse("--all", "and items as well; want one of them")
			}
			if !all && (len(items) == 0 || len(items) == 1 && items[0] == "-") {
				var err error
				if items, err = c.readNames(cmd.Context()); err != nil || len(items) == 0 {
					return errors.Join(err, c.told(past, 0, err))
				}
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				n, err := do(ctx, client.Checklists, checklists.Lease{List: args[0], Token: token}, items)
				return errors.Join(err, c.told(past, n, err))
			})
		},
	}
	leaseFlag(cmd, &token)
	if whole {
		cmd.Flags().BoolVar(&all, "all", false, "all items that the lease still holds")
	}
	return cmd
}

func leaseFlag(cmd *cobra.Command, token *string) {
	cmd.Flags().StringVar(token, "lease", "", "the token that claim printed")
	cmd.MarkFlagRequired("lease")
}

// told prints how many a command did; where it failed, it only notes them.
func (c *cli) told(past string, n int64, err error) error {
	words := fmt.Sprintf("%s %d", past, n)
	switch {
	case err == nil:
		return c.result(words, map[string]int64{past: n})
	case n > 0:
		c.note("before the error: " + words)
	}
	return nil
}

func (c *cli) readNames(ctx context.Context) ([]string, error) {
	return interruptible(ctx, func() (names []string, err error) {
		for item, err := range checklists.ReadItems(c.in, checklists.Text) {
			if err != nil {
				return nil, err
			}
			names = append(names, item.Name)
		}
		return names, nil
	})
}

func (c *cli) checklistsDone() *cobra.Command {
	return c.onLease("done", "done", "Take claimed items off their list, as done", true,
		func(ctx context.Context, s *checklists.Store, l checklists.Lease, items []string) (int64, error) {
			return s.Done(ctx, l, items...)
		})
}

func (c *cli) checklistsRelease() *cobra.Command {
	return c.onLease("release", "released", "Give claimed items back, as if they had never been claimed", true,
		func(ctx context.Context, s *checklists.Store, l checklists.Lease, items []string) (int64, error) {
			return s.Release(ctx, l, items...)
		})
}

func (c *cli) checklistsFail() *cobra.Command {
	var text string
	var retry time.Duration
	var dead bool
	cmd := c.onLease("fail", "failed", "Say that an attempt at claimed items failed", false,
		func(ctx context.Context, s *checklists.Store, l checklists.Lease, items []string) (int64, error) {
			failures := make([]checklists.Failure, len(items))
			for i, item := range items {
				failures[i] = checklists.Failure{Item: item, Error: text, RetryIn: retry}
				if dead {
					failures[i].RetryIn = -1
				}
			}
			return s.Fail(ctx, l, failures...)
		})
	cmd.Flags().StringVar(&text, "error", "", "why")
	cmd.Flags().DurationVar(&retry, "retry-in", 0, "try again after so long, instead of the list's backoff")
	cmd.Flags().BoolVar(&dead, "dead", false, "do not try again")
	cmd.MarkFlagsMutuallyExclusive("retry-in", "dead")
	return cmd
}

func (c *cli) checklistsExtend() *cobra.Command {
	var token string
	var d time.Duration
	cmd := &cobra.Command{
		Use:     "extend LIST",
		Short:   "Let a lease end later",
		Example: "  howdah checklists extend downloads --lease 0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e --for 5m",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				n, err := client.Checklists.Extend(ctx, checklists.Lease{List: args[0], Token: token}, d)
				return errors.Join(err, c.told("extended", n, err))
			})
		},
	}
	leaseFlag(cmd, &token)
	cmd.Flags().DurationVar(&d, "for", time.Minute, "so long from now, 1s to 24h")
	return cmd
}

func (c *cli) checklistsKill() *cobra.Command {
	var reason string
	cmd := c.onItems("kill", "Give items up, whoever has them",
		func(ctx context.Context, s *checklists.Store, list string, items []string) error {
			n, err := s.Kill(ctx, list, reason, items...)
			return errors.Join(err, c.told("killed", n, err))
		})
	cmd.Flags().StringVar(&reason, "reason", "", "why; find shows it")
	return cmd
}

// query is the flags of commands about items of some kind.
type query struct {
	checklists.Query
	after string
}

func (q *query) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar((*string)(&q.State), "state", "", strings.Join(checklists.States, ", "))
	cmd.Flags().StringVar(&q.Error, "error", "", "with this in their error")
	cmd.Flags().StringVar(&q.after, "after", "", "that follow this name; the empty name is a name too")
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "at most so many; 0: any number")
}

func (q *query) of(cmd *cobra.Command) checklists.Query {
	if cmd.Flags().Changed("after") {
		q.After = &q.after
	}
	return q.Query
}

func (c *cli) checklistsFind() *cobra.Command {
	var q query
	cmd := &cobra.Command{
		Use:   "find LIST",
		Short: "The items in some state, or with some error",
		Example: `  howdah checklists find downloads --state dead
  howdah checklists find downloads --error 503`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return rows(c, []string{"item", "attempts", "state", "tried", "error"}, func(i checklists.Item) []any {
					return []any{i.Name, i.Attempts, i.State, orDash(clock(i.Tried)), orDash(i.Error)}
				}, client.Reads().Checklists.Find(ctx, args[0], q.of(cmd)))
			})
		},
	}
	q.flags(cmd)
	return cmd
}

func (c *cli) checklistsRedrive() *cobra.Command {
	var q query
	cmd := &cobra.Command{
		Use:   "redrive LIST [ITEM...]",
		Short: "Make dead items ready again, with no attempts",
		Long: `Makes dead items ready again, with no attempts: those named, else all, or those
with some error. A single - reads the items from stdin, one a line.`,
		Example: `  howdah checklists redrive downloads
  howdah checklists redrive downloads c.txt d.txt
  howdah checklists redrive downloads --error 503`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := someOf(cmd, "error"); err != nil { // all that is dead would be redriven
				return err
			}
			of := q.of(cmd)
			if len(args) > 1 {
				of.Items = args[1:]
			}
			if len(args) == 2 && args[1] == "-" {
				names, err := c.readNames(cmd.Context())
				if err != nil {
					return err
				}
				of.Items = append([]string{}, names...) // naming none of them is not naming all
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				n, err := client.Checklists.Redrive(ctx, args[0], of)
				return errors.Join(err, c.told("redriven", n, err))
			})
		},
	}
	q.flags(cmd)
	return cmd
}

// orDash marks a cell that has nothing to say.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// clock is a time for people; "" is never.
func clock(t time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case time.Until(t).Abs() > 12*time.Hour:
		return t.Local().Format(time.DateTime)
	}
	return t.Local().Format(time.TimeOnly)
}
