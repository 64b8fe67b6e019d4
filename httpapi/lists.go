package httpapi

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/howdah-db/howdah/checklists"
)

// SettingsBody is how a list hands out its items. Exported, as all bodies that
// several operations have, because huma passes over what is not.
type SettingsBody struct {
	Paused      bool    `json:"paused" example:"false" doc:"Claims get nothing; all else goes on."`
	MaxAttempts int     `json:"max_attempts" example:"10" doc:"A failure after so many is the last; 0: none is."`
	Backoff     string  `json:"backoff" example:"10s" doc:"After the first failure; doubled with each further one."`
	BackoffMax  string  `json:"backoff_max" example:"1h0m0s" doc:"At most so long."`
	KeepDone    bool    `json:"keep_done" example:"false" doc:"Done items are kept, and not put on again."`
	MaxLeased   int     `json:"max_leased" example:"0" doc:"At most so many are claimed at a time; 0: any number."`
	Rate        float64 `json:"rate" example:"0" doc:"At most so many are claimed a second; 0: any number."`
}

func settingsBody(s checklists.Settings) *SettingsBody {
	return &SettingsBody{s.Paused, s.MaxAttempts, s.Backoff.String(), s.BackoffMax.String(), s.KeepDone, s.MaxLeased, s.Rate}
}

// ProgressBody is how far a list is.
type ProgressBody struct {
	Total  int64    `json:"total" example:"100000"`
	Left   int64    `json:"left" example:"1774" doc:"Ready, waiting or leased."`
	Leased int64    `json:"leased" example:"12"`
	Dead   int64    `json:"dead" example:"3"`
	Done   int64    `json:"done" example:"98223"`
	Failed int64    `json:"failed" example:"41" doc:"Attempts that failed."`
	Rate   float64  `json:"rate" example:"312" doc:"Done per second, in the last full minute."`
	ETA    *float64 `json:"eta_seconds" example:"6" doc:"null where the rate is 0."`
	Paused bool     `json:"paused" example:"false"`
}

func progressBody(p checklists.Progress) *ProgressBody {
	b := &ProgressBody{Total: p.Total, Left: p.Left, Leased: p.Leased, Dead: p.Dead, Done: p.Done, Failed: p.Failed, Rate: p.Rate, Paused: p.Paused}
	if p.Rate > 0 {
		b.ETA = new(p.ETA.Round(time.Second).Seconds())
	}
	return b
}

// ListBody is one of the lists.
type ListBody struct {
	List     string        `json:"list" example:"downloads"`
	Settings *SettingsBody `json:"settings,omitempty" doc:"Absent where the table has no columns for them."`
	Progress *ProgressBody `json:"progress,omitempty" doc:"Absent where the table has no columns for it."`
}

type listsOutput struct {
	Body struct {
		Lists []ListBody `json:"lists" nullable:"false"`
		Next  *string    `json:"next,omitempty" example:"downloads" doc:"Value of after for the next page; absent on the last."`
	}
}

func (a *api) listLists(ctx context.Context, in *struct{ PageQuery }) (*listsOutput, error) {
	store := a.client.Reads().Checklists
	lists, err := store.Lists(ctx, in.after(), in.Limit)
	if err != nil {
		return nil, err
	}
	out := new(listsOutput)
	out.Body.Lists = make([]ListBody, len(lists))
	for i, l := range lists {
		out.Body.Lists[i].List = l.Name
		if l.Settings != nil {
			out.Body.Lists[i].Settings, out.Body.Lists[i].Progress = settingsBody(*l.Settings), progressBody(*l.Progress)
		}
	}
	if len(lists) < in.Limit {
		return out, nil
	}
	last := &lists[in.Limit-1].Name
	more, err := store.Lists(ctx, last, 1) // only then is there a next page
	if len(more) > 0 {
		out.Body.Next = last
	}
	return out, err
}

type listOutput struct {
	Body ListBody
}

func (a *api) getList(ctx context.Context, in *struct{ ListPath }) (*listOutput, error) {
	store := a.client.Reads().Checklists
	settings, err := store.Settings(ctx, in.List)
	if err != nil {
		return nil, err
	}
	progress, err := store.Progress(ctx, in.List)
	return &listOutput{ListBody{in.List, settingsBody(settings), progressBody(progress)}}, err
}

