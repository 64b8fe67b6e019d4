package counters_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/counters"
)

// All works without prepared statements, as behind a pooler, in all the ways of pgx.
func TestWithoutPreparedStatements(t *testing.T) {
	t.Parallel()
	for _, exec := range []pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		for _, mode := range modes {
			t.Run(exec.String()+" "+string(mode), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				pool := newPool(t)
				cfg := pool.Config()
				cfg.ConnConfig.DefaultQueryExecMode = exec
				pool, err := pgxpool.NewWithConfig(ctx, cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(pool.Close)
				settings := counters.Config{Mode: mode, Striped: []string{"hot*"}, Retention: counters.Retention{"1m": time.Hour}, Granularities: []counters.Granularity{"1m", "1h", "1d"}}
				s := counters.New(pool, settings)
				if err := s.Setup(ctx); err != nil {
					t.Fatal(err)
				}
				s = known(t, pool, counters.Config{})
				w := counters.NewWriter(s, counters.WriterConfig{})
				stop := running(t, w)
				for _, step := range []struct {
					name string
					do   func() error
				}{
					{"change", func() error {
						return counters.New(pool, counters.Config{Slots: 5, Rollup: []counters.Rule{{Path: "gauge", Op: counters.OpPut}}}).Setup(ctx)
					}},
					{"Apply", func() error {
						return second(s.Apply(ctx, counters.Event{ID: "a", Hash: []byte{0, 1}, Key: "hot", At: at, Values: counters.Values{"n": 1, "most": counters.Max(2), "text": counters.Put(`a"\b`)}}, counters.Event{Key: "k", At: at, Values: counters.Values{"n": 0.1}}))
					}},
					{"again", func() error {
						return second(s.Apply(ctx, counters.Event{ID: "a", Hash: []byte{0, 1}, Key: "hot", At: at, Values: counters.Values{"n": 1}}))
					}},
					{"Track", func() error { return s.Track(ctx, "hot", at, counters.Values{"n": 2}) }},
					{"Writer", func() error { return w.Track(ctx, "hot", at, counters.Values{"n": 4}) }},
					{"Assert", func() error { return s.Assert(ctx, "hot", at, counters.Values{"gauge": []any{1, "x"}}) }},
					{"Inc", func() error {
						return second(s.Inc(ctx, key("k::1h::1746522000"), counters.Values{"n": 1}))
					}},
					{"ApplyAll", func() error {
						return second(s.ApplyAll(ctx, sequenceOf([]counters.Event{{Key: "hot", At: at, Values: counters.Values{"n": 8}}}, nil), counters.ApplyOptions{Once: "once"}))
					}},
					{"ApplyAll again", func() error {
						return second(s.ApplyAll(ctx, sequenceOf([]counters.Event{{Key: "hot", At: at, Values: counters.Values{"n": 8}}}, nil), counters.ApplyOptions{Once: "once"}))
					}},
					{"Rows", func() error {
						return firstError(s.Rows(ctx, counters.Query{Key: "hot", From: at, To: at, Granularity: "1m"}))
					}},
					{"Get", func() error { return second(s.Get(ctx, key("k::1h::1746522000"))) }},
					{"Beam", func() error { return s.Beam(ctx, "b", at, counters.Values{"x": 1}) }},
					{"Scan", func() error { _, _, err := s.Scan(ctx, "b"); return err }},
					{"Verify", func() error { return firstError(s.Verify(ctx, "hot", "1d", "1m", at, at)) }},
					{"Fold", func() error { return second(s.Fold(ctx)) }},
					{"Rebuild", func() error { return second(s.Rebuild(ctx, "hot", "1d", at, at)) }},
					{"Replace", func() error {
						return second(s.Replace(ctx, "k", at.Truncate(24*time.Hour), at.Truncate(24*time.Hour).AddDate(0, 0, 1), sequenceOf([]counters.Event{{At: at, Values: counters.Values{"n": 1}}}, nil)))
					}},
					{"Rename", func() error { return second(s.Rename(ctx, "k", "k2")) }},
					{"Export, Import", func() error {
						return second(s.Import(ctx, func(yield func(counters.Row, error) bool) { s.Export(ctx, "hot")(yield) }))
					}},
					{"Delete", func() error { return second(s.Delete(ctx, "k2", nil, at, at)) }},
					{"Page", func() error { return second(s.Page(ctx, "", 10)) }},
					{"Turn", func() error { return second(s.Turn(ctx, "x", time.Second)) }},
					{"Doctor", func() error { return second(s.Doctor(ctx)) }},
					{"Survey", func() error { return second(s.Survey(ctx, counters.Extras{Index: true})) }},
					{"Prune", func() error { return second(s.Prune(ctx, at)) }},
				} {
					if err := step.do(); err != nil {
						t.Errorf("%s: %v", step.name, err)
					}
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
				want := counters.Values{"n": number(15), "most": number(2), "text": `a"\b`, "gauge": []any{number(1), "x"}}
				if diff := cmp.Diff(want, hour(t, s, "hot")); diff != "" {
					t.Error(diff)
				}
				if set, err := s.Settings(ctx); err != nil || !slices.Equal(set.Striped, []string{"hot*"}) {
					t.Errorf("%+v, %v", set, err)
				}
			})
		}
	}
}
