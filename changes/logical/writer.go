package logical

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// How many changes, and bytes of them, are held before they are written: of a transaction
// that is larger the log's own is open meanwhile.
const (
	chunk      = 1000
	chunkBytes = 8 << 20
)

// change is a change as the log has it.
type change struct {
	op            string
	schema, table string
	key, old, new *string // JSON
	missing       *string
	trimmed       bool
	origin, meta  string // "" for none
}

// writer writes transactions into the log. How far it has come stands in the same
// transaction as what it wrote, so that nothing is written twice.
type writer struct {
	db     pg.DB
	system int64
	slot   string
	ask    asking

	stopped time.Duration // after so long PostgreSQL ends tx where it is not gone on with

	at      pglogrepl.LSN // the log has the commits whose records begin up to here, here too
	flushed pglogrepl.LSN // up to here everything is on the log's disk, or needs not be
	told    pglogrepl.LSN // and up to here the log says so: the slot may be told as much
	end     pglogrepl.LSN // where the last transaction ended that was written
	unsafe  bool          // it may not be on the disk yet
	due     time.Time     // when it must be

	timeline int32 // of the source, in which these places are

	commit  pglogrepl.LSN // of the transaction that is being read
	time    time.Time
	origin  string // of the changes that follow, and meta
	meta    string
	skip    bool // the log has it
	changes []change
	bytes   int    // of them
	tx      pgx.Tx // where some of it has been written
}

// locate finds where the log ends; known is false for a pump that never ran.
func (w *writer) locate(ctx context.Context) (known bool, err error) {
	var at, told string
	err = w.db.QueryRow(ctx, `
		SELECT lsn::text, coalesce(confirmed, 'FFFFFFFF/FFFFFFFF')::text, timeline -- it was not kept once
		FROM howdah.change_pump
		WHERE system = $1 AND slot = $2`, w.system, w.slot).Scan(&at, &told, &w.timeline)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err == nil {
		w.at, err = pglogrepl.ParseLSN(at)
	}
	if err == nil {
		w.told, err = pglogrepl.ParseLSN(told)
	}
	return err == nil, err
}

// begin notes that the log begins with a slot that stands at lsn, which is an end: the
// first commit may begin there. Where another pump has begun meanwhile only one of them
// gets the slot, and the other looks again.
func (w *writer) begin(ctx context.Context, lsn pglogrepl.LSN, timeline int32) error {
	w.at, w.told, w.timeline = lsn-1, lsn, timeline
	_, err := w.db.Exec(ctx, `
		INSERT INTO howdah.change_pump (system, slot, lsn, confirmed, timeline)
		SELECT $1, $2, $3::text::pg_lsn, $4::text::pg_lsn, $5
		WHERE NOT EXISTS (SELECT FROM howdah.change_pump WHERE system = $1 AND slot = $2)
		ON CONFLICT DO NOTHING`, w.system, w.slot, w.at.String(), w.told.String(), timeline)
	return err
}

// pending reports whether something waits for the disk. While a transaction is open,
// which has the place of the slot locked, it waits for that.
func (w *writer) pending() bool { return w.unsafe && w.tx == nil }

// open begins a transaction of the source's.
func (w *writer) open(commit pglogrepl.LSN, at time.Time) {
	w.commit, w.time, w.origin, w.meta, w.skip, w.changes, w.bytes = commit, at, "", "", commit <= w.at, w.changes[:0], 0
}

// add adds a change to it.
func (w *writer) add(ctx context.Context, c change) error {
	if w.skip {
		return nil
	}
	c.origin, c.meta = w.origin, w.meta
	w.changes = append(w.changes, c)
	for _, text := range []*string{c.key, c.old, c.new} {
		if text != nil {
			w.bytes += len(*text)
		}
	}
	if len(w.changes) < chunk && w.bytes < chunkBytes {
		return nil
	}
	return w.ask(ctx, w.spill)
}

// spill writes what is held of a transaction that goes on.
func (w *writer) spill(ctx context.Context) error {
	if w.tx == nil {
		tx, err := pg.Begin(ctx, w.db)
		if err != nil {
			return err
		}
		w.tx = tx
		if err := w.send(ctx, w.tx, w.queueStopped, w.queueMove); err != nil {
			return err
		}
	}
	err := w.send(ctx, w.tx, w.queueChanges)
	w.changes, w.bytes = w.changes[:0], 0
	return err
}

// live says that the transaction that is open goes on, although the source, which may have
// much to leave out of it, says nothing.
func (w *writer) live(ctx context.Context) error {
	if w.tx == nil {
		return nil
	}
	_, err := w.tx.Exec(ctx, `SELECT`)
	return err
}

// done commits it. Where it left nothing there is nothing to write, or the pump of a
// database into itself would never end.
func (w *writer) done(ctx context.Context, end pglogrepl.LSN) error {
	if w.skip || w.tx == nil && len(w.changes) == 0 {
		w.pass(end)
		return nil
	}
	if err := w.ask(ctx, w.commitAll); err != nil {
		return err
	}
	w.tx = nil
	w.at, w.end = w.commit, end
	if !w.unsafe {
		w.unsafe, w.due = true, time.Now().Add(flushEvery)
	}
	return nil
}

func (w *writer) commitAll(ctx context.Context) error {
	if w.tx == nil {
		return w.send(ctx, w.db, w.queueMove, w.queueChanges) // a transaction by itself
	}
	if err := w.send(ctx, w.tx, w.queueChanges); err != nil {
		return err
	}
	return w.tx.Commit(ctx)
}

