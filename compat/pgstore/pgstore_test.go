package pgstore_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/compat/pgstore"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const golden = "../../checklists/testdata/compat/"

// call is a call of the original and its answer.
type call struct {
	Op, List, Item, Start string
	Items                 []string
	Gen                   *struct {
		Fmt            string
		From, To, Step int
	}
	Count int

	N                   int64
	Ok                  bool
	Entries             []pgstore.ListEntry
	Digest, First, Last string
	Err, Quirk          string
}

func (c *call) items() []string {
	if c.Gen == nil {
		return c.Items
	}
	var items []string
	for i := c.Gen.From; i < c.Gen.To; i += c.Gen.Step {
		items = append(items, fmt.Sprintf(c.Gen.Fmt, i))
	}
	return items
}

func calls(t *testing.T, file string) []call {
	t.Helper()
	f, err := os.Open(golden + file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []call
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c call
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if err := lines.Err(); err != nil || len(all) == 0 {
		t.Fatalf("%s: %d calls, %v", file, len(all), err)
	}
	return all
}

// replay makes the calls and compares every answer with the original's.
func replay(t *testing.T, s pgstore.Store, all []call) {
	t.Helper()
	ctx := t.Context()
	for i, c := range all {
		var n int64
		var ok bool
		var entries []pgstore.ListEntry
		var err error
		switch c.Op {
		case "InsertOne":
			n, err = s.InsertOne(ctx, c.List, c.Item)
		case "GetOne":
			var attempts int
			attempts, ok, err = s.GetOne(ctx, c.List, c.Item)
			n = int64(attempts)
		case "DeleteOne":
			n, err = s.DeleteOne(ctx, c.List, c.Item)
		case "IncrementOne":
			n, err = s.IncrementOne(ctx, c.List, c.Item)
		case "InsertBatch":
			n, err = s.InsertBatch(ctx, c.List, c.items())
		case "DeleteBatch":
			n, err = s.DeleteBatch(ctx, c.List, c.items())
		case "IncrementBatch":
			n, err = s.IncrementBatch(ctx, c.List, c.items())
		case "GetBatch":
			entries, err = s.GetBatch(ctx, c.List, c.Start, c.Count)
			n = int64(len(entries))
		default:
			t.Fatalf("call %d: unknown %s", i+1, c.Op)
		}
		what := fmt.Sprintf("call %d: %s(%q, %.40q)", i+1, c.Op, c.List, c.Item)
		if !sameError(c, err) {
			t.Errorf("%s: error %v, want %q", what, err, c.Err)
		}
		if n != c.N || ok != c.Ok {
			t.Errorf("%s = %d, %v, want %d, %v", what, n, ok, c.N, c.Ok)
		}
		if c.Entries != nil {
			if diff := cmp.Diff(c.Entries, entries); diff != "" {
				t.Errorf("%s:\n%s", what, diff)
			}
		}
		if c.Digest != "" && digest(entries) != c.Digest {
			t.Errorf("%s: other entries than the original's", what)
		}
	}
}

// sameError: the original's SQLSTATE, as an error and in the text; where the
// original loses its error, one all the same.
func sameError(c call, err error) bool {
	switch {
	case c.Quirk != "":
		return err != nil
	case c.Err == "":
		return err == nil
	}
	return stateOf(err) == c.Err && strings.HasSuffix(err.Error(), "(SQLSTATE "+c.Err+")")
}

func digest(entries []pgstore.ListEntry) string {
	h := sha256.New()
	for _, e := range entries {
		fmt.Fprintf(h, "%s\t%d\n", e.Item, e.Attempts)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// endRows is the md5 of the rows that the original leaves after all calls.
const endRows = "e327430c2eabc087f87829dab3a70ac0"

const md5OfRows = `SELECT md5(string_agg(list || E'\t' || item || E'\t' || attempts, E'\n' ORDER BY list COLLATE "C", item COLLATE "C")) FROM iidy.lists`

func open(t *testing.T, url string) *pgstore.PgStore {
	t.Helper()
	s, err := pgstore.NewPgStore(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func wantRows(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	var got string
	if err := pool.QueryRow(t.Context(), md5OfRows).Scan(&got); err != nil || got != endRows {
		t.Errorf("rows: md5 %s, %v, want %s", got, err, endRows)
	}
}

func TestAnswersAndRowsAreTheOriginals(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	replay(t, open(t, url), calls(t, "calls.jsonl"))
	wantRows(t, pgtest.Pool(t, url))
}

// table is the original's.
const table = `
	CREATE SCHEMA iidy;
	CREATE TABLE iidy.lists (
		list text NOT NULL,
		item text NOT NULL,
		attempts integer NOT NULL DEFAULT 0,
		CONSTRAINT list_pk PRIMARY KEY (list, item))`

func TestAnAdoptedTableKeepsItsOrder(t *testing.T) {
	t.Parallel()
	sql := table
	url, ok := pgtest.ICUDatabase(t, "en-US")
	if !ok {
		url, sql = pgtest.Database(t), strings.ReplaceAll(table, "text NOT NULL", `text COLLATE "en-US-x-icu" NOT NULL`)
	}
	if _, err := pgtest.Pool(t, url).Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	replay(t, open(t, url), calls(t, "calls_icu.jsonl"))
}

// What the original left can be worked with as it is, with the rights that the
// original needs.
func TestOnATableOfTheOriginal(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	pgtest.Restore(t, url, golden+"end.sql.gz")
	s := open(t, iidy(t, url).Config().ConnString())
	wantRows(t, pgtest.Pool(t, url))

	entries, err := s.GetBatch(ctx, "big", "", 1_000_000_000_000)
	if err != nil || len(entries) != 39_200 {
		t.Errorf("GetBatch: %d, %v", len(entries), err)
	}
	if n, ok, err := s.GetOne(ctx, "big", "f001000.bin"); n != 3 || !ok || err != nil {
		t.Errorf("GetOne = %d, %v, %v", n, ok, err)
	}
	steps := []struct {
		what string
		do   func(context.Context, string, []string) (int64, error)
		n    int64
	}{
		{"InsertBatch", s.InsertBatch, 2}, {"IncrementBatch", s.IncrementBatch, 2}, {"DeleteBatch", s.DeleteBatch, 2}, {"DeleteBatch again", s.DeleteBatch, 0},
	}
	for _, step := range steps {
		if n, err := step.do(ctx, "big", []string{"new", "newer"}); n != step.n || err != nil {
			t.Errorf("%s = %d, %v, want %d", step.what, n, err, step.n)
		}
	}
	for i, do := range []func(context.Context, string, string) (int64, error){s.InsertOne, s.IncrementOne, s.DeleteOne} {
		if n, err := do(ctx, "big", "one"); n != 1 || err != nil {
			t.Errorf("of one, %d: %d, %v", i, n, err)
		}
	}
	wantRows(t, pgtest.Pool(t, url))
	if err := s.Nuke(ctx); err != nil {
		t.Error(err)
	}
	if entries, err := s.GetBatch(ctx, "big", "", 1); err != nil || entries == nil || len(entries) > 0 {
		t.Errorf("after Nuke: %v, %v", entries, err)
	}
}

// Where a list keeps what is done, that is off the list all the same.
func TestKeptItemsAreOffTheList(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	s := open(t, url)
	if err := checklists.New(pgtest.Pool(t, url), checklists.Config{}).Set(ctx, "l", checklists.Settings{KeepDone: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := s.InsertOne(ctx, "l", "a"); n != 1 || err != nil {
			t.Errorf("InsertOne = %d, %v", n, err)
		}
		if n, err := s.DeleteOne(ctx, "l", "a"); n != 1 || err != nil {
			t.Errorf("DeleteOne = %d, %v", n, err)
		}
		if _, ok, err := s.GetOne(ctx, "l", "a"); ok || err != nil {
			t.Errorf("GetOne of what was deleted = %v, %v", ok, err)
		}
	}
}

// Text that no statement can carry is refused in the server's words, and what the
// original dies of as Invalid.
func TestRefusals(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t, pgtest.Database(t))
	for name, call := range map[string]func(text string) error{
		"InsertOne":      func(text string) error { return second(s.InsertOne(ctx, "l", text)) },
		"InsertBatch":    func(text string) error { return second(s.InsertBatch(ctx, "l", []string{"ok", text})) },
		"IncrementOne":   func(text string) error { return second(s.IncrementOne(ctx, text, "a")) },
		"IncrementBatch": func(text string) error { return second(s.IncrementBatch(ctx, "l", []string{"ok", text})) },
		"DeleteOne":      func(text string) error { return second(s.DeleteOne(ctx, "l", text)) },
		"DeleteBatch":    func(text string) error { return second(s.DeleteBatch(ctx, text, []string{"a", "b"})) },
		"GetBatch":       func(text string) error { return second(s.GetBatch(ctx, "l", text, 1)) },
		"GetOne": func(text string) error {
			_, _, err := s.GetOne(ctx, text, "a")
			return err
		},
	} {
		for text, want := range map[string]string{
			"a\x00b": `ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)`,
			"a\xff":  `ERROR: invalid byte sequence for encoding "UTF8": 0xff (SQLSTATE 22021)`,
		} {
			if err := call(text); err == nil || err.Error() != want || stateOf(err) != "22021" {
				t.Errorf("%s(%q): %v, want %s", name, text, err, want)
			}
		}
	}
	if _, err := s.GetBatch(ctx, "l", "", -1); !errors.Is(err, fault.Invalid) {
		t.Errorf("GetBatch(-1): %v, want Invalid", err)
	}
	if _, err := s.GetBatch(ctx, "l", "a\x00", 1); !errors.Is(err, fault.Invalid) {
		t.Errorf("GetBatch after NUL: %v, want Invalid", err)
	}
	items := append(make([]string, 0, 2), "a\x00")
	if s.DeleteBatch(ctx, "l", items); items[:2][1] != "" {
		t.Errorf("the caller's array was written to: %q", items[:2])
	}
}

// second drops the answer of a call whose error is wanted.
func second[T any](_ T, err error) error { return err }

// A server that is gone, in the middle of a page too, is an error: no page is
// empty or short for it.
func TestServerGone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	s := open(t, proxy.URL())
	items := make([]string, 30_000)
	for i := range items {
		items[i] = fmt.Sprintf("item %07d of a list", i)
	}
	if n, err := s.InsertBatch(ctx, "l", items); n != 30_000 || err != nil {
		t.Fatalf("InsertBatch = %d, %v", n, err)
	}
	for name, arm := range map[string]func(){
		"before the second of the service's pages": func() { proxy.CutOn([]byte("item 0009999")) },
		"in the first": func() { proxy.CutOnAnswer([]byte("item 0005")) },
		"in the last":  func() { proxy.CutOnAnswer([]byte("item 0029")) },
	} {
		arm()
		if entries, err := s.GetBatch(ctx, "l", "", 30_000); err == nil || entries != nil {
			t.Errorf("%s: %d entries, %v", name, len(entries), err)
		}
	}
	if entries, err := s.GetBatch(ctx, "l", "", 30_000); err != nil || len(entries) != 30_000 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	proxy.Refuse(true)
	proxy.Cut()
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if entries, err := s.GetBatch(ctx, "l", "", 1); err == nil || entries != nil {
		t.Errorf("while it is away: %v, %v", entries, err)
	}
	if _, _, err := s.GetOne(ctx, "l", items[0]); err == nil {
		t.Error("GetOne while it is away: no error")
	}
}

// A program of the original runs on howdah after its import path is changed, and
// nothing else.
func TestAProgramOfTheOriginal(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("testdata/program.go")
	if err != nil {
		t.Fatal(err)
	}
	const theirs, ours = `"iidy/pgstore"`, `"github.com/howdah-db/howdah/compat/pgstore"`
	if strings.Count(string(source), theirs) != 1 {
		t.Fatalf("%s is not imported once", theirs)
	}
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(strings.Replace(string(source), theirs, ours, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "run", file, pgtest.Database(t)).CombinedOutput()
	const want = `added 5
a.txt: done
b.txt: failed, 1 attempts
c.txt: done
d.txt: done
e.txt: failed, 1 attempts
again: ERROR: duplicate key value violates unique constraint "list_pk" (SQLSTATE 23505)
left: [{b.txt 1} {e.txt 1}]
`
	if err != nil || string(out) != want {
		t.Errorf("%v\n%s", err, cmp.Diff(want, string(out)))
	}
}

func TestErrorsAreSeenThrough(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Database(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.InsertOne(ctx, "l", "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("InsertOne: %v, want context.Canceled", err)
	}
	if _, err := s.GetBatch(ctx, "l", "", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("GetBatch: %v, want context.Canceled, not an empty page", err)
	}
	var pgErr *pgconn.PgError
	if _, err := s.InsertBatch(t.Context(), "l", []string{"a", "a"}); !errors.As(err, &pgErr) || err.Error() != pgErr.Error() {
		t.Errorf("InsertBatch: %v, want the server's error", err)
	}
}

func TestThePasswordIsNotShown(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Database(t))
	want := s.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, s); got != want {
			t.Errorf("%s prints %q, want %q", verb, got, want)
		}
	}
	for _, url := range []string{"postgres://u:hunter2@127.0.0.1:1/x", "postgres://u:hunter2@:x", "host=x password=hunter2 port=y", "postgres://u:hun ter2@h"} {
		if _, err := pgstore.NewPgStore(url); err == nil || strings.Contains(err.Error(), "hun") {
			t.Errorf("NewPgStore: %v", err)
		}
	}
}
