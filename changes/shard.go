package changes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
)

// outage is how many changes parked in a row are none of the changes' fault.
const outage = 3

// pace is how long a consumer waits for what.
type pace struct {
	inPlace       []time.Duration // before a change that failed is tried again where it stands
	parked, most  time.Duration   // and where it is parked: at first, and doubling to
	probe, probes time.Duration   // and where the shard stalls: at first, and doubling to
	unseen        time.Duration   // at most before a shard looks, whoever should have woken it
	rival         time.Duration   // at most for a shard that another instance moves
	grace         time.Duration   // for what a batch does beside its handler
	seen          time.Duration   // before an instance says again that it runs
}

var usual = pace{
	inPlace: []time.Duration{200 * time.Millisecond, time.Second, 5 * time.Second},
	parked:  10 * time.Second, most: 10 * time.Minute,
	probe: time.Second, probes: time.Minute,
	unseen: time.Second,
	rival:  250 * time.Millisecond,
	grace:  5 * time.Second,
	seen:   30 * time.Second,
}

// backoff is how long a change that was tried so often waits, parked, for the next try.
func (p *pace) backoff(attempts int) time.Duration {
	return min(p.parked<<min(max(attempts-len(p.inPlace)-1, 0), maxAttempts), p.most)
}

// shard is this instance's part in moving one shard of a consumer. What it knows
// beside the database is checked there, under the lock, before each batch.
type shard struct {
	*Consumer
	n, of int  // which of how many
	at    mark // as it was last seen

	ahead  []Change // of the feed, follow at, and are read: what is numbered does not change
	end    Position // where ahead ends
	coming *coming  // what follows end, being read; nil = nothing
	chunk  *chunk   // of a backfill, read and not yet handled

	reading sync.WaitGroup

	single  int           // so many changes are handed over one by one, because they failed together
	fewer   int           // no more at once than this, because more took too long; 0 = as many as are to be
	calm    int           // so many batches since then were in time
	tries   int           // of the next change, that failed
	failed  int           // calls of a handler that no checkpoint tells of yet
	telling int64         // what a checkpoint tells with them, if its COMMIT came through, which is not known; 0 = it is
	tried   bool          // a parked change, just now: the feed is next, however many are due
	probe   time.Duration // the last pause of a shard that stalls
	rivals  time.Duration // the last pause because another instance was at it
	since   time.Time     // another instance was found at it, and a little later for each try to cut it off
	away    trouble
}

// mark is where a shard stands: its newest checkpoint, and in which history. After a
// failover the checkpoint may be the same, and what followed it in the feed is not.
type mark struct {
	seq      int64
	at       Position
	failures int
	timeline string
}

func (m mark) next(at Position, failures int) mark {
	return mark{m.seq + 1, at, failures, m.timeline}
}

func newShard(c *Consumer, n, of int) *shard {
	return &shard{Consumer: c, n: n, of: of, away: trouble{of: "a consumer of changes cannot go on", name: c.cfg.Name, told: &c.told}}
}

// pause is what a shard waits for before it looks again.
type pause struct {
	d    time.Duration // 0 = goes on at once
	feed bool          // or for the feed to go on
}

// run moves the shard until ctx is done, or there is nothing left to move.
func (s *shard) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.reading.Wait()
	defer cancel()
	for {
		more := s.feed.more() // before the look: what comes meanwhile is not missed
		p, err := s.step(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case ends(err), errors.Is(err, ErrRestored):
			return err
		case err != nil:
			// What was read ahead may be of a history that is lost with the connection.
			s.forget(s.at.at)
			if !s.away.wait(ctx, err) {
				return nil
			}
			continue
		}
		s.away.over()
		if !p.feed {
			more = nil
		}
		if p.d > 0 && !sleep(ctx, p.d, more) {
			return nil
		}
	}
}

