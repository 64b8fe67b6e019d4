package howdah

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

// The kinds of failure, for errors.Is; fault says what to do about each.
const (
	ErrInvalid     = fault.Invalid
	ErrDenied      = fault.Denied
	ErrNotFound    = fault.NotFound
	ErrConflict    = fault.Conflict
	ErrExhausted   = fault.Exhausted
	ErrUnavailable = fault.Unavailable
)

// Config says where the database is and how the services use it. The zero Config
// follows the PG* environment variables and works on the original systems' own
// tables.
type Config struct {
	Database   pg.Config
	Changes    changes.Config
	Checklists checklists.Config
	Counters   counters.Config
	Hub        pg.HubConfig // Conn and Log are, unless given, those of the Config
	Log        *slog.Logger // default slog.Default
}

// Services are the services on one handle: a pool or a transaction.
type Services struct {
	Changes    *changes.Log
	Checklists *checklists.Store
	Counters   *counters.Store
}

// WithTx returns the services inside tx. The caller commits.
func (s Services) WithTx(tx pgx.Tx) Services {
	s.Changes = s.Changes.WithTx(tx)
	s.Checklists = s.Checklists.WithTx(tx)
	s.Counters = s.Counters.WithTx(tx)
	return s
}

// Migrations are the migrations of all services, for pg/migrate.
func (s Services) Migrations() []pg.Migrations {
	return []pg.Migrations{s.Changes.Migrations(), s.Checklists.Migrations(), s.Counters.Migrations()}
}

func services(db pg.DB, cfg Config) Services {
	return Services{
		Changes:    changes.New(db, cfg.Changes),
		Checklists: checklists.New(db, cfg.Checklists),
		Counters:   counters.New(db, cfg.Counters),
	}
}

// Client is the services on one database. It is safe for use by many goroutines.
type Client struct {
	Services
	Pool    *pgxpool.Pool   // for SQL of the program's own
	Hub     *pg.Hub         // hears notifications while Run runs
	Tail    *changes.Tail   // follows the feed while Run runs
	Runner  *changes.Runner // runs the consumers that are saved while Run runs
	Writers Writers         // commit the calls of many together while Run runs

	cfg     Config
	replica *pgxpool.Pool
	reads   Services
}

// Writers are what lets calls that come at the same time share their commits.
type Writers struct {
	Checklists *checklists.Writer
	Counters   *counters.Writer
}

// NewWriters returns Writers on services. They start nothing: until they run, and in a
// transaction, their calls are those of the stores.
func NewWriters(s Services, log *slog.Logger) Writers {
	return Writers{
		Checklists: checklists.NewWriter(s.Checklists, checklists.WriterConfig{Log: log}),
		Counters:   counters.NewWriter(s.Counters, counters.WriterConfig{RetryFor: 3 * time.Second, Log: log}), // somebody waits
	}
}

// Open connects to url: postgres://…, or key=value pairs; what it leaves out
// comes from the PG* environment variables. The error is Invalid, Denied or
// Unavailable as [pg.Open] says.
func Open(ctx context.Context, url string) (*Client, error) {
	return OpenConfig(ctx, Config{Database: pg.Config{URL: url}})
}

// OpenConfig is [Open] with settings.
func OpenConfig(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	direct, err := cfg.Database.Direct()
	if err != nil {
		return nil, err
	}
	if cfg.Changes.Direct == nil {
		cfg.Changes.Direct = direct
	}
	pool, err := pg.Open(ctx, cfg.Database)
	if err != nil {
		return nil, err
	}
	c := &Client{Services: services(pool, cfg), Pool: pool, cfg: cfg}
	cfg.Hub.Conn, cfg.Hub.Log = cmp.Or(cfg.Hub.Conn, direct), cmp.Or(cfg.Hub.Log, cfg.Log)
	c.Hub = pg.NewHub(cfg.Hub)
	c.Tail = changes.NewTail(c.Changes, c.Hub)
	c.Runner = changes.NewRunner(c.Changes, c.Hub, func(ctx context.Context) (*pgxpool.Pool, error) {
		database := cfg.Database
		database.MaxConns = max(int(pool.Config().MaxConns), 4) // as many again
		return pg.Open(ctx, database)
	})
	c.Writers = NewWriters(c.Services, cfg.Log)
	c.reads = c.Services
	if c.replica, err = pg.OpenReplica(ctx, cfg.Database); err != nil {
		pool.Close()
		return nil, fmt.Errorf("replica: %w", err)
	}
	if c.replica != nil {
		c.reads = services(c.replica, cfg)
	}
	return c, nil
}

// Reads returns the services where reads that may be a moment old go: on the
// replica, or on the primary where there is none.
func (c *Client) Reads() Services { return c.reads }

// Migrate makes what the services' tables lack; those of an original system stay as
// they are. It is safe on every start and from several processes at once; when
// nothing is missing it only reads. The error is Denied, and says what to grant,
// where the role may not.
func (c *Client) Migrate(ctx context.Context) error {
	direct, err := c.cfg.Database.Direct()
	if err != nil {
		return err
	}
	return migrate.Up(ctx, direct, c.cfg.Log, c.Migrations()...)
}

// Transact runs fn in one transaction: all that s and tx write is committed
// when fn returns nil, and nothing of it otherwise; a connection that is lost in
// COMMIT is [pg.ErrOutcomeUnknown]. It runs fn once; who wants it
// repeated after a deadlock or serialization failure wraps it in [pg.Retry].
func (c *Client) Transact(ctx context.Context, fn func(tx pgx.Tx, s Services) error) error {
	var failed error // fn's
	err := pgx.BeginFunc(ctx, c.Pool, func(tx pgx.Tx) error {
		failed = fn(tx, c.WithTx(tx))
		return failed
	})
	if failed != nil {
		return pg.Sorted(err)
	}
	return pg.Wrap("howdah: transact", pg.Written(c.Pool, err)) // BEGIN or COMMIT
}

// Following runs fn with a Tail of the feed that lives as long as fn does, for
// programs that do nothing else; a server uses the Client's own, which Run keeps.
func (c *Client) Following(ctx context.Context, fn func(context.Context, *changes.Tail) error) error {
	ctx, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	background.Go(func() { c.follow(ctx) })
	return fn(ctx, c.Tail)
}

// Run does what the services need in the background until ctx is done: it hears
// notifications for all of them on one connection, reads the feed of changes
// while somebody watches it, runs the consumers that are saved, lets writes share
// commits, and keeps the log of changes and the counters small.
func (c *Client) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.follow(ctx) })
	group.Go(func() error { return c.Writers.Checklists.Run(ctx) })
	group.Go(func() error { return c.Writers.Counters.Run(ctx) })
	group.Go(func() error { return c.Runner.Run(ctx) })
	group.Go(func() error { return changes.NewKeeper(c.Changes).Run(ctx) })
	group.Go(func() error {
		return counters.NewKeeper(c.Counters, counters.KeeperConfig{All: true, Log: c.cfg.Log}).Run(ctx)
	})
	return group.Wait()
}

// follow hears notifications and reads the feed.
func (c *Client) follow(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.Hub.Run(ctx) })
	group.Go(func() error { return c.Tail.Run(ctx) })
	return group.Wait()
}

// Close closes the connections. It waits for what is using them.
func (c *Client) Close() {
	c.Pool.Close()
	if c.replica != nil {
		c.replica.Close()
	}
}
