package checklists_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/howdah-db/howdah/checklists"
)

// modelItem is what an item should be.
type modelItem struct {
	state    checklists.State
	attempts int
	token    string // of the last claim, also after it ran out
	priority int
	payload  string
}

// Random calls, one after the other, answer what a model in memory answers, and
// leave the same states and counts.
func TestCallsAnswerAsTheModel(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t)
	callsAnswerAsTheModel(t, s, pool)
}

func callsAnswerAsTheModel(t *testing.T, s *checklists.Store, pool *pgxpool.Pool) {
	ctx := t.Context()
	const maxAttempts = 3
	rapid.Check(t, func(r *rapid.T) {
		if _, err := pool.Exec(ctx, `TRUNCATE lists; DELETE FROM howdah.checklist_count WHERE relation = 'lists'::regclass`); err != nil {
			r.Fatal(err)
		}
		settings := checklists.Settings{MaxAttempts: maxAttempts, Backoff: time.Hour, BackoffMax: time.Hour}
		if err := s.Set(ctx, "l", settings); err != nil {
			r.Fatal(err)
		}
		model := map[string]*modelItem{}
		tokens := []string{"0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e"}
		var done int64
		item := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e"})
		some := rapid.SliceOfNDistinct(item, 1, 4, rapid.ID)
		held := func(token string, items []string) (n int64) {
			for _, name := range items {
				if m := model[name]; m != nil && m.token == token {
					n++
				}
			}
			return n
		}
		answers := func(n int64, err error, want int64, asked int) {
			r.Helper()
			lost := asked >= 0 && want < int64(asked)
			if n != want || errors.Is(err, checklists.ErrLost) != lost || err != nil && !lost {
				r.Fatalf("answered %d, %v; want %d of %d", n, err, want, asked)
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"insert": func(r *rapid.T) {
				items, want := some.Draw(r, "items"), int64(0)
				for _, name := range items {
					if model[name] == nil {
						model[name] = &modelItem{state: checklists.StateReady}
						want++
					}
				}
				n, err := s.Insert(ctx, "l", items...)
				answers(n, err, want, -1)
			},
			"claim": func(r *rapid.T) {
				n, ready, died := rapid.IntRange(1, 6).Draw(r, "n"), 0, false
				c, err := s.Claim(ctx, "l", "w", n, time.Hour)
				if err != nil {
					r.Fatal(err)
				}
				for _, got := range c.Items {
					m := model[got.Name]
					if m == nil || m.state != checklists.StateReady || m.token != "" && m.attempts >= maxAttempts {
						r.Fatalf("claimed %+v, which is %+v", got, m)
					}
					m.attempts++
					if m.attempts != got.Attempts {
						r.Fatalf("claimed %+v, which is %+v", got, m)
					}
					m.state, m.token = checklists.StateLeased, c.Token
				}
				for name, m := range model {
					if m.state == checklists.StateReady && m.token != "" && m.attempts >= maxAttempts {
						// Exhausted: dead if the claim came to it.
						if got, err := s.Get(ctx, "l", name); err == nil && got.State == checklists.StateDead {
							m.state, m.token, died = checklists.StateDead, "", true
						}
					}
					if m.state == checklists.StateReady {
						ready++
					}
				}
				// It may be fewer where some were found exhausted, but not none.
				if len(c.Items) < n && ready > 0 && !(died && len(c.Items) > 0) {
					r.Fatalf("%d of %d claimed, and %d are ready", len(c.Items), n, ready)
				}
				if c.Token != "" {
					tokens = append(tokens, c.Token)
				}
			},
			"upsert": func(r *rapid.T) {
				given, last := []checklists.Item{}, map[string]checklists.Item{}
				for _, name := range rapid.SliceOfN(item, 1, 5).Draw(r, "items") {
					given = append(given, checklists.Item{
						Name: name, Priority: rapid.IntRange(-5, 5).Draw(r, "priority"),
						Payload: json.RawMessage(rapid.SampledFrom([]string{"", "1", `"x"`}).Draw(r, "payload")),
						Due:     rapid.SampledFrom([]time.Time{{}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)}).Draw(r, "due"),
					})
					last[name] = given[len(given)-1]
				}
				var wantAdded, wantChanged int64
				dated := false
				for name, g := range last {
					m := model[name]
					if m == nil {
						m = &modelItem{state: checklists.StateReady}
						model[name] = m
						wantAdded++
					} else if m.priority != g.Priority || m.payload != string(g.Payload) {
						wantChanged++
					} else if !g.Due.IsZero() && m.token == "" && m.state != checklists.StateDead {
						dated = true // the same time is no change, and the model has none
					}
					m.priority, m.payload = g.Priority, string(g.Payload)
					if !g.Due.IsZero() && m.token == "" && m.state != checklists.StateDead {
						m.state = checklists.StateReady
						if g.Due.After(time.Now()) {
							m.state = checklists.StateWaiting
						}
					}
				}
				added, changed, err := s.Upsert(ctx, "l", given...)
				if err != nil || added != wantAdded || changed < wantChanged || changed > wantChanged && !dated {
					r.Fatalf("answered %d, %d, %v; want %d, %d", added, changed, err, wantAdded, wantChanged)
				}
			},
			"rename": func(r *rapid.T) {
				n, err := s.Rename(ctx, "l", "m")
				if len(model) > 0 && (err != nil || n != int64(len(model))) {
					r.Fatalf("renamed %d, %v; want %d", n, err, len(model))
				}
				if n, err := s.Rename(ctx, "m", "l"); err != nil || n != int64(len(model)) {
					r.Fatalf("renamed back %d, %v; want %d", n, err, len(model))
				}
			},
			"drop": func(r *rapid.T) {
				n, err := s.Drop(ctx, "l")
				answers(n, err, int64(len(model)), -1)
				clear(model)
				done = 0
				if err := s.Set(ctx, "l", settings); err != nil {
					r.Fatal(err)
				}
			},
			"done": func(r *rapid.T) {
				token, items := rapid.SampledFrom(tokens).Draw(r, "token"), some.Draw(r, "items")
				want := held(token, items)
				for _, name := range items {
					if m := model[name]; m != nil && m.token == token {
						delete(model, name)
					}
				}
				done += want
				n, err := s.Done(ctx, checklists.Lease{List: "l", Token: token}, items...)
				answers(n, err, want, len(items))
			},
			"fail": func(r *rapid.T) {
				token, items := rapid.SampledFrom(tokens).Draw(r, "token"), some.Draw(r, "items")
				want, fs := held(token, items), []checklists.Failure{}
				for _, name := range items {
					fs = append(fs, checklists.Failure{Item: name, Error: "x"})
					if m := model[name]; m != nil && m.token == token {
						m.state, m.token = checklists.StateWaiting, ""
						if m.attempts >= maxAttempts {
							m.state = checklists.StateDead
						}
					}
				}
				n, err := s.Fail(ctx, checklists.Lease{List: "l", Token: token}, fs...)
				answers(n, err, want, len(items))
			},
			"release": func(r *rapid.T) {
				token, items := rapid.SampledFrom(tokens).Draw(r, "token"), some.Draw(r, "items")
				want := held(token, items)
				for _, name := range items {
					if m := model[name]; m != nil && m.token == token {
						m.state, m.token, m.attempts = checklists.StateReady, "", m.attempts-1
					}
				}
				n, err := s.Release(ctx, checklists.Lease{List: "l", Token: token}, items...)
				answers(n, err, want, len(items))
			},
			"kill": func(r *rapid.T) {
				items, want := some.Draw(r, "items"), int64(0)
				for _, name := range items {
					if m := model[name]; m != nil && m.state != checklists.StateDead {
						m.state, m.token = checklists.StateDead, ""
						want++
					}
				}
				n, err := s.Kill(ctx, "l", "y", items...)
				answers(n, err, want, -1)
			},
			"redrive": func(*rapid.T) {
				want := int64(0)
				for _, m := range model {
					if m.state == checklists.StateDead {
						m.state, m.attempts = checklists.StateReady, 0
						want++
					}
				}
				n, err := s.Redrive(ctx, "l", checklists.Query{})
				answers(n, err, want, -1)
			},
			"delete": func(r *rapid.T) {
				items, want := some.Draw(r, "items"), int64(0)
				for _, name := range items {
					if m := model[name]; m != nil {
						want++
						if m.state != checklists.StateDead {
							done++
						}
						delete(model, name)
					}
				}
				n, err := s.Delete(ctx, "l", items...)
				answers(n, err, want, -1)
			},
			"time passes": func(r *rapid.T) {
				if _, err := pool.Exec(ctx, `UPDATE lists SET due = due - interval '2 hours' WHERE due < 'infinity'`); err != nil {
					r.Fatal(err)
				}
				for _, m := range model {
					if m.state != checklists.StateDead {
						m.state = checklists.StateReady
					}
				}
			},
			"": func(r *rapid.T) {
				want := checklists.Progress{Done: done}
				for name, m := range model {
					if got, err := s.Get(ctx, "l", name); err != nil || got.State != m.state || got.Attempts != m.attempts ||
						got.Priority != m.priority || string(got.Payload) != m.payload {
						r.Fatalf("%q is %+v, %v; want %+v", name, got, err, *m)
					}
					switch m.state {
					case checklists.StateDead:
						want.Dead++
					case checklists.StateLeased:
						want.Leased++
						fallthrough
					default:
						want.Left++
					}
				}
				want.Total = want.Left + want.Dead + want.Done
				got, err := s.Progress(ctx, "l")
				got.Failed, got.Rate, got.ETA = 0, 0, 0
				if err != nil || got != want {
					r.Fatalf("progress %+v, %v; want %+v", got, err, want)
				}
				if differs, err := drift(ctx, pool); differs != "" || err != nil {
					r.Fatalf("counts: %s %v", differs, err)
				}
			},
		})
	})
}