// step moves the shard by one batch, or says what to wait for. An error is one of
// the database, not of a handler.
func (s *shard) step(ctx context.Context) (pause, error) {
	done, err := s.turn(ctx)
	if err != nil {
		return pause{}, err
	}
	defer done()
	b, err := s.begin(ctx)
	if err != nil {
		return pause{}, err
	}
	defer b.rollback()
	st, err := b.standing()
	if err != nil {
		return pause{}, err
	}
	if !st.locked {
		if s.rivals == 0 {
			s.since = time.Now()
		}
		s.rivals = min(max(2*s.rivals, briefly), s.pace.rival)
		if time.Since(s.since) > s.cfg.Timeout+s.pace.grace {
			s.since = s.since.Add(s.pace.grace) // then again
			return pause{d: s.rivals}, b.cutOff()
		}
		return pause{d: s.rivals}, nil
	}
	s.rivals = 0
	if s.telling > 0 && b.told == s.telling {
		s.failed = 0
	}
	s.telling = 0
	if err := s.compare(st.saved, st.shards, st.nextShards, st.patterns); err != nil {
		return pause{}, err
	}
	if st.shards != s.of {
		return pause{}, errResharded
	}
	if st.mark != s.at { // another instance moved it, or a person; or the server is another
		s.at, s.chunk, s.single, s.tries = st.mark, nil, 0, 0
		s.forget(st.at)
	}
	switch {
	case st.state != "running":
		return pause{d: s.pace.unseen, feed: true}, nil
	case st.due != nil && *st.due <= 0 && (!s.tried || st.stalls()):
		s.tried = true
		return s.again(b, st)
	case st.stalls():
		return pause{d: s.look(st), feed: true}, nil
	}
	if st.nextShards != nil && st.stopAt == nil && !st.parked {
		if ended, err := s.resume(b); ended || err != nil {
			return pause{}, err
		}
	}
	s.probe, s.tried = 0, false
	if st.backfill != nil {
		return s.fill(b, st)
	}
	return s.follow(b, st)
}

// follow hands over what comes next in the feed.
func (s *shard) follow(b *batch, st standing) (pause, error) {
	cs, handler, to, err := s.next(b, st)
	switch {
	case errors.Is(err, ErrExpired):
		return pause{}, s.stop(b.parent, b, "expired", err)
	case errors.Is(err, ErrAhead):
		return pause{}, s.stop(b.parent, b, "paused", err)
	case err != nil:
		return pause{}, err
	case to == s.at.at && st.stopAt != nil:
		return pause{d: s.pace.unseen, feed: true}, s.reshard(b)
	case to == s.at.at:
		return pause{d: s.look(st), feed: true}, nil
	}
	return s.handle(b, st, cs, handler, to)
}

// next returns changes for one handler and of one origin, in the order of the feed,
// and where the shard stands after them. There may be none.
func (s *shard) next(b *batch, st standing) (cs []Change, handler int, to Position, err error) {
	most := s.cfg.Batch
	if len(s.ahead) < most && (len(s.ahead) == 0 || !s.ahead[len(s.ahead)-1].Last) {
		if err := s.readOn(b); err != nil {
			return nil, 0, to, err
		}
		b.reach("read")
	}
	ahead, end := s.ahead, s.end
	if st.stopAt != nil { // no further than the other shards
		last := Position{Commit: *st.stopAt}
		beyond := slices.IndexFunc(ahead, func(c Change) bool { return c.Position.Compare(last) > 0 })
		if beyond >= 0 {
			ahead = ahead[:beyond]
		}
		if end.Compare(last) > 0 {
			end = last
		}
	}
	if len(ahead) == 0 {
		return nil, 0, end, nil
	}
	most = s.most()
	cs = ahead[:min(most, len(ahead))]
	for i := len(cs) - 1; i >= 0 && most > 1; i-- { // whole transactions, unless one alone is longer
		if cs[i].Last {
			cs = cs[:i+1]
			break
		}
	}
	handler = mostSpecific(s.patterns, &cs[0])
	for i := range cs {
		if cs[i].Origin != cs[0].Origin || mostSpecific(s.patterns, &cs[i]) != handler {
			cs = cs[:i]
			break
		}
	}
	to = cs[len(cs)-1].Position
	switch {
	case len(cs) == len(ahead):
		to = end
	case cs[len(cs)-1].Last:
		to = Position{Commit: to.Commit}
	}
	return cs, handler, to, nil
}

