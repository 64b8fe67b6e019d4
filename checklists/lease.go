package checklists

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/howdah-db/howdah/pg"
)

// The bounds of a claim.
const (
	MaxClaim = 10_000
	MinLease = time.Second
	MaxLease = 24 * time.Hour
)

// Lease is what a claim gave: whoever knows the token may finish its items as
// long as nobody has claimed them since, even after it ran out.
type Lease struct {
	List  string `json:"-"`
	Token string `json:"lease,omitempty"` // a UUID
}

// Claim is items that one worker has for some time. Without items it has no
// token either.
type Claim struct {
	Lease
	Until   time.Time `json:"until,omitzero"`
	Paused  bool      `json:"paused"`
	Limited bool      `json:"limited,omitempty"` // fewer than asked for because of the list's MaxLeased or Rate
	Items   []Item    `json:"items"`             // in the order to do them; what is said of all of them (state, due, worker) is left out
}

// Claim takes up to n items that are ready off the others' hands for d: highest
// priority first, then the longest due. It adds an attempt to each. No items, and
// no error, are what there is when none is ready, the list is paused, or its
// limits are reached; Paused and Limited say which. Items whose lease ended are ready, too;
// those that have used up their attempts become dead instead of being handed out,
// and then there may be fewer than n although more are ready.
//
// An answer that is lost on the way costs the items one attempt and the time of
// the lease. n is from 1 to [MaxClaim], d from [MinLease] to [MaxLease], else the
// error is Invalid; it is ErrPlain where the table cannot hold leases.
func (s *Store) Claim(ctx context.Context, list, worker string, n int, d time.Duration) (Claim, error) {
	const op = "checklists: claim"
	if err := errors.Join(s.check(list, nil), pg.CheckText("worker", worker), checkClaim(n), checkLease(d)); err != nil {
		return Claim{}, pg.Wrap(op, err)
	}
	if err := s.needColumns(ctx); err != nil {
		return Claim{}, pg.Wrap(op, err)
	}
	c := Claim{Lease: Lease{List: list, Token: newToken()}, Items: []Item{}}
	low, marked := s.lowMarks(list)
	w := wish{list: list, worker: worker, token: c.Token, lease: d, n: n, low: low}
	began := time.Now()
	got, err := s.claim(ctx, s.db, w)
	if err == nil && got.limited && !got.paused {
		got, err = s.claimLimited(ctx, w)
	}
	if err != nil {
		return Claim{}, pg.Wrap(op, err)
	}
	c.Until, c.Paused, c.Limited, c.Items = got.until, got.paused, got.short, append(c.Items, got.items...)
	if short := len(c.Items) < n && !got.paused && !got.limited; short && (marked || got.dead > 0) {
		// Below the marks there may be more, and where some were found dead, too.
		began, marked = time.Now(), false
		w.n, w.low = n-len(c.Items), noMarks[:]
		more, err := s.claim(ctx, s.db, w)
		for err == nil && len(c.Items)+len(more.items) == 0 && more.dead > 0 {
			more, err = s.claim(ctx, s.db, w)
		}
		switch {
		case err == nil:
			c.Items = append(c.Items, more.items...)
			got.last = more.last
		case len(c.Items) == 0: // else what is there is worth more than the error
			return Claim{}, pg.Wrap(op, err)
		}
	}
	if len(c.Items) == 0 {
		c.Token, c.Until = "", time.Time{}
	}
	if !got.limited {
		s.keepMarks(list, got.last, !marked, time.Since(began))
	}
	return c, nil
}

// wish is the arguments of a claim.
type wish struct {
	list, worker, token string
	lease               time.Duration
	n                   int
	low                 []pgtype.Timestamptz
	allowed             bool // the limits were looked at
}

// found is the answer to a claim.
type found struct {
	paused, limited bool
	short           bool // there are fewer items than asked for because of the limits
	until           time.Time
	dead            int64
	items           []Item
	last            map[int]pgtype.Timestamptz // by priority: what the last item was due
}

