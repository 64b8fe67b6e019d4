package changes

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Handler is called with changes of one transaction or several, in the order of the
// feed, and does with them what it is for.
//
// What it writes through tx is committed together with the position of the consumer:
// once for each change, whatever crashes. What it does elsewhere it may do again after
// a crash, and tells its repeats by the positions. It neither commits nor rolls back
// tx, and closes the rows that it reads. The list is its own, the JSON of the changes is
// not to be written to. An error hands the same changes over again, one by one; after a
// few times it is put aside, and later ones of its key wait behind it.
type Handler func(ctx context.Context, tx pgx.Tx, cs []Change) error

// Each returns a Handler that calls handle once for each change.
func Each(handle func(context.Context, pgx.Tx, Change) error) Handler {
	return func(ctx context.Context, tx pgx.Tx, cs []Change) error {
		for _, c := range cs {
			if err := handle(ctx, tx, c); err != nil {
				return err
			}
		}
		return nil
	}
}

// stopError is the error of a handler after which nothing more is to be handed to it
// until somebody has looked: it pauses its consumer.
type stopError struct{ error }

func (e *stopError) Unwrap() error { return e.error }

// laterError is the error of a handler that knows when to try again.
type laterError struct {
	error
	after time.Duration
}

func (e *laterError) Unwrap() error { return e.error }

type consumerKey struct{}

// withConsumer says to handlers which consumer calls them.
func withConsumer(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, consumerKey{}, name)
}

// consumerOf returns the name of the consumer that calls a handler.
func consumerOf(ctx context.Context) string {
	name, _ := ctx.Value(consumerKey{}).(string)
	return name
}