// most is how many changes may be handed over at once.
func (s *shard) most() int {
	switch {
	case s.single > 0:
		return 1
	case s.fewer > 0:
		return s.fewer
	}
	return s.cfg.Batch
}

// handle hands changes over and moves the shard to to, which follows them.
func (s *shard) handle(b *batch, st standing, cs []Change, handler int, to Position) (pause, error) {
	free, waiting, err := b.sort(st, cs)
	if err != nil {
		return pause{}, err
	}
	failures := st.failures
	if len(free) > 0 {
		if err := b.call(s.handlers[handler], free); err != nil {
			return s.fail(b, st, cs, to, err)
		}
		failures, b.done = 0, len(free)
	}
	err = b.park(waiting, parking{})
	if err == nil {
		err = b.move(to, failures, s.left(st, cs, to))
	}
	if b.blames(err) {
		return s.fail(b, st, cs, to, err)
	}
	if err != nil {
		return pause{}, err
	}
	s.moved(cs, st.next(to, failures))
	return pause{}, nil
}

// moved notes that the shard stands behind cs, at m.
func (s *shard) moved(cs []Change, m mark) {
	rows := m.at == s.at.at // they have no places of their own
	s.at, s.tries = m, 0
	if rows {
		s.filled(len(cs))
	} else {
		s.ahead = s.ahead[len(cs):]
	}
	switch {
	case s.single > 0:
		s.single = max(s.single-len(cs), 0)
	case s.fewer > 0 && len(cs) > 0:
		if s.calm++; s.calm == 16 {
			s.fewer, s.calm = 2*s.fewer, 0
		}
		if s.fewer >= s.cfg.Batch {
			s.fewer = 0
		}
	}
}

// fail sees to changes that a handler failed on. Nothing of the batch is left.
func (s *shard) fail(b *batch, st standing, cs []Change, to Position, err error) (pause, error) {
	b.rollback()
	stop, later := new(stopError), new(laterError)
	switch {
	case b.parent.Err() != nil: // told to end, which is no failure
		return pause{}, nil
	case b.lost:
		return pause{}, err
	}
	s.failed++
	switch {
	case errors.As(err, &stop):
		return pause{}, s.stop(b.parent, nil, "paused", err)
	case len(cs) > 1:
		s.single = len(cs) // one by one, so that the bad one is found
		if b.late {
			s.fewer, s.calm = len(cs)/2, 0
		}
		return pause{}, nil
	}
	s.tries++
	wait := time.Duration(0)
	if errors.As(err, &later) {
		wait = later.after
	}
	if s.tries <= len(s.pace.inPlace) && wait <= s.pace.inPlace[len(s.pace.inPlace)-1] {
		wait = max(wait, s.pace.inPlace[s.tries-1])
		return pause{d: wait + rand.N(wait/5)}, nil
	}
	if s.parks.now() {
		slog.WarnContext(b.parent, "a change could not be handled; it is parked", "consumer", s.cfg.Name, "position", cs[0].Position, "error", inShort(err))
	}
	return pause{}, s.setAside(b.parent, st, cs, to, err, wait)
}

// setAside parks cs, which is one change, and moves the shard behind it, to to.
func (s *shard) setAside(ctx context.Context, st standing, cs []Change, to Position, cause error, wait time.Duration) error {
	b, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer b.rollback()
	now, err := b.standing()
	if err != nil || !now.locked || now.mark != st.mark || now.state != "running" || (now.stopAt == nil) != (st.stopAt == nil) {
		return err // if not an error, others moved it, or to may lie beyond where it is to stop: look again
	}
	failures := st.failures + 1
	if !now.parked { // a person has skipped those that failed before: they tell of no outage
		failures = 1
	}
	first := s.pace.backoff(s.tries)
	if failures >= outage {
		first = s.probing()
	}
	if err := b.park(cs, parking{head: true, attempts: s.tries, err: cause, wait: max(first, wait)}); err != nil {
		return err
	}
	if err := b.move(to, failures, s.left(st, cs, to)); err != nil {
		return err
	}
	s.moved(cs, st.next(to, failures))
	if failures == outage && s.stalls.now() {
		slog.WarnContext(ctx, "a consumer of changes stalls: nothing succeeds", "consumer", s.cfg.Name, "shard", s.n, "error", inShort(cause))
	}
	return nil
}

