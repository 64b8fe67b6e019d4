package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// tail is the flags of a reader of the feed.
type tail struct {
	from, until string
	tables, ops []string
	match       string
	chunk       int
}

func (c *cli) changesTail() *cobra.Command {
	var t tail
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the feed, a change a line, and follow it",
		Long: `Prints the feed, a change a line, and follows it until it is interrupted, or up to
--until, which is an error where it is interrupted before, or where the feed has not come
to it (exit code 5). Positions are those of the lines; a time such as 2026-11-20T14:00:00Z
stands for the position the feed had then.`,
		Example: `  howdah changes tail --from start --until now
  howdah changes tail --table public.users --op insert,update
  howdah changes tail --from 2026-11-20T14:00:00Z --match '{"status":"paid"}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := someOf(cmd, "until", "op", "match"); err != nil {
				return err
			}
			filter, err := t.filter()
			if err != nil {
				return err
			}
			return endedWell(cmd.Context(), t.until, c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return c.runTail(ctx, client, &t, filter)
			}))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&t.from, "from", "now", "start, now, a position or a time")
	flags.StringVar(&t.until, "until", "", "end there: now, a position or a time")
	flags.Var((*names)(&t.tables), "table", "schema.table, schema.*, message.topic.* or *, perhaps with :insert,update")
	flags.StringSliceVar(&t.ops, "op", nil, "insert, update, delete, truncate, message")
	flags.StringVar(&t.match, "match", "", "JSON object that the row contains")
	flags.IntVar(&t.chunk, "chunk", changes.MaxPage, "changes read at a time")
	flags.Lookup("chunk").Hidden = true // for tests
	return cmd
}

func (t *tail) filter() (f changes.Filter, err error) {
	if f.Patterns, err = changes.ParsePatterns(t.tables...); err != nil {
		return f, pg.Renamed("--table", err)
	}
	for _, op := range t.ops {
		if !slices.Contains([]string{"insert", "update", "delete", "truncate", "message"}, op) {
			return f, pg.Refuse("--op", "%q; want some of insert, update, delete, truncate, message", op)
		}
		f.Ops = append(f.Ops, changes.Op(op))
	}
	if t.match != "" {
		var object map[string]json.RawMessage
		if json.Unmarshal([]byte(t.match), &object) != nil || object == nil {
			return f, pg.Refuse("--match", "%.100q; want a JSON object", t.match)
		}
		f.Match = json.RawMessage(t.match)
	}
	return f, nil
}

func (c *cli) runTail(ctx context.Context, client *howdah.Client, t *tail, filter changes.Filter) error {
	at, err := c.find(ctx, client, "--from", t.from)
	switch {
	case err != nil && t.until == "":
		return interrupted(ctx, err)
	case err != nil:
		return err
	case t.until == "":
		return c.follow(ctx, client, at, filter)
	}
	end, err := c.end(ctx, client, t.until)
	if err != nil {
		return err
	}
	for { // once at least, which tells whether the position is in the feed
		var page []changes.Change
		var next changes.Position
		if err := c.reconnecting(ctx, func() (err error) {
			page, next, err = client.Changes.Page(ctx, at, t.chunk, filter)
			return err
		}); err != nil {
			return err
		}
		for _, change := range page {
			if change.Position.Compare(end) > 0 {
				return nil
			}
			if err := jsonLine(c.out, change); err != nil {
				return err
			}
		}
		if next == at || next.Compare(end) >= 0 {
			return nil
		}
		at = next
	}
}

// find returns the position that a flag names.
func (c *cli) find(ctx context.Context, client *howdah.Client, flag, name string) (at changes.Position, err error) {
	err = c.reconnecting(ctx, func() (err error) {
		at, err = client.Changes.Find(ctx, name)
		return err
	})
	return at, pg.Renamed(flag, err)
}

// end returns the position that --until names. It is an error that the feed has not come to
// it: nobody knows what will be before it.
func (c *cli) end(ctx context.Context, client *howdah.Client, name string) (changes.Position, error) {
	end, err := c.find(ctx, client, "--until", name)
	if err != nil {
		return end, err
	}
	err = c.reconnecting(ctx, func() error {
		_, _, err := client.Changes.Page(ctx, end, 1, changes.Filter{})
		return err
	})
	switch {
	case errors.Is(err, changes.ErrExpired): // what was before it is gone, too
		err = nil
	case err != nil:
		err = fmt.Errorf("--until: %w", err)
	}
	return end, err
}

// follow prints what comes until it is interrupted.
func (c *cli) follow(ctx context.Context, client *howdah.Client, at changes.Position, filter changes.Filter) error {
	return client.Following(ctx, func(ctx context.Context, tail *changes.Tail) error {
		for change, err := range tail.Watch(ctx, at, filter) {
			if err != nil {
				return interrupted(ctx, err)
			}
			if err := jsonLine(c.out, change); err != nil {
				return err
			}
		}
		return nil
	})
}

// interrupted is nil where err is only that the user has seen enough.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// endedWell is nil where err is that an interrupt came, before a command that goes on until
// there is one had begun. One that goes on until something else was not done then.
func endedWell(ctx context.Context, until string, err error) error {
	switch {
	case err != nil && ctx.Err() != nil && until != "":
		return ctx.Err()
	case errors.Is(err, context.Canceled):
		return interrupted(ctx, err)
	}
	return err
}

func (c *cli) changesListen() *cobra.Command {
	return &cobra.Command{
		Use:   "listen CHANNEL...",
		Short: "Print the notifications of channels, until interrupted",
		Long: `Prints the notifications of channels, one a line, until it is interrupted. What is
sent while nobody listens is gone, and what comes while 131,072 wait to be read; a line with
"gap" says that something of its channel may be. The lines are in the order in which the
transactions that sent them committed.`,
		Example: `  howdah changes listen create_or_update_record`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keep := func(cfg *howdah.Config) { cfg.Hub.Buffer = 1 << 17 } // who listens wants each, unlike who is only woken
			return endedWell(cmd.Context(), "", c.withConfig(cmd, keep, func(ctx context.Context, client *howdah.Client) error {
				return c.listen(ctx, client, args)
			}))
		},
	}
}

// listen prints what all channels say.
func (c *cli) listen(ctx context.Context, client *howdah.Client, channels []string) error {
	sub, err := client.Hub.Subscribe(channels...)
	if err != nil {
		return err
	}
	defer sub.Close()
	return client.Following(ctx, func(ctx context.Context, _ *changes.Tail) error {
		for {
			select {
			case n := <-sub.C():
				line := map[string]any{"channel": n.Channel, "payload": n.Payload, "pid": n.PID}
				if n.Gap {
					line = map[string]any{"channel": n.Channel, "gap": true}
				}
				if err := jsonLine(c.out, line); err != nil {
					return err
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
}
