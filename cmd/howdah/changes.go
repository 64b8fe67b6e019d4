package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) changes() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "changes",
		Short: "What happened to tables, in one final order",
		Example: `  howdah changes capture public.orders
  howdah changes tail --from start --until now`,
		Args: cobra.NoArgs,
		RunE: help,
	}
	cmd.AddCommand(
		c.changesCapture(),
		c.changesPlan(),
		c.changesApply(),
		c.changesRelease(),
		c.changesList(),
		c.changesTail(),
		c.changesPosition(),
		c.changesEmit(),
		c.changesListen(),
		c.changesRun(),
		c.changesConsumers(),
		c.changesWait(),
		c.changesPause(),
		c.changesResume(),
		c.changesSeek(),
		c.changesReshard(),
		c.changesBackfill(),
		c.changesParked(),
		c.changesRetry(),
		c.changesSkip(),
		c.changesForget(),
		c.changesRetention(),
		c.changesRebase(),
		c.changesDoctor(),
		c.changesUninstall(),
	)
	return cmd
}

func (c *cli) changesCapture() *cobra.Command {
	var capture changes.Capture
	var ops []string
	cmd := &cobra.Command{
		Use:   "capture SCHEMA.TABLE",
		Short: "Begin to log the changes of a table, or log them otherwise",
		Example: `  howdah changes capture public.orders
  howdah changes capture public.users --payload full --except password
  howdah changes capture public.orders --ops insert,update --columns status`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			capture.Table = args[0]
			if err := someOf(cmd, "max-bytes"); err != nil {
				return err
			}
			if cmd.Flags().Changed("ops") {
				capture.Ops = []changes.Op{}
			}
			for _, op := range ops {
				capture.Ops = append(capture.Ops, changes.Op(op))
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return c.applied(client.Changes.Apply(ctx, []changes.Capture{capture}, false))
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&ops, "ops", nil, "insert, update, delete, truncate (default all)")
	flags.Var((*names)(&capture.Columns), "columns", "an update counts only if one of these changed")
	flags.Var((*names)(&capture.Except), "except", "columns left out")
	flags.StringVar(&capture.When, "when", "", "SQL condition over NEW and OLD")
	flags.Var((*names)(&capture.Key), "key", "columns of the key (default the primary key)")
	flags.StringVar((*string)(&capture.Payload), "payload", "", "keys, row, diff or full (default row)")
	flags.IntVar(&capture.MaxBytes, "max-bytes", 0, "leave out rows that are larger (default 1 MiB)")
	flags.BoolVar(&capture.Bulk, "bulk", false, "log by statement: faster for statements with many rows")
	flags.BoolVar(&capture.Always, "always", false, "also what replication applies")
	flags.StringVar(&capture.Wake, "wake", "", "notify or poll; poll for tables of prepared transactions (default notify)")
	return cmd
}

// applied prints what was done to which table.
func (c *cli) applied(steps []changes.Step, err error) error {
	for _, step := range steps {
		locked := step.Locked.Round(time.Millisecond)
		words := fmt.Sprintf("%s  %s  %s  (locked %d ms)", printable(step.Table), step.Action, quantity(step.Triggers, "trigger"), locked.Milliseconds())
		object := map[string]any{"table": step.Table, "action": step.Action, "triggers": step.Triggers, "locked_ms": locked.Milliseconds()}
		if err := c.result(words, object); err != nil {
			return err
		}
	}
	if len(steps) == 0 && err == nil {
		c.note("nothing to do")
	}
	return err
}

// captures are the file of plan and apply.
type captures struct {
	file  string
	prune bool
}

func (f *captures) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.file, "file", "f", "", `captures as JSON: {"captures":[{"table":"public.users","payload":"diff"}]}; - is stdin`)
	cmd.Flags().BoolVar(&f.prune, "prune", false, "end the captures that the file does not name")
	cmd.MarkFlagRequired("file") // the flag is there
}

