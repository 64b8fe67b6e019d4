// Command howdah is the services as a server and on the command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

func main() { os.Exit(command()) }

func command() int {
	// A reader that has seen enough (| head) is told by an error of the write, so
	// that what we started is stopped on the way out. Not ignored, because the
	// programs that we run would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &defaultLevel})))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends us at once
	return run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
}

// defaultLevel is that of what goes to slog's default logger: what consumers meet.
var defaultLevel slog.LevelVar

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, env func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	out := &output{Writer: stdout}
	c := &cli{env: env, in: stdin, out: out, err: stderr}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil || out.closed.Load() {
		return 0
	}
	if !c.started { // cobra's own errors: unknown commands and flags, wrong arguments
		fmt.Fprintf(stderr, "howdah: %s%s\nusage: %s\nTry: %s --help\n", inOurWords(err), meant(cmd), cmd.UseLine(), cmd.CommandPath())
		return exitUsage
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	fmt.Fprintf(stderr, "howdah: %v\n", err)
	return exitCode(err)
}

// meant asks whether it was another command, where cmd only groups others and has none
// of the name it was given.
func meant(cmd *cobra.Command) string {
	cmd.SuggestionsMinimumDistance = 2
	given := cmd.Flags().Arg(0)
	if given == "" || !cmd.HasSubCommands() {
		return ""
	}
	names := cmd.SuggestionsFor(given)
	if len(names) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(names, " or ") + "?"
}

const exitUsage = 2

// exitCode is the one table from kinds of failure to exit codes.
func exitCode(err error) int {
	switch pg.KindOf(err) {
	case fault.Invalid:
		return exitUsage
	case fault.NotFound:
		return 4
	case fault.Conflict:
		return 5
	case fault.Unavailable:
		return 6
	}
	return 1
}

// cli is what every command works with.
type cli struct {
	env      func(string) string
	in       io.Reader
	out, err io.Writer
	started  bool // a command's own code has begun

	databaseURL, listenURL, replicaURL string
	pooler                             bool
	databaseURLGiven                   bool // on the command line
	stateDir                           string
	json, quiet, noColor               bool
	counting                           counters.Config // what the flags of counters say
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "howdah",
		Short: "Backend services on the PostgreSQL you already run",
		Long: `howdah turns a PostgreSQL database into backend services that share one transaction.

Without --database-url (or DATABASE_URL) it starts a private PostgreSQL and keeps
its data in the state directory.

Results go to stdout: a table on a terminal, JSON lines in a pipe or with --json.
Exit codes: 0 done, 1 failed, 2 bad use, 4 not found, 5 conflict, 6 unavailable.`,
		Example: `  howdah serve
  howdah checklists insert downloads a.txt b.txt
  howdah checklists page downloads --limit 10`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: c.begin,
		Args:              cobra.NoArgs,
		RunE:              help,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return errors.New(goWords.ReplaceAllString(err.Error(), ": $1"))
	})
	flags := root.PersistentFlags()
	flags.StringVar(&c.databaseURL, "database-url", c.env("DATABASE_URL"), "postgres://… or key=value pairs (DATABASE_URL); without it a private PostgreSQL")
	flags.StringVar(&c.listenURL, "listen-url", c.env("HOWDAH_LISTEN_URL"), "direct connection for LISTEN and migrations, where the database URL leads through a pooler (HOWDAH_LISTEN_URL)")
	flags.StringVar(&c.replicaURL, "replica-url", c.env("HOWDAH_REPLICA_URL"), "where reads that may be a moment old go (HOWDAH_REPLICA_URL)")
	flags.BoolVar(&c.pooler, "pooler", false, "the database URL leads through a pooler in transaction mode")
	flags.StringVar(&c.stateDir, "state-dir", c.env("HOWDAH_STATE_DIR"), "where the private PostgreSQL keeps its data (HOWDAH_STATE_DIR)")
	flags.BoolVar(&c.json, "json", false, "JSON lines, on a terminal too")
	flags.BoolVarP(&c.quiet, "quiet", "q", false, "no progress and no notes on stderr")
	flags.BoolVar(&c.noColor, "no-color", c.env("NO_COLOR") != "", "no colours (NO_COLOR)")
	// The default may hold a password, and help prints defaults.
	for _, name := range []string{"database-url", "listen-url", "replica-url"} {
		flags.Lookup(name).DefValue = ""
	}
	root.AddCommand(c.serve(), c.migrate(), c.url(), c.psql(), c.version(), c.adopt(), c.doctor(), c.changes(), c.checklists(), c.counters())
	return root
}

// begin marks the end of cobra's own checks, of which two come later than it.
func (c *cli) begin(cmd *cobra.Command, _ []string) error {
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return err
	}
	if err := cmd.ValidateFlagGroups(); err != nil {
		return err
	}
	c.started = true
	if c.quiet {
		defaultLevel.Set(slog.LevelError)
	}
	c.databaseURLGiven = cmd.Flags().Changed("database-url")
	return nil
}

// goWords are what Go's parsers say before they say what is wrong.
var goWords = regexp.MustCompile(`: (?:strconv|time)\.?[A-Za-z]*: (?:parsing "[^"]*": )?(.*)$`)

var (
	argumentCount = regexp.MustCompile(`^(?:accepts|requires) (.*?) ?arg\(s\), (?:only )?received (\d+)$`)
	requiredFlag  = regexp.MustCompile(`^required flag\(s\) "([^"]*)" not set$`)
)

// inOurWords says what cobra says of arguments and flags that are missing or too many
// as everything else is said.
func inOurWords(err error) string {
	text := argumentCount.ReplaceAllString(err.Error(), "arguments: $2; want $1")
	return requiredFlag.ReplaceAllString(text, "--$1: is missing")
}

// help is what a command that only groups others does: an unknown one is then
// an error, not a page of help.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }
