package httpapi

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ConsumerPath is the consumer an operation is about.
type ConsumerPath struct {
	Name string `path:"name" doc:"Name of the consumer." example:"billing"`
}

type consumersOutput struct {
	Body struct {
		Consumers []changes.Status `json:"consumers" nullable:"false"`
	}
}

func (a *api) listConsumers(ctx context.Context, _ *struct{}) (*consumersOutput, error) {
	all, err := a.client.Changes.Consumers(ctx)
	out := new(consumersOutput)
	out.Body.Consumers = listed(all)
	return out, err
}

type consumerOutput struct {
	Body changes.Status
}

func (a *api) getConsumer(ctx context.Context, in *ConsumerPath) (*consumerOutput, error) {
	s, err := a.client.Changes.Consumer(ctx, in.Name)
	return &consumerOutput{s}, err
}

// statusAfter answers how a consumer stands once something was done to it.
func (a *api) statusAfter(ctx context.Context, name string, err error) (*consumerOutput, error) {
	if err != nil {
		return nil, err
	}
	return a.getConsumer(ctx, &ConsumerPath{name})
}

// WebhookBody is where changes are posted.
type WebhookBody struct {
	URL          string   `json:"url" example:"https://example.com/hook"`
	Secrets      []string `json:"secrets,omitempty" writeOnly:"true" doc:"whsec_ and base64, 24 bytes at least; the newest first, several while one takes the place of another. Never shown again." example:"[\"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G\"]"`
	Batch        bool     `json:"batch,omitempty" doc:"One request for all changes of a batch."`
	Timeout      string   `json:"timeout,omitempty" example:"15s" doc:"Of a request; default 15s."`
	AllowPrivate bool     `json:"allow_private,omitempty" doc:"Hosts of the server's own network, too."`
}

type saveInput struct {
	ConsumerPath
	Body struct {
		Tables   []string `json:"tables,omitempty" example:"[\"public.orders\"]" doc:"What it is handed: schema.table, schema.*, message.topic.* or *, perhaps with :insert; default all."`
		Shards   int      `json:"shards,omitempty" minimum:"1" maximum:"64" example:"1" doc:"Default 1. Parts handled beside each other, a key always in the same."`
		Batch    int      `json:"batch,omitempty" minimum:"1" maximum:"10000" example:"100" doc:"Default 100. Most changes handed over at once."`
		From     string   `json:"from,omitempty" example:"start" doc:"Where a new one begins: start, now (the default), a position or a time."`
		Backfill []string `json:"backfill,omitempty" example:"[\"public.orders\"]" doc:"Tables whose rows a new one is handed, too, as they stand."`
		Echo     bool     `json:"echo,omitempty" doc:"Hand it what it caused itself, too."`
		Sink     struct {
			Webhook *WebhookBody `json:"webhook,omitempty"`
			Notify  bool         `json:"notify,omitempty" doc:"NOTIFY create_or_update_record or delete_record for each change."`
		} `json:"sink" example:"{\"notify\":true}" doc:"What is done with the changes: one of its members."`
	}
}

func (a *api) saveConsumer(ctx context.Context, in *saveInput) (*consumerOutput, error) {
	sink := changes.Sink{Notify: in.Body.Sink.Notify}
	if w := in.Body.Sink.Webhook; w != nil {
		sink.Webhook = &changes.WebhookConfig{URL: w.URL, Secrets: w.Secrets, Batch: w.Batch, AllowPrivate: w.AllowPrivate}
		if w.Timeout != "" {
			var err error
			if sink.Webhook.Timeout, err = duration("sink.webhook.timeout", w.Timeout); err != nil {
				return nil, err
			}
			if sink.Webhook.Timeout == 0 { // which in Go is the default
				return nil, pg.Refuse("sink.webhook.timeout", "%q; want more than nothing", w.Timeout)
			}
		}
	}
	tables := in.Body.Tables
	if len(tables) == 0 {
		tables = []string{"*"}
	}
	patterns, err := changes.ParsePatterns(tables...)
	if err != nil {
		wrong := sort.Search(len(tables), func(i int) bool {
			_, err := changes.ParsePatterns(tables[:i+1]...)
			return err != nil
		})
		return nil, pg.Renamed(fmt.Sprintf("tables[%d]", wrong), err)
	}
	tables = nil // as they are read: an operation belongs to the one before
	for _, p := range patterns {
		tables = append(tables, p.String())
	}
	err = a.client.Changes.Save(ctx, changes.ConsumerConfig{
		Name: in.Name, Shards: in.Body.Shards, Batch: in.Body.Batch, From: in.Body.From, Backfill: in.Body.Backfill, Echo: in.Body.Echo,
	}, tables, sink)
	return a.statusAfter(ctx, in.Name, asSaved(err))
}

