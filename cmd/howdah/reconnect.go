package main

import (
	"context"
	"fmt"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// reconnecting runs fn, which can be done twice, again for as long as what ends it is that
// the database has gone away, and ctx lasts. It returns fn's last error.
func (c *cli) reconnecting(ctx context.Context, fn func() error) error {
	for told, pause := false, 50*time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := fn()
		if !pg.LostConnection(err) || ctx.Err() != nil {
			return err
		}
		if !told {
			c.note(fmt.Sprintf("the connection is lost, going on when there is one again: %v", err))
			told = true
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
