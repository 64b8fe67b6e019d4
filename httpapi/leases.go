package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

type claimOutput struct {
	Body struct {
		Lease   string            `json:"lease,omitempty" example:"0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e" doc:"What the other routes want; absent without items."`
		Until   time.Time         `json:"until,omitzero" example:"2026-11-20T14:05:00Z"`
		Paused  bool              `json:"paused" example:"false"`
		Limited bool              `json:"limited,omitempty" doc:"Fewer than asked for because of the list's max_leased or rate."`
		Items   []checklists.Item `json:"items" nullable:"false" example:"[{\"item\":\"a.txt\",\"attempts\":1}]"`
	}
}

type claimInput struct {
	ListPath
	Body struct {
		Count  int    `json:"count" example:"100" minimum:"1" maximum:"10000" doc:"At most so many."`
		Lease  string `json:"lease" example:"5m" doc:"For how long, 1s to 24h."`
		Worker string `json:"worker,omitempty" example:"w1" doc:"Who has them."`
		Wait   string `json:"wait,omitempty" example:"20s" doc:"While nothing is ready, or the list is paused, wait so long for something: up to 1m."`
	}
}

func (a *api) claimItems(ctx context.Context, in *claimInput) (*claimOutput, error) {
	d, err := duration("lease", in.Body.Lease)
	if err != nil {
		return nil, err
	}
	wait := time.Duration(0)
	if in.Body.Wait != "" {
		if wait, err = duration("wait", in.Body.Wait); err != nil {
			return nil, err
		}
	}
	// The database's time to answer comes after the waiting.
	ctx, cancel := context.WithTimeout(ctx, max(wait, 0)+a.cfg.Timeout)
	defer cancel()
	if wait > 0 {
		stop := a.untilEnding(cancel)
		defer stop()
	}
	claim, err := a.waiter.Claim(ctx, in.List, in.Body.Worker, in.Body.Count, d, wait)
	out := new(claimOutput)
	out.Body.Lease, out.Body.Until, out.Body.Paused, out.Body.Limited, out.Body.Items = claim.Token, claim.Until, claim.Paused, claim.Limited, claim.Items
	return out, err
}

// untilEnding calls cancel when streams, and whoever waits, are to end; stop ends
// that.
func (a *api) untilEnding(cancel func()) (stop func()) {
	over := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-a.cfg.Ending:
			cancel()
		case <-over:
		}
	}()
	return func() {
		close(over)
		<-ended
	}
}

// LeasePath is the claim an operation is about.
type LeasePath struct {
	ListPath
	Token string `path:"token" doc:"The lease that the claim answered." example:"0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e"`
}

func (p LeasePath) lease() checklists.Lease { return checklists.Lease{List: p.List, Token: p.Token} }

type heldInput struct {
	LeasePath
	Body struct {
		Items *[]string `json:"items,omitempty" maxItems:"1000000" example:"[\"a.txt\",\"b.txt\"]" doc:"Without it: all that the lease still holds."`
	}
}

// finish calls do with the items named; naming none of them is not naming all.
func (in *heldInput) finish(ctx context.Context, do func(context.Context, checklists.Lease, ...string) (int64, error)) (int64, error) {
	if in.Body.Items == nil {
		return do(ctx, in.lease())
	}
	if len(*in.Body.Items) == 0 {
		return 0, nil
	}
	return do(ctx, in.lease(), *in.Body.Items...)
}

// withHeld adds to a lost lease how many items it still held.
func withHeld(err error, n int64) error {
	if errors.Is(err, checklists.ErrLost) {
		return &lostError{err, n}
	}
	return err
}

type lostError struct {
	error
	held int64
}

func (e *lostError) Unwrap() error { return e.error }

type doneOutput struct {
	Body struct {
		Done int64 `json:"done" example:"2"`
	}
}

func (a *api) doneItems(ctx context.Context, in *heldInput) (*doneOutput, error) {
	n, err := in.finish(ctx, a.client.Writers.Checklists.Done)
	out := new(doneOutput)
	out.Body.Done = n
	return out, withHeld(err, n)
}

type releaseItemsOutput struct {
	Body struct {
		Released int64 `json:"released" example:"2"`
	}
}

func (a *api) releaseItems(ctx context.Context, in *heldInput) (*releaseItemsOutput, error) {
	n, err := in.finish(ctx, a.client.Checklists.Release)
	out := new(releaseItemsOutput)
	out.Body.Released = n
	return out, withHeld(err, n)
}

