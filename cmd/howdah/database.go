package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/pg"
)

// database is where a command's data is, and how to leave it.
type database struct {
	pg.Config
	private *localpg.Server // nil where a URL was given
}

// locate finds the database, starting the private PostgreSQL where no URL is
// given. Tied, it ends with this process whatever happens to it.
func (c *cli) locate(ctx context.Context, tied bool) (*database, error) {
	if c.databaseURL == "" && c.databaseURLGiven {
		return nil, pg.Refuse("--database-url", "is empty; leave it out for the private PostgreSQL")
	}
	db := &database{Config: pg.Config{URL: c.databaseURL, ListenURL: c.listenURL, ReplicaURL: c.replicaURL, Pooler: c.pooler}}
	if db.URL != "" {
		return db, nil
	}
	level := slog.LevelWarn
	if tied {
		level = slog.LevelInfo
	}
	server, err := localpg.Start(ctx, localpg.Config{Dir: c.stateDir, Tied: tied, Say: c.note, Log: c.log(level)})
	if err != nil {
		return nil, err
	}
	db.private, db.URL = server, server.URL()
	return db, nil
}

// leave lets go of the private PostgreSQL; the last one out stops it.
func (db *database) leave(ctx context.Context) error {
	if db.private == nil {
		return nil
	}
	return db.private.Stop(context.WithoutCancel(ctx))
}

// with runs do on an open client. The private database is ours to migrate; one
// that a URL names is migrated when asked to, by migrate, serve or adopt.
func (c *cli) with(cmd *cobra.Command, do func(context.Context, *howdah.Client) error) error {
	return c.withConfig(cmd, nil, do)
}

// withConfig is with where set changes the client's settings.
func (c *cli) withConfig(cmd *cobra.Command, set func(*howdah.Config), do func(context.Context, *howdah.Client) error) error {
	return c.open(cmd, set, func(ctx context.Context, client *howdah.Client, private bool) error {
		if private {
			if err := client.Migrate(ctx); err != nil {
				return err
			}
		}
		return do(ctx, client)
	})
}

// open runs do on an open client, whose settings set may change; nothing is migrated.
func (c *cli) open(cmd *cobra.Command, set func(*howdah.Config), do func(ctx context.Context, client *howdah.Client, private bool) error) (err error) {
	ctx := cmd.Context()
	db, err := c.locate(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, db.leave(ctx)) }()
	cfg := howdah.Config{Database: db.Config, Counters: c.counting, Log: c.log(slog.LevelWarn)}
	if set != nil {
		set(&cfg)
	}
	client, err := howdah.OpenConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer client.Close()
	return do(ctx, client, db.private != nil)
}

func (c *cli) migrate() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Make the tables of the services",
		Long: `Makes what the services' tables lack in the database. A table of an original
system that is there stays as it is. Run it as often as you like.`,
		Example: `  howdah migrate --database-url postgres://app@db.example.com/app`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				if err := client.Migrate(ctx); err != nil {
					return err
				}
				return c.result("the database is ready", map[string]bool{"migrated": true})
			})
		},
	}
}

func (c *cli) url() *cobra.Command {
	return &cobra.Command{
		Use:   "url",
		Short: "Print the database's URL, password included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			db, err := c.locate(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer func() { err = cmp.Or(err, db.leave(cmd.Context())) }()
			if db.private != nil && !db.private.Reused() {
				c.note("this PostgreSQL runs while howdah does: start howdah serve to keep it up")
			}
			_, err = fmt.Fprintln(c.out, db.URL)
			return err
		},
	}
}

func (c *cli) psql() *cobra.Command {
	return &cobra.Command{
		Use:                "psql [-- ARGUMENTS OF PSQL]",
		Short:              "Open the database in psql",
		Example:            `  howdah psql -- -c 'SELECT list, count(*) FROM iidy.lists GROUP BY list'`,
		DisableFlagParsing: false,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			db, err := c.locate(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer func() { err = cmp.Or(err, db.leave(cmd.Context())) }()
			return c.runPsql(cmd.Context(), db, args)
		},
	}
}

// runPsql hands psql the password in its environment: arguments are there for
// every user of the machine to see.
func (c *cli) runPsql(ctx context.Context, db *database, args []string) error {
	cfg, err := db.Config.Direct()
	if err != nil {
		return err
	}
	binary, err := findPsql(db.private)
	if err != nil {
		return err
	}
	psql := exec.CommandContext(ctx, binary, append([]string{"--dbname", withoutPassword(cmp.Or(db.ListenURL, db.URL))}, args...)...)
	psql.Cancel = func() error { return nil } // it has the terminal: an interrupt is its own
	psql.Env = append(os.Environ(), "PGPASSWORD="+cfg.Password, "PGAPPNAME=howdah psql")
	psql.Stdin, psql.Stdout, psql.Stderr = c.in, c.out, c.err
	if out, ok := c.out.(*output); ok {
		psql.Stdout = out.Writer // the terminal itself, if it is one
	}
	err = psql.Run()
	if exit, ok := err.(*exec.ExitError); ok {
		return fmt.Errorf("psql: exit status %d", exit.ExitCode())
	}
	return err
}

var (
	passwordPair = regexp.MustCompile(`(^|\s)password\s*=\s*('(?:[^'\\]|\\.)*'|\S*)`)
	poolPair     = regexp.MustCompile(`(^|\s)(pool_\w+|default_query_exec_mode|statement_cache_capacity|description_cache_capacity)\s*=\s*\S*`)
)

// withoutPassword is a connection string for psql: all that it says of hosts and
// of TLS, without the password and without what only pgx understands.
func withoutPassword(conn string) string {
	u, err := url.Parse(conn)
	if err != nil || u.Scheme == "" {
		return poolPair.ReplaceAllString(passwordPair.ReplaceAllString(conn, ""), "")
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	query := u.Query()
	for name := range query {
		if name == "password" || poolPair.MatchString(name+"=") {
			query.Del(name)
		}
	}
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20") // libpq knows no plus
	return u.String()
}

func findPsql(private *localpg.Server) (string, error) {
	if private != nil {
		path := filepath.Join(private.BinDir(), "psql")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("psql")
	if err != nil {
		return "", fmt.Errorf("psql is not on PATH; install PostgreSQL's client, or use howdah url with another: %w", fault.NotFound)
	}
	return path, nil
}

// version is set by the release build.
var version = ""

func (c *cli) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := programVersion()
			return c.result("howdah "+v, map[string]string{"version": v})
		},
	}
}

func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// log writes what a server's operator acts on; a command tells its user only of
// trouble.
func (c *cli) log(level slog.Level) *slog.Logger {
	if c.quiet {
		level = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: level}))
}
