package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/pg"
)

// serveConfig are the flags of serve.
type serveConfig struct {
	listen          string
	insecure        bool
	shutdownTimeout time.Duration
	maxConns        int
}

func (c *cli) serve() *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the services over HTTP",
		Long: `Serves the services over HTTP until it is interrupted. Without a database URL it
starts the private PostgreSQL, and restarts it should it die.

It listens on this machine only. Elsewhere it refuses to, because it would let
everybody in, unless --insecure says that this is meant.`,
		Example: `  howdah serve
  howdah serve --listen 127.0.0.1:9000 --database-url postgres://app@db.example.com/app`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runServe(cmd.Context(), cfg) },
	}
	cmd.Flags().StringVar(&cfg.listen, "listen", "127.0.0.1:8080", "address to serve on; port 0 picks a free one")
	cmd.Flags().BoolVar(&cfg.insecure, "insecure", false, "serve everybody who can reach an address beyond this machine")
	cmd.Flags().DurationVar(&cfg.shutdownTimeout, "shutdown-timeout", 10*time.Second, "how long to wait for requests when stopping")
	cmd.Flags().IntVar(&cfg.maxConns, "max-conns", 0, "connections to the database, and as many again for consumers that are saved (default 16, or pool_max_conns of the URL)")
	return cmd
}

func (c *cli) runServe(ctx context.Context, cfg serveConfig) (err error) {
	loopback, err := checkListen(ctx, cfg)
	if err != nil {
		return err
	}
	if cfg.maxConns < 0 {
		return pg.Refuse("--max-conns", "%d; want 1 or more, or 0 for the default", cfg.maxConns)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.listen)
	if err != nil {
		// Without its kind: what is unavailable is not the database.
		return fmt.Errorf("serve: %v; choose another address with --listen", err)
	}
	defer listener.Close()

	db, err := c.locate(ctx, true)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, db.leave(ctx)) }()
	db.MaxConns = cfg.maxConns
	log := c.log(slog.LevelInfo)
	client, err := howdah.OpenConfig(ctx, howdah.Config{Database: db.Config, Log: log})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Migrate(ctx); err != nil {
		return err
	}
	c.greet(listener.Addr(), db)

	// What requests stand on ends after them, and the database after that.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	beneath, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	group, serving := errgroup.WithContext(ctx)
	server := &http.Server{
		Handler: httpapi.New(client, httpapi.Config{
			Version: programVersion(), LoopbackOnly: loopback, Ending: serving.Done(), Log: log,
		}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	group.Go(func() error {
		defer leave()
		return client.Run(background)
	})
	if db.private != nil {
		group.Go(func() error { return db.private.Run(beneath) })
	}
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-serving.Done()
		c.note("stopping")
		defer stop()
		ending, cancel := context.WithTimeout(background, cfg.shutdownTimeout)
		defer cancel()
		if err := server.Shutdown(ending); err != nil {
			server.Close()
			c.note(fmt.Sprintf("cut the requests that were not done within %s", cfg.shutdownTimeout))
		}
		return nil
	})
	return group.Wait()
}

// checkListen refuses an address that strangers can reach; it reports whether
// only this machine can.
func checkListen(ctx context.Context, cfg serveConfig) (loopback bool, err error) {
	host, port, err := net.SplitHostPort(cfg.listen)
	if err != nil {
		return false, pg.Refuse("--listen", "%q; want host:port, such as 127.0.0.1:8080", cfg.listen)
	}
	if _, err := net.DefaultResolver.LookupPort(ctx, "tcp", port); err != nil {
		return false, pg.Refuse("--listen", "%q: %v", cfg.listen, err)
	}
	loopback = host != ""
	if host != "" {
		ips, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
		if err != nil {
			return false, pg.Refuse("--listen", "%v", err)
		}
		for _, ip := range ips {
			loopback = loopback && ip.IsLoopback()
		}
	}
	if !loopback && !cfg.insecure {
		return false, pg.Refuse("--listen", "%q can be reached from other machines and would let everybody in; listen on 127.0.0.1, or say --insecure", cfg.listen)
	}
	return loopback, nil
}

// greet says where everything is, and what to try.
func (c *cli) greet(addr net.Addr, db *database) {
	url := "http://" + addr.String()
	fmt.Fprintf(c.out, "howdah serves on %s\n", url)
	if db.private != nil {
		fmt.Fprintf(c.out, "its PostgreSQL %s keeps its data in %s\n", db.private.Version(), db.private.Data())
	}
	fmt.Fprintf(c.out, `
Try, in another terminal:
  curl -s %[1]s/v1/checklists/downloads/items -H 'content-type: application/json' -d '{"items":["a.txt","b.txt"]}'
  curl -s %[1]s/v1/checklists/downloads/items
  %[2]s
The API: %[1]s/docs    Ctrl-C stops
`, url, c.third(db, url))
}

// third is a command that leads to the database that is served, without the
// password of one that a URL names.
func (c *cli) third(db *database, url string) string {
	if db.private == nil {
		return fmt.Sprintf(`curl -s %s/v1/checklists/downloads/increment -H 'content-type: application/json' -d '{"items":["a.txt"]}'`, url)
	}
	return c.program() + " checklists page downloads"
}

// program is how the user called us, so that what we propose can be typed.
func (c *cli) program() string {
	name := "howdah"
	if len(os.Args) > 0 && os.Args[0] != "" {
		name = os.Args[0]
	}
	if c.stateDir != "" {
		name += " --state-dir " + c.stateDir
	}
	return name
}
