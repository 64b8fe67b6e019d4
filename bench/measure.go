package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// Options are settings of a run.
type Options struct {
	Quick    bool
	Rounds   int            // default 5, with Quick 3
	Only     *regexp.Regexp // matched against service/work; nil: all
	Progress *Progress      // nil: silent
}

// Service is the rows of one part of howdah.
type Service struct {
	Name string
	Rows []Row
}

// Row is something to measure. It leaves nothing behind outside its Lab.
type Row interface {
	Title() string
	Measure(ctx context.Context, lab *Lab) ([]Result, error)
}

// Measure runs the rows that opt selects and gives each the table of a service
// as soon as it is complete.
func Measure(ctx context.Context, suite []Service, opt Options, each func(Table)) (report *Report, err error) {
	if opt.Rounds == 0 {
		opt.Rounds = defaultRounds
		if opt.Quick {
			opt.Rounds = 3
		}
	}
	opt.Progress.Say("starting PostgreSQL")
	server, stop, err := startServer(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if report, err = newReport(ctx, server, opt); err != nil {
		return nil, err
	}
	for _, service := range suite {
		table := Table{Service: service.Name, whole: true}
		for _, row := range service.Rows {
			name := service.Name + "/" + row.Title()
			if opt.Only != nil && !opt.Only.MatchString(name) {
				table.whole = false
				continue
			}
			results, err := measureRow(ctx, server, row, name, opt)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			table.Results = append(table.Results, results...)
		}
		if len(table.Results) > 0 {
			report.Tables = append(report.Tables, table)
			opt.Progress.Clear()
			each(table)
		}
	}
	report.Took = time.Since(report.Began).Round(time.Second).String()
	return report, nil
}

// Lab is where a row is measured: a database of its own.
type Lab struct {
	URL    string
	Pool   *pgxpool.Pool
	Quick  bool
	Rounds int

	progress *Progress
	name     string
	pools    []*pgxpool.Pool
	holders  []*pgx.Conn
}

func measureRow(ctx context.Context, server string, row Row, name string, opt Options) (results []Result, err error) {
	opt.Progress.Row(name)
	database := fmt.Sprintf("howdah_bench_%d_%d", os.Getpid(), time.Now().UnixNano())
	// In the C locale, so that both sides compare bytes, whatever the server's own.
	err = execute(ctx, server, "CREATE DATABASE "+database+" TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, execute(ctx, server, "DROP DATABASE "+database+" WITH (FORCE)"))
	}()
	lab := &Lab{URL: withDatabase(server, database), Quick: opt.Quick, Rounds: opt.Rounds, progress: opt.Progress, name: name}
	defer lab.close()
	if lab.Pool, err = lab.OpenPool(ctx, 16); err != nil {
		return nil, err
	}
	return row.Measure(ctx, lab)
}

// N returns how many of something to take.
func (l *Lab) N(full, quick int) int {
	if l.Quick {
		return quick
	}
	return full
}

// Say tells whoever watches what is going on.
func (l *Lab) Say(format string, args ...any) {
	l.progress.Say(l.name + ": " + fmt.Sprintf(format, args...))
}

// OpenPool opens a pool on the database that is closed when the row ends.
func (l *Lab) OpenPool(ctx context.Context, conns int) (*pgxpool.Pool, error) {
	pool, err := pg.Open(ctx, pg.Config{URL: l.URL, MaxConns: conns, ApplicationName: "howdah bench"})
	if err == nil {
		l.pools = append(l.pools, pool)
	}
	return pool, err
}

// Hold keeps a snapshot as of now until the row ends.
func (l *Lab) Hold(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, l.URL)
	if err != nil {
		return err
	}
	l.holders = append(l.holders, conn)
	_, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
	return err
}

func (l *Lab) close() {
	for _, conn := range l.holders {
		_ = conn.Close(context.Background()) // the database goes, and it with that
	}
	for _, pool := range l.pools {
		pool.Close()
	}
}

// Vacuum leaves every table as autovacuum would have done by and by.
func (l *Lab) Vacuum(ctx context.Context) error {
	_, err := l.Pool.Exec(ctx, "VACUUM (ANALYZE)")
	return err
}

// Exec runs statements, one after the other.
func (l *Lab) Exec(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		if _, err := l.Pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func execute(ctx context.Context, server, sql string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	return err
}

// withDatabase returns the connection string of another database of a server.
func withDatabase(server, name string) string {
	if !strings.Contains(server, "://") {
		return server + " dbname=" + name // of key=value pairs the last one counts
	}
	u, err := url.Parse(server)
	if err != nil {
		return server // it has been connected to: cannot be
	}
	u.Path = "/" + name
	return u.String()
}
