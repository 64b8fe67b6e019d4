package checklists_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What the process that is to be killed has to know.
const (
	crashURL    = "HOWDAH_TEST_CRASH_URL"
	crashSchema = "HOWDAH_TEST_CRASH_SCHEMA"
)

const crashChunk = 500

var (
	crashItems   = pgtest.Size(100_000, 50_000)
	crashOptions = checklists.ImportOptions{ID: "/data/urls.txt"}.InChunksOf(crashChunk)
)

// TestImportUntilKilled only matters in a process that is to be killed: it imports,
// and tells of each chunk.
func TestImportUntilKilled(t *testing.T) {
	t.Parallel()
	if os.Getenv(crashURL) == "" {
		return
	}
	pool, err := pgxpool.New(t.Context(), os.Getenv(crashURL))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := checklists.New(pool, checklists.Config{Table: pgx.Identifier{os.Getenv(crashSchema), "lists"}})
	opt := crashOptions
	opt.Progress = func(checklists.Imported) { fmt.Println("chunk") }
	if _, err := s.Import(t.Context(), "l", source(numbered(crashItems)...), opt); err != nil {
		t.Fatal(err)
	}
}

// A process that imports is killed, wherever it is, again and again, and items are
// done meanwhile: at the end each has been on the list once, and what was done is
// not back.
func TestImportSurvivesItsProcess(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	done := map[string]bool{}
	for range 4 {
		cmd := exec.CommandContext(ctx, self, "-test.run=^TestImportUntilKilled$", "-test.count=1")
		cmd.Env = append(os.Environ(), crashURL+"="+pool.Config().ConnString(), crashSchema+"="+tableOf(t, pool)[0])
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 1 + rand.IntN(20) {
			lines.Scan()
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("it ended before it was killed")
		}
		page, err := s.Page(ctx, "l", nil, 700)
		if err != nil || len(page) < min(700, crashChunk) {
			t.Fatalf("%d items, %v", len(page), err)
		}
		for _, item := range page {
			if n, err := s.Delete(ctx, "l", item.Name); err != nil || n != 1 || done[item.Name] {
				t.Fatalf("%s was done before: %v; Delete = %d, %v", item.Name, done[item.Name], n, err)
			}
			done[item.Name] = true
		}
	}
	if kept := bookmarks(t, pool); len(kept) != 1 {
		t.Fatalf("kept: %q", kept)
	}
	others := append([]string{"another"}, numbered(crashItems)...)
	if got, err := s.Import(ctx, "l", source(others...), crashOptions); err == nil {
		t.Errorf("another source: %+v", got)
	}
	got, err := s.Import(ctx, "l", source(numbered(crashItems)...), crashOptions)
	if err != nil || got.Resumed == 0 || got.Resumed%crashChunk != 0 || got.Added+got.Resumed != int64(crashItems) || got.Skipped != 0 {
		t.Errorf("Import = %+v, %v", got, err)
	}
	want := slices.DeleteFunc(numbered(crashItems), func(name string) bool { return done[name] })
	if got := names(t, s, "l"); !slices.Equal(got, want) {
		t.Errorf("%d items, want %d", len(got), len(want))
	}
	if p, err := s.Progress(ctx, "l"); err != nil || p.Done != int64(len(done)) || p.Left != int64(len(want)) {
		t.Errorf("Progress = %+v, %v, want %d done, %d left", p, err, len(done), len(want))
	}
	if kept := bookmarks(t, pool); len(kept) > 0 {
		t.Errorf("after the end: %q", kept)
	}
}
