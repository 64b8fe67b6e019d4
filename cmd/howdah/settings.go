package main

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
)

func (c *cli) checklistsProgress() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "progress LIST",
		Short: "How far a list is",
		Long: `How far a list is. With --watch it goes on until it is interrupted: the line stays
up to date on a terminal; in a pipe there is a line whenever it has changed, at most
one a second.`,
		Example: `  howdah checklists progress downloads
  howdah checklists progress downloads --watch`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				store := client.Reads().Checklists
				if watch {
					return c.watch(store.Watch(ctx, args[0], 0))
				}
				p, err := store.Progress(ctx, args[0])
				if err != nil {
					return err
				}
				return c.result(progressWords(p), p)
			})
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "go on, and print what changes")
	return cmd
}

// watch prints what comes: JSON lines, or one line that is written over.
func (c *cli) watch(seen iter.Seq2[checklists.Progress, error]) (err error) {
	if c.wantsJSON() {
		for p, err := range seen {
			if err == nil {
				err = jsonLine(c.out, p)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	defer func() { fmt.Fprintln(c.out) }()
	for p, err := range seen {
		if err == nil {
			_, err = fmt.Fprint(c.out, "\r\x1b[K"+progressWords(p))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func progressWords(p checklists.Progress) string {
	words := fmt.Sprintf("%s done  %s dead  %s leased  %s left", grouped(p.Done), grouped(p.Dead), grouped(p.Leased), grouped(p.Left))
	if p.Rate > 0 {
		words += fmt.Sprintf("  %.3g/s  ETA %v", p.Rate, p.ETA.Round(time.Second))
	}
	if p.Paused {
		words += "  paused"
	}
	return words
}

// grouped writes 98211 as 98,211.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func (c *cli) checklistsRecount() *cobra.Command {
	return &cobra.Command{
		Use:   "recount [LIST]",
		Short: "Mend the counts after a restore, of one list or of all",
		Example: `  howdah checklists recount
  howdah checklists recount downloads`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list := ""
			if len(args) > 0 {
				list = args[0]
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if err := client.Checklists.Recount(ctx, list); err != nil {
					return err
				}
				return c.result("recounted", map[string]bool{"recounted": true})
			})
		},
	}
}

func (c *cli) checklistsDoctor() *cobra.Command {
	return doctorOf(c, "checklists", "What is wrong with the table and its counts, and what to do", askChecklists)
}

func askChecklists(ctx context.Context, client *howdah.Client) ([]checklists.Finding, error) {
	return client.Checklists.Doctor(ctx)
}

func (c *cli) checklistsSet() *cobra.Command {
	var set checklists.Settings
	cmd := &cobra.Command{
		Use:   "set LIST",
		Short: "Change, or without flags show, how a list hands out its items",
		Example: `  howdah checklists set downloads --max-attempts 5 --backoff 30s
  howdah checklists set downloads --rate 100 --max-leased 500`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				changes := map[string]func(*checklists.Settings){
					"max-attempts": func(now *checklists.Settings) { now.MaxAttempts = set.MaxAttempts },
					"backoff":      func(now *checklists.Settings) { now.Backoff = set.Backoff },
					"backoff-max":  func(now *checklists.Settings) { now.BackoffMax = set.BackoffMax },
					"keep-done":    func(now *checklists.Settings) { now.KeepDone = set.KeepDone },
					"max-leased":   func(now *checklists.Settings) { now.MaxLeased = set.MaxLeased },
					"rate":         func(now *checklists.Settings) { now.Rate = set.Rate },
				}
				maps.DeleteFunc(changes, func(flag string, _ func(*checklists.Settings)) bool { return !cmd.Flags().Changed(flag) })
				var now checklists.Settings
				var err error
				if len(changes) == 0 {
					now, err = client.Checklists.Settings(ctx, args[0])
				} else {
					now, err = client.Checklists.Change(ctx, args[0], func(now *checklists.Settings) {
						for _, change := range changes {
							change(now)
						}
					})
				}
				if err != nil {
					return err
				}
				return c.result(settingsWords(now), now)
			})
		},
	}
	flags, usual := cmd.Flags(), checklists.DefaultSettings
	flags.IntVar(&set.MaxAttempts, "max-attempts", usual.MaxAttempts, "a failure after so many is the last; 0: none is")
	flags.DurationVar(&set.Backoff, "backoff", usual.Backoff, "wait so long after the first failure, then twice as long each time")
	flags.DurationVar(&set.BackoffMax, "backoff-max", usual.BackoffMax, "wait at most so long")
	flags.BoolVar(&set.KeepDone, "keep-done", usual.KeepDone, "keep what is done, and do not put it on again")
	flags.IntVar(&set.MaxLeased, "max-leased", usual.MaxLeased, "at most so many are claimed at a time; 0: any number")
	flags.Float64Var(&set.Rate, "rate", usual.Rate, "at most so many are claimed a second; 0: any number")
	return cmd
}

func settingsWords(s checklists.Settings) string {
	words := fmt.Sprintf("max attempts %d  backoff %v to %v  keep done %v  max leased %d  rate %g", s.MaxAttempts, s.Backoff, s.BackoffMax, s.KeepDone, s.MaxLeased, s.Rate)
	if s.Paused {
		words += "  paused"
	}
	return words
}

func (c *cli) checklistsPause(verb, short string, paused bool) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " LIST",
		Short:   short,
		Example: fmt.Sprintf("  howdah checklists %s downloads", verb),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if err := client.Checklists.Pause(ctx, args[0], paused); err != nil {
					return err
				}
				return c.result(verb+"d", map[string]bool{"paused": paused})
			})
		},
	}
}