// asSaved calls the field that a consumer is refused for what a saveInput calls it.
func asSaved(err error) error {
	var input *pg.InputError
	switch {
	case !errors.As(err, &input):
	case input.Field == "pattern":
		return pg.Renamed("tables", err)
	case input.Field == "timeout": // it follows from that of a request
		return pg.Renamed("sink.webhook.timeout", err)
	case strings.HasPrefix(input.Field, "webhook."):
		return pg.Within("sink", err)
	}
	return err
}

type forgetOutput struct {
	Body struct {
		Forgotten bool `json:"forgotten" example:"true"`
	}
}

func (a *api) forgetConsumer(ctx context.Context, in *ConsumerPath) (*forgetOutput, error) {
	err := a.client.Changes.Forget(ctx, in.Name)
	out := new(forgetOutput)
	out.Body.Forgotten = err == nil
	return out, err
}

type pauseInput struct {
	ConsumerPath
	Body struct {
		Reason string `json:"reason,omitempty" example:"prices are being mended" doc:"For those who wonder."`
	}
}

func (a *api) pauseConsumer(ctx context.Context, in *pauseInput) (*consumerOutput, error) {
	return a.statusAfter(ctx, in.Name, a.client.Changes.Pause(ctx, in.Name, in.Body.Reason))
}

type resumeInput struct {
	ConsumerPath
	Body struct{}
}

func (a *api) resumeConsumer(ctx context.Context, in *resumeInput) (*consumerOutput, error) {
	return a.statusAfter(ctx, in.Name, a.client.Changes.Resume(ctx, in.Name))
}

type seekInput struct {
	ConsumerPath
	Body struct {
		To string `json:"to" example:"now" doc:"start, now, a position or a time. Back: what was handled is handled again."`
	}
}

func (a *api) seekConsumer(ctx context.Context, in *seekInput) (*consumerOutput, error) {
	return a.statusAfter(ctx, in.Name, a.client.Changes.Seek(ctx, in.Name, in.Body.To))
}

type reshardInput struct {
	ConsumerPath
	Body struct {
		Shards int `json:"shards" minimum:"1" maximum:"64" example:"4" doc:"How many there are to be. Run it with as many from now on: it helps with the present ones until they have come to one place."`
	}
}

func (a *api) reshardConsumer(ctx context.Context, in *reshardInput) (*consumerOutput, error) {
	return a.statusAfter(ctx, in.Name, a.client.Changes.Reshard(ctx, in.Name, in.Body.Shards))
}

type backfillInput struct {
	ConsumerPath
	Body struct {
		Tables []string `json:"tables,omitempty" example:"[\"public.orders\"]" doc:"Which. None, with end: all."`
		End    bool     `json:"end,omitempty" doc:"Read no more of their rows, instead of all anew."`
	}
}

func (a *api) backfillConsumer(ctx context.Context, in *backfillInput) (*consumerOutput, error) {
	fill := a.client.Changes.Backfill
	if in.Body.End {
		fill = a.client.Changes.EndBackfill
	}
	return a.statusAfter(ctx, in.Name, fill(ctx, in.Name, in.Body.Tables...))
}

type waitInput struct {
	ConsumerPath
	Body struct {
		Position string `json:"position,omitempty" example:"1042" doc:"Up to there; default all that is committed now."`
		Timeout  string `json:"timeout,omitempty" example:"10s" doc:"At most so long, up to 1m; default 10s."`
	}
}

