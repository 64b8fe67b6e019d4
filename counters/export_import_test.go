package counters_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// What is exported and imported into another table, of any mode, is the same there.
func TestExportAndImport(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	eachTable(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		random := rand.New(rand.NewPCG(seed, 1))
		events := slices.Concat(someEvents(random, "web", at, 90*24*time.Hour, pgtest.Size(400, 50)), someEvents(random, "web::x", at, 3*24*time.Hour, 20), someEvents(random, "Web", time.Unix(-7200, 0), 4*time.Hour, 5))
		if _, err := s.Apply(ctx, events...); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Set(ctx, []counters.Key{{"driver", "level", "1746522000"}}, counters.Values{"list": []any{1, "a", nil}, "note": "é\n", "null": nil, "yes": true, "big": json.Number("123456789012345678901234567890.5")}); err != nil {
			t.Fatal(err)
		}
		if err := s.Track(ctx, "empty", at, nil); err != nil {
			t.Fatal(err)
		}
		want := stored(t, s)
		var file bytes.Buffer
		if err := counters.WriteRows(&file, s.Export(ctx, "")); err != nil {
			t.Fatal(err)
		}
		for i, mode := range modes {
			other := counters.New(pool, counters.Config{Mode: mode, Table: pgx.Identifier{fmt.Sprint("other", i)}})
			if err := other.Setup(ctx); err != nil {
				t.Fatal(err)
			}
			for range 2 { // any number of times
				report, err := other.Import(ctx, counters.ReadRows(bytes.NewReader(file.Bytes())))
				if err != nil || report.Refused != 0 || report.Rows != int64(len(want)) {
					t.Errorf("%s: %+v, %v, want %d rows", mode, report, err, len(want))
				}
			}
			if diff := cmp.Diff(want, stored(t, other)); diff != "" {
				t.Errorf("%s: %s", mode, diff)
			}
		}
		same := map[counters.Mode]string{}
		for i, mode := range modes {
			same[mode] = fmt.Sprint("other", i)
		}
		set, err := s.Settings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		columns := map[counters.Mode]string{counters.Full: `key COLLATE "C"`, counters.Partial: `key COLLATE "C", at`, counters.Separated: `key COLLATE "C", granularity, at`}[set.Mode] + `, data`
		first, other := `SELECT `+columns+` FROM trifle_stats`, `SELECT `+columns+` FROM `+same[set.Mode]
		var differ int
		if err := pool.QueryRow(ctx, `SELECT count(*) FROM ((`+first+` EXCEPT `+other+`) UNION ALL (`+other+` EXCEPT `+first+`)) AS differ`).Scan(&differ); err != nil || differ > 0 {
			t.Errorf("%d rows differ, %v", differ, err)
		}
		for _, prefix := range []string{"web", "web:", "web::x", "driver", "none", "W", ""} {
			n := 0
			for key := range want {
				if name, _, _ := strings.Cut(key, " "); strings.HasPrefix(name, prefix) {
					n++
				}
			}
			got := 0
			for _, err := range s.Export(ctx, prefix) {
				if got++; err != nil {
					t.Fatal(err)
				}
			}
			if got != n {
				t.Errorf("%d rows begin with %q, want %d", got, prefix, n)
			}
		}
		for range s.Export(ctx, "") { // a loop may end early
			break
		}
		if err := firstError(s.Export(ctx, "\x00")); !errors.Is(err, fault.Invalid) {
			t.Errorf("%v, want Invalid", err)
		}
	})
}

