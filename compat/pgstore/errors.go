package pgstore

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
)

// asOriginal gives an error of the database the text it has in the original, the
// server's own, and keeps what errors.Is and errors.As find in it.
func asOriginal(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return &originalError{text: pgErr.Error(), err: err}
	}
	return err
}

// told is asOriginal for calls that refuse text which no statement can carry (NUL,
// invalid UTF-8) before the server does: it is asked for its own words.
func (p *PgStore) told(ctx context.Context, err error, list string, items ...string) error {
	if errors.Is(err, fault.Invalid) {
		_, refused := p.pool.Exec(ctx, `SELECT $1::text, $2::text[]`, list, items)
		err = errors.Join(err, refused)
	}
	return asOriginal(err)
}

type originalError struct {
	text string
	err  error
}

func (e *originalError) Error() string { return e.text }
func (e *originalError) Unwrap() error { return e.err }
