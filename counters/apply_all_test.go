package counters_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

var once = counters.ApplyOptions{Once: "log"}

// lines are so many events of the metric n.
func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"key":"n","at":%d,"values":{"n":1}}`+"\n", 1746522900+i)
	}
	return b.String()
}

// total is what the metric n has in all.
func total(t *testing.T, s *counters.Store) string {
	t.Helper()
	from := time.Date(2025, 5, 6, 9, 0, 0, 0, time.UTC)
	series, err := s.Values(t.Context(), counters.Query{Key: "n", From: from, To: from, Granularity: "1y"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := series.Aggregate(counters.FnSum, "n", 1)
	if err != nil {
		t.Fatal(err)
	}
	return n[0].String()
}

// A source that is applied again, whole, grown or interrupted, counts once.
func TestApplyAllOnce(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, counters.Config{Granularities: []counters.Granularity{"1y"}})
	ctx := t.Context()
	apply := func(source string, want counters.Applied, sum string) {
		t.Helper()
		got, err := s.ApplyAll(ctx, counters.ReadEvents(strings.NewReader(source), ""), once)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v\n%s", err, diff)
		}
		if got := total(t, s); got != sum {
			t.Errorf("n is %s, want %s", got, sum)
		}
	}
	apply(lines(0), counters.Applied{}, "0")
	broken := errors.New("the disk is gone")
	half := func(yield func(counters.Event, error) bool) {
		for e, err := range counters.ReadEvents(strings.NewReader(lines(2500)), "") {
			if !yield(e, err) {
				return
			}
		}
		yield(counters.Event{}, broken)
	}
	if done, err := s.ApplyAll(ctx, half, once); !errors.Is(err, broken) || done.Applied != 2500 {
		t.Errorf("%+v, %v", done, err)
	}
	apply(lines(4000), counters.Applied{Applied: 1500, Duplicates: 2500}, "4000")
	apply(lines(4000), counters.Applied{Duplicates: 4000}, "4000")
	apply(lines(4000)+"no JSON\n"+lines(3), counters.Applied{Applied: 3, Duplicates: 4000, Refused: 1}, "4003")
	apply(lines(4000)+"other JSON\n"+lines(3), counters.Applied{Duplicates: 4003, Refused: 1}, "4003")

	for _, other := range []string{lines(2000), strings.Replace(lines(5000), `"n":1`, `"n":2`, 1), lines(5000)} {
		if done, err := s.ApplyAll(ctx, counters.ReadEvents(strings.NewReader(other), ""), once); !errors.Is(err, counters.ErrSource) || !errors.Is(err, fault.Conflict) || done.Applied > 0 {
			t.Errorf("%+v, %v", done, err)
		}
	}
	if got := total(t, s); got != "4003" {
		t.Errorf("n is %s", got)
	}
	if _, err := pool.Exec(ctx, `UPDATE howdah.counter_events SET at = at - interval '7 days' - interval '1 minute' WHERE tbl = format('%I.trifle_stats', current_schema())`); err != nil {
		t.Fatal(err)
	}
	apply(lines(1), counters.Applied{Applied: 1}, "4004")
}

// In a transaction of the caller's it is a part of that.
func TestApplyAllInATransaction(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, counters.Config{})
	rollback := errors.New("rollback")
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		done, err := s.WithTx(tx).ApplyAll(t.Context(), counters.ReadEvents(strings.NewReader(lines(1500)), ""), once)
		if err != nil || done.Applied != 1500 {
			t.Errorf("%+v, %v", done, err)
		}
		return rollback
	})
	if !errors.Is(err, rollback) || total(t, s) != "0" {
		t.Errorf("%v, n is %s", err, total(t, s))
	}
	if done, err := s.ApplyAll(t.Context(), counters.ReadEvents(strings.NewReader(lines(1500)), ""), once); err != nil || done.Applied != 1500 {
		t.Errorf("%+v, %v", done, err)
	}
}

// Two that apply one source at the same time count it once between them.
func TestApplyAllAtTheSameTime(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{Granularities: []counters.Granularity{"1y"}})
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			_, err := s.ApplyAll(t.Context(), counters.ReadEvents(strings.NewReader(lines(5500)), ""), once)
			if errors.Is(err, counters.ErrSource) {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if got := total(t, s); got != "5500" {
		t.Errorf("n is %s", got)
	}
}

// What is wrong is left out and told with its line; all else is counted.
func TestApplyAllRefuses(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{Granularities: []counters.Granularity{"1y"}})
	ctx := t.Context()
	at := time.Unix(1746522900, 0)
	if err := s.Assert(ctx, "n", at, counters.Values{"note": "hello"}); err != nil {
		t.Fatal(err)
	}
	source := "\ufeff" + lines(1) + "\r\n \t\n" + strings.Join([]string{
		`{"key":"n","at":1746522900,"values":{"note":1}}`, // 4
		`{"key":"n","at":1746522900,"values":{"n":"x"}}`,
		`{"key":"n","at":"2025-05-06T09:15:00+02:00","values":{"n":1,"m":{"$max":3}},"op":"track","untracked":true}` + "\r",
		`{"key":"n","at":1746522900,"values":{"n":1},"id":"a"}`,
		`{"key":"n","at":1746522900.7,"values":{"n":1.0},"id":"a"}`,
		`{"key":"n","at":1746522900,"values":{"text":["any"]},"op":"assert"}`,
		`{"key":"n","at":1746522900,"values":{"text":1}}`, // 10
		`{"at":1746522900,"values":{"n":1}}`,
		`{"key":"n","values":{"n":1}}`,
		`{"key":"n","at":"noon"}`,
		`{"key":"n","at":1e300}`,
		`{"key":"n","at":1746522900,"op":"inc"}`,
		`{"key":"n","at":1746522900,"value":{"n":1}}`,
		`{"key":"n","at":1746522900} {}`,
		`{"key":"n","at":1746522900,"values":[]}`,
		`no JSON`,
		`{"key":"` + strings.Repeat("x", 1<<20) + `"}`, // 20
		"{\"key\":\"\xff\"}",
		`{"key":"n","at":1746522900,"values":{"n":7},"id":"a"}`,
		`{"key":"n","at":1746522900,"values":{"n":1}}`, // without a line break
	}, "\n")
	var refused []string
	opt := counters.ApplyOptions{Refused: func(err error) { refused = append(refused, err.Error()) }}
	done, err := s.ApplyAll(ctx, counters.ReadEvents(strings.NewReader(source), "n"), opt)
	if diff := cmp.Diff(counters.Applied{Applied: 6, Duplicates: 1, Refused: 14}, done); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for i, want := range []string{
		`line 5: values.n: the text "x"; want a number`, "line 12: at: missing", `line 13: at: "noon"; want RFC 3339`, `line 14: at: "1e300"`,
		`line 15: op: "inc"; want track or assert`, `line 16: event: want an object with key, at, values, id, op and untracked: unknown field "value"`, "line 17: event: more than one", "line 18: values: a list",
		"line 19: event: want an object with key, at, values, id, op and untracked: invalid character", "line 20: over 1 MiB", "line 21: event: invalid UTF-8",
		`line 4: values.note: n::1y::1735689600 holds "hello", which is no number`, `line 10: values.text: n::1y::1735689600 holds ["any"], which is no number`, `line 22: "a": the ID was used for something else`,
	} {
		if i >= len(refused) || !strings.HasPrefix(refused[i], want) {
			t.Errorf("%d: %q, want %q", i, refused[min(i, len(refused)-1)], want)
		}
	}
	if got := total(t, s); got != "5" {
		t.Errorf("n is %s", got)
	}
	for name, opt := range map[string]counters.ApplyOptions{"bytes; at most": {Once: strings.Repeat("x", 1000)}, "NUL": {Once: "\x00"}} {
		if _, err := s.ApplyAll(ctx, nothing, opt); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
}

// Of events that share an ID the first that can be is applied, in the place where it came;
// what is told of the others is what [Store.Apply] would return.
func TestApplyAllOfIDsThatComeAgain(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{Granularities: []counters.Granularity{"1y"}})
	ctx := t.Context()
	if err := s.Assert(ctx, "n", time.Unix(1746522900, 0), counters.Values{"note": "hello"}); err != nil {
		t.Fatal(err)
	}
	source := strings.Join([]string{
		`{"key":"n","at":1746522900,"values":{"note":1},"id":"a"}`,
		`{"key":"n","at":1746522900,"values":{"n":5,"x":{"$put":1}},"id":"a"}`,
		`{"key":"n","at":1746522900,"values":{"x":{"$put":2}}}`,
		`{"key":"n","at":1746522901,"values":{"n":5,"x":{"$put":1}},"id":"a"}`,
		`{"key":"n","at":1746522900,"values":{"n":6},"id":"a"}`,
		`{"key":"n","at":1746522900,"values":{"note":1},"id":"b"}`,
		`{"key":"n","at":1746522900,"values":{"note":1},"id":"b"}`,
	}, "\n") + "\n"
	var refused []error
	opt := counters.ApplyOptions{Refused: func(err error) { refused = append(refused, err) }}
	apply := func(want counters.Applied, errs ...error) {
		t.Helper()
		refused = nil
		done, err := s.ApplyAll(ctx, counters.ReadEvents(strings.NewReader(source), ""), opt)
		if diff := cmp.Diff(want, done); diff != "" || err != nil {
			t.Errorf("%v\n%s", err, diff)
		}
		if len(refused) != len(errs) {
			t.Fatalf("%v, want %v", refused, errs)
		}
		for i, want := range errs {
			if !errors.Is(refused[i], want) || errors.Is(refused[i], fault.Invalid) != errors.Is(want, fault.Invalid) {
				t.Errorf("%v, want %v", refused[i], want)
			}
		}
	}
	apply(counters.Applied{Applied: 2, Duplicates: 1, Refused: 4}, counters.ErrNotNumber, counters.ErrReused, counters.ErrNotNumber, counters.ErrNotNumber)
	want := []counters.Values{{"n": number(5), "x": number(2), "note": "hello"}}
	if rows, err := s.Get(ctx, key("n::1y::1735689600")); err != nil || !cmp.Equal(want, rows) {
		t.Errorf("%v, %s", err, cmp.Diff(want, rows))
	}
	source = strings.ReplaceAll(source, `"note":1`, `"other":1`)
	apply(counters.Applied{Applied: 2, Duplicates: 3, Refused: 2}, counters.ErrReused, counters.ErrReused)
}

func nothing(func(counters.Event, error) bool) {}

var _ iter.Seq2[counters.Event, error] = nothing

// What gzip packed is read as far as it goes.
func TestReadPackedEvents(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	for i := range 5000 {
		fmt.Fprintf(w, `{"key":"n","at":1,"values":{"n":%d}}`+"\n", i*7919*i)
	}
	w.Close()
	read := func(b []byte) (n int, last error) {
		for _, err := range counters.ReadEvents(bytes.NewReader(b), "") {
			if err == nil {
				n++
			}
			last = err
		}
		return n, last
	}
	if n, err := read(packed.Bytes()); n != 5000 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := read(packed.Bytes()[:packed.Len()/2]); n < 1000 || n > 4000 || pg.KindOf(err) != "" || !strings.Contains(err.Error(), fmt.Sprintf("the source breaks off after line %d: unexpected EOF", n)) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := read(packed.Bytes()[:5]); n != 0 || err == nil || err.Error() != "gzip: unexpected EOF" {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := read(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// One that is interrupted ends.
func TestApplyAllEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	endless := func(yield func(counters.Event, error) bool) {
		for n := 0; yield(counters.Event{Key: "n", At: time.Unix(1746522900, 0), Values: counters.Values{"n": 1}}, nil); n++ {
			if n == 1500 {
				cancel()
			}
		}
	}
	if done, err := s.ApplyAll(ctx, endless, once); !errors.Is(err, context.Canceled) || done.Applied != 1000 {
		t.Errorf("%+v, %v", done, err)
	}
}

// What a slow source has said is not kept until there is a unit of it.
func TestApplyAllOfASlowSource(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, counters.Config{Granularities: []counters.Granularity{"1y"}})
	one := counters.Event{Key: "n", At: time.Unix(1746522900, 0), Values: counters.Values{"n": 1}}
	slow := func(yield func(counters.Event, error) bool) {
		for n := 0; total(t, s) == "0"; n++ {
			if n == unitEvents {
				t.Error("it was kept")
				return
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-t.Context().Done():
			}
			if !yield(one, nil) {
				return
			}
		}
	}
	if done, err := s.ApplyAll(t.Context(), slow, once); err != nil || fmt.Sprint(done.Applied) != total(t, s) {
		t.Errorf("%+v, %v; n is %s", done, err, total(t, s))
	}
}

const unitEvents = 1000

// Whatever a line is, it is an event that can be applied, or refused with its number.
func FuzzReadEvents(f *testing.F) {
	f.Add([]byte(`{"key":"n","at":1746522900,"values":{"n":1,"m":{"$max":3}},"id":"a","op":"track","untracked":true}`))
	f.Add([]byte("\ufeff{\"at\":\"2025-05-06T09:15:00+02:00\",\"values\":{\"a\":{\"b\":[1,null]}},\"op\":\"assert\"}\r\n\n{"))
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for e, err := range counters.ReadEvents(bytes.NewReader(text), "n") {
			switch {
			case err == nil && (e.Key == "" || e.At.IsZero() && e.At.Unix() != -62135596800):
				t.Errorf("%q: %+v", text, e)
			case err != nil && errors.Is(err, fault.Invalid) && !strings.HasPrefix(err.Error(), "line "):
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}

func TestParseTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"2025-05-06T09:15:00Z": 1746522900, "2025-05-06T11:15:00.5+02:00": 1746522900, "1746522900": 1746522900, "0": 0,
		"1746522900.99999999999999": 1746522900, "-0.5": -1, "-1": -1, "-1.00001": -2, "1.7465229e9": 1746522900, "253402300799.9": 253402300799,
	} {
		if got, err := counters.ParseTime(text); err != nil || got.Unix() != want {
			t.Errorf("ParseTime(%q) = %v, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "noon", "2025-05-06", "NaN", "1e99", "253402300800", "-62135596801", "1_0", "0x1", "10000-01-01T00:00:00Z"} {
		if got, err := counters.ParseTime(text); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "want RFC 3339") {
			t.Errorf("ParseTime(%q) = %v, %v", text, got, err)
		}
	}
}
