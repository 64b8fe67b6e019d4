package pg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/howdah-db/howdah/fault"
)

// Wrap adds op ("checklists: insert") to err and sorts it into a kind of
// failure. It returns nil for nil, keeps the kind that err has, and leaves the
// end of the caller's context and what it does not know without one. Exported
// methods of stores call it once.
func Wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	if batch, ok := err.(pgx.ErrPreprocessingBatch); ok { // says how it was sent, which is nobody's affair
		err = batch.Unwrap()
	}
	return &opError{op: op, kind: KindOf(err), err: err}
}

// Sorted returns err so that errors.Is finds its kind, and adds nothing to its
// text: for errors of the caller's own statements. What is wrong in them (class
// 42, rights excepted) has no kind: it will not work in a moment.
func Sorted(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || strings.HasPrefix(pgErr.Code, "42") && pgErr.Code != "42501" {
		return err
	}
	kind := KindOf(err)
	if kind == "" {
		return err
	}
	return &sortedError{error: err, kind: kind}
}

// Foreign returns err so that it is not taken for one of PostgreSQL's: the end of
// a file says nothing about a connection. A kind that err has it keeps.
func Foreign(err error) error {
	if err == nil {
		return nil
	}
	return &foreignError{err}
}

type foreignError struct{ error }

func (e *foreignError) Unwrap() error { return e.error }

// ErrOutcomeUnknown reports a write of which nobody can say whether it was done:
// the connection was lost before its answer came. It is [fault.Unavailable]; a
// repeat may write a second time.
var ErrOutcomeUnknown = fmt.Errorf("outcome unknown: %w", fault.Unavailable)

// Written returns the error of a write on db so that it is [ErrOutcomeUnknown]
// where the connection was lost after it had been sent. In a transaction of the
// caller's nothing is written before he commits.
func Written(db DB, err error) error {
	var connect *pgconn.ConnectError
	if err == nil || InTx(db) || !LostConnection(err) || errors.As(err, &connect) || errors.Is(err, puddle.ErrClosedPool) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

type sortedError struct {
	error
	kind fault.Kind
}

func (e *sortedError) Unwrap() []error { return []error{e.error, e.kind} }

// opError is err, said by op, of kind.
type opError struct {
	op   string
	kind fault.Kind // "" where it has none
	err  error
}

func (e *opError) Error() string {
	text := e.op + ": " + e.err.Error()
	if hint := hintFor(e.err); hint != "" {
		text += "; " + hint
	}
	return text
}

func (e *opError) Unwrap() []error {
	if e.kind == "" {
		return []error{e.err}
	}
	return []error{e.err, e.kind}
}

// KindOf returns the kind of failure that err is, or "" where it is none: a
// cancelled context, or something unknown.
func KindOf(err error) fault.Kind {
	var kind fault.Kind
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &kind):
		return kind
	case errors.Is(err, context.Canceled), errors.As(err, new(*foreignError)):
		return ""
	case errors.As(err, &pgErr):
		return kindOfState(pgErr.Code)
	case LostConnection(err), errors.Is(err, context.DeadlineExceeded):
		return fault.Unavailable
	}
	return ""
}

// kindOfState sorts SQLSTATEs: whole codes first, then their classes.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func kindOfState(code string) fault.Kind {
	switch code {
	case "23502", "23514": // not null, check
		return fault.Invalid
	case "42501": // insufficient privilege
		return fault.Denied
	case "42P01", "3F000", "42703", "42883", "3D000", // table, schema, column, function, database that is not there
		"25006", // read-only transaction: a standby
		"40001", "40P01", "55P03", "57014":
		return fault.Unavailable
	}
	switch {
	case strings.HasPrefix(code, "22"): // data exceptions
		return fault.Invalid
	case strings.HasPrefix(code, "23"): // integrity
		return fault.Conflict
	case strings.HasPrefix(code, "28"): // authentication
		return fault.Denied
	case strings.HasPrefix(code, "54"): // program limits
		return fault.Exhausted
	case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "53"), strings.HasPrefix(code, "57"), strings.HasPrefix(code, "58"):
		return fault.Unavailable // connection, resources, operator, system
	}
	return ""
}

// hintFor says what to do about errors whose cure is howdah's to know.
func hintFor(err error) string {
	var pgErr *pgconn.PgError
	var kind fault.Kind
	if !errors.As(err, &pgErr) || errors.As(err, &kind) { // whoever gave it a kind has said it
		return ""
	}
	switch pgErr.Code {
	case "42P01", "3F000", "42883":
		return "has this database been migrated? (howdah migrate)"
	case "42501":
		if strings.Contains(pgErr.Message, "temporary") {
			return "the owner can allow it: GRANT TEMPORARY ON DATABASE …"
		}
		if strings.Contains(pgErr.Message, "sequence") {
			return "the owner can let this role in: GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA …"
		}
		return "the owner can let this role in: GRANT USAGE ON SCHEMA …, and GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA …"
	case "42P05", "26000":
		return "prepared statements get lost between sessions, as through a pooler in transaction mode: say so (--pooler)"
	case "25006":
		return "this server is read-only (a standby?): point the URL at the primary, e.g. with target_session_attrs=read-write"
	}
	return pgErr.Hint
}

// LostConnection reports whether err says that the connection to the server
// could not be made or has gone.
func LostConnection(err error) bool {
	var connect *pgconn.ConnectError
	var network *net.OpError // not net.Error, which a file's errno is too
	var name *net.DNSError
	var pgErr *pgconn.PgError
	if errors.As(err, new(*foreignError)) {
		return false
	}
	if errors.As(err, &pgErr) {
		return strings.HasPrefix(pgErr.Code, "08") || strings.HasPrefix(pgErr.Code, "57P")
	}
	return errors.As(err, &connect) || errors.As(err, &network) || errors.As(err, &name) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, puddle.ErrClosedPool)
}
