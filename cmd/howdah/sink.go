package main

import (
	"bufio"
	"context"
	"errors"
	"os/exec"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/pflag"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// sinkFlags say what is done with changes.
type sinkFlags struct {
	sql, webhook, secrets string
	perBatch, private     bool
	exec, lines, notify   bool

	Handler changes.Handler
	Kept    *changes.Sink // nil of those that cannot be kept
}

func (s *sinkFlags) flags(flags *pflag.FlagSet) {
	flags.StringVar(&s.sql, "sql", "", "run this once for each change; $1 is the change as JSON")
	flags.StringVar(&s.webhook, "webhook", "", "post each change to this URL")
	flags.StringVar(&s.secrets, "secret-file", "", "sign what is posted with the secrets in this file, the newest first")
	flags.BoolVar(&s.perBatch, "webhook-batch", false, "post all changes of a batch in one request")
	flags.BoolVar(&s.private, "allow-private", false, "post to hosts of this network, too")
	flags.BoolVar(&s.exec, "exec", false, "run the command behind -- with changes on its stdin, a line of JSON each")
	flags.BoolVar(&s.lines, "lines", false, "print changes, a line of JSON each")
	flags.BoolVar(&s.notify, "notify", false, "NOTIFY create_or_update_record or delete_record for each change")
}

// read makes the handler that the flags name; command is what stands behind --.
func (s *sinkFlags) read(ctx context.Context, c *cli, command []string) error {
	kinds := 0
	for _, given := range []bool{s.sql != "", s.webhook != "", s.exec, s.lines, s.notify} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return pg.Refuse("--sql", "is missing, or --webhook, --exec, --lines or --notify: what is to be done with the changes?")
	case kinds > 1:
		return pg.Refuse("--sql", "and --webhook, --exec, --lines, --notify: only one can be had")
	case s.exec != (len(command) > 0):
		return pg.Refuse("--exec", "goes with a command behind --, and that with it")
	case s.webhook == "" && (s.secrets != "" || s.perBatch || s.private):
		return pg.Refuse("--webhook", "is missing: --secret-file, --webhook-batch and --allow-private are for it")
	}
	switch {
	case s.exec:
		if _, err := exec.LookPath(command[0]); err != nil {
			return pg.Refuse("command", "%v", err)
		}
		s.Handler = c.whileRead(changes.Exec(command...))
		return nil
	case s.lines:
		s.Handler = changes.Lines(c.out)
		return nil
	case s.webhook != "":
		secrets, err := interruptible(ctx, func() ([]string, error) { return c.readSecrets(s.secrets) })
		if err != nil {
			return err
		}
		s.Kept = &changes.Sink{Webhook: &changes.WebhookConfig{URL: s.webhook, Secrets: secrets, Batch: s.perBatch, AllowPrivate: s.private}}
	default:
		s.Kept = &changes.Sink{SQL: s.sql, Notify: s.notify}
	}
	s.Handler = s.Kept.Handler()
	return s.Kept.Check()
}

// whileRead is a handler with an output of its own, which is ours. Where it fails and nobody
// reads that any longer (| head), nothing is wrong with the changes: all has been seen.
func (c *cli) whileRead(h changes.Handler) changes.Handler {
	out, file := c.piped()
	if file == nil {
		return h
	}
	return func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
		err := h(ctx, tx, cs)
		if err != nil && isUnread(file) {
			out.close()
		}
		return err
	}
}

// readSecrets reads a file of secrets, one a line: on the command line all could see them.
func (c *cli) readSecrets(path string) (secrets []string, err error) {
	if path == "" {
		return nil, nil
	}
	in, _, err := c.openInput(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	scan := bufio.NewScanner(in)
	for scan.Scan() {
		if line := strings.TrimSpace(scan.Text()); line != "" {
			secrets = append(secrets, line)
		}
	}
	if len(secrets) == 0 && scan.Err() == nil {
		return nil, pg.Refuse("--secret-file", "%s is empty", path)
	}
	return secrets, scan.Err()
}

// check refuses a statement that would fail on each change.
func (s *sinkFlags) check(ctx context.Context, client *howdah.Client) error {
	if s.sql == "" {
		return nil
	}
	return client.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		d, err := conn.Conn().Prepare(ctx, "", s.sql)
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
