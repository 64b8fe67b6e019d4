package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/pgtest"
)

const password = "s3cret-Pa55"

// role makes a role that may connect and nothing else, and returns the URL for it.
func role(t *testing.T, url string) string {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	name := "user_of_" + cfg.Database
	pool := pgtest.Pool(t, pgtest.URL(t))
	if _, err := pool.Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s'`, name, password)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // ends after the pools and before the server
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := pgx.Connect(ctx, pgtest.URL(t))
		if err == nil {
			_, err = conn.Exec(ctx, `DROP ROLE `+name)
			conn.Close(ctx)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return pgtest.As(t, url, name, password)
}

// Everything that can be wrong with a database at the start: what is said of
// it, the exit code, and that no password is in it.
func TestStartUpsThatFail(t *testing.T) {
	t.Parallel()
	database := pgtest.Database(t)
	migrated := pgtest.Database(t)
	if r := program(t, map[string]string{"DATABASE_URL": migrated}, "", "migrate"); r.code != 0 {
		t.Fatal(r)
	}
	poor := role(t, database)
	poorOnMigrated := pgtest.As(t, migrated, parse(t, poor).User, password)
	old := pgtest.NewProxy(t, database)
	version := serverVersion(t, database)
	old.Rewrite([]byte(version), []byte("13"+version[2:]))
	const closed = "1" // where nobody ever listens: others take what was free a moment ago

	for name, tc := range map[string]struct {
		url  string
		code int
		want []string
	}{
		"no port":             {"postgres://app:" + password + "@127.0.0.1:x/app", 2, []string{"database URL: cannot be parsed: invalid port; want postgres://user:password@host:5432/database"}},
		"odd password":        {"postgres://app:" + password + "%zz@127.0.0.1/app", 2, []string{"database URL: cannot be parsed", "special characters of user and password as %XX"}},
		"slash in password":   {"postgres://app:" + password + "/x@127.0.0.1/app", 2, []string{"database URL: cannot be parsed"}},
		"no pairs":            {"password=" + password + " host", 2, []string{"database URL: cannot be parsed"}},
		"unknown sslmode":     {"host=127.0.0.1 sslmode=perhaps password=" + password, 2, []string{"database URL: cannot be parsed: sslmode"}},
		"wrong password":      {pgtest.As(t, database, parse(t, poor).User, password+"x"), 1, []string{"password authentication failed for user"}},
		"no such role":        {pgtest.As(t, database, "nobody_at_all", password), 1, []string{"password authentication failed"}},
		"wrong host":          {"postgres://app:" + password + "@127.0.0.1:" + closed + "/app", 6, []string{"connection refused", "127.0.0.1:" + closed}},
		"no socket":           {"host=/nowhere user=app password=" + password, 6, []string{"/nowhere/.s.PGSQL.5432", "no such file or directory"}},
		"several hosts":       {"postgres://app:" + password + "@127.0.0.1:" + closed + ",127.0.0.1:" + closed + "/app", 6, []string{"connection refused"}},
		"no such database":    {otherDatabase(t, database), 6, []string{`database "not_there" does not exist`}},
		"PostgreSQL 13":       {old.URL(), 6, []string{"the server is PostgreSQL 13", "howdah needs 14 or newer"}},
		"role without rights": {poor, 1, []string{"permission denied", "GRANT CREATE ON DATABASE", "or run howdah migrate once as a role that may"}},
	} {
		for _, args := range [][]string{{"migrate"}, {"serve", "--listen", "127.0.0.1:0"}, {"checklists", "lists"}, {"checklists", "import", "l", "-"}} {
			tc, args := tc, args
			if name == "role without rights" && args[0] == "checklists" {
				tc.url, tc.want = poorOnMigrated, []string{"permission denied for schema iidy", "GRANT USAGE ON SCHEMA …, and GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA …"}
			}
			for how, r := range map[string]result{
				"environment": program(t, map[string]string{"DATABASE_URL": tc.url}, "a\n", args...),
				"flag":        program(t, nil, "a\n", append(args, "--database-url", tc.url)...),
			} {
				label := fmt.Sprintf("%s: %s, by %s", name, strings.Join(args, " "), how)
				if r.code != tc.code || r.stdout != "" || !strings.HasPrefix(r.stderr, "howdah: ") {
					t.Errorf("%s: exit %d, want %d; stdout %q, stderr %q", label, r.code, tc.code, r.stdout, r.stderr)
				}
				for _, want := range tc.want {
					if !strings.Contains(r.stderr, want) {
						t.Errorf("%s: %q, want %q in it", label, r.stderr, want)
					}
				}
				discreet(t, label, r)
			}
		}
		// The other two URLs are no better kept.
		for _, flag := range []string{"--listen-url", "--replica-url"} {
			if name == "role without rights" { // enough for both
				break
			}
			r := program(t, map[string]string{"DATABASE_URL": migrated}, "", "serve", "--listen", "127.0.0.1:0", flag, tc.url)
			if r.code == 0 {
				t.Errorf("%s: %s: exit 0", name, flag)
			}
			discreet(t, name+" as "+flag, r)
		}
	}
	for _, args := range [][]string{{"--help"}, {"serve", "--help"}, {"help", "migrate"}, {"--nonsense"}, {"version"}, {"completion", "bash"}} {
		env := map[string]string{"DATABASE_URL": poor, "HOWDAH_LISTEN_URL": poor, "HOWDAH_REPLICA_URL": poor}
		discreet(t, strings.Join(args, " "), program(t, env, "", args...))
	}
}

// discreet checks that no password is told, whole or in part.
func discreet(t *testing.T, label string, r result) {
	t.Helper()
	for _, part := range []string{password, password[:6], password[6:]} {
		if strings.Contains(r.stdout+r.stderr, part) {
			t.Errorf("%s tells the password: %q %q", label, r.stdout, r.stderr)
			return
		}
	}
}

func parse(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func otherDatabase(t *testing.T, url string) string {
	return strings.Replace(url, "/"+parse(t, url).Database, "/not_there", 1)
}

func serverVersion(t *testing.T, url string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	return conn.PgConn().ParameterStatus("server_version")
}

func TestListenAddresses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for address, tc := range map[string]struct {
		insecure bool
		code     int
		want     string
	}{
		"8080":                {false, 2, `--listen: "8080"; want host:port, such as 127.0.0.1:8080`},
		"":                    {false, 2, "want host:port"},
		"127.0.0.1:http:x":    {false, 2, "want host:port"},
		"127.0.0.1:99999":     {false, 2, "invalid port"},
		"127.0.0.1:x":         {false, 2, "unknown port"},
		":0":                  {false, 2, "would let everybody in; listen on 127.0.0.1, or say --insecure"},
		"0.0.0.0:0":           {false, 2, "would let everybody in"},
		"[::]:0":              {false, 2, "would let everybody in"},
		"192.0.2.1:0":         {false, 2, "would let everybody in"},
		"192.0.2.1:1":         {true, 1, "cannot assign requested address; choose another address with --listen"},
		taken.Addr().String(): {false, 1, "address already in use; choose another address with --listen"},
	} {
		args := []string{"serve", "--listen", address, "--database-url", "postgres://never@opened/"}
		if tc.insecure {
			args = append(args, "--insecure")
		}
		r := program(t, nil, "", args...)
		if r.code != tc.code || !strings.Contains(r.stderr, tc.want) || r.stdout != "" {
			t.Errorf("--listen %s: exit %d, %q; want %d, %q", address, r.code, r.stderr, tc.code, tc.want)
		}
	}
}

// A server that takes no writes, be it for a setting or for being a standby.
func TestReadOnlyServers(t *testing.T) {
	t.Parallel()
	readOnly := pgtest.Database(t)
	migrate := func(url string) {
		t.Helper()
		for _, args := range [][]string{{"migrate"}, {"checklists", "insert", "l", "a"}} {
			if r := program(t, map[string]string{"DATABASE_URL": url}, "", args...); r.code != 0 {
				t.Fatal(r)
			}
		}
	}
	migrate(readOnly)
	pool := pgtest.Pool(t, readOnly)
	if _, err := pool.Exec(t.Context(), `ALTER DATABASE `+parse(t, readOnly).Database+` SET default_transaction_read_only = on`); err != nil {
		t.Fatal(err)
	}
	empty := pgtest.Database(t)
	if _, err := pool.Exec(t.Context(), `SET default_transaction_read_only = off; ALTER DATABASE `+parse(t, empty).Database+` SET default_transaction_read_only = on`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	primary, standby := pgtest.Pair(t)
	migrate(primary.URL())
	pgtest.Replayed(t, pgtest.Pool(t, primary.URL()), pgtest.Pool(t, standby.URL()))

	for name, url := range map[string]string{"read-only": readOnly, "empty": empty, "standby": standby.URL()} {
		env := map[string]string{"DATABASE_URL": url}
		if name != "empty" {
			if r := program(t, env, "", "checklists", "page", "l"); r.code != 0 || r.stdout != "{\"item\":\"a\",\"attempts\":0}\n" {
				t.Errorf("%s: page: %+v", name, r)
			}
			if r := program(t, env, "", "migrate"); r.code != 0 { // nothing is missing
				t.Errorf("%s: migrate: %+v", name, r)
			}
		} else if r := program(t, env, "", "migrate"); r.code != 6 || !strings.Contains(r.stderr, "this server is read-only (a standby?): point the URL at the primary") {
			t.Errorf("%s: migrate: %+v", name, r)
		}
		if name == "empty" {
			continue
		}
		for _, args := range [][]string{{"insert", "l", "b"}, {"increment", "l", "a"}, {"delete", "l", "a"}, {"import", "l", "-"}} {
			r := program(t, env, "b\n", append([]string{"checklists"}, args...)...)
			if r.code != 6 || !strings.Contains(r.stderr, "read-only") || !strings.Contains(r.stderr, "target_session_attrs=read-write") {
				t.Errorf("%s: %s: %+v", name, args[0], r)
			}
		}
	}
	// With both in one URL, the one that takes writes is found, and reads may go
	// to the other.
	p, s := parse(t, primary.URL()), parse(t, standby.URL())
	both := fmt.Sprintf("host=%s,%s user=%s password=%s dbname=%s target_session_attrs=read-write", s.Host, p.Host, p.User, p.Password, p.Database)
	if r := program(t, nil, "", "checklists", "insert", "l", "b", "--database-url", both, "--replica-url", standby.URL()); r.code != 0 {
		t.Errorf("several hosts: %+v", r)
	}
}

// The password is not among the arguments of psql, which every user of the
// machine can see.
func TestPsqlHidesThePassword(t *testing.T) {
	t.Parallel()
	url := role(t, pgtest.Database(t))
	r := program(t, map[string]string{"DATABASE_URL": url}, "", "psql", "--", "-Atc", `\! tr '\0' ' ' </proc/$PPID/cmdline`)
	if r.code != 0 || !strings.Contains(r.stdout, "psql --dbname postgres://") || !strings.Contains(r.stdout, " -Atc") {
		t.Errorf("%+v", r)
	}
	discreet(t, "psql", r)
	r = program(t, map[string]string{"DATABASE_URL": pgtest.As(t, url, parse(t, url).User, password+"x")}, "", "psql", "--", "-c", "SELECT 1")
	if r.code != 1 || !strings.Contains(r.stderr, "password authentication failed") {
		t.Errorf("%+v", r)
	}
	discreet(t, "psql", r)
}

// Whoever is told to end before it is done says so, in one line.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"serve", "--listen", "127.0.0.1:0"}, {"migrate"}, {"checklists", "lists"}} {
		var stdout, stderr bytes.Buffer
		env := func(name string) string { return map[string]string{"DATABASE_URL": pgtest.URL(t)}[name] }
		code := run(ctx, args, env, strings.NewReader(""), &stdout, &stderr)
		if code != 1 || stderr.String() != "howdah: interrupted\n" || stdout.Len() > 0 {
			t.Errorf("%q: exit %d, %q, %q", args, code, stdout.String(), stderr.String())
		}
	}
}

// So it does where it waits for a stdin from which nothing comes.
func TestInterruptedAtStdin(t *testing.T) {
	t.Parallel()
	commands := []string{
		"changes plan -f -",
		"changes apply -f -",
		"changes run hook --webhook https://example.com/hook --secret-file -",
		"checklists insert l -",
		"checklists done l --lease 0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e",
		"checklists redrive l -",
	}
	ended := make(chan string, len(commands))
	for _, command := range commands {
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		stdin, in := io.Pipe()
		defer in.Close() // which ends what still reads
		var stdout, stderr bytes.Buffer
		go func() {
			code := run(ctx, strings.Fields(command), func(string) string { return "" }, onRead{stdin, interrupt}, &stdout, &stderr)
			if code != 1 || stderr.String() != "howdah: interrupted\n" || stdout.Len() > 0 {
				t.Errorf("%q: exit %d, %q, %q", command, code, stdout.String(), stderr.String())
			}
			ended <- command
		}()
	}
	for range commands {
		pgtest.Receive(t, ended, "the end of a command")
	}
}

// onRead calls do before each read.
type onRead struct {
	io.Reader
	do func()
}

func (r onRead) Read(b []byte) (int, error) { r.do(); return r.Reader.Read(b) }
