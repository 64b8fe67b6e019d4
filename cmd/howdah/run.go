package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// consumer is the flags of what hands the feed on.
type consumer struct {
	changes.ConsumerConfig
	until  string
	fill   bool
	tables []string
	sink   sinkFlags
	save   bool
}

func (c *cli) changesRun() *cobra.Command {
	var r consumer
	cmd := &cobra.Command{
		Use:   "run NAME",
		Short: "Hand changes on, each once and in order, until interrupted",
		Long: `Hands the changes of tables on, each once and in order, until it is interrupted, or up
to --until, which is an error where it is interrupted before, or where it stands still or
the feed has not come to that (exit code 5). How far it has come is kept under its name:
run again, after whatever end, it goes on there. Run twice at a time, one goes on when the
other ends.

One flag says what is done with them. With --sql a statement is run once for each change, $1 being the change as JSON; what
it writes is committed together with how far the consumer has come, so it happens
exactly once. A change that fails again and again is put aside with later ones of its
key (howdah changes parked), and the others go on.

--webhook posts them as CloudEvents, signed with the secrets of a file, one a line;
--exec runs a command with changes as lines of JSON on its stdin; --lines prints them;
--notify announces them on the channels create_or_update_record and delete_record.
These happen at least once, and a repeat bears the same position.

With --backfill a new consumer is also handed the rows that its tables have already,
each as it stands at a place in the feed. With --save it is not run here: every howdah
serve does, until it is forgotten.`,
		Example: `  howdah changes run copy --table public.users --sql 'SELECT apply_change($1::jsonb)'
  howdah changes run copy --table public.users --sql 'SELECT apply_change($1::jsonb)' --from start --until now
  howdah changes run copy --table public.users --backfill --sql 'SELECT apply_change($1::jsonb)'
  howdah changes run shipping --table public.orders --webhook https://example.com/hook --secret-file s.key
  howdah changes run index --exec -- ./reindex --fast
  howdah changes run ruby --notify --save`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			if err := someOf(cmd, "shards", "batch", "chunk", "timeout", "from", "until", "sql", "webhook", "secret-file"); err != nil {
				return err
			}
			if err := r.sink.read(cmd.Context(), c, args[1:]); err != nil {
				return err
			}
			if r.fill {
				if err := r.backfill(); err != nil {
					return err
				}
			}
			if r.save && (r.sink.Kept == nil || r.until != "") {
				return pg.Refuse("--save", "cannot be had with --exec, --lines and --until: a server runs it")
			}
			return endedWell(cmd.Context(), r.until, c.withConfig(cmd, r.connections, func(ctx context.Context, client *howdah.Client) error {
				return c.runConsumer(ctx, client, &r, cmd.Flags().Changed("from"))
			}))
		},
	}
	flags := cmd.Flags()
	flags.Var((*names)(&r.tables), "table", "schema.table, schema.*, message.topic.* or *, perhaps with :insert,update (default all)")
	r.sink.flags(flags)
	flags.BoolVar(&r.fill, "backfill", false, "hand a new one the rows that the tables have, too")
	flags.IntVar(&r.Chunk, "chunk", 0, "rows of a backfill read at a time (default 1000)")
	flags.BoolVar(&r.save, "save", false, "keep it in the database, for every howdah serve to run")
	flags.StringVar(&r.From, "from", "now", "where a new one begins: start, now, a position or a time")
	flags.StringVar(&r.until, "until", "", "end when all up to there has been handled: now, a position or a time")
	flags.IntVar(&r.Shards, "shards", 1, "parts handled beside each other, a key always in the same")
	flags.IntVar(&r.Batch, "batch", 100, "most changes in one transaction")
	flags.BoolVar(&r.Echo, "echo", false, "hand it what it caused itself, too")
	flags.DurationVar(&r.Timeout, "timeout", 0, "for the changes of one transaction to be handled (default 30s)")
	return cmd
}

// someOf refuses flags that are given and say nothing, as an empty variable of a script does: in Go
// that is the default, which who gives a flag does not mean.
func someOf(cmd *cobra.Command, flags ...string) error {
	for _, name := range flags {
		f := cmd.Flags().Lookup(name)
		text, nothing := f.Value.String(), []string{"0", "0s"}
		switch f.Value.Type() {
		case "string": // such as a position, which may be 0
			nothing = []string{""}
		case "stringSlice":
			text, nothing = strings.Trim(text, "[]"), []string{""}
		}
		if f.Changed && slices.Contains(nothing, text) {
			return pg.Refuse("--"+name, "%q; want more than nothing", text)
		}
	}
	return nil
}