// claim runs the statement. Priorities are a fixed range, so that the walk need
// not look for them. c is joined by the key: the ctid of a row that was locked
// after another had updated it is one that the statement's snapshot cannot see. SKIP LOCKED
// waits all the same, though seldom, where a row is just being changed and its new version
// is locked by a third; should that be a deadlock, who is told of it repeats what he did.
func (s *Store) claim(ctx context.Context, db pg.DB, w wish) (f found, err error) {
	err = pg.Retry(ctx, db, func() error {
		rows, _ := db.Query(ctx, s.sql(`
			WITH s AS (
				SELECT coalesce(bool_or(paused), false) AS paused, coalesce(bool_or(max_leased > 0 OR rate > 0), false) AS limited,
					coalesce(max(max_attempts), 10) AS max_attempts, statement_timestamp() + $4::interval AS until
				FROM howdah.checklist
				WHERE relation = {relation} AND list = $1),
			c AS MATERIALIZED (
				SELECT x.list, x.item, x.due, x.leased, x.leased AND s.max_attempts > 0 AND x.attempts >= s.max_attempts AS dies, s.until
				FROM s
				CROSS JOIN generate_series(5, -5, -1) AS p(priority)
				CROSS JOIN LATERAL (
					SELECT list, item, due, attempts, lease IS NOT NULL AS leased
					FROM {lists} l
					WHERE l.list = $1 AND l.priority = p.priority::smallint AND l.due <= statement_timestamp()
						AND l.due >= ($5::timestamptz[])[p.priority + 6]
					ORDER BY l.due
					LIMIT $2
					FOR UPDATE SKIP LOCKED) x
				LIMIT CASE WHEN (SELECT paused OR limited AND NOT $7::boolean FROM s) THEN 0 ELSE $2 END),
			u AS (
				UPDATE {lists} l
				SET due = CASE WHEN c.dies THEN 'infinity' ELSE c.until END,
					lease = CASE WHEN c.dies THEN NULL ELSE $3::uuid END,
					worker = CASE WHEN c.dies THEN l.worker ELSE $6 END,
					tried = CASE WHEN c.dies THEN l.tried ELSE statement_timestamp() END,
					attempts = CASE WHEN c.dies THEN l.attempts ELSE least(l.attempts, 2147483646) + 1 END,
					error = CASE WHEN c.leased THEN 'lease expired' ELSE l.error END
				FROM c
				WHERE l.list = c.list AND l.item = c.item
				RETURNING l.item, l.attempts, l.priority, l.error, l.payload, c.due AS was, c.dies, c.leased),
			d AS (
				INSERT INTO howdah.checklist_count (relation, list, bucket, failed, dead)
				SELECT {relation}, $1, howdah.checklist_bucket(), count(*), count(*) FILTER (WHERE dies)
				FROM u
				WHERE leased
				HAVING count(*) > 0)
			SELECT s.paused, s.limited, s.until, (SELECT count(*) FROM u WHERE dies), u.item, u.attempts, u.priority, u.error, u.payload, u.was
			FROM s
			LEFT JOIN u ON NOT u.dies
			ORDER BY u.priority DESC, u.was, u.item COLLATE "C"`),
			w.list, w.n, w.token, w.lease, w.low, w.worker, w.allowed)
		f = found{last: map[int]pgtype.Timestamptz{}}
		var name, text *string
		var attempts, priority *int
		var payload json.RawMessage
		var was pgtype.Timestamptz
		_, err := pgx.ForEachRow(rows, []any{&f.paused, &f.limited, &f.until, &f.dead, &name, &attempts, &priority, &text, &payload, &was}, func() error {
			if name != nil {
				f.items = append(f.items, Item{Name: *name, Attempts: *attempts, Priority: *priority, Error: orZero(text), Payload: payload})
				f.last[*priority] = was
				payload = nil // the next is not to be read over it
			}
			return nil
		})
		f.until = f.until.UTC()
		return err
	})
	return f, s.told(err)
}

// claimLimited claims what the limits of the list allow. Claims of such a list
// are one at a time: they wait for its settings.
func (s *Store) claimLimited(ctx context.Context, w wish) (f found, err error) {
	err = pg.Retry(ctx, s.db, func() error {
		return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) (err error) {
			f, err = s.claimAllowed(ctx, tx, w)
			return err
		})
	})
	f.limited = true
	return f, s.told(err)
}

func (s *Store) claimAllowed(ctx context.Context, tx pgx.Tx, w wish) (f found, err error) {
	asked := w.n
	var maxLeased int
	var rate, tokens float64
	// Up to a second's worth gathers.
	err = tx.QueryRow(ctx, s.sql(`
		SELECT paused, max_leased, rate,
			least(greatest(rate, 1), tokens + rate * greatest(extract(epoch FROM clock_timestamp() - filled)::float8, 0))
		FROM howdah.checklist
		WHERE relation = {relation} AND list = $1
		FOR UPDATE`), w.list).Scan(&f.paused, &maxLeased, &rate, &tokens)
	if errors.Is(err, pgx.ErrNoRows) { // the limits were lifted a moment ago
		w.allowed = true
		return s.claim(ctx, tx, w)
	}
	if err != nil || f.paused {
		return f, err
	}
	if rate > 0 {
		w.n = min(w.n, int(tokens))
	}
	if maxLeased > 0 {
		// A statement of its own, because the snapshot of the one above is from
		// before it waited.
		var leased int
		err = tx.QueryRow(ctx, s.sql(`
			SELECT count(*)
			FROM {lists}
			WHERE list = $1 AND lease IS NOT NULL AND due > statement_timestamp() AND due < 'infinity'`), w.list).Scan(&leased)
		if err != nil {
			return f, err
		}
		w.n = min(w.n, maxLeased-leased)
	}
	if w.n < 1 {
		f.short = true
		return f, nil
	}
	w.allowed, w.low = true, noMarks[:]
	f, err = s.claim(ctx, tx, w)
	f.short = w.n < asked && len(f.items) == w.n
	if err != nil || rate <= 0 {
		return f, err
	}
	_, err = tx.Exec(ctx, s.sql(`
		UPDATE howdah.checklist
		SET tokens = $2, filled = clock_timestamp()
		WHERE relation = {relation} AND list = $1`), w.list, tokens-float64(len(f.items)))
	return f, err
}

// newToken returns a random UUID, version 4.
func newToken() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func checkClaim(n int) error {
	if n < 1 || n > MaxClaim {
		return pg.Refuse("count", "%d; want 1 to %s", n, thousands(MaxClaim))
	}
	return nil
}

func checkLease(d time.Duration) error {
	if d < MinLease || d > MaxLease {
		return pg.Refuse("lease", "%v; want %v to %v", d, MinLease, MaxLease)
	}
	return nil
}