// An import takes the place of what is there, leaves out what cannot be, and says why.
func TestImportRefusesRows(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{System: counters.Off}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		if err := s.Track(ctx, "k", at, counters.Values{"n": 1, "m": 1}); err != nil {
			t.Fatal(err)
		}
		lines := []string{
			`{"key":"k","granularity":"1h","at":"2025-05-06T09:00:00Z","values":{"n":1}}`, ``,
			`{"key":"k","granularity":"1h","at":1746522000,"values":{"n":2}}`,
			`{"key":"k","granularity":"1x","at":"2025-05-06T09:00:00Z","values":{"n":1}}`,
			`{"key":"","granularity":"1h","at":"2025-05-06T09:00:00Z","values":{"n":1}}`,
			`{"key":"k","granularity":"1h","values":{"n":1}}`,
			`{"key":"k","at":"2025-05-06T09:00:00Z","values":{"n":1}}`,
			`{"key":"k","granularity":"1h","at":"2025-05-06T09:00:00.5Z","values":{"n":1}}`,
			`{"key":"` + strings.Repeat("k", 256) + `","granularity":"1h","at":"2025-05-06T09:00:00Z","values":{"n":1}}`,
			`{"key":"k","granularity":"1h","at":"2025-05-06T09:00:00Z"}`,
			`{"key":"k","granularity":"1h","at":"noon","values":{"n":1}}`,
			`{"key":"k","granularity":"1h","at":"2025-05-06T09:00:00Z","values":[1]}`,
			`{"key":"k","granularity":"1h","at":"2025-05-06T09:00:00Z","values":{"a\u0000":1}}`,
			`{"key":"k","values":{"n":1e}}`, `{"key":"k","other":1,"values":{}}`, `{} {}`, `1`, `{`,
			`{"key":"k","granularity":"1d","at":"2025-05-06T00:00:00Z","values":{"n":1` + strings.Repeat("0", 140_000) + `}}`, // more than numeric has
			`{"key":"last::1h::1746522000","values":{"n":{"x":1,"":2}}}`,
		}
		report, err := s.Import(ctx, counters.ReadRows(strings.NewReader(strings.Join(lines, "\r\n"))))
		if err != nil || report.Rows != 3 || report.Refused != int64(len(lines)-4) || len(report.Errors) != int(report.Refused) {
			t.Errorf("%d rows, %d refused, %v: %v", report.Rows, report.Refused, err, report.Errors)
		}
		text := fmt.Sprint(report.Errors)
		for _, part := range []string{`rows[2].granularity: "1x"`, "rows[3].key: empty", "rows[4].at: missing", "rows[5].granularity: missing; without it", "rows[6].at: 2025-05-06T09:00:00.5Z; want whole seconds", "line 10: row: without key or values", `line 11: at: "noon"; want`, "line 16: row: more than one object"} {
			if !strings.Contains(text, part) {
				t.Errorf("%q is not told in %s", part, text)
			}
		}
		got, err := s.Get(ctx, []counters.Key{{"k::1h::1746522000"}, {"last::1h::1746522000"}, {"k::1d::1746489600"}})
		if diff := cmp.Diff([]counters.Values{{"n": number(2)}, {"n": counters.Values{"x": number(1), "": number(2)}}, {"n": number(1), "m": number(1)}}, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		broken := errors.New("broken")
		source := func(yield func(counters.Row, error) bool) {
			_ = yield(counters.Row{Key: "x", Granularity: "1h", At: at, Values: counters.Values{"n": 1}}, nil) && yield(counters.Row{}, broken)
		}
		if report, err := s.Import(ctx, source); !errors.Is(err, broken) || report.Rows != 1 {
			t.Errorf("%+v, %v, want what was read before it broke", report, err)
		}
		var many iter.Seq2[counters.Row, error] = func(yield func(counters.Row, error) bool) {
			for range 150 {
				if !yield(counters.Row{}, nil) {
					return
				}
			}
		}
		if report, err := s.Import(ctx, many); err != nil || report.Refused != 150 || len(report.Errors) != 100 {
			t.Errorf("%d refused, %d told, %v", report.Refused, len(report.Errors), err)
		}
	})
}

// Between tables of different encodings names keep their meaning.
func TestImportIntoAnotherEncoding(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{System: counters.Off, Paths: counters.V1})
	if err := s.Track(ctx, "k", at, counters.Values{`a\.b`: 1, "c.d": 2, "%": 3}); err != nil {
		t.Fatal(err)
	}
	other := counters.New(pool, counters.Config{Table: pgx.Identifier{"other"}, Paths: counters.V1, Mode: counters.Separated, Separator: "/"})
	if err := other.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	if report, err := other.Import(ctx, s.Export(ctx, "")); err != nil || report.Rows != 7 {
		t.Fatal(report, err)
	}
	if diff := cmp.Diff(stored(t, s), stored(t, other)); diff != "" {
		t.Error(diff)
	}
}

