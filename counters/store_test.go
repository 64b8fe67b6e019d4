package counters_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// compat reads a file of what the original wrote and answered.
func compat(t testing.TB, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "compat", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// The session of the original's documentation.
func TestTranscript(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	var session struct {
		Steps []struct {
			Get, Inc []counters.Key
			Values   counters.Values
			Answer   []counters.Values
		}
		Stored struct{ Key, Data any }
	}
	compat(t, "transcript.json", &session)
	for i, step := range session.Steps {
		if step.Get != nil {
			got, err := s.Get(ctx, step.Get)
			if diff := cmp.Diff(step.Answer, got); err != nil || diff != "" {
				t.Errorf("step %d: %v\n%s", i, err, diff)
			}
		} else if _, err := s.Inc(ctx, step.Inc, step.Values); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
	}
	want, _ := json.Marshal(session.Stored.Data)
	var equal bool
	if err := pool.QueryRow(ctx, `SELECT data = $1 FROM trifle_stats WHERE key = 'test::now'`, want).Scan(&equal); err != nil || !equal {
		t.Errorf("stored: %v, %v", row(t, pool, "test::now"), err)
	}
}

// Get, Inc and Set, in every mode.
func TestRows(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, _ := newStore(t, counters.Config{Mode: mode})
			a, b := counters.Key{"orders", "1h", "1746522000"}, counters.Key{"orders::eu::1h::1746525600"} // in parts, and in one
			added, err := s.Inc(ctx, []counters.Key{b, a, b}, counters.Values{"n": 0.1, "m": counters.Values{"x": 1}})
			if diff := cmp.Diff(counters.Values{"n": number(0.1), "m.x": number(1)}, added); err != nil || diff != "" {
				t.Errorf("Inc: %v\n%s", err, diff)
			}
			if _, err := s.Inc(ctx, []counters.Key{a}, nil); err != nil {
				t.Errorf("Inc of nothing: %v", err)
			}
			put, err := s.Set(ctx, []counters.Key{a, {"new::1d::1746489600"}}, counters.Values{"m": map[string]any{"x": "text", "y": []int{1}}, "z": nil})
			if diff := cmp.Diff(counters.Values{"m.x": "text", "m.y": []any{number(1)}, "z": nil}, put); err != nil || diff != "" {
				t.Errorf("Set: %v\n%s", err, diff)
			}
			got, err := s.Get(ctx, []counters.Key{a, {"none::1h::1"}, b, a})
			va := counters.Values{"n": number(0.1), "m": counters.Values{"x": "text", "y": []any{number(1)}}, "z": nil}
			vb := counters.Values{"n": number(0.2), "m": counters.Values{"x": number(2)}}
			if diff := cmp.Diff([]counters.Values{va, {}, vb, va}, got); err != nil || diff != "" {
				t.Errorf("Get: %v\n%s", err, diff)
			}
			if none, err := s.Get(ctx, nil); err != nil || len(none) != 0 {
				t.Errorf("Get of nothing: %v, %v", none, err)
			}
			for name, write := range map[string]func(context.Context, []counters.Key, counters.Values) (counters.Values, error){"Inc": s.Inc, "Set": s.Set} {
				if _, err := write(ctx, nil, counters.Values{"n": 1}); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "keys: empty") {
					t.Errorf("%s of nothing: %v, want Invalid", name, err)
				}
			}
			for _, bad := range []counters.Key{{}, {"", ""}, {"a\x00", "1h", "1"}, {"\xff", "1h", "1"}, {strings.Repeat("é", 256), "1h", "1"}} { // D18
				if _, err := s.Inc(ctx, []counters.Key{a, bad}, counters.Values{"n": 1}); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "keys[1]") {
					t.Errorf("Inc(%q): %v, want Invalid", bad, err)
				}
			}
			if mode != counters.Full {
				for _, bad := range []counters.Key{{"orders"}, {"orders", "1h"}, {"orders", "1h", "now"}, {"orders", "1h", "99999999999999"}} {
					if _, err := s.Get(ctx, []counters.Key{bad}); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "unix second") {
						t.Errorf("Get(%q): %v, want Invalid", bad, err)
					}
				}
			}
		})
	}
}

