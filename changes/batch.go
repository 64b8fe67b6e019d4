package changes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// batch is one transaction that moves a shard: what the handler writes and how far
// the shard has come are committed together. It holds the shard's lock, which is the
// lease and the fence: it ends with the transaction, however that ends.
type batch struct {
	*shard
	parent context.Context // of the shard
	ctx    context.Context // and as long as a batch may take
	cancel context.CancelFunc
	tx     pgx.Tx
	path   string // the origin of what the handler writes; "" before it is called
	marked string // what the transaction has as its origin
	lost   bool   // the database has gone, under the handler, which has not failed then
	late   bool   // the handler took too long
	done   int    // changes that were handled
	told   int64  // calls that failed, as the checkpoint has them
}

// begin begins a batch.
func (s *shard) begin(parent context.Context) (*batch, error) {
	ctx, cancel := context.WithTimeout(parent, s.cfg.Timeout+s.pace.grace)
	tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{BeginQuery: fmt.Sprintf(
		`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL idle_in_transaction_session_timeout = %d`, (s.cfg.Timeout + s.pace.grace).Milliseconds())})
	if err != nil {
		cancel()
		return nil, pg.Wrap("begin", err)
	}
	b := &batch{shard: s, parent: parent, ctx: ctx, cancel: cancel, tx: tx}
	b.reach("begun")
	return b, nil
}

// reach says that the batch has come to a step.
func (b *batch) reach(step string) {
	if b.failpoint != nil {
		b.failpoint(b, step)
	}
}

// rollback ends the batch, if it has not been committed. It may be called again.
func (b *batch) rollback() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.parent), b.pace.grace)
	defer cancel()
	b.tx.Rollback(ctx) // what fails here ends with its connection
	b.cancel()
}

// lockOf is the advisory lock of a shard of a consumer, $1.
func lockOf(shard string) string {
	return `hashtextextended('howdah.consumer ' || $1::text || ' ' || ` + shard + `, 0)`
}

// withPath gives what the transaction writes its origin, $1. howdah.path is what the
// handler's own Mark is put behind, and tells whether this is still the same transaction.
const withPath = `SELECT set_config('howdah.origin', $1::text, true), set_config('howdah.path', $1::text, true)`

// standing is what the database says of a shard.
type standing struct {
	locked bool // by this batch; if not, the rest is unknown
	mark
	state    string
	saved    bool
	shards   int
	patterns []string

	nextShards *int   // how many there are to be, once all
	stopAt     *int64 // have come to the end of this commit

	backfill *backfill      // what is left to be read of tables; nil = nothing
	parked   bool           // something is
	due      *time.Duration // until a parked change is to be tried; nil = none is
}

// stalls reports whether nothing is taken from the feed before a parked change
// has been handled.
func (st *standing) stalls() bool { return st.failures >= outage && st.due != nil }

// standing locks the shard, unless another batch has it, and reads where it stands:
// in a later statement, because a statement's snapshot is older than its lock.
func (b *batch) standing() (st standing, err error) {
	var state *string
	var seconds *float64
	var pipeline pgx.Batch
	pipeline.Queue(`SELECT pg_try_advisory_xact_lock(`+lockOf("$2::int")+`)`, b.cfg.Name, b.n).
		QueryRow(func(row pgx.Row) error { return row.Scan(&st.locked) })
	pipeline.Queue(`
		SELECT c.state, c.shards, c.next_shards, c.stop_at, c.patterns, c.sink IS NOT NULL, p.seq, p.n, p.id, p.failures, coalesce(p.failed, 0), `+timeline+`, p.backfill,
			`+anyOf("true")+`,
			(SELECT extract(epoch FROM next_at - clock_timestamp())::float8
			FROM howdah.change_parked
			WHERE consumer = $1 AND shard = $2::int AND head AND NOT dead
			ORDER BY next_at
			LIMIT 1)
		FROM howdah.change_consumer c
		CROSS JOIN howdah.change_place($1, $2::int) p
		WHERE c.name = $1`, b.cfg.Name, b.n).
		QueryRow(func(row pgx.Row) error {
			var seq, n, id *int64 // there are fewer shards now
			var failures *int
			err := row.Scan(&state, &st.shards, &st.nextShards, &st.stopAt, &st.patterns, &st.saved, &seq, &n, &id, &failures, &b.told, &st.timeline, &st.backfill, &st.parked, &seconds)
			if seq != nil {
				st.mark = mark{*seq, Position{*n, *id}, *failures, st.timeline}
			}
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		})
	marked := ""
	if len(b.ahead) > 0 { // likely to be handed over, so that it need not be said by itself
		if path, err := pathThrough(b.ahead[0].Origin, b.cfg.Name); err == nil {
			marked = path
			pipeline.Queue(withPath, marked)
		}
	}
	if err := b.tx.SendBatch(b.ctx, &pipeline).Close(); err != nil {
		return st, err
	}
	b.marked = marked
	b.reach("locked")
	if !st.locked {
		return st, nil
	}
	if state == nil {
		return st, ErrNoConsumer
	}
	st.state = *state
	if seconds != nil {
		due := time.Duration(*seconds * float64(time.Second))
		st.due = &due
	}
	return st, nil
}

