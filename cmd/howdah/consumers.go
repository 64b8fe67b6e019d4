package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) changesConsumers() *cobra.Command {
	return &cobra.Command{
		Use:   "consumers [NAME]",
		Short: "Who is handed changes, and how far each has come",
		Example: `  howdah changes consumers
  howdah changes consumers billing`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				all, err := client.Changes.Consumers(ctx)
				if len(args) > 0 {
					all = make([]changes.Status, 1)
					all[0], err = client.Changes.Consumer(ctx, args[0])
				}
				if err != nil {
					return err
				}
				for _, s := range all {
					if s.Reason != "" && !c.wantsJSON() {
						c.note(fmt.Sprintf("%s is %s: %s", s.Name, s.State, s.Reason))
					}
				}
				return rows(c, []string{"name", "state", "shards", "position", "lag", "behind", "parked", "dead"}, func(s changes.Status) []any {
					behind := time.Duration(s.Behind * float64(time.Second)).Round(100 * time.Millisecond)
					return []any{s.Name, s.State, s.Shards, s.Position, s.Lag, behind, s.Parked, s.Dead}
				}, sequence(all))
			})
		},
	}
}

func (c *cli) changesWait() *cobra.Command {
	var timeout time.Duration
	var upTo string
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a consumer has handled all that is committed now",
		Long: `Waits until a consumer has handled all that is committed now, or what stands up to a
position. Exit code 6 says that it has not in the time given; 5, at once, that some of
it is parked, not counting what a retry has due, that the consumer has expired, or that the
feed has not come to the position.`,
		Example: `  howdah changes wait billing --timeout 10s`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return pg.Refuse("--timeout", "%v; want more than nothing", timeout)
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				end, err := client.Changes.Find(ctx, upTo)
				if err != nil {
					return pg.Renamed("--position", err)
				}
				waiting, cancel := context.WithTimeout(ctx, timeout)
				defer cancel()
				err = c.reconnecting(waiting, func() error { return client.Changes.Wait(waiting, args[0], end) })
				if errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("%s has not handled all up to %s within %v: %w", args[0], end, timeout, fault.Unavailable)
				}
				if err != nil {
					return err
				}
				return c.result(fmt.Sprintf("%s has handled all up to %s", args[0], end), map[string]any{"name": args[0], "position": end})
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "wait at most so long")
	cmd.Flags().StringVar(&upTo, "position", "now", "now, a position or a time")
	return cmd
}

func (c *cli) changesPause() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:     "pause NAME",
		Short:   "Have a consumer stand still; what it misses is kept",
		Example: `  howdah changes pause billing --reason 'prices are being mended'`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withConsumer(cmd, args[0], "paused", func(ctx context.Context, l *changes.Log) error {
				return l.Pause(ctx, args[0], reason)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "for those who wonder")
	return cmd
}

func (c *cli) changesResume() *cobra.Command {
	return &cobra.Command{
		Use:     "resume NAME",
		Short:   "Have a paused consumer go on",
		Example: `  howdah changes resume billing`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withConsumer(cmd, args[0], "resumed", func(ctx context.Context, l *changes.Log) error {
				return l.Resume(ctx, args[0])
			})
		},
	}
}

func (c *cli) changesSeek() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "seek NAME start|now|POSITION|TIME",
		Short: "Move a consumer to another place in the feed",
		Long: `Moves a consumer to another place in the feed. Moved back it is handed again what it
has handled; moved on it is never handed what lies between. Either is meant only with
--yes.`,
		Example: `  howdah changes seek billing start --yes`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return pg.Refuse("--yes", "is missing: back, what %s has handled is handled again; forth, what lies between never is", args[0])
			}
			return c.withConsumer(cmd, args[0], "moved", func(ctx context.Context, l *changes.Log) error {
				return l.Seek(ctx, args[0], args[1])
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func (c *cli) changesReshard() *cobra.Command {
	return &cobra.Command{
		Use:   "reshard NAME SHARDS",
		Short: "Have a consumer handled in another number of shards",
		Long: `Has a consumer handled in another number of shards. The present ones run to one place
in the feed, and the new ones go on there; so run it with the new number from now on:
it helps with the old shards until they are through. Those run with the old number end.
What is parked meanwhile is to be retried or skipped before; the old ones go on until then.`,
		Example: `  howdah changes reshard billing 4`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[1])
			if err != nil {
				return pg.Refuse("SHARDS", "%q; want a number", args[1])
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if err := client.Changes.Reshard(ctx, args[0], n); err != nil {
					return err
				}
				s, err := client.Changes.Consumer(ctx, args[0])
				if err != nil {
					return err
				}
				words := fmt.Sprintf("%s has %s", s.Name, quantity(s.Shards, "shard"))
				if s.NextShards > 0 {
					words += fmt.Sprintf(", and will have %d once these have come to one place and nothing is parked", s.NextShards)
				}
				return c.result(words, s)
			})
		},
	}
}