// A bucket that is only in slots, which others hold, is exported like any other; and once.
func TestExportOfWhatIsOnlyInSlots(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			s, pool := newStriped(t, counters.Config{Mode: mode, System: counters.Off, Granularities: []counters.Granularity{"1h"}, Striped: []string{"hot*"}, Slots: 1})
			for _, name := range []string{"hot a", "hot b", "z"} {
				if err := s.Track(ctx, name, at, counters.Values{"n": 1}); err != nil {
					t.Fatal(err)
				}
			}
			holder, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback(ctx)
			if _, err := holder.Exec(ctx, `SELECT FROM howdah.counter_slots WHERE tbl = format('%I.trifle_stats', current_schema()) FOR UPDATE`); err != nil {
				t.Fatal(err)
			}
			want := []string{"z1", "hot a1", "hot b1"}
			if mode == counters.Full {
				want = []string{"hot a1", "hot b1", "z1"}
			}
			exported := func(s *counters.Store, prefix string, first func()) (keys []string) {
				for r, err := range s.Export(ctx, prefix) {
					if err != nil {
						t.Fatal(err)
					}
					if first != nil {
						first()
						first = nil
					}
					keys = append(keys, fmt.Sprint(r.Key, r.Values["n"]))
				}
				return keys
			}
			if got := exported(s, "", nil); !slices.Equal(got, want) {
				t.Errorf("beside who holds them: %q", got)
			}
			if got := exported(s, "hot b", nil); !slices.Equal(got, []string{"hot b1"}) {
				t.Errorf("those of a prefix: %q", got)
			}
			if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if got := exported(s.WithTx(tx), "", nil); len(got) != 3 {
					t.Errorf("in a transaction: %q", got)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			if got := exported(s, "", func() {
				if err := holder.Rollback(ctx); err != nil {
					t.Error(err)
				}
				if n, err := s.Fold(ctx); n != 2 || err != nil {
					t.Errorf("Fold = %d, %v", n, err)
				}
			}); !slices.Equal(got, want) {
				t.Errorf("folded meanwhile: %q", got)
			}
			if got := exported(s, "", nil); !slices.Equal(got, []string{"hot a1", "hot b1", "z1"}) {
				t.Errorf("in rows: %q", got)
			}
		})
	}
}

// Buckets that are only in slots are exported once, in their places where the table is in
// the order of slots, also where others fold them between two parts.
func TestExportGoesThroughRowsAndSlots(t *testing.T) {
	t.Parallel()
	const each, all = 420, 6 * 420
	eachTable(t, counters.Config{System: counters.Off, Striped: []string{"hot*"}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		settings, err := s.Settings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		row := map[counters.Mode]string{
			counters.Full:      `m || '::' || g || '::' || h`,
			counters.Partial:   `m || '::' || g, to_timestamp(h)`,
			counters.Separated: `m, g, to_timestamp(h)`,
		}[settings.Mode]
		buckets := fmt.Sprintf(`, '{"n": 1}' FROM (VALUES ('hot'), ('hot-b'), ('hot::c')) AS metrics(m), (VALUES ('1h'), ('1d')) AS granularities(g), (SELECT i, 1746489600 + 86400 * i AS h FROM generate_series(1, %d) AS i) AS hours WHERE i %% 2 = `, each)
		const tbl = `format('%I.trifle_stats', current_schema())`
		for _, sql := range []string{
			`INSERT INTO trifle_stats SELECT ` + row + buckets + `0`,
			`INSERT INTO howdah.counter_slots SELECT ` + tbl + `, m || '::' || g || '::' || h, i % 3` + buckets + `1`,
		} {
			if _, err := pool.Exec(ctx, sql); err != nil {
				t.Fatal(err)
			}
		}
		exported := func(s *counters.Store, prefix string, then func()) (keys []string) {
			for r, err := range s.Export(ctx, prefix) {
				if err != nil {
					t.Fatal(err)
				}
				if keys = append(keys, fmt.Sprint(r.Key, r.Granularity, r.At.Unix())); cmp.Diff(counters.Values{"n": number(1)}, r.Values) != "" {
					t.Errorf("%v", r)
				}
				if len(keys) == 1100 {
					then()
				}
			}
			return keys
		}
		tx, err := pool.Begin(ctx) // in which nothing is folded
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		if got := exported(s.WithTx(tx), "hot-", nil); len(got) != all/3 {
			t.Errorf("%d of a prefix, want %d", len(got), all/3)
		}
		one := exported(s.WithTx(tx), "", func() {
			if _, err := pool.Exec(ctx, `WITH gone AS (DELETE FROM howdah.counter_slots WHERE tbl = `+tbl+`) INSERT INTO trifle_stats SELECT `+row+buckets+`1`); err != nil {
				t.Fatal(err)
			}
		})
		other := exported(s, "", func() {})
		if settings.Mode != counters.Full || !strings.HasSuffix(t.Name(), "bytes") && !strings.HasSuffix(t.Name(), "indexed") { // not in the order of slots
			slices.Sort(one)
			slices.Sort(other)
		}
		if diff := cmp.Diff(other, one); diff != "" || len(one) != all {
			t.Errorf("%d rows, want %d as they are when folded: %s", len(one), all, diff)
		}
	})
}