type setInput struct {
	ListPath
	Body struct {
		Paused      *bool    `json:"paused,omitempty" example:"true" doc:"Claims get nothing; all else goes on."`
		MaxAttempts *int     `json:"max_attempts,omitempty" example:"5" doc:"A failure after so many is the last; 0: none is."`
		Backoff     *string  `json:"backoff,omitempty" example:"30s" doc:"After the first failure; doubled with each further one."`
		BackoffMax  *string  `json:"backoff_max,omitempty" example:"1h" doc:"At most so long."`
		KeepDone    *bool    `json:"keep_done,omitempty" example:"true" doc:"Done items are kept, and not put on again."`
		MaxLeased   *int     `json:"max_leased,omitempty" example:"500" doc:"At most so many are claimed at a time; 0: any number."`
		Rate        *float64 `json:"rate,omitempty" example:"100" doc:"At most so many are claimed a second; 0: any number."`
	}
}

type settingsOutput struct {
	Body *SettingsBody
}

func (a *api) setList(ctx context.Context, in *setInput) (*settingsOutput, error) {
	var backoff, backoffMax *time.Duration
	for _, d := range []struct {
		field string
		text  *string
		into  **time.Duration
	}{{"backoff", in.Body.Backoff, &backoff}, {"backoff_max", in.Body.BackoffMax, &backoffMax}} {
		if d.text == nil {
			continue
		}
		parsed, err := duration(d.field, *d.text)
		if err != nil {
			return nil, err
		}
		*d.into = &parsed
	}
	set, err := a.client.Checklists.Change(ctx, in.List, func(s *checklists.Settings) {
		change(&s.Paused, in.Body.Paused)
		change(&s.MaxAttempts, in.Body.MaxAttempts)
		change(&s.Backoff, backoff)
		change(&s.BackoffMax, backoffMax)
		change(&s.KeepDone, in.Body.KeepDone)
		change(&s.MaxLeased, in.Body.MaxLeased)
		change(&s.Rate, in.Body.Rate)
	})
	return &settingsOutput{settingsBody(set)}, err
}

// change sets what is given.
func change[T any](field, given *T) {
	if given != nil {
		*field = *given
	}
}

type renameInput struct {
	ListPath
	Body struct {
		To string `json:"to" example:"old" doc:"The new name, of no list with items."`
	}
}

type renameOutput struct {
	Body struct {
		Renamed int64 `json:"renamed" example:"1774" doc:"Items on the list."`
	}
}

func (a *api) renameList(ctx context.Context, in *renameInput) (*renameOutput, error) {
	n, err := a.client.Checklists.Rename(ctx, in.List, in.Body.To)
	out := new(renameOutput)
	out.Body.Renamed = n
	return out, err
}

func (a *api) dropList(ctx context.Context, in *struct{ ListPath }) (*deleteOutput, error) {
	n, err := a.client.Checklists.Drop(ctx, in.List)
	out := new(deleteOutput)
	out.Body.Deleted = n
	return out, err
}

type progressOutput struct {
	Body *ProgressBody
}

func (a *api) listProgress(ctx context.Context, in *struct{ ListPath }) (*progressOutput, error) {
	p, err := a.client.Reads().Checklists.Progress(ctx, in.List)
	return &progressOutput{progressBody(p)}, err
}

func (a *api) watchList(ctx context.Context, in *struct{ ListPath }) (*huma.StreamResponse, error) {
	store := a.client.Reads().Checklists
	// What cannot be had gets a proper answer.
	if _, err := store.Progress(ctx, in.List); err != nil {
		return nil, err
	}
	return a.eventStream(ctx, "", func(ctx context.Context, send func(event) bool) {
		name := "snapshot"
		for p, err := range store.Watch(ctx, in.List, 0) {
			e := event{Name: name, Data: progressBody(p)}
			if err != nil {
				e = event{Name: "error", Data: a.problem(ctx, &huma.Operation{OperationID: "checklists-watch"}, err)}
			}
			if !send(e) || err != nil {
				return
			}
			name = "progress"
		}
	}), nil
}

type recountInput struct {
	ListPath
	Body struct{}
}

type recountOutput struct {
	Body *ProgressBody
}

func (a *api) recountList(ctx context.Context, in *recountInput) (*recountOutput, error) {
	if err := a.client.Checklists.Recount(ctx, in.List); err != nil {
		return nil, err
	}
	p, err := a.client.Checklists.Progress(ctx, in.List)
	return &recountOutput{progressBody(p)}, err
}
