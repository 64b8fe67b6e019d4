package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Server is a private PostgreSQL in use by this process. Its methods may be
// called from several goroutines.
type Server struct {
	cfg   Config
	users *os.File // a shared lock on it says that we use the server

	mu       sync.Mutex // guards the rest
	proc     *process
	url      string
	bin      string
	version  string
	reused   bool
	stopping chan struct{} // closed by the first Stop
	stopped  chan struct{} // closed when that is done
	stopErr  error
}

// Start returns the private server of cfg.Dir, ready for connections: the one
// that is up, or one it starts, on the cluster that is there or on a new one.
// Any number of processes may call it at the same time. Every Server must be
// stopped.
//
// It returns [ErrNoPostgres] if there is no PostgreSQL to start, and
// [ErrVersion] if there is, but none that can read the cluster. When it fails,
// nothing that it started is left running.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("localpg: start: %w", err)
	}
	return s, nil
}

func start(ctx context.Context, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, stopping: make(chan struct{}), stopped: make(chan struct{})}
	if err := makeStateDir(cfg.Dir); err != nil {
		return nil, err
	}
	if s.users, err = openLock(s.path("users.lock")); err != nil {
		return nil, err
	}
	if err := s.bringUp(ctx); err != nil {
		s.users.Close()
		return nil, err
	}
	return s, nil
}

// makeStateDir makes the state directory. Root's is passable for others,
// because the server runs as one of them; what lies in it is not readable.
func makeStateDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	err := os.Mkdir(dir, mode)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, mode) // whatever the umask took away
}

// bringUp does, under the start lock, all that leads to a server we can talk to.
func (s *Server) bringUp(ctx context.Context) error {
	began := time.Now()
	held, err := lock(ctx, s.path("start.lock"))
	if err != nil {
		return fmt.Errorf("waiting for another start or stop: %w", err)
	}
	defer held.Close()
	select {
	case <-s.stopping:
		return errors.New("the server is being stopped")
	default:
	}
	// Before we look: from here on nobody else is the last one out.
	if ok, err := tryLock(s.users, syscall.LOCK_SH); err != nil || !ok {
		return errors.Join(err, errors.New("users.lock is held by something that is not howdah"))
	}
	found, proc, reused, err := s.launch(ctx)
	if err != nil {
		return err
	}
	url, version, err := s.open(ctx, found)
	if err != nil && reused {
		// A server that has just been told to end, or was killed, looks alive a
		// moment longer. The next look finds it gone, or well after all.
		patience, cancel := context.WithTimeout(ctx, reusePatience)
		defer cancel()
		_ = poll(patience, func() (bool, error) {
			if found, proc, reused, err = s.launch(ctx); err == nil {
				url, version, err = s.open(ctx, found)
			}
			return err == nil || !reused, nil
		})
	}
	if err != nil {
		if proc != nil && !reused {
			err = errors.Join(err, proc.stop(ctx, stopPatience))
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc, s.reused, s.url, s.version, s.bin = proc, reused, url, version, s.binDir()
	level := slog.LevelInfo
	if reused {
		level = slog.LevelDebug // nothing happened
	}
	s.cfg.Log.Log(ctx, level, "private postgresql is up", "data", s.Data(), "pid", proc.pid,
		"version", version, "reused", reused, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// open makes sure that the database howdah is there and that our password lets
// us in.
func (s *Server) open(ctx context.Context, found pidFile) (url, version string, err error) {
	password, err := os.ReadFile(s.path("password"))
	if err != nil {
		return "", "", fmt.Errorf("the server's password: %w", err)
	}
	to := func(database string) string {
		return connString(string(bytes.TrimSpace(password)), found.socketDir, found.port, database)
	}
	conn, err := pgx.Connect(ctx, to("howdah"))
	if isMissing(err) {
		if err := createDatabase(ctx, to("postgres")); err != nil {
			return "", "", err
		}
		conn, err = pgx.Connect(ctx, to("howdah"))
	}
	if err != nil {
		return "", "", err
	}
	version, _, _ = strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
	return to("howdah"), version, conn.Close(ctx)
}

func isMissing(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "3D000"
}

func createDatabase(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE howdah")
	return errors.Join(err, conn.Close(ctx))
}

// connString writes a URL that both pgx and libpq read: the socket's directory
// as a parameter, and %20 for a blank, because libpq does not know the plus.
func connString(password, socketDir, port, database string) string {
	host := strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(socketDir))
	return fmt.Sprintf("postgres://howdah:%s@/%s?host=%s&port=%s", password, database, host, port)
}

// binDir returns the directory of the programs that run the server: what it
// was started with is in a file of its own.
func (s *Server) binDir() string {
	b, _ := os.ReadFile(filepath.Join(s.Data(), "postmaster.opts"))
	program, _, _ := strings.Cut(string(b), ` "`)
	return filepath.Dir(program)
}

func (s *Server) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

// URL returns the connection string of the database howdah, password included,
// in a form that pgx and libpq (psql) understand. It stays the same when the
// server is started again.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.url
}

// Dir returns the state directory.
func (s *Server) Dir() string { return s.cfg.Dir }

// Data returns the data directory.
func (s *Server) Data() string { return s.path("data") }

// BinDir returns the directory of the server's programs, among them often psql.
func (s *Server) BinDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bin
}

// Version returns the server's version, like 15.14.
func (s *Server) Version() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// PID returns the process number of the postmaster.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.pid
}

// Reused reports whether the server was up already when we came.
func (s *Server) Reused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reused
}