func (c *cli) changesBackfill() *cobra.Command {
	var yes, end bool
	cmd := &cobra.Command{
		Use:   "backfill NAME TABLE...",
		Short: "Have a consumer read the rows of tables anew, or no more of them",
		Long: `Has a consumer read the rows of tables as they stand, from the first on, beside what
happens to them: those that it was handed before it is handed again, so that it is meant
only with --yes. With --end it reads no more rows of the tables, or of any where none is
named, and goes on with what happens to them. A consumer that paused because it could not
read a table is resumed then: howdah changes resume NAME.`,
		Example: `  howdah changes backfill billing public.orders --yes
  howdah changes backfill billing public.orders --end
  howdah changes backfill billing --end`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, tables := args[0], args[1:]
			if end {
				return c.withConsumer(cmd, name, "ended", func(ctx context.Context, l *changes.Log) error {
					return l.EndBackfill(ctx, name, tables...)
				})
			}
			if !yes {
				return pg.Refuse("--yes", "is missing: rows that %s was handed before it is handed again", name)
			}
			return c.withConsumer(cmd, name, "begun", func(ctx context.Context, l *changes.Log) error {
				return l.Backfill(ctx, name, tables...)
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&end, "end", false, "read no more of their rows")
	return cmd
}

func (c *cli) changesForget() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "forget NAME",
		Short:   "Take a consumer away, with what is parked for it",
		Example: `  howdah changes forget billing --yes`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return pg.Refuse("--yes", "is missing: how far %s has come, and what is parked for it, is gone then", args[0])
			}
			return c.withConsumer(cmd, args[0], "forgotten", func(ctx context.Context, l *changes.Log) error {
				return l.Forget(ctx, args[0])
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

// withConsumer does something to a consumer and says that it is done.
func (c *cli) withConsumer(cmd *cobra.Command, name, done string, do func(context.Context, *changes.Log) error) error {
	return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
		if err := do(ctx, client.Changes); err != nil {
			return err
		}
		return c.result(done+" "+name, map[string]any{"name": name, done: true})
	})
}

func (c *cli) changesParked() *cobra.Command {
	var after string
	var limit int
	cmd := &cobra.Command{
		Use:     "parked NAME",
		Short:   "What a consumer could not handle, and what waits behind it",
		Example: `  howdah changes parked billing`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				position, err := changes.ParsePosition(after)
				if err != nil {
					return pg.Renamed("--after", err)
				}
				parked, err := client.Changes.Parked(ctx, args[0], position, limit)
				if err != nil {
					return err
				}
				return rows(c, []string{"position", "table", "op", "key", "attempts", "state", "error"}, func(p changes.Parked) []any {
					state := "again at " + p.Next.Local().Format(time.TimeOnly)
					switch {
					case p.Waits:
						state = "waits"
					case p.Dead:
						state = "dead"
					}
					first, _, _ := strings.Cut(p.Error, "\n") // a panic has its stack
					return []any{p.Change.Position, p.Change.Schema + "." + p.Change.Table, p.Change.Op, orDash(string(p.Change.Key)), p.Attempts, state, orDash(first)}
				}, sequence(parked))
			})
		},
	}
	cmd.Flags().StringVar(&after, "after", "0", "those after a position")
	cmd.Flags().IntVar(&limit, "limit", 100, "so many, 1 to 1000")
	return cmd
}

func (c *cli) changesRetry() *cobra.Command {
	return &cobra.Command{
		Use:   "retry NAME [POSITION...]",
		Short: "Try parked changes again at once: those at the positions, or all",
		Example: `  howdah changes retry billing
  howdah changes retry billing 1042.88213`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withParked(cmd, args, "retried", (*changes.Log).Retry)
		},
	}
}

func (c *cli) changesSkip() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "skip NAME POSITION...",
		Short: "Give parked changes up, so that those behind them are handled",
		Example: `  howdah changes skip billing 1042.88213
  howdah changes skip billing --all`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 1) {
				return pg.Refuse("POSITION", "want positions, or --all")
			}
			return c.withParked(cmd, args, "skipped", (*changes.Log).Skip)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all that is parked, those that wait too")
	return cmd
}

// withParked does something to parked changes and says to how many.
func (c *cli) withParked(cmd *cobra.Command, args []string, done string, do func(*changes.Log, context.Context, string, ...changes.Position) (int64, error)) error {
	var at []changes.Position
	for _, text := range args[1:] {
		p, err := changes.ParsePosition(text)
		if err != nil {
			return pg.Renamed("POSITION", err)
		}
		at = append(at, p)
	}
	return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
		n, err := do(client.Changes, ctx, args[0], at...)
		if err != nil {
			return err
		}
		return c.result(fmt.Sprintf("%s %s", done, grouped(n)), map[string]int64{done: n})
	})
}
