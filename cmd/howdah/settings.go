package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
)

func (c *cli) checklistsProgress() *cobra.Command {
	return &cobra.Command{
		Use:     "progress LIST",
		Short:   "How far a list is",
		Example: "  howdah checklists progress downloads",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				p, err := client.Reads().Checklists.Progress(ctx, args[0])
				if err != nil {
					return err
				}
				return c.result(progressWords(p), p)
			})
		},
	}
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
				now, err := client.Checklists.Settings(ctx, args[0])
				changed := false
				for flag, change := range map[string]func(){
					"max-attempts": func() { now.MaxAttempts = set.MaxAttempts },
					"backoff":      func() { now.Backoff = set.Backoff },
					"backoff-max":  func() { now.BackoffMax = set.BackoffMax },
					"keep-done":    func() { now.KeepDone = set.KeepDone },
					"max-leased":   func() { now.MaxLeased = set.MaxLeased },
					"rate":         func() { now.Rate = set.Rate },
				} {
					if !cmd.Flags().Changed(flag) {
						continue
					}
					if errors.Is(err, checklists.ErrNoList) { // a list may be given settings before it has items
						now, err = checklists.DefaultSettings, nil
					}
					changed = true
					change()
				}
				if err == nil && changed {
					err = client.Checklists.Set(ctx, args[0], now)
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
