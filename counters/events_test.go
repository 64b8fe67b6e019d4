package counters_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

// at is an instant of the tests.
var at = time.Date(2025, 5, 6, 9, 15, 30, 0, time.UTC)

// hour asks for one bucket.
func hour(t testing.TB, s *counters.Store, key string) counters.Values {
	t.Helper()
	series, err := s.Values(t.Context(), counters.Query{Key: key, From: at, To: at, Granularity: "1h"})
	if err != nil || len(series.At) != 1 {
		t.Fatalf("Values(%q) = %v, %v", key, series, err)
	}
	return series.Values[0]
}

// D2, D3: events of one call are applied in their order.
func TestD2D3OrderOfOneCall(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := newStore(t, counters.Config{})
	event := func(op counters.Op, v counters.Values) counters.Event {
		return counters.Event{Op: op, Key: "k", At: at, Values: v}
	}
	add, put := counters.OpAdd, counters.OpPut
	for name, c := range map[string]struct {
		events []counters.Event
		want   counters.Values
	}{
		"D2":           {[]counters.Event{event(add, counters.Values{"n": 1}), event(put, counters.Values{"n": 10}), event(add, counters.Values{"n": 1})}, counters.Values{"n": number(11)}},
		"D3":           {[]counters.Event{event(put, counters.Values{"a": 1}), event(put, counters.Values{"b": 2})}, counters.Values{"a": number(1), "b": number(2)}},
		"add then max": {[]counters.Event{event(add, counters.Values{"n": 3}), event(add, counters.Values{"n": counters.Max(7)}), event(add, counters.Values{"n": 2}), event(add, counters.Values{"n": counters.Min(5)})}, counters.Values{"n": number(5)}},
		"max then add": {[]counters.Event{event(add, counters.Values{"n": counters.Max(7)}), event(add, counters.Values{"n": 2})}, counters.Values{"n": number(9)}},
		"text":         {[]counters.Event{event(add, counters.Values{"n": 3}), event(put, counters.Values{"n": "1.5"}), event(add, counters.Values{"n": 2})}, counters.Values{"n": number(3.5)}},
		"null":         {[]counters.Event{event(put, counters.Values{"n": nil}), event(add, counters.Values{"n": counters.Min(2)})}, counters.Values{"n": number(2)}},
	} {
		for i := range c.events {
			c.events[i].Key = name
		}
		if n, err := s.Apply(ctx, c.events...); err != nil || n != len(c.events) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if diff := cmp.Diff(c.want, hour(t, s, name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		for _, e := range c.events { // and one at a time it is the same
			e.Key += " alone"
			if _, err := s.Apply(ctx, e); err != nil {
				t.Error(err)
			}
		}
		if diff := cmp.Diff(c.want, hour(t, s, name+" alone")); diff != "" {
			t.Errorf("%s alone: %s", name, diff)
		}
	}
	_, err := s.Apply(ctx, event(put, counters.Values{"n": "x"}), event(add, counters.Values{"n": 1}))
	if !errors.Is(err, counters.ErrNotNumber) || !strings.Contains(err.Error(), `events[1].values.n: the text "x"`) {
		t.Errorf("an addition to a text of the same call: %v", err)
	}
	if err := s.Track(ctx, "k", at, counters.Values{"latency": counters.Stat(38), "size": counters.Hist(38), "who": counters.Distinct("alice"), "state": counters.Put("up")}); err != nil {
		t.Error(err)
	}
	if err := s.Track(ctx, "k", at, counters.Values{"latency": counters.Stat(2), "state": counters.Put("down")}); err != nil {
		t.Error(err)
	}
	want := counters.Values{"latency": counters.Values{"count": number(2), "sum": number(40), "square": number(1448), "min": number(2), "max": number(38)}, "size": counters.Values{"380e-1": number(1)}, "who": counters.Values{"0af": number(2)}, "state": "down"}
	if diff := cmp.Diff(want, hour(t, s, "k")); diff != "" {
		t.Error(diff)
	}
}

// D16: an ID is applied once, also by many at once; and again after 7 days.
func TestD16IDs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	events := []counters.Event{
		{ID: "b", Key: "k", At: at, Values: counters.Values{"n": 1}},
		{ID: "a", Key: "k", At: at, Values: counters.Values{"n": 10}},
		{ID: "b", Key: "k", At: at, Values: counters.Values{"n": 100}},
		{Key: "k", At: at, Values: counters.Values{"plain": 1}},
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 8 {
		group.Go(func() {
			n, err := s.Apply(ctx, events...)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			total += n
		})
	}
	group.Wait()
	if diff := cmp.Diff(counters.Values{"n": number(111), "plain": number(8)}, hour(t, s, "k")); diff != "" || total != 11 {
		t.Errorf("applied %d, want 11\n%s", total, diff)
	}
	// What is refused has not used its ID.
	bad := []counters.Event{{ID: "c", Op: counters.OpPut, Key: "k", At: at, Values: counters.Values{"n": "x"}}, {ID: "d", Key: "k", At: at, Values: counters.Values{"n": 1}}}
	if _, err := s.Apply(ctx, bad...); !errors.Is(err, counters.ErrNotNumber) {
		t.Errorf("Apply = %v, want ErrNotNumber", err)
	}
	if n, err := s.Apply(ctx, bad[1]); n != 1 || err != nil {
		t.Errorf("Apply = %d, %v", n, err)
	}
	if _, err := pool.Exec(ctx, `UPDATE howdah.counter_events SET at = at - interval '7 days' - interval '1 minute' WHERE tbl = format('%I.trifle_stats', current_schema()) AND id = 'd'`); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, 0} {
		if n, err := s.Apply(ctx, bad[1]); n != want || err != nil {
			t.Errorf("after 7 days Apply = %d, %v, want %d", n, err, want)
		}
	}
	// What has the ID of something else is told so; who tries again may say a later time.
	later, other := bad[1], bad[1]
	later.At, other.Values = at.Add(time.Hour), counters.Values{"n": 2}
	if n, err := s.Apply(ctx, later); n != 0 || err != nil {
		t.Errorf("at a later time Apply = %d, %v, want 0", n, err)
	}
	renamed, untracked := bad[1], bad[1]
	renamed.Key, untracked.Untracked = "other", true
	together := []counters.Event{{Key: "other", At: at}, bad[1], bad[1]}
	for _, events := range [][]counters.Event{{other}, {renamed}, {untracked}, together} {
		if n, err := s.Apply(ctx, events...); n != 0 || !errors.Is(err, counters.ErrReused) || !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), `"d"`) {
			t.Errorf("with other content Apply = %d, %v, want ErrReused", n, err)
		}
	}
	// Of events that share an ID one Hash is enough.
	for _, want := range []int{2, 0} {
		n, err := s.Apply(ctx, counters.Event{ID: "h", Key: "k", At: at}, counters.Event{ID: "h", Hash: []byte("h"), Key: "k", At: at})
		if n != want || err != nil {
			t.Errorf("with the Hash of one Apply = %d, %v, want %d", n, err, want)
		}
	}
	// In the caller's transaction the ID is his too.
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.WithTx(tx).Apply(ctx, counters.Event{ID: "e", Key: "k", At: at}); n != 1 || err != nil {
		t.Error(n, err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Error(err)
	}
	if n, err := s.Apply(ctx, counters.Event{ID: "e", Key: "k", At: at}); n != 1 || err != nil {
		t.Error(n, err)
	}
}

func TestEventsThatAreRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t, counters.Config{})
	if err := s.Assert(ctx, "k", at, counters.Values{"note": "text"}); err != nil {
		t.Fatal(err)
	}
	before := checksum(t, pool, "trifle_stats")
	good := counters.Event{Key: "good", At: at, Values: counters.Values{"n": 1}}
	for text, change := range map[string]func(*counters.Event){
		"events[1].key: empty":         func(e *counters.Event) { e.Key = "" },
		"events[1].key: a NUL byte":    func(e *counters.Event) { e.Key = "a\x00" },
		"events[1].key: invalid UTF-8": func(e *counters.Event) { e.Key = "\xff" },
		"events[1].key: of 1mo it is a key of 256": func(e *counters.Event) {
			e.Key = strings.Repeat("é", 239)
			e.Granularities = []counters.Granularity{"1d", "1mo"}
		}, // D18
		"events[1].at: missing":              func(e *counters.Event) { e.At = time.Time{} },
		"events[1].at: year 10000":           func(e *counters.Event) { e.At = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"events[1].op: \"max\"":              func(e *counters.Event) { e.Op = counters.OpMax },
		"events[1].id: a NUL byte":           func(e *counters.Event) { e.ID = "\x00" },
		"events[1].id: 1001 bytes":           func(e *counters.Event) { e.ID = strings.Repeat("x", 1001) },
		"events[1].granularities[1]: \"0m\"": func(e *counters.Event) { e.Granularities = []counters.Granularity{"1h", "0m"} }, // D17
		"events[1].values.n: the text":       func(e *counters.Event) { e.Values = counters.Values{"n": "x"} },
		"values.note: k::1d::1746489600 holds \"text\"": func(e *counters.Event) {
			e.Key, e.Granularities, e.Values = "k", []counters.Granularity{"1d"}, counters.Values{"note": 1}
		},
	} {
		bad := good
		change(&bad)
		for _, id := range []string{"", "x"} {
			first := good
			first.ID = id
			if _, err := s.Apply(ctx, first, bad); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
				t.Errorf("%v, want Invalid: %s", err, text)
			}
		}
	}
	if after := checksum(t, pool, "trifle_stats"); after != before {
		t.Error("something was written")
	}
	if n, err := s.Apply(ctx); n != 0 || err != nil {
		t.Errorf("Apply of nothing = %d, %v", n, err)
	}
}