func (c *cli) readCaptures(f *captures) ([]changes.Capture, error) {
	in, _, err := c.openInput(f.file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	var document struct {
		Captures []changes.Capture `json:"captures"`
	}
	name := f.file
	if name == "-" {
		name = "stdin"
	}
	const want = `want {"captures":[{"table":"public.users","payload":"diff"}]}`
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	err = d.Decode(&document)
	var mistyped *json.UnmarshalTypeError
	switch {
	case err == io.EOF:
		return nil, pg.Refuse(name, "is empty; %s", want)
	case errors.As(err, &mistyped):
		return nil, pg.Refuse(name, "%s at byte %d; %s", strings.TrimSpace(mistyped.Field+" is of type "+mistyped.Value), mistyped.Offset, want)
	case err != nil:
		return nil, pg.Refuse(name, "%v; %s", err, want)
	case document.Captures == nil: // with --prune it would end them all
		return nil, pg.Refuse(name, "has no captures; %s", want)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, pg.Refuse(name, "something follows the object")
	}
	return document.Captures, nil
}

// names is a flag of names, given at once with commas between, or one after another. A
// name may have quotes in it, and a comma where it is given in a file.
type names []string

func (n *names) Set(text string) error { *n = append(*n, strings.Split(text, ",")...); return nil }
func (n *names) String() string        { return strings.Join(*n, ",") }
func (n *names) Type() string          { return "strings" }

func (c *cli) changesPlan() *cobra.Command {
	var file captures
	cmd := &cobra.Command{
		Use:     "plan",
		Short:   "Print the SQL that apply would run, and change nothing",
		Example: `  howdah changes plan -f captures.json --prune`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := c.readCaptures(&file)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				steps, err := client.Changes.Plan(ctx, want, file.prune)
				if err != nil {
					return err
				}
				if len(steps) == 0 {
					c.note("nothing to do")
				}
				for _, step := range steps {
					words := fmt.Sprintf("-- %s %s\n%s;", step.Action, printable(step.Table), strings.Join(step.SQL, ";\n"))
					if err := c.result(words, step); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	file.flags(cmd)
	return cmd
}

func (c *cli) changesApply() *cobra.Command {
	var file captures
	cmd := &cobra.Command{
		Use:     "apply",
		Short:   "Make the captures what a file says, and mend what was changed by hand",
		Example: `  howdah changes apply -f captures.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := c.readCaptures(&file)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return c.applied(client.Changes.Apply(ctx, want, file.prune))
			})
		},
	}
	file.flags(cmd)
	return cmd
}

func (c *cli) changesRelease() *cobra.Command {
	return &cobra.Command{
		Use:     "release SCHEMA.TABLE",
		Short:   "End the capture of a table, or of all of a schema.*; what was logged stays",
		Example: `  howdah changes release public.users`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return c.applied(client.Changes.Release(ctx, args[0]))
			})
		},
	}
}

func (c *cli) changesList() *cobra.Command {
	var triggers, all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "What is captured; with --triggers, every trigger of the database",
		Example: `  howdah changes list
  howdah changes list --all
  howdah changes list --triggers`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if triggers {
					found, err := client.Changes.Triggers(ctx)
					if err != nil {
						return err
					}
					return rows(c, []string{"table_name", "trigger_name", "events", "enabled", "whose"}, func(t changes.Trigger) []any {
						return []any{t.Table, t.Name, t.Events, t.Enabled, t.Owner}
					}, sequence(found))
				}
				captured, err := client.Changes.Captures(ctx, all)
				if err != nil {
					return err
				}
				columns := []string{"table", "ops", "payload", "key"}
				if all {
					columns = append(columns, "owner")
				}
				return rows(c, columns, func(t changes.Capture) []any {
					ops := make([]string, len(t.Ops))
					for i, op := range t.Ops {
						ops[i] = string(op)
					}
					return []any{t.Table, strings.Join(ops, ","), t.Payload, strings.Join(t.Key, ","), cmp.Or(t.Owner, "-")}[:len(columns)]
				}, sequence(captured))
			})
		},
	}
	cmd.Flags().BoolVar(&triggers, "triggers", false, "every trigger of the database, ours and others'")
	cmd.Flags().BoolVar(&all, "all", false, "also what services of howdah capture for themselves")
	cmd.MarkFlagsMutuallyExclusive("triggers", "all")
	return cmd
}

func (c *cli) changesPosition() *cobra.Command {
	return &cobra.Command{
		Use:     "position",
		Short:   "Number what has committed and print the end of the feed",
		Example: `  howdah changes position`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				p, err := client.Changes.Find(ctx, "now")
				if err != nil {
					return err
				}
				return c.result(p.String(), map[string]changes.Position{"position": p})
			})
		},
	}
}

func (c *cli) changesEmit() *cobra.Command {
	return &cobra.Command{
		Use:     "emit TOPIC JSON",
		Short:   "Put a message into the feed",
		Example: `  howdah changes emit orders.shipped '{"id":1}'`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !json.Valid([]byte(args[1])) {
				return pg.Refuse("payload", "%.100q is no JSON", args[1])
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				err := client.Transact(ctx, func(_ pgx.Tx, s howdah.Services) error {
					return s.Changes.Emit(ctx, args[0], json.RawMessage(args[1]))
				})
				if err != nil {
					return err
				}
				return c.result("emitted "+args[0], map[string]string{"topic": args[0]})
			})
		},
	}
}

func (c *cli) changesDoctor() *cobra.Command {
	return doctorOf(c, "changes", "What is wrong with the captures and the log, and what to do", askChanges)
}

func askChanges(ctx context.Context, client *howdah.Client) ([]changes.Finding, error) {
	return client.Changes.Doctor(ctx)
}

func (c *cli) changesUninstall() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "uninstall",
		Short:   "Remove every capture and the feed with its log",
		Example: `  howdah changes uninstall --yes`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return pg.Refuse("--yes", "is missing: this removes the log with all that it holds")
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if err := client.Changes.Uninstall(ctx); err != nil {
					return err
				}
				return c.result("uninstalled", map[string]bool{"uninstalled": true})
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