// connections makes room for the shards in the pool.
func (r *consumer) connections(cfg *howdah.Config) {
	if r.Shards > 8 && cfg.Database.MaxConns == 0 {
		cfg.Database.MaxConns = r.Shards + 8
	}
}

// backfill names the tables that are to be read: those that --table names.
func (r *consumer) backfill() error {
	for _, text := range r.tables {
		table, _, _ := strings.Cut(text, ":")
		if strings.Contains(table, "*") {
			return pg.Refuse("--backfill", "%q is no table; name each with --table", text)
		}
		r.Backfill = append(r.Backfill, table)
	}
	if len(r.Backfill) == 0 {
		return pg.Refuse("--backfill", "of which tables? name them with --table")
	}
	return nil
}

func (c *cli) runConsumer(ctx context.Context, client *howdah.Client, r *consumer, from bool) error {
	if err := r.sink.check(ctx, client); err != nil {
		return err
	}
	if len(r.tables) == 0 {
		r.tables = []string{"*"}
	}
	patterns, err := changes.ParsePatterns(r.tables...)
	if err != nil {
		return pg.Renamed("--table", err)
	}
	r.tables = nil
	for _, pattern := range patterns {
		r.tables = append(r.tables, pattern.String())
	}
	var end changes.Position
	if r.until != "" { // before anything is written
		if end, err = c.end(ctx, client, r.until); err != nil {
			return err
		}
	}
	if s, err := client.Changes.Consumer(ctx, r.Name); err == nil {
		if from {
			c.note(fmt.Sprintf("%s is there already and goes on after %s; howdah changes seek moves it", r.Name, s.Position))
		}
		if r.fill && len(s.Backfill) == 0 && (r.save || s.State != "expired") { // which begins anew where it is run here
			c.note(fmt.Sprintf("%s is there already and reads no rows for --backfill; howdah changes backfill has it read them anew", r.Name))
		}
	}
	if r.save {
		if err := client.Changes.Save(ctx, r.ConsumerConfig, r.tables, *r.sink.Kept); err != nil {
			return err
		}
		return c.result(fmt.Sprintf("saved %s: %s", r.Name, r.sink.Kept), map[string]string{"saved": r.Name, "sink": r.sink.Kept.String()})
	}
	consumer := changes.NewConsumer(client.Pool, client.Hub, r.ConsumerConfig)
	for _, pattern := range r.tables {
		consumer.Handle(pattern, r.sink.Handler)
	}
	var s changes.Status
	if err := c.reconnecting(ctx, func() (err error) {
		if err = consumer.Register(ctx); err == nil {
			s, err = client.Changes.Consumer(ctx, r.Name)
		}
		return err
	}); err != nil {
		return err
	}
	if s.State == "paused" || s.State == "expired" {
		c.note(fmt.Sprintf("%s is %s and stands still: %s", r.Name, s.State, s.Reason))
	}
	if out, ok := c.out.(*output); ok { // | head: nothing is wrong with the changes
		var stop context.CancelFunc
		ctx, stop = context.WithCancel(ctx)
		defer stop()
		out.enough = stop
	}
	if r.until == "" {
		return client.Following(ctx, func(ctx context.Context, _ *changes.Tail) error { return consumer.Run(ctx) })
	}
	return client.Following(ctx, func(ctx context.Context, _ *changes.Tail) error {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		var ended error
		var running sync.WaitGroup
		running.Go(func() {
			defer stop()
			ended = consumer.Run(ctx)
		})
		err := c.reconnecting(ctx, func() error { return comeTo(ctx, client.Changes, r.Name, end) })
		stop()
		running.Wait()
		if ended != nil { // which is why the other ended
			return ended
		}
		return err
	})
}

// comeTo waits until a consumer has handled all up to end. It returns Conflict, and why,
// where it stands still before.
func comeTo(ctx context.Context, l *changes.Log, name string, end changes.Position) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			s, err := l.Consumer(ctx, name)
			if err == nil && s.State == "paused" && (s.Position.Compare(end) < 0 || len(s.Backfill) > 0) {
				stop(fmt.Errorf("%s is paused at %s, before %s: %s; howdah changes resume %[1]s: %[5]w", name, s.Position, end, cmp.Or(s.Reason, "no reason was given"), fault.Conflict))
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
	err := l.Wait(ctx, name, end)
	stop(err)
	watching.Wait()
	if err != nil && errors.Is(context.Cause(ctx), fault.Conflict) {
		return context.Cause(ctx)
	}
	return err
}