// FailureBody is one attempt that failed.
type FailureBody struct {
	Item    string `json:"item" example:"c.txt"`
	Error   string `json:"error,omitempty" example:"503 from origin" doc:"Why; cleaned and cut to 2,000 bytes, never refused."`
	RetryIn string `json:"retry_in,omitempty" example:"30s" doc:"Instead of the list's backoff; negative: do not try again."`
}

// UnmarshalJSON implements json.Unmarshaler. The error may hold what is no text, as
// what a program has printed does: a failure must not fail. A name may not.
func (f *FailureBody) UnmarshalJSON(text []byte) error {
	type plain FailureBody
	var raw struct{ Item json.RawMessage }
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	if err := pg.CheckJSON("item", raw.Item); err != nil {
		return err
	}
	return json.Unmarshal(text, (*plain)(f))
}

type failOutput struct {
	Body struct {
		Failed int64 `json:"failed" example:"1"`
	}
}

type failInput struct {
	LeasePath
	Body struct {
		Items []FailureBody `json:"items" nullable:"false" maxItems:"1000000" example:"[{\"item\":\"c.txt\",\"error\":\"503 from origin\",\"retry_in\":\"30s\"}]"`
	}
}

func (a *api) failItems(ctx context.Context, in *failInput) (*failOutput, error) {
	failures := make([]checklists.Failure, len(in.Body.Items))
	for i, f := range in.Body.Items {
		failures[i] = checklists.Failure{Item: f.Item, Error: f.Error}
		if f.RetryIn != "" {
			var err error
			if failures[i].RetryIn, err = duration("retry_in", f.RetryIn); err != nil {
				return nil, err
			}
		}
	}
	n, err := a.client.Writers.Checklists.Fail(ctx, in.lease(), failures...)
	out := new(failOutput)
	out.Body.Failed = n
	return out, withHeld(err, n)
}

type extendOutput struct {
	Body struct {
		Extended int64 `json:"extended" example:"2"`
	}
}

type extendInput struct {
	LeasePath
	Body struct {
		Lease string `json:"lease" example:"5m" doc:"For how long from now, 1s to 24h."`
	}
}

func (a *api) extendLease(ctx context.Context, in *extendInput) (*extendOutput, error) {
	d, err := duration("lease", in.Body.Lease)
	if err != nil {
		return nil, err
	}
	n, err := a.client.Checklists.Extend(ctx, in.lease(), d)
	out := new(extendOutput)
	out.Body.Extended = n
	return out, err
}

type killOutput struct {
	Body struct {
		Killed int64 `json:"killed" example:"2"`
	}
}

type killInput struct {
	ListPath
	Body struct {
		Items  []string `json:"items" nullable:"false" maxItems:"1000000" example:"[\"a.txt\",\"b.txt\"]"`
		Reason string   `json:"reason,omitempty" example:"gone for good"`
	}
}

func (a *api) killItems(ctx context.Context, in *killInput) (*killOutput, error) {
	n, err := a.client.Checklists.Kill(ctx, in.List, in.Body.Reason, in.Body.Items...)
	out := new(killOutput)
	out.Body.Killed = n
	return out, err
}

type redriveOutput struct {
	Body struct {
		Redriven int64 `json:"redriven" example:"41"`
	}
}

type redriveInput struct {
	ListPath
	Body struct {
		Items *[]string `json:"items,omitempty" maxItems:"1000000" example:"[\"a.txt\"]" doc:"These only; without it, all."`
		Error string    `json:"error,omitempty" example:"503" doc:"Those with this in their error; without it, all."`
		State string    `json:"state,omitempty" enum:"dead,done" example:"dead" doc:"done: those that the list kept as done."`
	}
}

func (a *api) redriveItems(ctx context.Context, in *redriveInput) (*redriveOutput, error) {
	q := checklists.Query{Error: in.Body.Error, State: checklists.State(in.Body.State)}
	if in.Body.Items != nil {
		q.Items = append([]string{}, *in.Body.Items...) // naming none of them is not naming all
	}
	n, err := a.client.Checklists.Redrive(ctx, in.List, q)
	out := new(redriveOutput)
	out.Body.Redriven = n
	return out, err
}

func duration(field, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, pg.Refuse(field, "%q; want a duration such as 30s, 5m or 1h30m", text)
	}
	return d, nil
}