// D1, D10, D13: sums are exact, whatever the field is called, and old texts of numbers
// count as numbers.
func TestD1D10D13Sums(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	var numbers struct {
		Cases []struct {
			Leaf, Stored json.Number
			Times        int
		}
	}
	compat(t, "numbers.json", &numbers)
	for i, c := range numbers.Cases {
		key := counters.Key{"number", fmt.Sprint(i)}
		for range c.Times {
			if _, err := s.Inc(ctx, []counters.Key{key}, counters.Values{"n": c.Leaf}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Get(ctx, []counters.Key{key})
		if err != nil || !number(c.Stored).Equal(got[0]["n"].(counters.Number)) {
			t.Errorf("%s × %d = %v, %v, want %s", c.Leaf, c.Times, got, err, c.Stored)
		}
	}
	for _, name := range []string{`a,b`, `a}b`, `{a`, `a"b`, `a\b`, `a `, `NULL`, `null`, `'`, `é`, "\n", "\u2028", `$1`, `a{table}b`} {
		for range 2 {
			if _, err := s.Inc(ctx, key("names"), counters.Values{name: 1}); err != nil {
				t.Fatalf("%q: %v", name, err)
			}
		}
		if got, err := s.Get(ctx, key("names")); err != nil || !number(2).Equal(got[0][name].(counters.Number)) {
			t.Errorf("%q = %v, %v, want 2", name, got[0][name], err)
		}
	}
	if _, err := pool.Exec(ctx, `INSERT INTO trifle_stats VALUES ('old', '{"a": "0.15e1", "b": null, "c": "x", "d": "-.5", "e": "NaN", "f": [1], "g": true, "h": "1e400"}')`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Inc(ctx, key("old"), counters.Values{"a": 1, "b": 2, "d": 0.5, "new": 1}); err != nil {
		t.Error(err)
	}
	before := row(t, pool, "old")
	if want := `{"a": 2.5, "b": 2, "c": "x", "d": 0.0, "e": "NaN", "f": [1], "g": true, "h": "1e400", "new": 1}`; before != want {
		t.Errorf("stored %s, want %s", before, want)
	}
	for _, name := range []string{"c", "e", "f", "g", "h"} {
		_, err := s.Inc(ctx, []counters.Key{{"new row"}, {"old"}, {"z"}}, counters.Values{"a": 1, name: 1})
		if !errors.Is(err, counters.ErrNotNumber) || !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "values."+name+": old holds ") {
			t.Errorf("Inc(%q): %v, want ErrNotNumber", name, err)
		}
	}
	if after := row(t, pool, "old"); after != before {
		t.Errorf("a refused call wrote %s", after)
	}
	if got, err := s.Get(ctx, []counters.Key{{"new row"}, {"z"}}); err != nil || len(got[0])+len(got[1]) > 0 {
		t.Errorf("a refused call wrote %v, %v", got, err)
	}
	if _, err := s.Inc(ctx, key("x"), counters.Values{"n": math.NaN()}); !errors.Is(err, fault.Invalid) {
		t.Errorf("NaN: %v", err)
	}
}

// A refusal leaves the caller's transaction as it was.
func TestATransactionGoesOnAfterARefusal(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	if _, err := s.Set(ctx, key("k"), counters.Values{"note": "text"}); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		in := s.WithTx(tx)
		if _, err := in.Inc(ctx, key("before"), counters.Values{"n": 1}); err != nil {
			return err
		}
		if _, err := in.Inc(ctx, []counters.Key{{"a"}, {"k"}}, counters.Values{"note": 1}); !errors.Is(err, counters.ErrNotNumber) || !strings.Contains(err.Error(), `values.note: k holds "text"`) {
			t.Errorf("Inc = %v, want ErrNotNumber", err)
		}
		_, err := in.Inc(ctx, key("after"), counters.Values{"n": 1})
		return err
	})
	got, getErr := s.Get(ctx, []counters.Key{{"before"}, {"a"}, {"after"}})
	if err != nil || getErr != nil || len(got[0]) != 1 || len(got[1]) != 0 || len(got[2]) != 1 {
		t.Errorf("%v, %v, %v", got, err, getErr)
	}
}

