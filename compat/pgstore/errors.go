package pgstore

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
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

type originalError struct {
	text string
	err  error
}

func (e *originalError) Error() string { return e.text }
func (e *originalError) Unwrap() error { return e.err }
