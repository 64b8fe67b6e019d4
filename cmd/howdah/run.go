package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// consumer is the flags of what hands the feed on.
type consumer struct {
	changes.ConsumerConfig
	until  string
	tables []string
	sql    string
}

func (c *cli) changesRun() *cobra.Command {
	var r consumer
	cmd := &cobra.Command{
		Use:   "run NAME",
		Short: "Hand changes on, each once and in order, until interrupted",
		Long: `Hands the changes of tables on, each once and in order, until it is interrupted, or up
to --until. How far it has come is kept under its name: run again, after whatever
end, it goes on there. Run twice at a time, one goes on when the other ends.

With --sql a statement is run once for each change, $1 being the change as JSON; what
it writes is committed together with how far the consumer has come, so it happens
exactly once. A change that fails again and again is put aside with later ones of its
key (howdah changes parked), and the others go on.`,
		Example: `  howdah changes run copy --table public.users --sql 'SELECT apply_change($1::jsonb)'
  howdah changes run copy --table public.users --sql 'SELECT apply_change($1::jsonb)' --from start --until now`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			return c.open(cmd, r.connections, func(ctx context.Context, client *howdah.Client, private bool) error {
				if private {
					if err := client.Migrate(ctx); err != nil {
						return err
					}
				}
				return c.runConsumer(ctx, client, &r, cmd.Flags().Changed("from"))
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&r.tables, "table", nil, "schema.table, schema.*, message.topic.* or *, perhaps with :insert (default all)")
	flags.StringVar(&r.sql, "sql", "", "run this once for each change; $1 is the change as JSON")
	flags.StringVar(&r.From, "from", "now", "where a new one begins: start, now, a position or a time")
	flags.StringVar(&r.until, "until", "", "end when all up to there has been handled: now, a position or a time")
	flags.IntVar(&r.Shards, "shards", 1, "parts handled beside each other, a key always in the same")
	flags.IntVar(&r.Batch, "batch", 100, "most changes in one transaction")
	flags.BoolVar(&r.Echo, "echo", false, "hand it what it caused itself, too")
	flags.DurationVar(&r.Timeout, "timeout", 0, "for the changes of one transaction to be handled (default 30s)")
	return cmd
}

// connections makes room for the shards in the pool.
func (r *consumer) connections(cfg *howdah.Config) {
	if r.Shards > 8 && cfg.Database.MaxConns == 0 {
		cfg.Database.MaxConns = r.Shards + 8
	}
}

// sink is what is done with the changes: the one that the flags name.
func (r *consumer) sink(ctx context.Context, client *howdah.Client) (changes.Handler, error) {
	if r.sql == "" {
		return nil, pg.Refuse("--sql", "is missing: what is to be done with the changes?")
	}
	if err := checkStatement(ctx, client, r.sql); err != nil {
		return nil, err
	}
	return changes.SQL(r.sql), nil
}

// checkStatement refuses what would fail on each change.
func checkStatement(ctx context.Context, client *howdah.Client, statement string) error {
	return client.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		d, err := conn.Conn().Prepare(ctx, "", statement)
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr):
			return pg.Refuse("--sql", "%s", pgErr.Message)
		case err == nil && len(d.ParamOIDs) > 1:
			return pg.Refuse("--sql", "wants $%d; there is only $1, the change as JSON", len(d.ParamOIDs))
		}
		return err
	})
}

func (c *cli) runConsumer(ctx context.Context, client *howdah.Client, r *consumer, from bool) error {
	sink, err := r.sink(ctx, client)
	if err != nil {
		return err
	}
	consumer := changes.NewConsumer(client.Pool, client.Hub, r.ConsumerConfig)
	if len(r.tables) == 0 {
		r.tables = []string{"*"}
	}
	for _, pattern := range r.tables {
		consumer.Handle(pattern, sink)
	}
	if s, err := client.Changes.Consumer(ctx, r.Name); err == nil && from {
		c.note(fmt.Sprintf("%s is there already and goes on after %s; howdah changes seek moves it", r.Name, s.Position))
	}
	if err := consumer.Register(ctx); err != nil {
		return err
	}
	s, err := client.Changes.Consumer(ctx, r.Name)
	if err != nil {
		return err
	}
	if s.State == "paused" || s.State == "expired" {
		c.note(fmt.Sprintf("%s is %s and stands still: %s", r.Name, s.State, s.Reason))
	}
	if r.until == "" {
		return client.Following(ctx, func(ctx context.Context, _ *changes.Tail) error { return consumer.Run(ctx) })
	}
	end, err := client.Changes.Find(ctx, r.until)
	if err != nil {
		return err
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
		err := client.Changes.Wait(ctx, r.Name, end)
		over := ctx.Err() != nil
		stop()
		running.Wait()
		if ended != nil || over { // the consumer's own error, or interrupted
			return ended
		}
		return err
	})
}
