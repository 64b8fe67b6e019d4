package counters_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// dataset is what the original was given, and what it answered.
type dataset struct {
	Name, Table, Separator string
	JoinedIdentifier       *string                `json:"joined_identifier"`
	TimeZone               string                 `json:"time_zone"`
	WeekStart              counters.Weekday       `json:"beginning_of_week"`
	Granularities          []counters.Granularity `json:"granularities"`
	Rows                   int
	StoredRows             []storedRow `json:"stored_rows"`
	Events                 []struct {
		Op, Key   string
		At        int64
		Values    counters.Values
		Untracked bool
	}
	Beams []struct {
		Key    string
		At     int64
		Values counters.Values
	}
	Queries []struct {
		Kind, Key, Granularity string
		From, To               time.Time
		SkipBlanks             bool `json:"skip_blanks"`
		At                     json.RawMessage
		Values                 json.RawMessage
	}
}

type storedRow struct {
	Key         string
	Granularity counters.Granularity
	At          int64
	Data        json.RawMessage
}

func datasets(t testing.TB) []dataset {
	var all, dst struct{ Datasets []dataset }
	compat(t, "datasets.json", &all)
	compat(t, "calendar_datasets.json", &dst)
	return append(all.Datasets, dst.Datasets...)
}

func (d dataset) config(t testing.TB, table string) counters.Config {
	t.Helper()
	loc, err := counters.LoadLocation(d.TimeZone)
	if err != nil {
		t.Fatal(err)
	}
	cfg := counters.Config{Table: pgx.Identifier{table}, Mode: counters.Separated, Separator: d.Separator, Location: loc, WeekStart: d.WeekStart, Granularities: d.Granularities, System: counters.Sync}
	if d.JoinedIdentifier != nil {
		cfg.Mode = counters.Mode(*d.JoinedIdentifier)
	}
	return cfg
}

func (d dataset) events() []counters.Event {
	events := make([]counters.Event, len(d.Events))
	for i, e := range d.Events {
		events[i] = counters.Event{Key: e.Key, At: time.Unix(e.At, 0), Values: e.Values, Untracked: e.Untracked}
		if e.Op == "assert" {
			events[i].Op = counters.OpPut
		}
	}
	return events
}

// ask asks the queries of a data set.
func (d dataset) ask(t testing.TB, s *counters.Store) {
	t.Helper()
	ctx := t.Context()
	for _, q := range d.Queries {
		if q.Kind == "scan" {
			var at int64
			var want struct{ Data counters.Values }
			if json.Unmarshal(q.At, &at) != nil || json.Unmarshal(q.Values, &want) != nil {
				t.Fatalf("%s, %s", q.At, q.Values)
			}
			if string(q.At) == "null" {
				if _, _, err := s.Scan(ctx, q.Key); !errors.Is(err, counters.ErrNoBeam) {
					t.Errorf("%s: Scan(%q): %v, want ErrNoBeam", d.Name, q.Key, err)
				}
				continue
			}
			gotAt, got, err := s.Scan(ctx, q.Key)
			if diff := cmp.Diff(want.Data, got); err != nil || gotAt.Unix() != at || diff != "" {
				t.Errorf("%s: Scan(%q) = %v, %v\n%s", d.Name, q.Key, gotAt, err, diff)
			}
			continue
		}
		var at []int64
		var want []counters.Values
		if err := errors.Join(json.Unmarshal(q.At, &at), json.Unmarshal(q.Values, &want)); err != nil {
			t.Fatal(err)
		}
		query := counters.Query{Key: q.Key, From: q.From, To: q.To, Granularity: counters.Granularity(q.Granularity), SkipBlanks: q.SkipBlanks}
		series, err := s.Values(ctx, query)
		if err != nil {
			t.Errorf("%s: %+v: %v", d.Name, query, err)
			continue
		}
		got := []int64{}
		for _, start := range series.At {
			got = append(got, start.Unix())
		}
		if diff := cmp.Diff(at, got) + cmp.Diff(want, series.Values); diff != "" {
			t.Errorf("%s: %+v\n%s", d.Name, query, diff)
		}
		// What is stored of it, streamed, is what is not blank of it.
		query.SkipBlanks = true
		rest, err := s.Values(ctx, query)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		for p, err := range s.Rows(ctx, query) {
			if err != nil || i >= len(rest.At) || !p.At.Equal(rest.At[i]) || cmp.Diff(rest.Values[i], p.Values) != "" {
				t.Errorf("%s: Rows(%+v): %v, %v", d.Name, query, p, err)
				break
			}
			i++
		}
		if i != len(rest.At) {
			t.Errorf("%s: Rows(%+v): %d rows, want %d", d.Name, query, i, len(rest.At))
		}
	}
}

