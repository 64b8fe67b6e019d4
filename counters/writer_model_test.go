package counters_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// model is what rows hold, by key and field.
type model map[string]counters.Values

func (m model) clone() model {
	c := model{}
	for key, row := range m {
		c[key] = maps.Clone(row)
	}
	return c
}

// write does what one operation does to a field, or says that it is no number.
func (m model) write(key, field string, op counters.Op, v any) error {
	if m[key] == nil {
		m[key] = counters.Values{}
	}
	there, ok := m[key][field]
	if op == counters.OpPut || (!ok || there == nil) {
		m[key][field] = v
		return nil
	}
	n, isNumber := counters.StoredNumber(there)
	if !isNumber {
		return counters.ErrNotNumber
	}
	switch by := v.(counters.Number); {
	case op == counters.OpAdd:
		m[key][field] = n.Add(by)
	case (op == counters.OpMax) == (by.Cmp(n) > 0):
		m[key][field] = by
	default:
		m[key][field] = n
	}
	return nil
}

// step is one field of an event.
type step struct {
	Field string
	Op    counters.Op
	Value any // Number, and of a put anything
}

type steps []step

// leaves are the steps as a caller writes them.
func (s steps) leaves() counters.Values {
	v := counters.Values{}
	for _, step := range s {
		switch step.Op {
		case counters.OpAdd:
			v[step.Field] = step.Value
		case counters.OpMax:
			v[step.Field] = counters.Max(step.Value)
		case counters.OpMin:
			v[step.Field] = counters.Min(step.Value)
		case counters.OpPut:
			v[step.Field] = counters.Put(step.Value)
		}
	}
	return v
}

// call is the events of one Apply, by key.
type call []struct {
	Key   string
	Steps steps
}

func (c call) events(prefix string) []counters.Event {
	var events []counters.Event
	for _, e := range c {
		events = append(events, counters.Event{Key: prefix + e.Key, At: at, Values: e.Steps.leaves()})
	}
	return events
}

// apply applies a call, all or nothing; rows tells in which rows an event of a key is.
func (m model) apply(c call, rows func(key string) []string) (model, error) {
	after := m.clone()
	for _, e := range c {
		for _, key := range rows(e.Key) {
			if after[key] == nil {
				after[key] = counters.Values{}
			}
			for _, step := range e.Steps {
				if err := after.write(key, step.Field, step.Op, step.Value); err != nil {
					return m, err
				}
			}
		}
	}
	return after, nil
}

var (
	someNumber = rapid.Map(rapid.OneOf(
		rapid.Map(rapid.IntRange(-3, 3), func(i int) string { return fmt.Sprint(i) }),
		rapid.SampledFrom([]string{"0.5", "-0.1", "9223372036854775807", "-9223372036854775808", "1e40", "0.000000000000000000001"})),
		func(text string) counters.Number { return number(json.Number(text)) })
	numericLeaf = rapid.OneOf(rapid.Map(someNumber, func(n counters.Number) any { return n }), rapid.SampledFrom([]any{"1.5", "-2e3", nil}))
	someLeaf    = rapid.OneOf(numericLeaf, rapid.SampledFrom([]any{"text", "NaN", true, []any{}}))
)

// callsOf returns calls that put some leaves.
func callsOf(leaf *rapid.Generator[any]) *rapid.Generator[call] {
	someStep := rapid.Custom(func(t *rapid.T) step {
		s := step{Field: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "field")}
		s.Op = rapid.SampledFrom([]counters.Op{counters.OpAdd, counters.OpAdd, counters.OpPut, counters.OpMax, counters.OpMin}).Draw(t, "op")
		if s.Op == counters.OpPut {
			s.Value = leaf.Draw(t, "leaf")
		} else {
			s.Value = someNumber.Draw(t, "number")
		}
		return s
	})
	return rapid.Custom(func(t *rapid.T) call {
		c := make(call, rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "events"))
		for i := range c {
			c[i].Key = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
			c[i].Steps = rapid.SliceOfNDistinct(someStep, 0, 2, func(s step) string { return s.Field }).Draw(t, "steps")
		}
		return c
	})
}

// Whatever is folded together writes, statement by statement, what the same calls write
// one after the other; and just those of them fail.
func TestFoldIsTheSame(t *testing.T) {
	t.Parallel()
	programs := pgtest.Size(100, 10) // of each of rapid's 100 checks: 10,000
	t.Logf("seed %s", flag.Lookup("rapid.seed").Value)
	rows := func(key string) []string { return []string{key + "::1d::1746489600"} }
	someCall := callsOf(someLeaf)
	rapid.Check(t, func(t *rapid.T) {
		for range programs {
			before := model{}
			for _, key := range []string{"a", "b"} {
				if rapid.Bool().Draw(t, "there") {
					before[rows(key)[0]] = counters.Values{"x": someLeaf.Draw(t, "x"), "other": "stays"}
				}
			}
			calls := rapid.SliceOfN(someCall, 1, 6).Draw(t, "calls")
			want := before.clone()
			failed := make([]bool, len(calls))
			for i, c := range calls {
				var err error
				want, err = want.apply(c, rows)
				failed[i] = err != nil
			}
			got, failures := folded(t, before, calls)
			if diff := cmp.Diff(want, got) + cmp.Diff(failed, failures); diff != "" {
				t.Fatalf("%+v on %v: (-one by one, +folded)\n%s", calls, before, diff)
			}
		}
	})
}

