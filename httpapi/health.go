package httpapi

import (
	"context"
	"time"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

type healthOutput struct {
	Body struct {
		Status string `json:"status" example:"ok"`
	}
}

func (a *api) health(context.Context, *struct{}) (*healthOutput, error) {
	out := new(healthOutput)
	out.Body.Status = "ok"
	return out, nil
}

type readyOutput struct {
	Body struct {
		Status        string `json:"status" example:"ready"`
		Notifications string `json:"notifications" example:"listening" doc:"listening, connecting, or polling (behind a pooler that delivers none)."`
	}
}

// ready asks the database for an answer within a second.
func (a *api) ready(ctx context.Context, _ *struct{}) (*readyOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := a.client.Pool.Ping(ctx); err != nil {
		if pg.KindOf(err) == "" {
			err = fault.Unavailable
		}
		return nil, pg.Wrap("the database does not answer", err)
	}
	out := new(readyOutput)
	out.Body.Status = "ready"
	out.Body.Notifications = string(a.client.Hub.State())
	return out, nil
}
