package pg

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/fault"
)

// MinVersion is the oldest major version of PostgreSQL that howdah works on.
const MinVersion = 14

// Config says how to reach a database. The zero Config follows the PG*
// environment variables, as psql does.
type Config struct {
	URL             string // postgres://… or key=value …, several hosts allowed; what it leaves out comes from PG*
	ListenURL       string // a direct connection for LISTEN and migrations, where URL leads through a transaction pooler; default URL
	ReplicaURL      string // where reads that may be a moment old go; default none
	Pooler          bool   // URL leads through a pooler in transaction mode: no prepared statements
	MaxConns        int    // connections of the pool; default pool_max_conns of the URL, else 16
	ApplicationName string // default application_name of the URL, else howdah
}

// Open returns a pool on cfg.URL after one successful connection. The error is
// Invalid for a string that cannot be parsed, Denied for a wrong password or
// role, Unavailable for a host, server or database that is not there and for a
// server older than [MinVersion]. No error of it contains the password.
func Open(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	pc, err := cfg.pool(cfg.URL)
	if err != nil {
		return nil, Wrap("pg: open", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, Wrap("pg: open", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, Wrap("pg: open", err)
	}
	return pool, nil
}

// OpenReplica returns a pool on cfg.ReplicaURL as [Open] does on cfg.URL, or nil
// without one.
func OpenReplica(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	if cfg.ReplicaURL == "" {
		return nil, nil
	}
	cfg.URL = cfg.ReplicaURL
	return Open(ctx, cfg)
}

// Direct returns the configuration of a single connection past any pooler:
// ListenURL, or URL without one. A [Hub] listens there, and migrations, which
// hold a session's lock, run there. The error is Invalid.
func (cfg Config) Direct() (*pgx.ConnConfig, error) {
	pc, err := cfg.pool(cmp.Or(cfg.ListenURL, cfg.URL))
	if err != nil {
		return nil, err
	}
	return pc.ConnConfig, nil
}

// pool parses conn and fills in what it does not say.
func (cfg Config) pool(conn string) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(conn)
	if err != nil {
		return nil, &InputError{Field: "database URL", Problem: unparsable(err)}
	}
	// postgres://u:1/2@host/db is host u, port 1, database 2@host/db: the rest of
	// the password would be told as a name that does not exist.
	if u, err := url.Parse(conn); err == nil && u.Scheme != "" && u.User == nil && strings.Contains(u.Path, "@") {
		return nil, &InputError{Field: "database URL", Problem: unparsable(nil)}
	}
	cc := pc.ConnConfig
	cc.RuntimeParams["application_name"] = cmp.Or(cfg.ApplicationName, cc.RuntimeParams["application_name"], "howdah")
	if cc.ConnectTimeout == 0 {
		cc.ConnectTimeout = 10 * time.Second
	}
	if cfg.Pooler {
		// Prepared statements belong to a session, which a pooler in transaction
		// mode changes under us; a cached description does not.
		cc.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		cc.StatementCacheCapacity = 0
	}
	switch {
	case cfg.MaxConns > 0:
		pc.MaxConns = int32(min(cfg.MaxConns, 10_000))
	case !mentions(conn, "pool_max_conns"):
		pc.MaxConns = 16
	}
	if !mentions(conn, "pool_max_conn_idle_time") {
		pc.MaxConnIdleTime = 5 * time.Minute
	}
	if !mentions(conn, "pool_max_conn_lifetime_jitter") {
		pc.MaxConnLifetimeJitter = pc.MaxConnLifetime / 10
	}
	cc.RuntimeParams["client_encoding"] = "UTF8" // as JSON is
	cc.AfterConnect = suits
	return pc, nil
}

// suits refuses servers that lack what howdah's statements use, and databases that cannot
// hold every text: what is kept of an error, say.
func suits(_ context.Context, c *pgconn.PgConn) error {
	version := c.ParameterStatus("server_version") // 15.18 (Debian …), 18beta1
	digits := version[:len(version)-len(strings.TrimLeft(version, "0123456789"))]
	major, err := strconv.Atoi(digits)
	if err == nil && major < MinVersion {
		return fmt.Errorf("the server is PostgreSQL %s; howdah needs %d or newer: %w", version, MinVersion, fault.Unavailable)
	}
	if encoding := c.ParameterStatus("server_encoding"); encoding != "" && encoding != "UTF8" {
		return fmt.Errorf("the encoding of the database is %s; howdah needs UTF8, for which it is to be made anew: CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8': %w", encoding, fault.Unavailable)
	}
	return nil
}

// mentions reports whether a connection string sets parameter key itself.
func mentions(conn, key string) bool {
	if u, err := url.Parse(conn); err == nil && u.Scheme != "" {
		return u.Query().Has(key)
	}
	return slices.ContainsFunc(strings.Fields(conn), func(f string) bool { return strings.HasPrefix(f, key+"=") })
}

// unparsable says what is wrong with a connection string in words of our own:
// the parser's may hold pieces of the password.
func unparsable(err error) string {
	text := fmt.Sprint(err)
	for _, known := range []string{
		"pool_max_conns", "pool_min_conns", "pool_max_conn_lifetime_jitter", "pool_max_conn_lifetime", "pool_max_conn_idle_time",
		"pool_health_check_period", "default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity",
		"invalid port", "connect_timeout", "target_session_attrs", "sslmode", "sslcert", "sslrootcert", "service", "keyword/value",
	} {
		if strings.HasSuffix(text, known) || strings.Contains(text[strings.LastIndexByte(text, '`')+1:], known) {
			return "cannot be parsed: " + known + "; want postgres://user:password@host:5432/database or key=value pairs"
		}
	}
	return "cannot be parsed; want postgres://user:password@host:5432/database (special characters of user and password as %XX) or key=value pairs"
}