// D5: nothing is lost by those who increment at once, and none waits for another in a
// circle, whatever the order of their keys.
func TestD5IncrementsAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range modes {
		s, _ := newStore(t, counters.Config{Mode: mode})
		keys := []counters.Key{{"hot::1m::60"}, {"hot::1h::3600"}, {"hot::1d::0"}}
		var group sync.WaitGroup
		for i := range 16 {
			group.Go(func() {
				mine := []counters.Key{keys[i%3], keys[(i+1+i%2)%3], keys[(i+2-i%2)%3]}
				for range 100 {
					if _, err := s.Inc(ctx, mine, counters.Values{"n": 1, "half": 0.5}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		got, err := s.Get(ctx, keys)
		want := counters.Values{"n": number(1600), "half": number(800)}
		if diff := cmp.Diff([]counters.Values{want, want, want}, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", mode, err, diff)
		}
	}
}

// What the merging functions do, on their own.
func TestMerges(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := newPool(t)
	for _, c := range []struct{ fn, old, new, want string }{
		{"add", `{}`, `{}`, `{}`},
		{"add", `{"a": 1}`, `{}`, `{"a": 1}`},
		{"add", `{"a": 1, "b": "t"}`, `{"a": 0.10, "c": 3}`, `{"a": 1.1, "b": "t", "c": 3}`},
		{"add", `{"a": null}`, `{"a": 1}`, `{"a": 1}`},
		{"add", `{"a": "1e2"}`, `{"a": 1}`, `{"a": 101}`},
		{"add", `{"a": 1e100}`, `{"a": 1}`, `{"a": 1` + strings.Repeat("0", 99) + `1}`},
		{"max", `{"a": 1, "b": null, "d": "7"}`, `{"a": -2, "b": -3, "c": -4, "d": 6}`, `{"a": 1, "b": -3, "c": -4, "d": 7}`},
		{"min", `{"a": 1, "b": null, "d": "7"}`, `{"a": -2, "b": 3, "c": 4, "d": 8}`, `{"a": -2, "b": 3, "c": 4, "d": 7}`},
		{"add", `{"a": "x"}`, `{"a": 1}`, ""}, {"max", `{"a": "NaN"}`, `{"a": 1}`, ""}, {"min", `{"a": {}}`, `{"a": 1}`, ""},
		{"add", `{"a": "Infinity"}`, `{"a": 1}`, ""}, {"add", `{"a": ""}`, `{"a": 1}`, ""}, {"add", `{"a": " 1"}`, `{"a": 1}`, ""},
		{"add", `{"a": "` + strings.Repeat("9", 101) + `"}`, `{"a": 1}`, ""},
	} {
		var equal bool
		var got string
		err := pool.QueryRow(ctx, `SELECT m = $3::jsonb, m::text FROM howdah.counters_`+c.fn+`($1::jsonb, $2::jsonb) AS m`, c.old, c.new, either(c.want, "{}")).Scan(&equal, &got)
		if c.want == "" && (err == nil || !strings.Contains(err.Error(), "field a holds ") || !strings.Contains(err.Error(), "22H01")) || c.want != "" && (err != nil || !equal) {
			t.Errorf("%s(%s, %s) = %s, %v, want %s", c.fn, c.old, c.new, got, err, c.want)
		}
	}
	// A search_path that leads elsewhere changes nothing.
	var schema string
	if err := pool.QueryRow(ctx, `SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `
		CREATE FUNCTION wrong(jsonb, text) RETURNS boolean LANGUAGE sql RETURN false;
		CREATE FUNCTION wrong(numeric, numeric) RETURNS numeric LANGUAGE sql RETURN 0;
		CREATE FUNCTION wrong(text, text) RETURNS boolean LANGUAGE sql RETURN false;
		CREATE FUNCTION wrong(int, int) RETURNS boolean LANGUAGE sql RETURN false;
		CREATE FUNCTION wrong(jsonb, jsonb) RETURNS jsonb LANGUAGE sql RETURN 'null'::jsonb;
		CREATE FUNCTION jsonb_typeof(jsonb) RETURNS text LANGUAGE sql RETURN 'wrong';
		CREATE FUNCTION jsonb_array_length(jsonb) RETURNS int LANGUAGE sql RETURN 0;
		CREATE OPERATOR ? (FUNCTION = wrong, LEFTARG = jsonb, RIGHTARG = text);
		CREATE OPERATOR + (FUNCTION = wrong, LEFTARG = numeric, RIGHTARG = numeric);
		CREATE OPERATOR = (FUNCTION = wrong, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR < (FUNCTION = wrong, LEFTARG = int, RIGHTARG = int);
		CREATE OPERATOR || (FUNCTION = wrong, LEFTARG = jsonb, RIGHTARG = jsonb)`); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL search_path = `+schema+`, pg_catalog`); err != nil {
			return err
		}
		for fn, want := range map[string]string{"add": `{"a": 6, "b": 3.5, "c": 1}`, "max": `{"a": 4, "b": 3, "c": 1}`, "min": `{"a": 2, "b": 0.5, "c": 1}`} {
			var got string
			if err := tx.QueryRow(ctx, `SELECT howdah.counters_`+fn+`('{"a": 4, "b": "3"}', '{"a": 2, "b": 0.5, "c": 1}')::pg_catalog.text`).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %s, %v, want %s", fn, got, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	var got int
	if err := pool.QueryRow(ctx, `SELECT (howdah.counters_add(howdah.counters_add(wide, wide), '{"f17": -17}') -> 'f17')::int FROM (SELECT jsonb_object_agg('f' || i, i) AS wide FROM generate_series(1, 1024) AS i) AS w`).Scan(&got); err != nil || got != 17 {
		t.Errorf("1,024 fields: %d, %v", got, err)
	}
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// D12: Setup is for any number of times, by several at once, and for tables with any
// name.
func TestD12Setup(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := newPool(t)
	ny, err := counters.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	cfg := counters.Config{Table: pgx.Identifier{`it's a "table"; DROP`}, Mode: counters.Separated, Location: ny, WeekStart: counters.Sunday, Granularities: []counters.Granularity{"1h", "1d", "1h"}}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 2 {
				if err := counters.New(pool, cfg).Setup(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	other := func(change func(*counters.Config)) *counters.Store {
		c := cfg
		change(&c)
		return counters.New(pool, c)
	}
	// Whoever says nothing gets what was recorded.
	got, err := other(func(c *counters.Config) { *c = counters.Config{Table: c.Table} }).Settings(ctx)
	if err != nil || got.TimeZone != "America/New_York" || got.WeekStart != counters.Sunday || got.Mode != counters.Separated || len(got.Granularities) != 2 || !got.Recorded {
		t.Errorf("Settings = %+v, %v", got, err)
	}
	for name, s := range map[string]*counters.Store{
		`the time zone "America/New_York", not "UTC"`: other(func(c *counters.Config) { c.Location, _ = counters.LoadLocation("GMT") }),
		`the week start "sunday", not "monday"`:       other(func(c *counters.Config) { c.WeekStart = counters.Monday }),
		`the separator "::", not "/"`:                 other(func(c *counters.Config) { c.Separator = "/" }),
		`the path encoding "raw", not "v1"`:           other(func(c *counters.Config) { c.Paths = counters.V1 }),
	} {
		if err := s.Setup(ctx); !errors.Is(err, counters.ErrSettings) || !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), name) {
			t.Errorf("Setup: %v, want ErrSettings: %s", err, name)
		}
		if _, err := s.Get(ctx, nil); !errors.Is(err, counters.ErrSettings) {
			t.Errorf("Get: %v, want ErrSettings", err)
		}
	}
	if err := other(func(c *counters.Config) { c.Mode = counters.Full }).Setup(ctx); !errors.Is(err, counters.ErrSettings) {
		t.Errorf("another mode: %v", err)
	}
	// What may change changes.
	if err := other(func(c *counters.Config) { c.Granularities, c.System = []counters.Granularity{"1y"}, counters.Off }).Setup(ctx); err != nil {
		t.Error(err)
	}
	if got, err := other(func(c *counters.Config) { c.Granularities = nil }).Settings(ctx); err != nil || got.System != counters.Off || len(got.Granularities) != 1 {
		t.Errorf("Settings = %+v, %v", got, err)
	}
}

// Of two that set a table up otherwise at the same time, one is told, and has changed
// nothing.
func TestSetupAtOnceWithOtherSettings(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := newPool(t)
	zones := []string{"UTC", "America/New_York", "Asia/Kolkata", "Europe/Bratislava"}
	for round := range 10 {
		var group sync.WaitGroup
		errs := make([]error, len(zones))
		table := pgx.Identifier{fmt.Sprint("shop", round)}
		for i, zone := range zones {
			group.Go(func() {
				loc, err := counters.LoadLocation(zone)
				if err != nil {
					t.Error(err)
				}
				errs[i] = counters.New(pool, counters.Config{Table: table, Location: loc, Granularities: []counters.Granularity{counters.Granularity(fmt.Sprintf("%dh", i+1))}}).Setup(ctx)
			})
		}
		group.Wait()
		got, err := counters.New(pool, counters.Config{Table: table}).Settings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i, zone := range zones {
			first := zone == got.TimeZone
			if first && (errs[i] != nil || string(got.Granularities[0]) != fmt.Sprintf("%dh", i+1)) || !first && !errors.Is(errs[i], counters.ErrSettings) {
				t.Errorf("%s: %v; settings are %+v", zone, errs[i], got)
			}
		}
	}
}

func TestTablesThatAreNone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := newPool(t)
	if _, err := pool.Exec(ctx, `CREATE TABLE other (id int, data jsonb); CREATE TABLE base (key text PRIMARY KEY, data jsonb NOT NULL DEFAULT '{}'); CREATE VIEW seen AS SELECT * FROM base`); err != nil {
		t.Fatal(err)
	}
	for table, text := range map[string]string{"other": "no counter table", "missing": "counters setup", strings.Repeat("x", 60): "65 bytes", "": "empty"} {
		s := counters.New(pool, counters.Config{Table: pgx.Identifier{table}})
		if _, err := s.Get(ctx, key("k")); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, want Invalid: %s", table, err, text)
		}
	}
	for _, cfg := range []counters.Config{{Mode: "wide"}, {Separator: "\x00"}, {WeekStart: "someday"}, {Granularities: []counters.Granularity{"1h", "0m"}}, {Paths: "v9"}, {System: "on"}} { // D17
		if err := counters.New(pool, cfg).Setup(ctx); !errors.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v, want Invalid", cfg, err)
		}
	}
	s := counters.New(pool, counters.Config{Table: pgx.Identifier{"seen"}})
	for range 2 {
		if _, err := s.Inc(ctx, key("k"), counters.Values{"n": 1}); err != nil {
			t.Errorf("a view: %v", err)
		}
	}
	if got, err := s.Get(ctx, key("k")); err != nil || !number(2).Equal(got[0]["n"].(counters.Number)) {
		t.Errorf("a view: %v, %v", got, err)
	}
	// Tables of one name in two schemas are two.
	a, _ := newStore(t, counters.Config{System: counters.Off})
	if got, err := a.Settings(ctx); err != nil || got.System != counters.Off {
		t.Error(got, err)
	}
	b := counters.New(pool, counters.Config{})
	if err := b.Setup(ctx); err != nil {
		t.Error(err)
	}
	if got, err := b.Settings(ctx); err != nil || got.System != counters.Deferred {
		t.Error(got, err)
	}
}

// What only the original ever touched is read with nothing installed, and left as it is.
func TestReadingNeedsNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t, pgtest.Database(t))
	load(t, pool)
	s := counters.New(pool, counters.Config{})
	got, err := s.Get(ctx, key("orders::1m::1746525240"))
	if err != nil || !number(236.48).Equal(got[0]["revenue"].(counters.Number)) {
		t.Errorf("Get = %v, %v", got, err)
	}
	system := hour(t, s, counters.SystemKey)
	if _, err := s.Get(ctx, []counters.Key{{counters.SystemKey + "::1h::1746522000"}}); err != nil || system == nil {
		t.Errorf("the system row is %v, %v", system, err)
	}
	if set, err := s.Settings(ctx); err != nil || set.System != counters.Sync { // there is nowhere to defer it to
		t.Errorf("Settings = %+v, %v", set, err)
	}
	if n, err := s.Fold(ctx); n != 0 || err != nil {
		t.Errorf("Fold = %d, %v", n, err)
	}
	if _, err := s.Inc(ctx, key("k"), counters.Values{"n": 1}); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "howdah migrate") {
		t.Errorf("Inc = %v, want a hint", err)
	}
}

// load makes the tables of the original.
func load(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "compat", "tables.sql"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), string(text)); err != nil {
		t.Fatal(err)
	}
}
