package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// refused is one thing that cannot be done, and how it is said in each of the ways to
// ask for it. Ways that are not there cannot be asked: "" and nil.
type refused struct {
	what    string
	library func(context.Context, *counters.Store) error
	line    []string // after howdah counters
	request string   // METHOD /path, and a body behind a blank
	kind    fault.Kind
	says    string // in all ways
	where   string // the location of HTTP's problem
}

const refusedDay = "2025-05-06T09:15:00Z"

var refusedAt = time.Date(2025, 5, 6, 9, 15, 0, 0, time.UTC)

// refusedTrack is a track that cannot be done, in all three ways.
func refusedTrack(what string, v any, field, value, text, says string) refused {
	return refused{
		what: what,
		library: func(ctx context.Context, s *counters.Store) error {
			return s.Track(ctx, "k", refusedAt, counters.Values{field: v})
		},
		line:    []string{"track", "k", "--at", refusedDay, field + "=" + value},
		request: `POST /keys/k/track {"at":"` + refusedDay + `","values":{"` + field + `":` + text + `}}`,
		kind:    fault.Invalid, says: says, where: "body.values." + field,
	}
}

// refusedName is a field that there cannot be.
func refusedName(what, field, says string) refused {
	r := refusedTrack(what, 1, field, "1", "1", says)
	name, _ := json.Marshal(field)
	r.request = strings.ReplaceAll(r.request, `"`+field+`"`, string(name))
	r.where = "body.values"
	if strings.Contains(field, "\xff") { // which is no JSON
		r.request = strings.ReplaceAll(r.request, string(name), `"`+field+`"`)
		r.where = "body"
	}
	return r
}

// refusedKey is an event of a key that there cannot be.
func refusedKey(what, key, says string) refused {
	text, _ := json.Marshal(key)
	return refused{
		what: what,
		library: func(ctx context.Context, s *counters.Store) error {
			return s.Track(ctx, key, refusedAt, counters.Values{"n": 1})
		},
		line:    []string{"track", key, "--at", refusedDay, "n=1"},
		request: `POST /events [{"key":` + string(text) + `,"at":"` + refusedDay + `","values":{"n":1}}]`,
		kind:    fault.Invalid, says: says, where: "body[0].key",
	}
}

const refusedSpan = "from=2025-05-04T00:00:00Z&to=2025-05-06T00:00:00Z"

// refusedValues asks for a series in a granularity that there cannot be, or too much.
func refusedValues(granularity, from, to, says, where string) refused {
	return refused{
		what: "values of " + granularity,
		library: func(ctx context.Context, s *counters.Store) error {
			begin, err := time.Parse(time.RFC3339, from)
			end, err2 := time.Parse(time.RFC3339, to)
			if err != nil || err2 != nil {
				begin, end = refusedAt, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) // Go does not read it either
			}
			_, err = s.Values(ctx, counters.Query{Key: "k", From: begin, To: end, Granularity: counters.Granularity(granularity)})
			return err
		},
		line:    []string{"values", "k", "--from", from, "--to", to, "-g", granularity},
		request: "GET /keys/k?from=" + from + "&to=" + to + "&granularity=" + granularity,
		kind:    fault.Invalid, says: says, where: where,
	}
}

// refusedQuestion asks a series of three points what it cannot answer.
func refusedQuestion(q counters.Question, line []string, query, says, where string) refused {
	return refused{
		what: query,
		library: func(ctx context.Context, s *counters.Store) error {
			series, err := s.Values(ctx, counters.Query{Key: "k", From: refusedAt.AddDate(0, 0, -2), To: refusedAt, Granularity: "1d"})
			if err != nil {
				return err
			}
			_, err = series.Ask(q)
			return err
		},
		line:    append([]string{"query", "k", "--from", "2025-05-04", "--to", "2025-05-06", "-g", "1d"}, line...),
		request: "GET /keys/k/query?" + refusedSpan + "&granularity=1d&" + query,
		kind:    fault.Invalid, says: says, where: where,
	}
}