// folded runs the statements of a fold of calls. What they find to be no number is
// known to the next fold, as in a flush.
func folded(t *rapid.T, before model, calls []call) (model, []bool) {
	var stored map[string]map[string]any
	for range 2 {
		f := counters.NewFold(counters.Sync, stored)
		failed := make([]bool, len(calls))
		total := 0
		for i, c := range calls {
			err := f.Take(c.events("")...)
			if failed[i] = err != nil; err != nil && !errors.Is(err, counters.ErrNotNumber) {
				t.Fatal(err)
			}
			if err == nil {
				total += len(c)
			}
		}
		after, err := before.run(f.Statements())
		if err == nil {
			if counted := after["__system__key__::1d::1746489600"]["count"]; total > 0 && !counted.(counters.Number).Equal(number(total)) {
				t.Fatalf("the system row counts %v, want %d", counted, total)
			}
			delete(after, "__system__key__::1d::1746489600")
			return after, failed
		}
		stored = map[string]map[string]any{}
		for key, row := range before {
			stored[key] = map[string]any{}
			for field, leaf := range row {
				if _, ok := counters.StoredNumber(leaf); !ok && leaf != nil {
					stored[key][field] = leaf
				}
			}
		}
	}
	t.Fatal("it fails although all that is no number is known")
	return nil, nil
}

// run does what PostgreSQL does with statements.
func (m model) run(all []counters.Statement) (model, error) {
	after := m.clone()
	for _, s := range all {
		for i, key := range s.Keys {
			var data counters.Values
			if err := data.UnmarshalJSON([]byte(s.Data[i])); err != nil {
				return nil, err
			}
			if after[key] == nil {
				after[key] = counters.Values{}
			}
			for field, v := range data {
				if err := after.write(key, field, s.Op, v); err != nil {
					return nil, err
				}
			}
		}
	}
	return after, nil
}

// The same in a database: calls one by one through the Store, and through Writers that
// carry any number of them in a transaction.
func TestWriterIsTheStore(t *testing.T) {
	t.Parallel()
	cfg := counters.Config{System: counters.Off, Granularities: []counters.Granularity{"1h", "1d"}}
	t.Run("rows", func(t *testing.T) {
		t.Parallel()
		s, _ := newStore(t, cfg)
		writerIsTheStore(t, s, someLeaf)
	})
	t.Run("slots", func(t *testing.T) { // into which anything can be added
		t.Parallel()
		striped := cfg // the other uses it at the same time
		striped.Striped = []string{"*"}
		s, _ := newStriped(t, striped)
		writerIsTheStore(t, s, numericLeaf)
	})
}

func writerIsTheStore(t *testing.T, s *counters.Store, leaf *rapid.Generator[any]) {
	t.Helper()
	ctx := t.Context()
	programs, someCall := 0, callsOf(leaf)
	rapid.Check(t, func(t *rapid.T) {
		programs++
		prefix := func(way string) string { return fmt.Sprintf("%d %s ", programs, way) }
		rows := func(way string) (keys []counters.Key) {
			for _, key := range []string{"a", "b"} {
				for _, bucket := range []string{"1h::1746522000", "1d::1746489600"} {
					keys = append(keys, counters.Key{prefix(way) + key, bucket})
				}
			}
			return keys
		}
		calls := rapid.SliceOfN(someCall, 1, 8).Draw(t, "calls")
		want := model{}
		answers := map[string][]string{}
		there := leaf.Draw(t, "there")
		for _, way := range []string{"store", "writer"} {
			if _, err := s.Set(ctx, rows(way)[:2], counters.Values{"x": there}); err != nil {
				t.Fatal(err)
			}
			answers[way] = make([]string, len(calls))
		}
		want["a"] = counters.Values{"x": there}
		for i, c := range calls {
			n, err := s.Apply(ctx, c.events(prefix("store"))...)
			answers["store"][i] = fmt.Sprint(n, errors.Is(err, counters.ErrNotNumber))
			var failed error
			if want, failed = want.apply(c, func(key string) []string { return []string{key} }); (failed == nil) != (err == nil) {
				t.Fatalf("%+v: %v, want %v", c, err, failed)
			}
		}
		w := counters.WriterOf(s, counters.WriterConfig{}, rapid.IntRange(1, len(calls)).Draw(t, "in a transaction"))
		together(ctx, t, w, len(calls), func(i int) {
			n, err := w.Apply(ctx, calls[i].events(prefix("writer"))...)
			answers["writer"][i] = fmt.Sprint(n, errors.Is(err, counters.ErrNotNumber))
		})
		if diff := cmp.Diff(answers["store"], answers["writer"]); diff != "" {
			t.Fatalf("%+v: (-store, +writer)\n%s", calls, diff)
		}
		for _, way := range []string{"store", "writer"} {
			got, err := s.Get(ctx, rows(way))
			if err != nil {
				t.Fatal(err)
			}
			for i, row := range got {
				expected := want[[]string{"a", "a", "b", "b"}[i]]
				if expected == nil {
					expected = counters.Values{}
				}
				if diff := cmp.Diff(expected, row); diff != "" {
					t.Fatalf("%s: %+v: row %d (-want, +got)\n%s", way, calls, i, diff)
				}
			}
		}
	})
}

// together makes n calls that a Writer takes in their order before it begins to write.
func together(ctx context.Context, t interface{ Fatal(...any) }, w *counters.Writer, n int, call func(i int)) {
	ctx, over := context.WithTimeout(ctx, pgtest.Patience)
	defer over()
	w.Gather()
	called := make(chan struct{}, n)
	for i := range n {
		go func() { call(i); called <- struct{}{} }()
		for w.Stats().Pending <= i {
			if ctx.Err() != nil {
				t.Fatal("it is not taken")
			}
			runtime.Gosched() // all that it waits for is its turn
		}
	}
	running, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- w.Run(running) }()
	for range n {
		select {
		case <-called:
		case <-ctx.Done():
			t.Fatal("a call does not end")
		}
	}
	stop()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
}