// cutOff ends the transaction of an instance that has the shard and does not read what it
// is sent, or was to send more, for longer than a batch may take: it was stopped, or its
// network is gone. Such a transaction is not idle, so that PostgreSQL would wait for ever.
func (b *batch) cutOff() error {
	ended, err := b.tx.Exec(b.ctx, `
		SELECT pg_terminate_backend(a.pid)
		FROM pg_locks k
		JOIN pg_stat_activity a ON a.pid = k.pid
		JOIN pg_roles r ON r.oid = a.usesysid
		CROSS JOIN (SELECT `+lockOf("$2::int")+` AS id) s
		WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 1
			AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND k.classid = (s.id >> 32 & 4294967295)::oid AND k.objid = (s.id & 4294967295)::oid
			AND a.state = 'active' AND a.wait_event IN ('ClientRead', 'ClientWrite') AND a.state_change < clock_timestamp() - $3::interval
			AND pg_has_role(r.oid, 'USAGE') AND (NOT r.rolsuper OR current_setting('is_superuser')::boolean)`, b.cfg.Name, b.n, b.cfg.Timeout+b.pace.grace)
	if err == nil && ended.RowsAffected() > 0 {
		slog.WarnContext(b.parent, "an instance of a consumer of changes that had stopped was cut off", "consumer", b.cfg.Name, "shard", b.n)
	}
	return err
}

// page reads what follows in the feed. With a savepoint end the locks on the leaves of
// the log: retention would wait for them as long as handlers take, of all consumers.
func (b *batch) page(n int, f Filter) (page []Change, end Position, more bool, err error) {
	reading, err := b.tx.Begin(b.ctx)
	if err != nil {
		return nil, end, false, err
	}
	page, end, more, err = b.log.on(reading).page(b.ctx, b.at.at, n, f)
	if err != nil {
		return nil, end, false, err
	}
	return page, end, more, reading.Rollback(b.ctx)
}

// call hands changes to a handler. The error is the handler's; b.ctx lasts from then
// on for what is to be written about it.
func (b *batch) call(h Handler, cs []Change) error {
	path, err := pathThrough(cs[0].Origin, b.cfg.Name)
	if err != nil {
		return err
	}
	b.path = path
	if path != b.marked {
		if _, err := b.tx.Exec(b.ctx, withPath, path); err != nil {
			b.lost = true
			return err
		}
	}
	b.reach("calling")
	ctx, cancel := context.WithTimeout(withConsumer(b.parent, b.cfg.Name), b.cfg.Timeout)
	defer cancel()
	tx := &handlerTx{Tx: b.tx}
	err = guarded(ctx, h, tx, slices.Clone(cs)) // what it does to the list is its own affair
	if err == nil && tx.ended {
		err = errEnded
	}
	closed := b.tx.Conn().IsClosed()
	if conn := b.tx.Conn().PgConn(); err == nil && !closed {
		switch {
		case conn.IsBusy():
			err = errors.New("handler returned nil and left rows open, which are to be closed or read to their end")
		case conn.TxStatus() == 'I':
			err = errEnded
		case conn.TxStatus() == 'E':
			err = errors.New("handler returned nil after a statement had failed, which undoes the transaction")
		}
	}
	late := ctx.Err() != nil && b.parent.Err() == nil
	b.cancel()
	// A shard that is told to end still commits what has been done.
	b.ctx, b.cancel = context.WithTimeout(context.WithoutCancel(b.parent), b.pace.grace)
	if late && err == nil { // it did not look at ctx; is the transaction still there?
		_, err = b.tx.Exec(b.ctx, `SELECT`)
	}
	b.late = late && err != nil
	b.lost = closed && !b.late // where it is late, it was cut off for that
	if b.late {
		err = fmt.Errorf("handler took longer than %v: %w", b.cfg.Timeout, err)
	}
	b.reach("called")
	return err
}

