// Package migrate brings a database to what the services' statements expect.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	tern "github.com/jackc/tern/v2/migrate"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// lock keeps several processes that start at once from migrating together.
const lock = 0x686f77646168 // "howdah"

// ErrNewer reports that a newer howdah has migrated the database.
var ErrNewer = fmt.Errorf("migrate: the database was migrated by a newer howdah; run that, or a newer one: %w", fault.Conflict)

// Up applies what is missing of sets, each migration in a transaction of its
// own, under one advisory lock; when nothing is missing it only reads, so that
// it is safe on every start, from several processes at once, and on a standby.
//
// conn must not lead through a pooler in transaction mode ([pg.Config.Direct]):
// the lock belongs to a session. The error names file, line and column of the
// statement that failed; it is Denied, and says what to grant, where the role
// may not create what is missing.
func Up(ctx context.Context, conn *pgx.ConnConfig, log *slog.Logger, sets ...pg.Migrations) error {
	c, err := pgx.ConnectConfig(ctx, conn)
	if err != nil {
		return pg.Wrap("migrate", err)
	}
	defer c.Close(context.WithoutCancel(ctx)) // also gives the lock back

	missing, err := pending(ctx, c, sets)
	if err != nil || len(missing) == 0 {
		return pg.Wrap("migrate", err)
	}
	if _, err := c.Exec(ctx, `SELECT pg_advisory_lock($1)`, lock); err != nil {
		return pg.Wrap("migrate: lock", err)
	}
	if err := createSchema(ctx, c); err != nil {
		return pg.Wrap("migrate: schema howdah", granted(err, c))
	}
	for _, set := range missing {
		if err := up(ctx, c, log, set); err != nil {
			return pg.Wrap("migrate: "+set.Service, granted(err, c))
		}
	}
	return nil
}

// pending returns the sets whose version is not that of their last file.
func pending(ctx context.Context, c *pgx.Conn, sets []pg.Migrations) ([]pg.Migrations, error) {
	var missing []pg.Migrations
	for _, set := range sets {
		if err := set.Names.Err(); err != nil {
			return nil, err
		}
		files, err := tern.FindMigrations(set.Files)
		if err != nil {
			return nil, err
		}
		var version int
		err = c.QueryRow(ctx, `SELECT version FROM `+versionTable(set)).Scan(&version)
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000"): // no table, no schema: never migrated
		case err != nil:
			return nil, err
		case version > len(files):
			return nil, fmt.Errorf("%s is at version %d, this howdah knows %d: %w", set.Service, version, len(files), ErrNewer)
		}
		if version < len(files) {
			missing = append(missing, set)
		}
	}
	return missing, nil
}

// versionTable is the name as tern splices it: a plain lower-case identifier.
func versionTable(set pg.Migrations) string { return "howdah." + set.Service + "_version" }

// createSchema does not use IF NOT EXISTS, which asks for the right to create
// schemas even where there is nothing to create.
func createSchema(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `
		DO $$ BEGIN
			IF to_regnamespace('howdah') IS NULL THEN
				CREATE SCHEMA howdah;
				COMMENT ON SCHEMA howdah IS 'What howdah keeps beside the tables of its services.';
			END IF;
		END $$`)
	return err
}

// up runs the missing files of one set.
func up(ctx context.Context, c *pgx.Conn, log *slog.Logger, set pg.Migrations) error {
	m, err := tern.NewMigrator(ctx, c, versionTable(set))
	if err != nil {
		return err
	}
	if _, err := c.Exec(ctx, `COMMENT ON TABLE `+versionTable(set)+` IS `+pg.Literal("Last migration applied: "+set.About)); err != nil {
		return err
	}
	m.Data = set.Names.Data()
	if err := m.LoadMigrations(set.Files); err != nil {
		return err
	}
	m.OnStart = func(_ int32, name, _, _ string) {
		log.InfoContext(ctx, "migrating", "service", set.Service, "file", name)
	}
	return located(m.Migrate(ctx))
}

// located says where in a file a statement failed.
func located(err error) error {
	var failed tern.MigrationPgError
	if !errors.As(err, &failed) {
		return err
	}
	if failed.Position == 0 { // raised inside a DO block or function
		if failed.Where == "" {
			return fmt.Errorf("%s: %w", failed.MigrationName, failed.PgError)
		}
		return fmt.Errorf("%s: %w (%s)", failed.MigrationName, failed.PgError, failed.Where)
	}
	before := string([]rune(failed.Sql)[:failed.Position-1]) // Position counts characters from 1
	line := 1 + strings.Count(before, "\n")
	column := 1 + len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
	return fmt.Errorf("%s:%d:%d: %w", failed.MigrationName, line, column, failed.PgError)
}

// granted adds to a lack of rights what would cure it.
func granted(err error, c *pgx.Conn) error {
	if pg.KindOf(err) != fault.Denied {
		return err
	}
	cfg := c.Config()
	role := pgx.Identifier{cfg.User}.Sanitize()
	return fmt.Errorf("%w: %w; as the owner of the database run: GRANT CREATE ON DATABASE %s TO %s, or run howdah migrate once as a role that may",
		fault.Denied, err, pgx.Identifier{cfg.Database}.Sanitize(), role)
}
