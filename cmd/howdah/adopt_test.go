package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// What docs/adopting.md shows of databases of other systems is what it says.
func TestTranscriptsOfAdopting(t *testing.T) {
	t.Parallel()
	trifle, err := os.ReadFile(filepath.Join(root, "counters", "testdata", "compat", "tables.sql"))
	if err != nil {
		t.Fatal(err)
	}
	for system, tables := range map[string]string{
		"iidy": `
			CREATE SCHEMA iidy;
			CREATE TABLE iidy.lists (list text NOT NULL, item text NOT NULL, attempts integer NOT NULL DEFAULT 0, CONSTRAINT list_pk PRIMARY KEY (list, item));
			CREATE TABLE public.iidy_schema_version (version integer NOT NULL);
			INSERT INTO public.iidy_schema_version VALUES (1);
			INSERT INTO iidy.lists (list, item) VALUES ('downloads', 'a.txt'), ('downloads', 'b.txt'), ('downloads', 'c.txt')`,
		"trifle": string(trifle),
	} {
		t.Run(system, func(t *testing.T) {
			t.Parallel()
			adoptAsSaid(t, system, tables)
		})
	}
}

// adoptAsSaid runs the transcripts of a system in a database with its tables.
func adoptAsSaid(t *testing.T, system, tables string) {
	database := pgtest.Database(t)
	if _, err := pgtest.Pool(t, database).Exec(t.Context(), tables); err != nil {
		t.Fatal(err)
	}
	env, work, n := append(os.Environ(), "DATABASE_URL="+database), t.TempDir(), 0
	for _, b := range blocks(t) {
		if filepath.Base(b.file) != "adopting.md" || b.kind != "console "+system {
			continue
		}
		for _, l := range transcripts(b) {
			n++
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			got, err := onTerminal(ctx, l.typed, work, env)
			cancel()
			if diff := cmp.Diff(l.answer, got); err != nil || !l.answered(got) {
				t.Errorf("%s:%d: %s: %v\n%s", b.file, l.line, l.typed, err, diff)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d lines", n)
	}
}