// probing returns how long a shard that stalls waits before it tries again.
func (s *shard) probing() time.Duration {
	s.probe = min(max(2*s.probe, s.pace.probe), s.pace.probes)
	return s.probe
}

// stop has the consumer stand still, on all shards, until a person has looked.
func (s *shard) stop(ctx context.Context, b *batch, state string, cause error) error {
	if b != nil {
		b.rollback()
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout+s.pace.grace)
	defer cancel()
	// Not where the shard has been moved since: whoever did may have cured it. To be
	// asked once nobody is at it, in a later statement, which sees what he did.
	var stopped pgconn.CommandTag
	err := s.log.begin(ctx, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, `SELECT FROM howdah.change_consumer WHERE name = $1 FOR UPDATE`, s.cfg.Name); err != nil {
			return err
		}
		stopped, err = tx.Exec(ctx, `
			UPDATE howdah.change_consumer
			SET state = $2, reason = $3
			WHERE name = $1 AND state = 'running' AND EXISTS (
				SELECT FROM howdah.change_checkpoint WHERE consumer = $1 AND shard = $4::int AND seq = $5)`,
			s.cfg.Name, state, errorText(cause), s.n, s.at.seq)
		return err
	})
	if err == nil && stopped.RowsAffected() > 0 {
		slog.WarnContext(ctx, "a consumer of changes is "+state, "consumer", s.cfg.Name, "error", inShort(cause))
	}
	return err
}

// look is when to look again where the feed has nothing.
func (s *shard) look(st standing) time.Duration {
	if st.due != nil {
		return min(*st.due, s.pace.unseen)
	}
	return s.pace.unseen
}

// again tries a parked change that is due.
func (s *shard) again(b *batch, st standing) (pause, error) {
	p, err := b.due()
	if err != nil || p == nil { // a person was faster
		return pause{}, err
	}
	handler := mostSpecific(s.patterns, &p.Change)
	err = fmt.Errorf("no pattern of the consumer names it any more: %w", fault.NotFound)
	if handler >= 0 {
		err = b.call(s.handlers[handler], []Change{p.Change})
	}
	if err == nil {
		b.done = 1
		err = b.unpark(p, st)
		if err == nil {
			err = b.move(st.at, 0, st.backfill)
		}
		if err == nil {
			s.at, s.probe = st.next(st.at, 0), 0
		}
		if !b.blames(err) {
			return pause{}, err
		}
	}
	b.rollback()
	stop, later := new(stopError), new(laterError)
	switch {
	case b.parent.Err() != nil:
		return pause{}, nil
	case b.lost:
		return pause{}, err
	}
	s.failed++
	if errors.As(err, &stop) {
		return pause{}, s.stop(b.parent, nil, "paused", err)
	}
	attempt, wait := 1, s.pace.backoff(p.Attempts+1)
	if st.stalls() {
		attempt, wait = 0, s.probing() // in an outage nothing is given up
	}
	if errors.As(err, &later) {
		wait = max(wait, later.after)
	}
	return pause{}, s.putBack(b.parent, st, p, attempt, err, wait)
}

// putBack notes that a parked change failed again, and is to wait for the next try.
func (s *shard) putBack(ctx context.Context, st standing, p *parkedChange, attempt int, cause error, wait time.Duration) error {
	b, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer b.rollback()
	now, err := b.standing()
	if err != nil || !now.locked || now.mark != st.mark {
		return err // if not an error, others moved it: look again
	}
	if _, err := b.tx.Exec(b.ctx, `
		UPDATE howdah.change_parked
		SET attempts = greatest(attempts + $4, 1), error = $5, dead = attempts + $4 >= $6, next_at = clock_timestamp() + $7::interval
		WHERE consumer = $1 AND shard = $2 AND place = $3`,
		s.cfg.Name, s.n, p.place, attempt, errorText(cause), maxAttempts, wait); err != nil {
		return err
	}
	if err := b.move(st.at, st.failures, st.backfill); err != nil {
		return err
	}
	s.at = st.next(st.at, st.failures)
	return nil
}
