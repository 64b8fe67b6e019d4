// Package pgstore is the Go API of iidy's package of that name on top of
// howdah's checklists: change the import path, nothing else.
//
// It answers as the original does, duplicates refused included, with its defects
// mended: GetBatch reports an error instead of an empty page, a negative count is
// refused, batches that overlap do not deadlock, and errors.Is sees through the
// errors, whose texts are the original's. New programs are better served by
// package checklists.
package pgstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
	"github.com/howdah-db/howdah/pg/migrate"
)

const (
	// DefaultConnectionURL is where NewPgStore("") connects to.
	DefaultConnectionURL string = "postgresql://postgres:postgres@localhost:5432/postgres?pool_max_conns=5&application_name=iidy"
	// TernDefaultMigrationTable is where the original of 2022 kept its version. It
	// is neither read nor written here.
	TernDefaultMigrationTable string = "public.schema_version"
)

// ListEntry is an item and how often it was attempted.
type ListEntry struct {
	Item     string `json:"item"`
	Attempts int    `json:"attempts"`
}

// Store is what a PgStore does with lists.
type Store interface {
	InsertOne(ctx context.Context, list string, item string) (int64, error)
	GetOne(ctx context.Context, list string, item string) (int, bool, error)
	DeleteOne(ctx context.Context, list string, item string) (int64, error)
	IncrementOne(ctx context.Context, list string, item string) (int64, error)
	InsertBatch(ctx context.Context, list string, items []string) (int64, error)
	GetBatch(ctx context.Context, list string, startID string, count int) ([]ListEntry, error)
	DeleteBatch(ctx context.Context, list string, items []string) (int64, error)
	IncrementBatch(ctx context.Context, list string, items []string) (int64, error)
}

var _ Store = (*PgStore)(nil)

// PgStore keeps lists in table iidy.lists. It is safe for use by many goroutines.
type PgStore struct {
	pool  *pgxpool.Pool
	lists *checklists.Store
}

// NewPgStore connects to connectionURL, or to DefaultConnectionURL when it is
// empty, and creates the table where it is missing. No error of it contains the
// password.
func NewPgStore(connectionURL string) (*PgStore, error) {
	if connectionURL == "" {
		connectionURL = DefaultConnectionURL
	}
	ctx := context.Background()
	cfg := pg.Config{URL: connectionURL}
	pool, err := pg.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p := &PgStore{pool: pool, lists: checklists.New(pool, checklists.Config{})}
	if err := p.createTable(ctx, cfg); err != nil {
		pool.Close()
		return nil, err
	}
	return p, nil
}

// createTable asks for no right that the original does not need where the table
// is there.
func (p *PgStore) createTable(ctx context.Context, cfg pg.Config) error {
	var there bool
	err := p.pool.QueryRow(ctx, `SELECT to_regclass('iidy.lists') IS NOT NULL`).Scan(&there)
	if err != nil || there {
		return asOriginal(err)
	}
	direct, err := cfg.Direct()
	if err != nil {
		return err
	}
	return migrate.Up(ctx, direct, slog.New(slog.DiscardHandler), p.lists.Migrations())
}

// Close closes the connections; the original has no such method and leaks them.
func (p *PgStore) Close() { p.pool.Close() }

// String says where the store is connected to, without the password.
func (p *PgStore) String() string {
	c := p.pool.Config().ConnConfig
	return fmt.Sprintf("\nHost: %s\nPort: %d\nDB:   %s\nUser: %s\n", c.Host, c.Port, c.Database, c.User)
}

// Format prints String for every verb, so that %+v shows no password.
func (p *PgStore) Format(f fmt.State, _ rune) { fmt.Fprint(f, p.String()) }

// Nuke empties the table: everybody's lists.
func (p *PgStore) Nuke(ctx context.Context) error {
	_, err := p.pool.Exec(ctx, `TRUNCATE TABLE iidy.lists`)
	return asOriginal(err)
}

// InsertOne puts item on list and returns 1. An item that is there is an error
// whose text holds SQLSTATE 23505.
func (p *PgStore) InsertOne(ctx context.Context, list string, item string) (int64, error) {
	tag, err := p.pool.Exec(ctx, `INSERT INTO iidy.lists (list, item) VALUES ($1, $2)`, list, item)
	return tag.RowsAffected(), asOriginal(err)
}

// InsertBatch puts all of items on list, or none of them where one is there or
// comes twice: SQLSTATE 23505, as with InsertOne.
func (p *PgStore) InsertBatch(ctx context.Context, list string, items []string) (int64, error) {
	if len(items) == 0 {
		return 0, nil
	}
	rows := slices.Sorted(slices.Values(items)) // two that overlap wait in one direction only
	var n int64
	err := pg.Retry(ctx, p.pool, func() (err error) { // a deadlock with whoever does not keep to that
		n, err = pg.Copy(ctx, p.pool, p.lists.Table(), []string{"list", "item"},
			pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) { return []any{list, rows[i]}, nil }))
		return err
	})
	if err != nil {
		return 0, asOriginal(err)
	}
	return n, nil
}

// GetOne returns the attempts of an item; false where there is none.
func (p *PgStore) GetOne(ctx context.Context, list string, item string) (int, bool, error) {
	found, err := p.lists.Get(ctx, list, item)
	if errors.Is(err, checklists.ErrNoItem) || found.State == checklists.StateDone { // kept, but off the list
		return 0, false, nil
	}
	return found.Attempts, err == nil, p.told(ctx, err, list, item)
}

// GetBatch returns up to count entries of list in order, those after startID, or
// from the first where it is empty. The slice is empty, not nil, where there are
// none. A negative count is Invalid.
func (p *PgStore) GetBatch(ctx context.Context, list string, startID string, count int) ([]ListEntry, error) {
	if count < 0 {
		return nil, pg.Refuse("count", "%d; want 0 or more", count)
	}
	after := &startID
	if startID == "" {
		after = nil
	}
	entries := []ListEntry{}
	for len(entries) < count {
		n := min(count-len(entries), checklists.MaxPage)
		items, err := p.lists.Page(ctx, list, after, n)
		if err != nil {
			return nil, p.told(ctx, err, list, startID)
		}
		for _, item := range items {
			entries = append(entries, ListEntry{Item: item.Name, Attempts: item.Attempts})
		}
		if len(items) < n {
			break
		}
		after = &items[n-1].Name
	}
	return entries, nil
}

// DeleteOne takes item off list and returns 1, or 0 where it is not there.
func (p *PgStore) DeleteOne(ctx context.Context, list string, item string) (int64, error) {
	return p.DeleteBatch(ctx, list, []string{item})
}

// DeleteBatch takes items off list and returns how many were on it.
func (p *PgStore) DeleteBatch(ctx context.Context, list string, items []string) (int64, error) {
	n, err := p.lists.Delete(ctx, list, items...)
	return n, p.told(ctx, err, list, items...)
}

// IncrementOne adds an attempt to item and returns 1, or 0 where it is not there.
func (p *PgStore) IncrementOne(ctx context.Context, list string, item string) (int64, error) {
	return p.IncrementBatch(ctx, list, []string{item})
}

// IncrementBatch adds an attempt to each of items and returns how many are on
// list.
func (p *PgStore) IncrementBatch(ctx context.Context, list string, items []string) (int64, error) {
	n, err := p.lists.Increment(ctx, list, items...)
	return n, p.told(ctx, err, list, items...)
}
