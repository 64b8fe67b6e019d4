// Package changes keeps what happened to tables, in one final order, and hands it
// to whoever wants to be called.
//
// Triggers write every change of a captured table into a log, in the writer's own
// transaction; ticks number whole transactions; the numbers are the feed. Nobody
// who reads it ever misses a change, sees one twice, sees one that was rolled
// back, or sees two changes of a row in the wrong order, whatever crashes and
// whoever keeps a transaction open. DESIGN.md beside this file says why.
//
//	l := changes.New(pool, changes.Config{})
//	_, err := l.Apply(ctx, []changes.Capture{{Table: "public.users"}}, false)
//	cs, next, err := l.Page(ctx, changes.Position{}, 100, changes.Filter{})
//
// A [Tail] follows the feed for any number of watchers. A [Consumer] hands it to handlers,
// each change once and in order, and goes on where it was after any crash; what a handler
// writes in its transaction happens exactly once. Its example is an outbox: for each order
// that is inserted a letter is put on a checklist, and counted, in one transaction.
// [Log.Save] keeps a consumer in the database, for a [Runner] to run, as in howdah serve.
// [Log.Snapshot] reads how things stand at a place in the feed. A [Keeper] empties the log
// of what nobody needs any more.
//
// A Log captures, reads and mends, on a pool or, with [Log.WithTx], in the caller's
// transaction. Errors have a kind of package fault: what cannot be is Invalid and names the
// field, and has changed nothing.
package changes

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

//go:embed migrations/*.sql
var migrations embed.FS

var (
	// ErrExpired reports a position whose changes retention has removed. Begin
	// again from the present state: see [Log.Snapshot].
	ErrExpired = fmt.Errorf("the position has expired: its changes are gone: %w", fault.NotFound)
	// ErrAhead reports a position that the feed never reached, or that belongs to
	// a history lost in a failover or restore.
	ErrAhead = fmt.Errorf("the position is ahead of the feed: it was never reached, or belongs to a lost history: %w", fault.Conflict)
	// ErrInTx reports a call that cannot be made in a transaction.
	ErrInTx = fmt.Errorf("not in a transaction: a tick is one of its own: %w", fault.Invalid)
	// ErrNeedsTx reports a call that only makes sense in a transaction.
	ErrNeedsTx = fmt.Errorf("only in a transaction: use WithTx: %w", fault.Invalid)
	// ErrRestored reports that the log came from another database (a dump that was
	// restored, a copy, pg_upgrade): its history went on there.
	ErrRestored = fmt.Errorf("the feed belongs to another database: howdah changes rebase begins a new one, and after pg_upgrade rebase --keep goes on with this: %w", fault.Conflict)
)

// Config are settings of a Log; the zero Config is right for most.
type Config struct {
	Idle   time.Duration   // longest wait between two looks at the feed; default 250 ms
	Direct *pgx.ConnConfig // where a Hub listens, for Doctor to try; default as the pool connects
}

// Log is the feed of one database. It is safe for use by many goroutines.
type Log struct {
	db    pg.DB
	cfg   Config
	looks *looks // shared by copies
	scan  int    // changes that a page with a filter looks at
	bytes int    // that a page holds

	stopped time.Duration // after so long PostgreSQL ends a transaction of ours that is not gone on with, and we one that is not answered
	old     time.Duration // for Doctor a transaction is that is open for longer
	full    float64       // and a queue of NOTIFY of which more is taken
	large   int64         // and a log that has more bytes
}

// looks counts the ticks of a process, and adds up what they took.
type looks struct{ n, nanos atomic.Int64 }

// New returns the Log of db.
func New(db pg.DB, cfg Config) *Log {
	if cfg.Idle <= 0 {
		cfg.Idle = 250 * time.Millisecond
	}
	return &Log{db: db, cfg: cfg, looks: new(looks), scan: maxChanges, bytes: pageBytes, stopped: 10 * time.Second, old: 10 * time.Minute, full: 0.1, large: 10 << 30}
}

// WithTx returns a Log that works inside tx. The caller commits.
func (l *Log) WithTx(tx pgx.Tx) *Log { c := *l; c.db = tx; return &c }

// Migrations are the files that make the log, all of it in schema howdah.
func (l *Log) Migrations() pg.Migrations {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the path is a constant
	}
	return pg.Migrations{Service: "changes", About: "the feed of changes", Files: files, Names: pg.NewNames(nil)}
}

