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
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

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

// sameError: the original's SQLSTATE in the text; where the original loses its
// error, or what no statement can carry, Invalid.
func sameError(c call, err error) bool {
	switch {
	case c.Quirk != "" || c.Err == "22021":
		return errors.Is(err, fault.Invalid) || err != nil && strings.Contains(err.Error(), "SQLSTATE 22021")
	case c.Err == "":
		return err == nil
	}
	return err != nil && strings.Contains(err.Error(), "(SQLSTATE "+c.Err+")")
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

func TestAnswersAndRowsAreTheOriginals(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	replay(t, open(t, url), calls(t, "calls.jsonl"))
	var got string
	if err := pgtest.Pool(t, url).QueryRow(t.Context(), md5OfRows).Scan(&got); err != nil || got != endRows {
		t.Errorf("rows: md5 %s, %v, want %s", got, err, endRows)
	}
}

func TestAnAdoptedTableKeepsItsOrder(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	_, err := pgtest.Pool(t, url).Exec(t.Context(), `
		CREATE SCHEMA iidy;
		CREATE TABLE iidy.lists (
			list text COLLATE "en-US-x-icu" NOT NULL,
			item text COLLATE "en-US-x-icu" NOT NULL,
			attempts integer NOT NULL DEFAULT 0,
			CONSTRAINT list_pk PRIMARY KEY (list, item))`)
	if err != nil {
		t.Fatal(err)
	}
	replay(t, open(t, url), calls(t, "calls_icu.jsonl"))
}

// A program that has the rights the original needs needs no others.
func TestWorksWithTheRightsOfTheOriginal(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	pgtest.Restore(t, url, golden+"end.sql.gz")
	pool := pgtest.Pool(t, url)
	role := "iidy_" + pool.Config().ConnConfig.Database
	if _, err := pool.Exec(ctx, `
		CREATE ROLE `+role+` LOGIN PASSWORD 'secret';
		GRANT USAGE ON SCHEMA iidy TO `+role+`;
		GRANT SELECT, INSERT, UPDATE, DELETE ON iidy.lists TO `+role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(ctx), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	s := open(t, pgtest.As(t, url, role, "secret"))
	if n, ok, err := s.GetOne(ctx, "big", "f001000.bin"); n != 3 || !ok || err != nil {
		t.Errorf("GetOne = %d, %v, %v", n, ok, err)
	}
	if n, err := s.InsertBatch(ctx, "new", []string{"a", "b"}); n != 2 || err != nil {
		t.Errorf("InsertBatch = %d, %v", n, err)
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