// System rows count events by metric, track and assert alike.
func TestSystemRows(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, c := range []struct {
		cfg  counters.Config
		want counters.Values
	}{
		{counters.Config{Granularities: []counters.Granularity{"1h"}}, counters.Values{"count": number(3), "keys": counters.Values{"a": counters.Values{"b": number(2)}, "__untracked__": number(1)}}},
		{counters.Config{Paths: counters.V1}, counters.Values{"count": number(3), "keys": counters.Values{"a.b": number(2), "__untracked__": number(1)}}},
		{counters.Config{System: counters.Off}, counters.Values{}},
	} {
		s, _ := newStore(t, c.cfg)
		if _, err := s.Apply(ctx, counters.Event{Key: "a.b", At: at}, counters.Event{Op: counters.OpPut, Key: "a.b", At: at}, counters.Event{Key: "secret", At: at, Untracked: true}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(c.want, hour(t, s, counters.SystemKey)); diff != "" {
			t.Errorf("%+v: %s", c.cfg, diff)
		}
	}
}

// D15: the state that is known is the latest, whenever it is told.
func TestD15Beams(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range modes {
		s, _ := newStore(t, counters.Config{Mode: mode, Paths: counters.V1})
		if _, _, err := s.Scan(ctx, "w"); !errors.Is(err, counters.ErrNoBeam) || !errors.Is(err, fault.NotFound) {
			t.Errorf("Scan = %v, want ErrNoBeam", err)
		}
		for _, beam := range []struct {
			after time.Duration
			v     counters.Values
		}{{0, counters.Values{"gone": 1}}, {time.Minute, counters.Values{"ok": true, "x": counters.Values{`a\.b`: 2.5}}}, {time.Second, counters.Values{"late": 1}}} {
			if err := s.Beam(ctx, "w", at.Add(beam.after), beam.v); err != nil {
				t.Error(err)
			}
		}
		when, got, err := s.Scan(ctx, "w")
		if diff := cmp.Diff(counters.Values{"ok": true, "x": counters.Values{"a.b": number(2.5)}}, got); err != nil || !when.Equal(at.Add(time.Minute)) || diff != "" {
			t.Errorf("Scan = %v, %v\n%s", when, err, diff)
		}
		for _, bad := range []error{s.Beam(ctx, "", at, nil), s.Beam(ctx, "w", time.Time{}, nil), s.Beam(ctx, strings.Repeat("x", 256), at, nil), s.Beam(ctx, "w", at, counters.Values{"a": counters.Max(1)})} {
			if !errors.Is(bad, fault.Invalid) {
				t.Errorf("%v, want Invalid", bad)
			}
		}
		if err := s.Beam(ctx, "blank", at, nil); err != nil {
			t.Error(err)
		}
		if _, got, err := s.Scan(ctx, "blank"); err != nil || len(got) != 0 {
			t.Errorf("Scan = %v, %v", got, err)
		}
	}
}

// An ID is that of the same event also where it names, in any order, the granularities
// that the table has.
func TestTheSameEventInOtherWords(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}})
	named := func(id string, granularities ...counters.Granularity) counters.Event {
		return counters.Event{ID: id, Key: "k", At: at, Values: counters.Values{"n": 1}, Granularities: granularities}
	}
	for _, c := range []struct {
		event counters.Event
		want  int
		err   error
	}{
		{named("default"), 1, nil},
		{named("default", "1h", "1d"), 0, nil},
		{named("default", "1d", "1h", "1d"), 0, nil},
		{named("default", "1h"), 0, counters.ErrReused},
		{named("default", "1h", "1d", "1m"), 0, counters.ErrReused},
		{named("all", "1h", "1d"), 1, nil},
		{named("all"), 0, nil},
		{named("some", "1w", "1h"), 1, nil},
		{named("some", "1h", "1w", "1h"), 0, nil},
		{named("some"), 0, counters.ErrReused},
	} {
		if n, err := s.Apply(t.Context(), c.event); n != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s %v: %d, %v; want %d, %v", c.event.ID, c.event.Granularities, n, err, c.want, c.err)
		}
	}
}