// What the original wrote is read, and left as it is.
func TestReadsWhatTheOriginalWrote(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	load(t, pool)
	before := checksum(t, pool, "trifle_stats", "trifle_partial", "trifle_separated", "trifle_separated_ping")
	for _, d := range datasets(t) {
		if d.StoredRows == nil {
			d.ask(t, counters.New(pool, d.config(t, d.Table)))
		}
	}
	if after := checksum(t, pool, "trifle_stats", "trifle_partial", "trifle_separated", "trifle_separated_ping"); after != before {
		t.Error("reading has written")
	}
}

func checksum(t testing.TB, pool *pgxpool.Pool, tables ...string) (all string) {
	t.Helper()
	for _, table := range tables {
		var sum *string
		if err := pool.QueryRow(t.Context(), `SELECT md5(string_agg(t::text, ',' ORDER BY t::text COLLATE "C")) FROM `+pgx.Identifier{table}.Sanitize()+` t`).Scan(&sum); err != nil {
			t.Fatal(err)
		}
		if sum != nil {
			all += *sum
		}
	}
	return all
}

// The events of the original make the rows of the original, one at a time, all at once,
// and in slots that are folded, and are then answered as it answers. D6, D7: by the
// calendar's rules.
func TestWritesWhatTheOriginalWrites(t *testing.T) {
	t.Parallel()
	for _, d := range datasets(t) {
		for _, how := range []string{"one by one", "at once", "in slots"} {
			t.Run(d.Name+" "+how, func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				pool := newPool(t)
				load(t, pool)
				cfg := d.config(t, "ours")
				if how == "in slots" {
					cfg.System, cfg.Striped, cfg.Slots = counters.Deferred, []string{"*"}, 3
				}
				s := counters.New(pool, cfg)
				if err := s.Setup(ctx); err != nil {
					t.Fatal(err)
				}
				if how == "in slots" {
					s = known(t, pool, cfg)
				}
				events := d.events()
				if how == "at once" {
					if n, err := s.Apply(ctx, events...); err != nil || n != len(events) {
						t.Fatal(n, err)
					}
				} else {
					for few := range slices.Chunk(events, pgtest.Size(1, 5)) {
						if n, err := s.Apply(ctx, few...); err != nil || n != len(few) {
							t.Fatal(n, err)
						}
					}
				}
				for _, b := range d.Beams {
					if err := s.Beam(ctx, b.Key, time.Unix(b.At, 0), b.Values); err != nil {
						t.Error(err)
					}
				}
				if d.StoredRows != nil {
					if _, err := pool.Exec(ctx, `CREATE TABLE trifle_dst (key text, data jsonb)`); err != nil {
						t.Fatal(err)
					}
					for _, row := range d.StoredRows {
						if _, err := pool.Exec(ctx, `INSERT INTO trifle_dst VALUES ($1, $2)`, counters.FullKey(d.Separator, row.Key, row.Granularity, row.At), row.Data); err != nil {
							t.Fatal(err)
						}
					}
				}
				if how == "in slots" {
					d.ask(t, s)
					if n, err := s.Fold(ctx); err != nil || n == 0 {
						t.Errorf("Fold = %d, %v", n, err)
					}
				}
				same(t, pool, d.Table, "ours", d.Rows)
				if len(d.Beams) > 0 {
					same(t, pool, d.Table+"_ping", "ours_ping", 2)
				}
				d.ask(t, s)
			})
		}
	}
}

// same compares the rows of two tables: n of them, by jsonb =.
func same(t testing.TB, pool *pgxpool.Pool, theirs, ours string, n int) {
	t.Helper()
	var count, differ int
	var example *string
	err := pool.QueryRow(t.Context(), `
		WITH d AS ((SELECT * FROM `+theirs+` EXCEPT ALL SELECT * FROM `+ours+`) UNION ALL (SELECT * FROM `+ours+` EXCEPT ALL SELECT * FROM `+theirs+`))
		SELECT (SELECT count(*) FROM `+ours+`), count(*), min(d::text) FROM d`).Scan(&count, &differ, &example)
	if err != nil || count != n || differ > 0 {
		t.Errorf("%d rows, want %d; %d differ, %v", count, n, differ, err)
		if example != nil {
			t.Log(*example)
		}
	}
}