func (a *api) waitConsumer(ctx context.Context, in *waitInput) (*positionOutput, error) {
	timeout := 10 * time.Second
	if in.Body.Timeout != "" {
		var err error
		if timeout, err = duration("timeout", in.Body.Timeout); err != nil {
			return nil, err
		}
	}
	if timeout <= 0 || timeout > time.Minute {
		return nil, pg.Refuse("timeout", "%v; want more than nothing and up to 1m", timeout)
	}
	// The database's time to answer comes after the waiting.
	ctx, cancel := context.WithTimeout(ctx, timeout+a.cfg.Timeout)
	defer cancel()
	upTo, err := a.positionNamed(ctx, "position", in.Body.Position)
	if err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := a.untilEnding(cancel)
	defer stop()
	err = a.client.Changes.Wait(waiting, in.Name, upTo)
	if err != nil && waiting.Err() != nil {
		err = newProblem(statuses[fault.Unavailable], "%s has not handled all up to %s yet", in.Name, upTo)
	}
	out := new(positionOutput)
	out.Body.Position = upTo
	return out, err
}

type parkedOutput struct {
	Body struct {
		Parked []changes.Parked `json:"parked" nullable:"false" example:"[{\"change\":{\"position\":\"1042.88213\",\"op\":\"update\",\"schema\":\"public\",\"table\":\"orders\",\"key\":{\"id\":2},\"new\":{\"id\":2,\"status\":\"paid\"},\"at\":\"2026-11-20T14:18:31.711368Z\",\"xid\":\"1396719\",\"last\":true},\"shard\":0,\"attempts\":5,\"error\":\"no such customer\",\"next\":\"2026-11-20T14:19:01Z\",\"since\":\"2026-11-20T14:18:38Z\"}]"`
	}
}

func (a *api) parkedOf(ctx context.Context, in *struct {
	ConsumerPath
	After string `query:"after" default:"0" doc:"Those after a position." example:"1042.88213"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most so many; fewer where they are large, and more where one position has several: those that follow are those after the last position, until there are none."`
}) (*parkedOutput, error) {
	after, err := changes.ParsePosition(in.After)
	if err != nil {
		return nil, pg.Renamed("after", err)
	}
	parked, err := a.client.Changes.Parked(ctx, in.Name, after, in.Limit)
	out := new(parkedOutput)
	out.Body.Parked = listed(parked)
	return out, err
}

type parkedInput struct {
	ConsumerPath
	Body struct {
		Positions []string `json:"positions,omitempty" example:"[\"1042.88213\"]" doc:"Which; without it, all."`
	}
}

// positionsOf reads positions; nil stays nil, which is all.
func positionsOf(named []string) (at []changes.Position, err error) {
	if named != nil {
		at = make([]changes.Position, len(named))
	}
	for i, text := range named {
		if at[i], err = changes.ParsePosition(text); err != nil {
			return nil, pg.Renamed(fmt.Sprintf("positions[%d]", i), err)
		}
	}
	return at, nil
}

type countOutput struct {
	Body struct {
		Count int64 `json:"count" example:"3"`
	}
}

func (a *api) retryParked(ctx context.Context, in *parkedInput) (*countOutput, error) {
	return doneTo(ctx, in.Name, in.Body.Positions, a.client.Changes.Retry)
}

type skipInput struct {
	ConsumerPath
	Body struct {
		Positions []string `json:"positions,omitempty" example:"[\"1042.88213\"]" doc:"Which."`
		All       bool     `json:"all,omitempty" doc:"Instead of positions: all that is parked, what waits too."`
	}
}

func (a *api) skipParked(ctx context.Context, in *skipInput) (*countOutput, error) {
	if in.Body.All == (in.Body.Positions != nil) { // what is lost is not lost by what was left out
		return nil, pg.Refuse("positions", `want some, or "all": true, and not both`)
	}
	return doneTo(ctx, in.Name, in.Body.Positions, a.client.Changes.Skip)
}

// doneTo does something to parked changes and answers to how many.
func doneTo(ctx context.Context, name string, positions []string, do func(context.Context, string, ...changes.Position) (int64, error)) (*countOutput, error) {
	at, err := positionsOf(positions)
	if err != nil {
		return nil, err
	}
	out := new(countOutput)
	out.Body.Count, err = do(ctx, name, at...)
	return out, err
}
