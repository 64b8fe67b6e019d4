package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest/golden"
)

// What is captured, on the command line: captures are applied from a file, and tail prints
// the feed.
func TestGoldenScenariosOnTheCommandLine(t *testing.T) {
	t.Parallel()
	url := exemplary.Database(t)
	howdah := func(t *testing.T, args ...string) string {
		t.Helper()
		r := program(t, map[string]string{"DATABASE_URL": url}, "", append([]string{"changes"}, args...)...)
		if r.code != 0 {
			t.Fatalf("%q: %+v", args, r)
		}
		return r.stdout
	}
	from := "start" // one after another, in one feed
	for file, some := range golden.Load(t, "../../changes/testdata/golden/01-*.json") {
		for _, s := range some {
			t.Run(file+"/"+s.Name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				conns := map[string]*pgx.Conn{}
				defer func() {
					for _, conn := range conns {
						conn.Close(context.WithoutCancel(ctx))
					}
				}()
				exec := func(on, sql, state string) {
					t.Helper()
					if conns[on] == nil {
						conn, err := pgx.Connect(ctx, url)
						if err != nil {
							t.Fatal(err)
						}
						conns[on] = conn
						if _, err := conn.Exec(ctx, `SET search_path = chk`); err != nil {
							t.Fatal(err)
						}
					}
					_, err := conns[on].Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
					var failed *pgconn.PgError
					if errors.As(err, &failed) && failed.Code == state || err == nil && state == "" {
						return
					}
					t.Fatalf("%s: %v, want SQLSTATE %q", sql, err, state)
				}
				exec("setup", `DROP SCHEMA IF EXISTS chk CASCADE; CREATE SCHEMA chk`, "")
				for _, sql := range s.Setup {
					exec("setup", sql, "")
				}
				var wanted struct {
					Captures []changes.Capture `json:"captures"`
				}
				for _, c := range s.Capture {
					wanted.Captures = append(wanted.Captures, c.Capture)
				}
				text, err := json.Marshal(wanted)
				if err != nil {
					t.Fatal(err)
				}
				captures := filepath.Join(t.TempDir(), "captures.json")
				if err := os.WriteFile(captures, text, 0o644); err != nil {
					t.Fatal(err)
				}
				howdah(t, "apply", "-f", captures)
				for _, step := range s.Script {
					exec(step.On, step.SQL, step.Error)
				}
				var all []changes.Change
				for line := range strings.Lines(howdah(t, "tail", "--from", from, "--until", "now")) {
					var c changes.Change
					if err := json.Unmarshal([]byte(line), &c); err != nil {
						t.Fatalf("%v in %q", err, line)
					}
					all = append(all, c)
					from = c.Position.String()
				}
				s.Compare(t, all)
			})
		}
	}
}