var (
	validTopic  = regexp.MustCompile(`^[a-z0-9._-]{1,100}$`)
	validOrigin = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,63}$`)
)

const (
	maxMessage = 1 << 20
	maxMeta    = 8 << 10
)

// Emit puts a message into the feed, if and when the transaction commits, in its
// place among the transaction's changes. topic is made of a-z, 0-9 and . _ -, at
// most 100; payload is anything JSON can say, at most 1 MiB of it. It returns
// ErrNeedsTx outside a transaction.
func (l *Log) Emit(ctx context.Context, topic string, payload any) error {
	const op = "changes: emit"
	if !pg.InTx(l.db) {
		return pg.Wrap(op, ErrNeedsTx)
	}
	if !validTopic.MatchString(topic) {
		return pg.Wrap(op, pg.Refuse("topic", "%q; want up to 100 of a-z 0-9 . _ -", topic))
	}
	text, err := toJSON("payload", payload, maxMessage)
	if err != nil {
		return pg.Wrap(op, err)
	}
	_, err = l.db.Exec(ctx, `SELECT howdah.change_emit($1, $2::jsonb)`, topic, text)
	return pg.Wrap(op, err)
}

// Mark says of the transaction whose it is and what else it has to say of itself:
// its changes bear both. In a handler of a [Consumer] the origin stands behind what
// the change has been through. origin is up to 63 letters, digits and _ . : -, meta
// anything JSON can say in 8 kB, or nil. Both end with the transaction. It
// returns ErrNeedsTx outside a transaction.
func (l *Log) Mark(ctx context.Context, origin string, meta any) error {
	const op = "changes: mark"
	if !pg.InTx(l.db) {
		return pg.Wrap(op, ErrNeedsTx)
	}
	if !validOrigin.MatchString(origin) {
		return pg.Wrap(op, pg.Refuse("origin", "%q; want up to 63 letters, digits and _ . : -", origin))
	}
	text := ""
	if meta != nil {
		var err error
		if text, err = toJSON("meta", meta, maxMeta); err != nil {
			return pg.Wrap(op, err)
		}
	}
	_, err := l.db.Exec(ctx, `
		SELECT set_config('howdah.origin', concat_ws(',', nullif(current_setting('howdah.path', true), ''), $1::text), true),
			set_config('howdah.meta', $2, true)`, origin, text)
	return pg.Wrap(op, err)
}

// toJSON writes v, which PostgreSQL must be able to keep.
func toJSON(field string, v any, most int) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", pg.Refuse(field, "%v", err)
	}
	if len(text) > most {
		return "", pg.Refuse(field, "%d bytes of JSON; at most %d are possible", len(text), most)
	}
	if err := checkJSON(field, text); err != nil {
		return "", err
	}
	return string(text), nil
}

// checkJSON refuses what jsonb cannot keep; PostgreSQL would refuse it too, and
// spoil the caller's transaction.
func checkJSON(field string, text []byte) error {
	quoted := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && bytes.HasPrefix(text[i:], []byte(`\u0000`)):
			return pg.Refuse(field, "a NUL at byte %d; PostgreSQL cannot store it", i)
		case c == '\\':
			i++ // what is escaped is not a backslash that begins something
		case !quoted && '0' <= c && c <= '9':
			n, ok := numeric(text[i:])
			if !ok {
				return pg.Refuse(field, "a number at byte %d of more digits than PostgreSQL can store, %d before the point and %d behind it", i, mostBefore, mostBehind)
			}
			i += n - 1
		}
	}
	return pg.CheckJSON(field, text)
}

// The digits of the largest numeric and of the smallest.
const mostBefore, mostBehind = 131072, 16383

// numeric returns how many bytes are of the number that text begins with, and whether numeric can
// hold that.
func numeric(text []byte) (n int, ok bool) {
	digits := func() int {
		from := n
		for n < len(text) && '0' <= text[n] && text[n] <= '9' {
			n++
		}
		return n - from
	}
	before, behind, exponent := digits(), 0, 0
	if n < len(text) && text[n] == '.' {
		n++
		behind = digits()
	}
	if n < len(text) && (text[n] == 'e' || text[n] == 'E') {
		n++
		from := n
		if n < len(text) && (text[n] == '+' || text[n] == '-') {
			n++
		}
		digits()
		var err error
		if exponent, err = strconv.Atoi(string(text[from:n])); err != nil {
			return n, false
		}
	}
	return n, exponent <= mostBefore-before && exponent >= behind-mostBehind
}

// asOurs gives the errors that the functions of the log raise their names.
func asOurs(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "HD001":
			return fmt.Errorf("%w: %w", ErrRestored, err)
		case "HD002":
			return fmt.Errorf("%w: %w", ErrInTx, err)
		}
	}
	return err
}
