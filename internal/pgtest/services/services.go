// Package services opens all services for the tests of what stands on them.
package services

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// migrated is a database with all services.
var migrated = pgtest.Template{Make: func(ctx context.Context, url string) error {
	db, err := open(ctx, url, slog.New(slog.DiscardHandler))
	if err == nil {
		db.Close()
	}
	return err
}}

// Open returns the services on the database at url, and migrates that; url "" makes one
// that has them. They are closed when the test ends.
func Open(t testing.TB, url string, log *slog.Logger) *howdah.Client {
	t.Helper()
	if url == "" {
		url = migrated.Database(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	db, err := open(ctx, url, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

func open(ctx context.Context, url string, log *slog.Logger) (*howdah.Client, error) {
	cfg := howdah.Config{Log: log}
	cfg.Database.URL = url
	db, err := howdah.OpenConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}
