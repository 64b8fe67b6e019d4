package counters_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// as returns a pool on the same schema for a role of the test's own, which has grants.
func as(t testing.TB, pool *pgxpool.Pool, name string, grants ...string) *pgxpool.Pool {
	t.Helper()
	ctx := t.Context()
	cfg := pool.Config()
	schema := pgx.Identifier{cfg.ConnConfig.RuntimeParams["search_path"]}.Sanitize()
	role := pgx.Identifier{name + "_" + cfg.ConnConfig.RuntimeParams["search_path"]}.Sanitize()
	sql := `CREATE ROLE ` + role + `; GRANT USAGE ON SCHEMA ` + schema + ` TO ` + role
	for _, grant := range grants {
		sql += `; GRANT ` + grant + ` TO ` + role
	}
	if _, err := pool.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET ROLE `+role)
		return err
	}
	theirs, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		theirs.Close()
		if _, err := pool.Exec(context.WithoutCancel(ctx), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	return theirs
}

// A role that may only read reads everything, and is told which rights are missing where
// it writes. One that may not see how a table counts, and what waits in slots, is told so
// instead of other numbers.
func TestARoleThatMayOnlyRead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}})
	if err := errors.Join(s.Track(ctx, "k", at, counters.Values{"n": 1}), s.Beam(ctx, "k", at, counters.Values{"n": 1})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fold(ctx); err != nil {
		t.Fatal(err)
	}
	before := checksum(t, pool, "trifle_stats", "trifle_stats_ping")
	const tables, schema, notes = "SELECT ON trifle_stats, trifle_stats_ping", "USAGE ON SCHEMA howdah", "SELECT ON ALL TABLES IN SCHEMA howdah"
	for name, grants := range map[string][]string{"knows": {tables, schema, notes}, "guesses": {tables}} {
		s := counters.New(as(t, pool, name, grants...), counters.Config{})
		for what, read := range map[string]func() error{
			"Values": func() error {
				_, err := s.Values(ctx, counters.Query{Key: "k", From: at, To: at, Granularity: "1d"})
				return err
			},
			"Get":      func() error { _, err := s.Get(ctx, key("k::1d::1746489600")); return err },
			"Scan":     func() error { _, _, err := s.Scan(ctx, "k"); return err },
			"Page":     func() error { _, err := s.Page(ctx, "", 10); return err },
			"Settings": func() error { _, err := s.Settings(ctx); return err },
			"Export": func() error {
				n := 0
				for _, err := range s.Export(ctx, "k") {
					if err != nil {
						return err
					}
					n++
				}
				if n != 2 {
					t.Errorf("%s: Export: %d rows, want 2", name, n)
				}
				return nil
			},
			"Verify": func() error {
				for d, err := range s.Verify(ctx, "k", "1d", "1h", at, at) {
					if err != nil {
						return err
					}
					t.Errorf("%s: Verify: %v", name, d)
				}
				return nil
			},
		} {
			err := read()
			if knows := name == "knows"; knows && err != nil || !knows && (!errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), "GRANT")) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		for what, write := range map[string]func() error{
			"Track":  func() error { return s.Track(ctx, "k", at, counters.Values{"n": 1}) },
			"Assert": func() error { return s.Assert(ctx, "k", at, counters.Values{"n": 1}) },
			"Apply": func() error {
				_, err := s.Apply(ctx, counters.Event{ID: "i", Key: "k", At: at, Values: counters.Values{"n": 1}})
				return err
			},
			"Inc":     func() error { _, err := s.Inc(ctx, key("k"), counters.Values{"n": 1}); return err },
			"Set":     func() error { _, err := s.Set(ctx, key("k"), counters.Values{"n": 1}); return err },
			"Beam":    func() error { return s.Beam(ctx, "k", at.Add(time.Hour), counters.Values{"n": 1}) },
			"Delete":  func() error { _, err := s.Delete(ctx, "k", nil, time.Time{}, time.Time{}); return err },
			"Rename":  func() error { _, err := s.Rename(ctx, "k", "l"); return err },
			"Rebuild": func() error { _, err := s.Rebuild(ctx, "k", "1d", at, at); return err },
			"Import": func() error {
				_, err := s.Import(ctx, func(yield func(counters.Row, error) bool) {
					yield(counters.Row{Key: "k", Granularity: "1d", At: at, Values: counters.Values{"n": 1}}, nil)
				})
				return err
			},
		} {
			if err := write(); !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), "GRANT") {
				t.Errorf("%s: %s: %v; want Denied, and the grant", name, what, err)
			}
		}
	}
	if checksum(t, pool, "trifle_stats", "trifle_stats_ping") != before {
		t.Error("something was written")
	}
}
