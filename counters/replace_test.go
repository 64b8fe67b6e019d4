package counters_test

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func sequenceOf(events []counters.Event, end error) iter.Seq2[counters.Event, error] {
	return func(yield func(counters.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
		if end != nil {
			yield(counters.Event{}, end)
		}
	}
}

// What is replaced is what a table would have that had never counted anything else, in
// every zone, while the days around stay.
func TestReplaceIsAsIfCountedSo(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	eachTable(t, counters.Config{System: counters.Off, Location: calendar(t, "America/New_York", "monday").Location, Granularities: []counters.Granularity{"1mo", "1h", "1d", "1w", "1y"}, Rollup: []counters.Rule{{Path: "gauge", Op: counters.OpPut}, {Path: "who", Op: counters.OpMax}}}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		random := rand.New(rand.NewPCG(seed, 1))
		loc := calendar(t, "America/New_York", "monday").Location
		start := time.Date(2025, 10, 28, 0, 0, 0, 0, loc) // clocks are put back on 2 November
		from, to := start.AddDate(0, 0, 3), start.AddDate(0, 0, 7)
		before := someEvents(random, "web", start, 3*24*time.Hour, 30)
		wrong := someEvents(random, "web", from, to.Sub(from), 40)
		after := someEvents(random, "web", to, 5*24*time.Hour, 30)
		right := someEvents(random, "", from, to.Sub(from), 50)
		others := someEvents(random, "web::x", from, to.Sub(from), 5)
		if _, err := s.Apply(ctx, slices.Concat(before, wrong, after, others)...); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Replace(ctx, "web", from, to, sequenceOf(right, nil)); err != nil || n != int64(len(right)) {
			t.Fatalf("Replace = %d, %v", n, err)
		}
		got := stored(t, s)
		if _, err := pool.Exec(ctx, `TRUNCATE trifle_stats`); err != nil {
			t.Fatal(err)
		}
		for i := range right {
			right[i].Key = "web"
		}
		if _, err := s.Apply(ctx, slices.Concat(before, right, after, others)...); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(stored(t, s), got); diff != "" {
			t.Error(diff)
		}
		if n, err := s.Replace(ctx, "web", start, to.AddDate(0, 0, 9), sequenceOf(nil, nil)); err != nil || n != 0 {
			t.Fatalf("Replace with nothing = %d, %v", n, err)
		}
		for key := range stored(t, s) {
			if !strings.HasPrefix(key, "web::x") {
				t.Errorf("%s is left", key)
			}
		}
	})
}

// A refusal says which event, and leaves its day as it was.
func TestReplaceRefuses(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h", "1d"}}, func(t *testing.T, s *counters.Store, _ *pgxpool.Pool) {
		ctx := t.Context()
		day := counters.Calendar{}.Floor("1d", at)
		event := func(hours int, v counters.Values) counters.Event {
			return counters.Event{At: day.Add(time.Duration(hours) * time.Hour), Values: v}
		}
		if _, err := s.Apply(ctx, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 1}}, counters.Event{Key: "old", At: at, Values: counters.Values{"n": 1}, Granularities: []counters.Granularity{"1d"}}); err != nil {
			t.Fatal(err)
		}
		before := stored(t, s)
		one := counters.Values{"n": 1}
		broken := errors.New("broken")
		for text, c := range map[string]struct {
			from, to int // hours
			key      string
			events   []counters.Event
			end      error
		}{
			`events[1].values.n: the text "x"`:        {0, 24, "k", []counters.Event{event(1, one), event(2, counters.Values{"n": counters.Max("x")})}, nil},
			"events[0].at: 2025-05-07T00:00:00Z is n": {0, 24, "k", []counters.Event{event(24, one)}, nil},
			"events[0].at: 2025-05-05T23:00:00Z is b": {0, 24, "k", []counters.Event{event(-1, one)}, nil},
			"events[0].at: missing":                   {0, 24, "k", []counters.Event{{Values: one}}, nil},
			`events[0].key: "j"; only`:                {0, 24, "k", []counters.Event{{Key: "j", At: day, Values: one}}, nil},
			`events[0].op: "max"`:                     {0, 24, "k", []counters.Event{{Op: counters.OpMax, At: day, Values: one}}, nil},
			"from: after to":                          {24, 0, "k", nil, nil},
			"events[0].at: 2025-05-06T00:00:00Z is n": {0, 0, "k", []counters.Event{event(0, one)}, nil},
			"key: empty":                              {0, 24, "", nil, nil},
			"of 1d at 2025-05-06T00:00:00Z is not em": {0, 24, "old", []counters.Event{event(0, one)}, nil},
			"broken": {0, 24, "k", []counters.Event{event(1, one)}, broken},
		} {
			n, err := s.Replace(ctx, c.key, day.Add(time.Duration(c.from)*time.Hour), day.Add(time.Duration(c.to)*time.Hour), sequenceOf(c.events, c.end))
			if n != 0 || err == nil || !strings.Contains(err.Error(), text) || !errors.Is(err, fault.Invalid) && !errors.Is(err, broken) {
				t.Errorf("%d, %v, want Invalid: %s", n, err, text)
			}
		}
		for _, ends := range [][2]time.Time{{at, day.AddDate(0, 0, 1)}, {day, at}} {
			if _, err := s.Replace(ctx, "k", ends[0], ends[1], sequenceOf(nil, nil)); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "is not the start of a bucket of 1h; that is 2025-05-06T09:00:00Z") {
				t.Errorf("%v, want Invalid", err)
			}
		}
		if diff := cmp.Diff(before, stored(t, s)); diff != "" {
			t.Errorf("what was refused wrote: %s", diff)
		}
		n, err := s.Replace(ctx, "k", day, day.AddDate(0, 0, 3), sequenceOf([]counters.Event{event(5, one), event(2, one), event(30, one), event(3, one)}, nil))
		if n != 2 || !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "events[3].at: 2025-05-06T03:00:00Z is of a day before") {
			t.Errorf("%d, %v, want that of a day before", n, err)
		}
		got := stored(t, s)
		if diff := cmp.Diff(counters.Values{"n": number(2)}, got[fmt.Sprint("k 1d ", day.Unix())]); diff != "" || len(got) != 4 {
			t.Errorf("the days before stay replaced: %v", got)
		}
	})
}