// pass notes that up to end there was nothing to write.
func (w *writer) pass(end pglogrepl.LSN) {
	if !w.unsafe && end > w.flushed {
		w.flushed = end
	}
}

// abandon ends a transaction that will not be read to its end.
func (w *writer) abandon(ctx context.Context) {
	if w.tx != nil {
		w.tx.Rollback(ctx) // or its connection has ended, and it with that
		w.tx = nil
	}
}

// cutOff ends the transaction of a pump that was stopped while it sent something: that is not
// idle, and PostgreSQL would wait for the rest for ever.
func (w *writer) cutOff(ctx context.Context) error {
	_, err := w.db.Exec(ctx, `
		SELECT pg_terminate_backend(a.pid)
		FROM pg_locks k
		JOIN pg_stat_activity a ON a.pid = k.pid
		JOIN pg_roles r ON r.oid = a.usesysid
		WHERE k.locktype = 'relation' AND k.relation = 'howdah.change_pump'::regclass AND k.mode = 'RowExclusiveLock' AND k.granted
			AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND a.state = 'active' AND a.wait_event = 'ClientRead' AND a.state_change < clock_timestamp() - $1::interval
			AND pg_has_role(r.oid, 'USAGE') AND (NOT r.rolsuper OR current_setting('is_superuser')::boolean)`, silent/beats*w.stopped)
	return err
}

// flush returns when all that was committed is on the disk, with how far that is, and
// rings for those who follow the log.
func (w *writer) flush(ctx context.Context) error {
	upTo := w.flushed
	if w.unsafe {
		upTo = w.end
	} else if upTo <= w.told {
		return nil
	}
	// A commit that waits for its own record has all before it on the disk, too.
	_, err := w.db.Exec(ctx, `
		WITH flushed AS (
			SELECT set_config('synchronous_commit', 'on', true)
			WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')), ring AS (
			SELECT pg_notify('howdah_changes', ''))
		UPDATE howdah.change_pump
		SET confirmed = greatest(confirmed, $3::text::pg_lsn)
		WHERE system = $1 AND slot = $2 AND timeline = $4 AND (SELECT count(*) FROM flushed) + (SELECT count(*) FROM ring) > 0`, w.system, w.slot, upTo.String(), w.timeline)
	if err == nil {
		w.unsafe, w.flushed, w.told = false, upTo, upTo
	}
	return err
}

// send runs statements in one round trip.
func (w *writer) send(ctx context.Context, db pg.DB, queue ...func(*pgx.Batch)) error {
	var batch pgx.Batch
	for _, q := range queue {
		q(&batch)
	}
	return db.SendBatch(ctx, &batch).Close()
}

// queueStopped has the transaction end where we are stopped in the middle of it: who goes on
// in our place would wait for it for ever.
func (w *writer) queueStopped(b *pgx.Batch) {
	b.Queue(`SELECT set_config('idle_in_transaction_session_timeout', $1, true)`, strconv.FormatInt(w.stopped.Milliseconds(), 10))
}

// queueMove moves the place of the slot in the log, if it is where we left it: a pump
// that lives on after its connection to the source has gone must not.
func (w *writer) queueMove(b *pgx.Batch) {
	b.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
	b.Queue(`
		WITH gone AS (
			DELETE FROM howdah.change_pump
			WHERE system = $1 AND slot = $2 AND lsn = $3::text::pg_lsn AND timeline = $5
			RETURNING confirmed)
		INSERT INTO howdah.change_pump (system, slot, lsn, confirmed, timeline)
		SELECT $1, $2, $4::text::pg_lsn, confirmed, $5
		FROM gone
		RETURNING true`, w.system, w.slot, w.at.String(), w.commit.String(), w.timeline).
		QueryRow(func(row pgx.Row) error {
			var moved bool
			err := row.Scan(&moved)
			if errors.Is(err, pgx.ErrNoRows) {
				return errTaken
			}
			return err
		})
}

// queueChanges writes the changes, if the move before was made.
func (w *writer) queueChanges(b *pgx.Batch) {
	n := len(w.changes)
	ops, schemas, tables, trimmed := make([]string, n), make([]string, n), make([]string, n), make([]bool, n)
	keys, olds, news, missing := make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n)
	origins, metas := make([]string, n), make([]string, n)
	for i, c := range w.changes {
		origins[i], metas[i] = c.origin, c.meta
		ops[i], schemas[i], tables[i], trimmed[i] = c.op, c.schema, c.table, c.trimmed
		keys[i], olds[i], news[i], missing[i] = c.key, c.old, c.new, c.missing
	}
	b.Queue(`
		INSERT INTO howdah.change (slot, op, trimmed, at, schema_name, table_name, key, old, new, missing, origin, meta)
		SELECT howdah.change_slot(), c.op::"char", c.trimmed, $10, c.schema_name, c.table_name,
			c.key::jsonb, c.old::jsonb, c.new::jsonb, c.missing::jsonb, nullif(c.origin, ''), nullif(c.meta, '')
		FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::boolean[], $11::text[], $12::text[]) WITH ORDINALITY
			AS c(op, schema_name, table_name, key, old, new, missing, trimmed, origin, meta, place)
		WHERE EXISTS (SELECT FROM howdah.change_pump WHERE system = $9 AND slot = $13 AND lsn = $14::text::pg_lsn)
		ORDER BY c.place`, ops, schemas, tables, keys, olds, news, missing, trimmed, w.system, w.time, origins, metas, w.slot, w.commit.String())
}
