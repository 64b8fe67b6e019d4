package checklists

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// bellChannel rings when items may have become ready. It says neither which nor
// of which list: who hears it claims.
const bellChannel = "howdah_checklists"

// ring is rung by one transaction at a time: each NOTIFY holds a lock of the whole
// database through its commit, and nobody is to queue for it. Whose ring was left
// out because of another's commits a moment later, when those who heard that one
// look once more.
const ring = `SELECT pg_notify('` + bellChannel + `', '') WHERE pg_try_advisory_xact_lock(1752135524, 3)`

// ringing runs a statement that makes items ready, reads its result, and rings the
// bell, in one transaction and one round trip.
func (s *Store) ringing(ctx context.Context, sql string, args []any, read func(pgx.BatchResults) error) error {
	return s.told(pg.Retry(ctx, s.db, func() error {
		var b pgx.Batch
		b.Queue(s.sql(sql), args...)
		b.Queue(ring)
		results := s.db.SendBatch(ctx, &b)
		err := read(results)
		if closed := results.Close(); err == nil {
			err = closed // the commit is part of it
		}
		return err
	}))
}

// runRinging is run, and rings. In a transaction of the caller's it does not: the
// lock would be held, and others' bells be left out, until he commits; and one with
// a NOTIFY cannot be prepared.
func (s *Store) runRinging(ctx context.Context, sql string, args ...any) (n int64, err error) {
	if pg.InTx(s.db) {
		return s.run(ctx, sql, args...)
	}
	err = s.ringing(ctx, sql, args, func(r pgx.BatchResults) error {
		tag, err := r.Exec()
		n = tag.RowsAffected()
		return err
	})
	return n, err
}

// rowRinging is row, and rings as runRinging does.
func (s *Store) rowRinging(ctx context.Context, sql string, args []any, into ...any) error {
	if pg.InTx(s.db) {
		return s.row(ctx, sql, args, into...)
	}
	return s.ringing(ctx, sql, args, func(r pgx.BatchResults) error { return r.QueryRow().Scan(into...) })
}

const (
	soon  = 25 * time.Millisecond // to the first look after the one that found nothing
	late  = time.Second           // to the last ones; what time alone makes ready, nobody rings for
	often = 5 * time.Millisecond  // between two looks, however often it rings
)

// bell says when to look whether there is something to claim: when it rings, and
// now and then without, because bells fail and time passes.
type bell struct {
	sub    *pg.Subscription // nil where there is no hub
	looked time.Time        // when the last look began
	next   time.Duration    // from then to the next
}

func newBell(hub *pg.Hub) (b *bell, err error) {
	b = new(bell)
	if hub != nil {
		b.sub, err = hub.Subscribe(bellChannel)
	}
	return b, err
}

func (b *bell) close() {
	if b.sub != nil {
		b.sub.Close()
	}
}

// c is ready when the bell has rung; then [bell.rung] is to be told.
func (b *bell) c() <-chan pg.Notice {
	if b.sub == nil {
		return nil
	}
	return b.sub.C()
}

// rung makes the next look due at once, and some more soon after.
func (b *bell) rung() { b.next = 0 }

// looking says that a look begins.
func (b *bell) looking() {
	b.looked = time.Now()
	if b.next = min(2*b.next, late); b.next == 0 {
		b.next = soon
	}
}

// found says that a look found something: more is likely to follow soon.
func (b *bell) found() { b.next = min(b.next, soon) }

// due is when to look next.
func (b *bell) due() time.Time { return b.looked.Add(max(b.next, often)) }

// wait returns when it is time to look; false when ctx has ended.
func (b *bell) wait(ctx context.Context) bool {
	for {
		timer := time.NewTimer(time.Until(b.due()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-b.c():
			timer.Stop()
			b.rung()
		case <-timer.C:
			return ctx.Err() == nil
		}
	}
}
