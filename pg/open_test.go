package pg_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestOpenFillsInWhatTheURLDoesNotSay(t *testing.T) {
	t.Parallel()
	server := pgtest.URL(t)
	with := func(query string) string { return server + separator(server) + query }
	for name, tc := range map[string]struct {
		cfg   pg.Config
		conns int32
		app   string
		mode  pgx.QueryExecMode
	}{
		"nothing":  {pg.Config{URL: server}, 16, "howdah", pgx.QueryExecModeCacheStatement},
		"the URL":  {pg.Config{URL: with("pool_max_conns=3&application_name=mine")}, 3, "mine", pgx.QueryExecModeCacheStatement},
		"settings": {pg.Config{URL: with("pool_max_conns=3&application_name=mine"), MaxConns: 5, ApplicationName: "ours"}, 5, "ours", pgx.QueryExecModeCacheStatement},
		"a pooler": {pg.Config{URL: server, Pooler: true}, 16, "howdah", pgx.QueryExecModeCacheDescribe},
	} {
		pool, err := pg.Open(within(t), tc.cfg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer pool.Close()
		cfg := pool.Config()
		if cfg.MaxConns != tc.conns || cfg.ConnConfig.DefaultQueryExecMode != tc.mode {
			t.Errorf("%s: %d connections, %v, want %d, %v", name, cfg.MaxConns, cfg.ConnConfig.DefaultQueryExecMode, tc.conns, tc.mode)
		}
		var app string
		if err := pool.QueryRow(within(t), `SHOW application_name`).Scan(&app); err != nil || app != tc.app {
			t.Errorf("%s: application_name %q, %v, want %q", name, app, err, tc.app)
		}
		if cfg.ConnConfig.ConnectTimeout <= 0 {
			t.Errorf("%s: connecting has no end", name)
		}
	}
}

func serverVersion(t *testing.T, url string) (version string) {
	t.Helper()
	if err := pgtest.Pool(t, url).QueryRow(t.Context(), `SHOW server_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	return version
}

// separator comes before more parameters of a URL.
func separator(u string) string {
	if strings.Contains(u, "?") {
		return "&"
	}
	return "?"
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	database := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, database)
	older := pgtest.NewProxy(t, database)
	version := serverVersion(t, database)
	older.Rewrite([]byte("server_version\x00"+version), []byte("server_version\x0013"+version[2:]))
	latin := pgtest.NewProxy(t, database)
	latin.Rewrite([]byte("server_encoding\x00UTF8"), []byte("server_encoding\x00KOI8"))
	other := func(change func(*url.URL)) string {
		u, err := url.Parse(proxy.URL())
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return u.String()
	}
	for name, tc := range map[string]struct {
		url  string
		kind fault.Kind
		want string
	}{
		"wrong password":     {other(func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "hunter2") }), fault.Denied, "password authentication failed"},
		"unknown database":   {other(func(u *url.URL) { u.Path = "/no_such_database" }), fault.Unavailable, `database "no_such_database" does not exist`},
		"nobody listens":     {"postgres://u:hunter2@127.0.0.1:1/db", fault.Unavailable, "127.0.0.1:1"},
		"unknown host":       {"postgres://u:hunter2@no-such-host.invalid/db", fault.Unavailable, "no-such-host.invalid"},
		"no socket":          {"host=/nonexistent password=hunter2", fault.Unavailable, "/nonexistent"},
		"an older server":    {older.URL(), fault.Unavailable, "howdah needs 14 or newer"},
		"an encoding":        {latin.URL(), fault.Unavailable, "ENCODING 'UTF8'"},
		"no URL":             {"postgres://u:hunter2@host:port/db", fault.Invalid, "cannot be parsed"},
		"spaces":             {"postgres://u:hunter2 x@host/db", fault.Invalid, "cannot be parsed"},
		"a slash":            {"postgres://u:hun/ter2@host:5432/db", fault.Invalid, "cannot be parsed"},
		"digits and a slash": {"postgres://u:1/hunter2@host:5432/db", fault.Invalid, "cannot be parsed"},
		"no pairs":           {"host=x password=hunter2 what", fault.Invalid, "keyword/value"},
		"a wrong setting":    {"postgres://u:hunter2@host/db?pool_max_conns=many", fault.Invalid, "pool_max_conns"},
		"a wrong sslmode":    {"postgres://u:hunter2@host/db?sslmode=hunter2", fault.Invalid, "sslmode"},
	} {
		pool, err := pg.Open(within(t), pg.Config{URL: tc.url})
		if err == nil {
			pool.Close()
		}
		if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q with %q", name, err, tc.kind, tc.want)
		}
		for _, secret := range []string{"hunter2", "hun/", "ter2"} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error shows the password: %v", name, err)
			}
		}
	}
}

func TestReplicaAndDirectAreOtherConnections(t *testing.T) {
	t.Parallel()
	primary, replica := pgtest.Database(t), pgtest.Database(t)
	cfg := pg.Config{URL: primary, ReplicaURL: replica, ListenURL: replica}
	pool, err := pg.OpenReplica(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	want, err := pgx.ParseConfig(replica)
	if err != nil {
		t.Fatal(err)
	}
	if got := pool.Config().ConnConfig.Database; got != want.Database {
		t.Errorf("replica is %q, want %q", got, want.Database)
	}
	if direct, err := cfg.Direct(); err != nil || direct.Database != want.Database {
		t.Errorf("Direct: %v", err)
	}
	if pool, err := pg.OpenReplica(within(t), pg.Config{URL: primary}); pool != nil || err != nil {
		t.Errorf("OpenReplica without a URL = %v, %v, want nil", pool, err)
	}
}

// Several hosts: the first that answers as wanted is taken.
func TestOpenTriesEveryHost(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	u, err := url.Parse(proxy.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.Host = "127.0.0.1:1," + u.Host
	u.RawQuery = "target_session_attrs=read-write"
	pool, err := pg.Open(within(t), pg.Config{URL: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	pool.Close()
}