func refusals(db pg.DB) []refused {
	nines := strings.Repeat("9", 101)
	var many []string
	manyValues, manyText := counters.Values{}, []string{}
	for i := range 2001 {
		many = append(many, fmt.Sprintf("f%d=1", i))
		manyValues[fmt.Sprint("f", i)] = 1
		manyText = append(manyText, fmt.Sprintf(`"f%d":1`, i))
	}
	mb := strings.Repeat("x", 1<<20)
	all := []refused{
		refusedTrack("NaN", math.NaN(), "n", "NaN", `"NaN"`, "values.n"),
		refusedTrack("infinity", math.Inf(-1), "n", "-Infinity", `"-Infinity"`, "values.n"),
		refusedTrack("a text", "x", "n", "x", `"x"`, "values.n"),
		refusedTrack("digits", json.Number(nines), "n", nines, nines, "digits"),
		refusedTrack("exponent", json.Number("1e101"), "n", "1e101", "1e101", "values.n"),
		refusedTrack("small exponent", json.Number("1e-101"), "n", "1e-101", "1e-101", "values.n"),
		refusedTrack("no number of a max", counters.Max("x"), "n", "max:x", `{"$max":"x"}`, "values.n"),
		refusedTrack("nobody", counters.Distinct(""), "n", "distinct:", `{"$distinct":""}`, "values.n"),
		refusedTrack("onto a text", 1, "note", "1", "1", `holds "text", which is no number`),
		refusedTrack("onto a list", 1, "list", "1", "1", "holds [1], which is no number"),
		refusedTrack("onto true", 1, "yes", "1", "1", "holds true, which is no number"),
		refusedTrack("onto NaN", 1, "nan", "1", "1", `holds "NaN", which is no number`),
		refusedName("NUL", "a\x00", "NUL"),
		refusedName("invalid UTF-8", "a\xff", "UTF-8"),
		refusedName("an empty segment", "a..b", "empty before or after a dot"),
		refusedName("levels", strings.Repeat("a.", 64)+"a", "over 64 levels"),
		refusedKey("an empty key", "", "key: empty"),
		refusedKey("NUL in a key", "a\x00", "NUL"),
		refusedKey("a long key", strings.Repeat("é", 240), "at most 255"),
		{
			what:    "invalid UTF-8 in a key",
			library: func(ctx context.Context, s *counters.Store) error { return s.Track(ctx, "\xff", refusedAt, nil) },
			line:    []string{"track", "\xff"}, request: `POST /keys/%FF/track {}`,
			kind: fault.Invalid, says: "invalid UTF-8", where: "path.key",
		},
		{
			what:    "leaves",
			library: func(ctx context.Context, s *counters.Store) error { return s.Track(ctx, "k", refusedAt, manyValues) },
			line:    append([]string{"track", "k"}, many...), request: `POST /keys/k/track {"values":{` + strings.Join(manyText, ",") + `}}`,
			kind: fault.Invalid, says: "2000", where: "body.values",
		},
		{
			what: "text",
			library: func(ctx context.Context, s *counters.Store) error {
				return s.Assert(ctx, "k", refusedAt, counters.Values{"t": mb})
			},
			line: []string{"assert", "k", "t=" + mb}, request: `POST /keys/k/assert {"values":{"t":"` + mb + `"}}`,
			kind: fault.Invalid, says: "1048576", where: "body.values",
		},
		{
			what: "NUL in a text",
			library: func(ctx context.Context, s *counters.Store) error {
				return s.Assert(ctx, "k", refusedAt, counters.Values{"t": "\x00"})
			},
			line: []string{"assert", "k", "t=\x00"}, request: `POST /keys/k/assert {"values":{"t":"\u0000"}}`,
			kind: fault.Invalid, says: "values.t", where: "body.values.t",
		},
		{
			what: "a path twice",
			library: func(ctx context.Context, s *counters.Store) error {
				return s.Track(ctx, "k", refusedAt, counters.Values{"a": 1, "a.b": 2})
			},
			line: []string{"track", "k", "a=1", "a.b=2"}, request: `POST /keys/k/track {"values":{"a":1,"a.b":2}}`,
			kind: fault.Invalid, says: "values.a.b", where: "body.values.a.b",
		},
		{
			what: "below a path",
			library: func(ctx context.Context, s *counters.Store) error {
				return s.Track(ctx, "k", refusedAt, counters.Values{"a": counters.Values{"b": 1}, "a.b": 2})
			},
			request: `POST /keys/k/track {"values":{"a":{"b":1},"a.b":2}}`,
			kind:    fault.Invalid, says: "values.a.b", where: "body.values.a.b",
		},
		{
			what: "a row without a key",
			library: func(ctx context.Context, s *counters.Store) error {
				_, err := s.Inc(ctx, []counters.Key{{"a"}, {}}, counters.Values{"n": 1})
				return err
			},
			request: `POST /rows/inc {"keys":[["a"],[]],"values":{"n":1}}`,
			kind:    fault.Invalid, says: "keys[1]", where: "body.keys[1]",
		},
		{
			what: "a row with an empty key",
			library: func(ctx context.Context, s *counters.Store) error {
				_, err := s.Set(ctx, []counters.Key{{""}}, counters.Values{"n": 1})
				return err
			},
			line: []string{"set", "", "n=1"}, request: `POST /rows/set {"keys":[[""]],"values":{"n":1}}`,
			kind: fault.Invalid, says: "keys[0]", where: "body.keys[0]",
		},
		{
			what: "a row of no time",
			library: func(ctx context.Context, s *counters.Store) error {
				_, err := counters.New(db, counters.Config{Table: pgx.Identifier{"shop"}}).Inc(ctx, []counters.Key{{"orders", "1h", "noon"}}, counters.Values{"n": 1})
				return err
			},
			line: []string{"inc", "orders::1h::noon", "n=1", "--table", "shop"},
			kind: fault.Invalid, says: "keys[0]",
		},
	}
	for _, g := range []string{"0m", "1x", "m", "1M", "-1h", "1000000000s"} {
		all = append(all, refusedValues(g, refusedDay, refusedDay, "s m h d w mo q y", "query.granularity"))
	}
	return append(all,
		refusedValues("1s", "2000-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "a coarser granularity such as 1", "query.granularity"),
		refusedValues("1d", "2025-05-04T00:00:00Z", "10000-01-01T00:00:00Z", "10000", "query.to"),
		refusedQuestion(counters.Question{Fn: "sum", Path: "n", Slices: -1}, []string{"sum", "n", "--slices", "-1"}, "fn=sum&path=n&slices=-1", "slices", "query.slices"),
		refusedQuestion(counters.Question{Fn: "sum", Path: "n", Slices: 4}, []string{"sum", "n", "--slices", "4"}, "fn=sum&path=n&slices=4", "slices: 4 of 3 points", "query.slices"),
		refusedQuestion(counters.Question{Fn: "median", Path: "n"}, []string{"median", "n"}, "fn=median&path=n", "quantile, distinct, timeline", "query.fn"),
		refusedQuestion(counters.Question{Fn: "quantile", Path: "n", Q: 1.1}, []string{"quantile", "n", "--q", "1.1"}, "fn=quantile&path=n&q=1.1", "1", "query.q"),
		refusedQuestion(counters.Question{Fn: "quantile", Path: "n", Q: -0.1}, []string{"quantile", "n", "--q", "-0.1"}, "fn=quantile&path=n&q=-0.1", "0", "query.q"),
		refusedQuestion(counters.Question{Fn: "expression", Paths: []string{"n"}, Expr: "a + b"}, []string{"expression", "--paths", "n", "--expr", "a + b"}, "fn=expression&paths=n&expr=a%20%2B%20b", "expr: position 5", "query.expr"),
		refused{
			what: "no time",
			library: func(ctx context.Context, s *counters.Store) error {
				_, err := s.Values(ctx, counters.Query{Key: "k", To: refusedAt, Granularity: "1d"})
				return err
			},
			line: []string{"values", "k", "--from", "noon"}, request: "GET /keys/k?from=&to=" + refusedDay + "&granularity=1d",
			kind: fault.Invalid, says: "from", where: "query.from",
		},
		refused{
			what: "an unknown zone",
			library: func(context.Context, *counters.Store) error {
				_, err := counters.LoadLocation("Mars/Olympus")
				return err
			},
			line: []string{"setup", "--table", "mars", "--time-zone", "Mars/Olympus"},
			kind: fault.Invalid, says: "Mars/Olympus",
		},
		refused{
			what: "an unknown mode",
			library: func(ctx context.Context, s *counters.Store) error {
				return counters.New(db, counters.Config{Table: pgx.Identifier{"half"}, Mode: "half"}).Setup(ctx)
			},
			line: []string{"setup", "--table", "half", "--mode", "half"},
			kind: fault.Invalid, says: `mode: "half"; want full, partial or separated`,
		},
		refused{
			what: "another event with an ID",
			library: func(ctx context.Context, s *counters.Store) error {
				_, err := s.Apply(ctx, counters.Event{ID: "once", Key: "k", At: refusedAt, Values: counters.Values{"n": 2}})
				return err
			},
			line: []string{"track", "k", "--at", refusedDay, "--id", "once", "n=2"}, request: `POST /keys/k/track {"at":"` + refusedDay + `","values":{"n":2},"id":"once"}`,
			kind: fault.Conflict, says: `"once": the ID was used for something else`,
		},
		refused{
			what: "other settings",
			library: func(ctx context.Context, s *counters.Store) error {
				return counters.New(db, counters.Config{Table: pgx.Identifier{"shop"}, Location: time.UTC}).Setup(ctx)
			},
			line: []string{"setup", "--table", "shop", "--time-zone", "UTC"},
			kind: fault.Conflict, says: `has the time zone "America/New_York", not "UTC"`,
		},
		refused{
			what: "a table of none of the shapes",
			library: func(ctx context.Context, s *counters.Store) error {
				return counters.New(db, counters.Config{Table: pgx.Identifier{"other"}}).Track(ctx, "k", refusedAt, nil)
			},
			line: []string{"track", "k", "--table", "other"},
			kind: fault.Invalid, says: "no counter table",
		},
		refused{
			what: "no table",
			library: func(ctx context.Context, s *counters.Store) error {
				return counters.New(db, counters.Config{Table: pgx.Identifier{"missing"}}).Track(ctx, "k", refusedAt, nil)
			},
			line: []string{"track", "k", "--table", "missing"},
			kind: fault.Invalid, says: "howdah counters setup",
		},
		refused{
			what: "a table of another database",
			library: func(ctx context.Context, s *counters.Store) error {
				return counters.New(db, counters.Config{Table: pgx.Identifier{"other", "public", "shop"}}).Track(ctx, "k", refusedAt, nil)
			},
			line: []string{"track", "k", "--table", "other.public.shop"},
			kind: fault.Invalid, says: "table: 3 identifiers; want one, or a schema and one",
		},
		refused{
			what:    "a name that is taken",
			library: func(ctx context.Context, s *counters.Store) error { _, err := s.Rename(ctx, "k", "taken"); return err },
			line:    []string{"rename", "k", "taken"}, request: `POST /keys/k/rename {"to":"taken"}`,
			kind: fault.Conflict, says: `"taken" has buckets`,
		},
		refused{
			what:    "no beam",
			library: func(ctx context.Context, s *counters.Store) error { _, _, err := s.Scan(ctx, "nobody"); return err },
			line:    []string{"scan", "nobody"}, request: "GET /keys/nobody/beam",
			kind: fault.NotFound, says: "no such beam",
		},
	)
}

// Whatever cannot be done is refused in the library, on the command line and over HTTP
// alike, says what and where it is, and has written nothing.
func TestCountersRefuse(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience) // of all of it
	defer cancel()
	env := map[string]string{"DATABASE_URL": pgtest.Database(t)}
	cfg := howdah.Config{Log: slog.New(slog.DiscardHandler)}
	cfg.Database.URL = env["DATABASE_URL"]
	client, err := howdah.OpenConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	writing, stop := context.WithCancel(ctx)
	wrote := make(chan error, 1)
	go func() { wrote <- client.Writers.Counters.Run(writing) }()
	defer func() {
		stop()
		if err := pgtest.Receive(t, wrote, "the end of Run"); err != nil {
			t.Error(err)
		}
	}()
	server := httptest.NewServer(httpapi.New(client, httpapi.Config{Log: cfg.Log}))
	defer server.Close()

	s := client.Counters
	sure := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sure(client.Migrate(ctx))
	newYork, err := counters.LoadLocation("America/New_York")
	sure(err)
	sure(counters.New(client.Pool, counters.Config{Table: pgx.Identifier{"shop"}, Mode: counters.Separated, Location: newYork}).Setup(ctx))
	sure(s.Assert(ctx, "k", refusedAt, counters.Values{"note": "text", "list": []any{1}, "yes": true, "nan": "NaN", "n": 1}))
	_, err = s.Apply(ctx, counters.Event{ID: "once", Key: "k", At: refusedAt, Values: counters.Values{"n": 1}})
	sure(err)
	sure(s.Track(ctx, "taken", refusedAt, counters.Values{"n": 1}))
	_, err = client.Pool.Exec(ctx, `CREATE TABLE other (id int, data jsonb)`)
	sure(err)

	// What is in all tables, those that are made meanwhile too; a Writer's receipts are no numbers.
	look := func() (sum string) {
		t.Helper()
		sure(client.Pool.QueryRow(ctx, `
			SELECT md5(string_agg(tablename || query_to_xml(format('SELECT t FROM %I.%I AS t ORDER BY t::text', schemaname, tablename), false, false, '')::text, ' ' ORDER BY schemaname, tablename))
			FROM pg_tables
			WHERE schemaname IN ('public', 'howdah') AND tablename <> 'counter_writers'`).Scan(&sum))
		return sum
	}
	before := look()
	codes := map[fault.Kind]int{fault.Invalid: 2, fault.NotFound: 4, fault.Conflict: 5}
	statuses := map[fault.Kind]int{fault.Invalid: 400, fault.NotFound: 404, fault.Conflict: 409}
	for _, r := range refusals(client.Pool) {
		if err := r.library(ctx, s); !errors.Is(err, r.kind) || !strings.Contains(err.Error(), r.says) {
			t.Errorf("%s: %.300v; want %v that says %s", r.what, err, r.kind, r.says)
		}
		if r.line != nil {
			if got := program(t, env, "", append([]string{"counters"}, r.line...)...); got.code != codes[r.kind] || got.stdout != "" || !strings.Contains(got.stderr, r.says) {
				t.Errorf("%s: exit code %d, %.300s%.300s; want %d and %s", r.what, got.code, got.stdout, got.stderr, codes[r.kind], r.says)
			}
		}
		if r.request != "" {
			status, problem := ask(ctx, t, server, r.request)
			var where string
			if len(problem.Errors) > 0 {
				where = problem.Errors[0].Location
			}
			if status != statuses[r.kind] || where != r.where || !strings.Contains(problem.Detail, r.says) {
				t.Errorf("%s: %d, %.300s at %q; want %d, %s at %q", r.what, status, problem.Detail, where, statuses[r.kind], r.says, r.where)
			}
		}
		if after := look(); after != before {
			t.Errorf("%s: something was written", r.what)
			before = after
		}
	}
	sure(s.Track(ctx, "k", refusedAt, counters.Values{"n": 1}))
	if look() == before {
		t.Error("what is written is not seen")
	}
}

// ask sends a request, METHOD /path and a body, and returns what is wrong with it.
func ask(ctx context.Context, t *testing.T, server *httptest.Server, request string) (int, httpapi.Problem) {
	t.Helper()
	method, rest, _ := strings.Cut(request, " ")
	path, body, _ := strings.Cut(rest, " ")
	req, err := http.NewRequestWithContext(ctx, method, server.URL+"/v1/counters"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	answer, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	var problem httpapi.Problem
	if err := json.Unmarshal(text, &problem); err != nil {
		t.Errorf("%s: %v in %s", request, err, text)
	}
	return answer.StatusCode, problem
}