// What is counted while a time is replaced is counted in all buckets or in none.
func TestReplaceWhileOthersCount(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		eachStriping(t, counters.Config{Mode: mode, Granularities: []counters.Granularity{"1m", "1h", "1d"}, System: counters.Off}, func(t *testing.T, s *counters.Store) {
			ctx := t.Context()
			day := counters.Calendar{}.Floor("1d", at)
			done := make(chan struct{})
			var counting sync.WaitGroup
			for range 3 {
				counting.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-done:
							return
						default:
						}
						if err := s.Track(ctx, "k", at.Add(time.Duration(i%50)*31*time.Minute), counters.Values{"n": 1}); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range 8 {
				events := sequenceOf([]counters.Event{{At: at, Values: counters.Values{"n": 100}}, {At: at.AddDate(0, 0, 1), Values: counters.Values{"n": 100}}}, nil)
				if n, err := s.Replace(ctx, "k", day, day.AddDate(0, 0, 2), events); err != nil || n != 2 {
					t.Errorf("Replace = %d, %v", n, err)
				}
			}
			close(done)
			counting.Wait()
			for _, pair := range [][2]counters.Granularity{{"1h", "1m"}, {"1d", "1h"}, {"1d", "1m"}} {
				if found := differ(t, s, "k", pair[0], pair[1], day, day.AddDate(0, 0, 2)); len(found) > 0 {
					t.Errorf("%v: %v", pair, found)
				}
			}
			if n, err := s.Replace(ctx, "k", day, day.AddDate(0, 0, 2), sequenceOf([]counters.Event{{At: at, Values: counters.Values{"n": 100}}}, nil)); err != nil || n != 1 {
				t.Errorf("Replace = %d, %v", n, err)
			}
			for _, g := range []counters.Granularity{"1m", "1h", "1d"} {
				series, err := s.Values(ctx, counters.Query{Key: "k", From: day, To: day.AddDate(0, 0, 2), Granularity: g, SkipBlanks: true})
				if err != nil || len(series.At) != 1 || !cmp.Equal(series.Values[0], counters.Values{"n": number(100)}) {
					t.Errorf("%s: %v, %v", g, series, err)
				}
			}
		})
	}
}

// Where the finest buckets are gone, the finest that are kept are replaced.
func TestReplaceOfOldTimes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t, counters.Config{Granularities: []counters.Granularity{"1m", "1h", "1d"}, System: counters.Off, Retention: counters.Retention{"1m": 48 * time.Hour}})
	today := time.Now().UTC().Truncate(24 * time.Hour)
	old := today.AddDate(0, 0, -5)
	events := sequenceOf([]counters.Event{{At: old, Values: counters.Values{"n": 1}}}, nil)
	if _, err := s.Replace(ctx, "k", old, today, events); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "1m are kept of only a part") {
		t.Errorf("%v, want Invalid", err)
	}
	if n, err := s.Replace(ctx, "k", old, old.AddDate(0, 0, 2), events); err != nil || n != 1 {
		t.Errorf("Replace = %d, %v", n, err)
	}
	for _, g := range []counters.Granularity{"1h", "1d"} {
		got, err := s.Values(ctx, counters.Query{Key: "k", Granularity: g, From: old, To: old})
		if err != nil || !cmp.Equal(got.Values, []counters.Values{{"n": number(1)}}) {
			t.Errorf("%s: %v, %v", g, got, err)
		}
	}
}