// guarded makes an error of a panic.
func guarded(ctx context.Context, h Handler, tx pgx.Tx, cs []Change) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("handler panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return h(ctx, tx, cs)
}

var errEnded = errors.New("handler ended its transaction")

// handlerTx is a transaction that is not the handler's to end.
type handlerTx struct {
	pgx.Tx
	ended bool
}

func (t *handlerTx) Commit(context.Context) error   { t.ended = true; return errEnded }
func (t *handlerTx) Rollback(context.Context) error { t.ended = true; return errEnded }

// maxOrigin is how much of an origin the log keeps.
const maxOrigin = 200

// pathThrough is the origin of what a consumer causes when it is handed something
// of that origin: consumers know by it what has been through them.
func pathThrough(origin, consumer string) (string, error) {
	if slices.Contains(strings.Split(origin, ","), consumer) { // with Echo
		return origin, nil
	}
	path := strings.Trim(origin+","+consumer, ",")
	if len(path) <= maxOrigin {
		return path, nil
	}
	// What the log would cut off are the consumers that the path is there to name.
	// The writer's own origin can be cut, as long as it is not taken for a consumer.
	first, _, _ := strings.Cut(origin, ",")
	if most := len(first) - (len(path) - maxOrigin); most > maxName {
		return strings.ToValidUTF8(first[:most], "") + path[len(first):], nil
	}
	return "", fmt.Errorf("it has been through too many consumers: their names make %d bytes, and %d are kept: %s", len(path), maxOrigin, path)
}

// move commits the batch with to as the shard's place, and what is left to be read of
// tables, nil for nothing. The error may be the handler's: see blames. Both are sent
// at once: where the checkpoint is refused nothing is committed.
func (b *batch) move(to Position, failures int, left *backfill) error {
	b.reach("moving")
	var pipeline pgx.Batch
	b.queueMove(&pipeline, to, failures, left)
	pipeline.Queue(`COMMIT`)
	err := b.tx.SendBatch(b.ctx, &pipeline).Close()
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "HD003" {
		return errEnded
	}
	if err != nil {
		// Who is cut off is told so by an error of PostgreSQL, too, and may have committed.
		if unknown := pgErr == nil || pgErr.SeverityUnlocalized != "ERROR"; unknown && b.failed > 0 {
			b.telling = b.told + int64(b.failed)
		}
		return err
	}
	b.release()
	b.failed = 0 // they stand in the checkpoint
	b.reach("committed")
	return nil
}

// queueMove puts a checkpoint in the place of the last one. It is refused where the
// transaction is not the one that the handler was called in.
func (b *batch) queueMove(pipeline *pgx.Batch, to Position, failures int, left *backfill) {
	pipeline.Queue(`SELECT howdah.change_move($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		b.cfg.Name, b.n, b.at.seq, to.Commit, to.ID, failures, b.path, left, b.done, b.failed)
}

// release ends tx, which has been committed, as nobody's any more: with a context that
// is done nothing is sent, and its connection goes back to the pool. A tracer of queries
// sees a commit that fails with context.Canceled, and the true one as part of a batch.
func (b *batch) release() {
	done, cancel := context.WithCancel(context.WithoutCancel(b.parent))
	cancel()
	b.tx.Commit(done) // can but say that the context is done
	b.cancel()
}

// blames reports whether err, which came out after a handler had returned, is of its
// doing: it ended the transaction, or left one with a constraint or a trigger that waited
// for the end, or one in which nothing can be written any more. What PostgreSQL refuses for
// other reasons, it will refuse of what is written about the failure, too.
func (b *batch) blames(err error) bool {
	var pgErr *pgconn.PgError
	if b.path == "" || !errors.As(err, &pgErr) {
		return errors.Is(err, errEnded)
	}
	return pgErr.SeverityUnlocalized == "ERROR"
}
