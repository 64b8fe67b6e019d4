package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Database creates an empty database and returns its URL. It is dropped when
// the test ends, whoever is still connected. For tests that LISTEN, make slots
// or extensions, or need whole schemas; others take a [Schema], which is faster.
func Database(t testing.TB) string {
	t.Helper()
	return database(t, template0, "")
}

// ICUDatabase is [Database] whose texts are in the order of locale, as ICU has it.
// Before PostgreSQL 15 there is no such database; ok is false then.
func ICUDatabase(t testing.TB, locale string) (url string, ok bool) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), URL(t))
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int >= 150000`).Scan(&ok); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	if !ok {
		return "", false
	}
	return database(t, template0, " LOCALE_PROVIDER icu ICU_LOCALE '"+locale+"'"), true
}

// database creates a copy of template with options of CREATE DATABASE.
func database(t testing.TB, template, options string) string {
	t.Helper()
	name := uniqueName()
	if err := alone(URL(t), createDatabase(name, template)+options); err != nil {
		t.Fatalf("pgtest: create database: %v", err)
	}
	t.Cleanup(func() {
		if err := alone(URL(t), dropDatabase(name)); err != nil {
			t.Errorf("pgtest: drop database: %v", err)
		}
	})
	return withDatabase(URL(t), name)
}

// common is the database of all schemas of this process.
var common struct {
	once sync.Once
	name string
	err  error
}

// Schema creates a schema and returns a pool whose search_path is that schema
// alone. The schema is dropped and the pool closed when the test ends.
func Schema(t testing.TB) *pgxpool.Pool {
	t.Helper()
	server := URL(t)
	common.once.Do(func() {
		common.name = uniqueName()
		if common.err = execute(server, createDatabase(common.name, template0)); common.err == nil {
			kept.add(common.name)
		}
	})
	if common.err != nil {
		t.Fatalf("pgtest: create database: %v", common.err)
	}
	cfg, err := pgxpool.ParseConfig(withDatabase(server, common.name))
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	schema := uniqueName()
	cfg.ConnConfig.RuntimeParams["search_path"] = schema
	pool := open(t, cfg, func(ctx context.Context, pool *pgxpool.Pool) error {
		_, err := pool.Exec(ctx, "DROP SCHEMA "+schema+" CASCADE")
		return err
	})
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := pool.Exec(ctx, "CREATE SCHEMA "+schema); err != nil {
		t.Fatalf("pgtest: create schema: %v", err)
	}
	return pool
}

// Pool opens a pool on url, which is closed when the test ends.
func Pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return open(t, cfg, nil)
}

// open returns a pool that at the end of the test is cleaned and closed.
func open(t testing.TB, cfg *pgxpool.Config, clean func(context.Context, *pgxpool.Pool) error) *pgxpool.Pool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if clean != nil {
			if err := clean(ctx, pool); err != nil {
				t.Errorf("pgtest: clean: %v", err)
			}
		}
		closed := make(chan struct{})
		go func() { pool.Close(); close(closed) }()
		select {
		case <-closed:
		case <-ctx.Done(): // Close waits for every connection to come back
			t.Error("pgtest: a connection of the pool was never released")
		}
	})
	return pool
}

// dropKept removes the databases of this process where the server goes on without
// us.
func dropKept() error {
	if shared.server != nil {
		return nil
	}
	var errs []error
	for _, name := range kept.names {
		errs = append(errs, alone(shared.url, dropDatabase(name)))
	}
	return errors.Join(errs...)
}

// execute runs one statement on a connection of its own, so that nothing which
// a test could see stays open.
func execute(url, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// alone is execute of what waits until nobody is connected to a database, which
// PostgreSQL does for five seconds: on a busy machine some need more to leave.
func alone(url, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for {
		err := execute(url, sql)
		var inUse *pgconn.PgError
		if !errors.As(err, &inUse) || inUse.Code != "55006" {
			return err
		}
		again := time.NewTimer(50 * time.Millisecond) // some reasons are told at once, such as a transaction that is prepared
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return err
		}
	}
}

// template0 is empty, and nobody can be connected to it: a copy of template1 fails
// while anybody is.
const template0 = "template0"

func createDatabase(name, template string) string {
	return "CREATE DATABASE " + name + " TEMPLATE " + template
}

func dropDatabase(name string) string {
	return "DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"
}

// uniqueName returns an identifier that needs no quotes and that no other test
// process uses.
func uniqueName() string {
	return fmt.Sprintf("howdah_test_%d_%s", os.Getpid(), strings.ToLower(rand.Text()[:12]))
}

// withDatabase returns the URL of another database of the same server.
func withDatabase(server, name string) string {
	u, err := url.Parse(server)
	if err != nil || u.Scheme == "" {
		return server + " dbname=" + name // keyword=value form: the last one counts
	}
	u.Path = "/" + name
	return u.String()
}