// Of a granularity that is kept of only a part of the time, that part is made anew, also
// where all days are replaced at once.
func TestReplaceOfWhatIsKeptInPart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}, System: counters.Off, Retention: counters.Retention{"1d": 72 * time.Hour}})
	today := time.Now().UTC().Truncate(24 * time.Hour)
	old, late := today.AddDate(0, 0, -9), today.AddDate(0, 0, -1)
	count := func(at time.Time, n int) counters.Event {
		return counters.Event{Key: "k", At: at, Values: counters.Values{"n": n}}
	}
	if _, err := s.Apply(ctx, count(old, 1), count(late, 1)); err != nil {
		t.Fatal(err)
	}
	for i, in := range []func(func(*counters.Store) error) error{
		func(fn func(*counters.Store) error) error { return fn(s) },
		func(fn func(*counters.Store) error) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return fn(s.WithTx(tx)) })
		},
	} {
		n := 5 + i
		if err := in(func(s *counters.Store) error {
			return second(s.Replace(ctx, "k", old, today, sequenceOf([]counters.Event{count(old, n), count(late, n)}, nil)))
		}); err != nil {
			t.Fatal(err)
		}
		for _, g := range []counters.Granularity{"1h", "1d"} {
			got, err := s.Values(ctx, counters.Query{Key: "k", Granularity: g, From: late, To: late})
			if err != nil || !cmp.Equal(got.Values, []counters.Values{{"n": number(n)}}) {
				t.Errorf("%d: %s: %v, %v", i, g, got, err)
			}
		}
	}
}

// A day has many more seconds than are counted in: to replace it touches those that are
// there, and those that they are a part of.
func TestReplaceTouchesWhatIsThere(t *testing.T) {
	t.Parallel()
	eachTable(t, counters.Config{Granularities: []counters.Granularity{"1s", "1m", "1h", "1d", "1w"}, System: counters.Off}, func(t *testing.T, s *counters.Store, pool *pgxpool.Pool) {
		ctx := t.Context()
		day := counters.Calendar{}.Floor("1d", at)
		var events []counters.Event
		for i := range 3 {
			events = append(events, counters.Event{Key: "k", At: day.Add(time.Duration(i) * 5 * time.Hour), Values: counters.Values{"n": 1}})
		}
		if _, err := s.Apply(ctx, events...); err != nil {
			t.Fatal(err)
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		written := func() (rows int) {
			if err := tx.QueryRow(ctx, `SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_xact_user_tables WHERE relid = 'trifle_stats'::regclass`).Scan(&rows); err != nil {
				t.Fatal(err)
			}
			return rows
		}
		before := written()
		if n, err := s.WithTx(tx).Replace(ctx, "k", day, day.AddDate(0, 0, 1), sequenceOf(events[1:2], nil)); n != 1 || err != nil {
			t.Fatalf("Replace = %d, %v", n, err)
		}
		if n := written() - before; n > 40 {
			t.Errorf("it wrote rows %d times, of 11", n)
		}
		want := map[string]counters.Values{}
		for _, g := range []counters.Granularity{"1s", "1m", "1h", "1d", "1w"} {
			want[fmt.Sprint("k ", g, " ", counters.Calendar{}.Floor(g, events[1].At).Unix())] = counters.Values{"n": number(1)}
		}
		if diff := cmp.Diff(want, stored(t, s.WithTx(tx))); diff != "" {
			t.Error(diff)
		}
	})
}

// Of two at once one comes after the other, and takes away what the one wrote.
func TestReplacesAtOnce(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		eachStriping(t, counters.Config{Mode: mode, Granularities: []counters.Granularity{"1s", "1h", "1d"}, System: counters.Off}, func(t *testing.T, s *counters.Store) {
			ctx := t.Context()
			day := counters.Calendar{}.Floor("1d", at)
			var replacing sync.WaitGroup
			for by := range 3 {
				replacing.Go(func() {
					for i := range pgtest.Size(5, 3) {
						e := counters.Event{At: day.Add(time.Duration(by*5+i) * time.Hour), Values: counters.Values{"n": 1}}
						if _, err := s.Replace(ctx, "k", day, day.AddDate(0, 0, 1), sequenceOf([]counters.Event{e}, nil)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			replacing.Wait()
			for _, g := range []counters.Granularity{"1s", "1h", "1d"} {
				series, err := s.Values(ctx, counters.Query{Key: "k", From: day, To: day.AddDate(0, 0, 1).Add(-time.Second), Granularity: g, SkipBlanks: true})
				if err != nil || len(series.At) != 1 || !cmp.Equal(series.Values[0], counters.Values{"n": number(1)}) {
					t.Errorf("%s: %v, %v", g, series, err)
				}
			}
		})
	}
}
