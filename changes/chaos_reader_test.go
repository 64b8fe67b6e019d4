package changes_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/howdah-db/howdah/changes"
)

// retain lets the log keep changes for a second, and longer for followers. Its leaves
// change all the time, and some writers' clocks are ahead: transactions lie in several.
// The ring is longer than transactions sleep, or nothing would ever be let go.
func (c *chaos) retain() {
	exec(c.t, c.pool, `UPDATE howdah.change_state SET retention = '1 second'`)
	exec(c.t, c.pool, `CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint LANGUAGE sql VOLATILE
		RETURN ((extract(epoch FROM clock_timestamp()) / 0.6 + random() * 0.3)::bigint % 8)::smallint`)
	exec(c.t, c.pool, `INSERT INTO howdah.change_consumer (name, shards, patterns) SELECT 'follower' || i, 1, '{*}' FROM generate_series(0, 3) i`)
	exec(c.t, c.pool, `INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id) SELECT 'follower' || i, 0, 1, 0, 0 FROM generate_series(0, 3) i`)
}

// tend lets go of what nobody needs, until all is over and something has gone.
func (c *chaos) tend(drained context.Context) error {
	ctx := context.Background()
	tended := func() (floor int64, err error) {
		if err := c.log.Tend(ctx); err != nil {
			return 0, err
		}
		err = c.pool.QueryRow(ctx, `SELECT floor FROM howdah.change_state`).Scan(&floor)
		return floor, err
	}
	for drained.Err() == nil {
		if _, err := tended(); err != nil {
			return err
		}
		rest(drained, 50*time.Millisecond)
	}
	floor, err := tended()
	c.t.Logf("the log begins after %d", floor)
	for deadline := time.Now().Add(patience); err == nil && floor == 0; floor, err = tended() {
		if time.Now().After(deadline) {
			return errors.New("C8: nothing is let go of, though nobody needs it")
		}
		// Who was open at the last tick keeps what is younger: there has to be another.
		if _, err := c.pool.Exec(ctx, `SELECT nextval('howdah.change_id')`); err != nil {
			return err
		}
		if _, err := c.log.Sync(ctx); err != nil {
			return err
		}
		rest(ctx, 50*time.Millisecond)
	}
	return err
}

// straggler reads the feed and has no name. Now and then it is so slow that what it is
// to read next is gone: it has to be told, and begins anew.
type straggler struct {
	c     *chaos
	r     *rand.Rand
	spans []stretch
}

// stretch is what was read without a gap.
type stretch struct {
	after changes.Position
	seen  []changes.Change
}

func (s *straggler) run(drained context.Context) error {
	ctx, cancel := beyond(drained)
	defer cancel()
	var at changes.Position
	s.spans = []stretch{{}}
	for {
		over := drained.Err() != nil
		page, next, err := s.c.log.Page(ctx, at, 1+s.r.IntN(1000), changes.Filter{})
		switch {
		case errors.Is(err, changes.ErrExpired):
			if at, err = s.c.log.Start(ctx); err != nil {
				return err
			}
			s.spans = append(s.spans, stretch{after: at})
			continue
		case err != nil:
			return err
		case next == at && over:
			return nil
		}
		last := &s.spans[len(s.spans)-1]
		last.seen = append(last.seen, page...)
		at = next
		if pause := s.r.IntN(20); pause == 0 && !over {
			rest(drained, time.Duration(s.r.IntN(4000))*time.Millisecond)
		} else if len(page) == 0 {
			rest(ctx, time.Millisecond)
		}
	}
}

// beyond returns a context for who reads to the end of the feed: it ends a good while after
// nothing is written any more.
func beyond(drained context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(drained, func() {
		select {
		case <-ctx.Done():
		case <-time.After(patience):
			cancel()
		}
	})
	return ctx, func() { stop(); cancel() }
}

// violations says where what was read has a gap that nobody spoke of.
func (s *straggler) violations(all []changes.Change) (broken []string) {
	for i, read := range s.spans {
		first := slices.IndexFunc(all, func(c changes.Change) bool { return c.Position.Compare(read.after) > 0 })
		if first < 0 {
			first = len(all)
		}
		end := min(first+len(read.seen), len(all))
		if i == len(s.spans)-1 { // it came to the end
			end = len(all)
		}
		if problem := sameFeed(all[first:end], read.seen); problem != "" {
			broken = append(broken, fmt.Sprintf("F9: after %s, begun anew %d times: %s", read.after, i, problem))
		}
	}
	s.c.t.Logf("a reader without a name had to begin anew %d times", len(s.spans)-1)
	return broken
}

// follower reads the feed and is stopped now and then: in the middle of a page,
// in the middle of a call. It goes on from the last position it kept. It has a name, so
// that the log is held for it.
type follower struct {
	c     *chaos
	r     *rand.Rand
	name  string
	seen  []changes.Change
	stops int
}

// run reads until everything has been written and read.
func (f *follower) run(drained context.Context) error {
	whole, done := beyond(drained)
	defer done()
	var at changes.Position
	for {
		over := drained.Err() != nil
		ctx, cancel := context.WithCancel(whole)
		if !over && f.r.IntN(10) == 0 {
			cancel()
			ctx, cancel = context.WithTimeout(whole, time.Duration(f.r.IntN(3000))*time.Microsecond)
		}
		page, next, err := f.c.log.Page(ctx, at, 1+f.r.IntN(300), changes.Filter{})
		stopped := ctx.Err() != nil
		cancel()
		switch {
		case err != nil && stopped && whole.Err() == nil:
			f.stops++
			continue
		case err != nil:
			return err
		case len(page) > 0 && f.r.IntN(4) == 0: // not all of it was handled
			f.stops++
			page = page[:1+f.r.IntN(len(page))]
			next = page[len(page)-1].Position
		case len(page) == 0 && next == at && over:
			return nil
		case len(page) == 0:
			rest(whole, time.Duration(f.r.IntN(5))*time.Millisecond)
		}
		if len(page) > 0 && page[0].Position.Compare(at) <= 0 {
			return fmt.Errorf("F6: %s was read and %s came after it", at, page[0].Position)
		}
		f.seen = append(f.seen, page...)
		if next != at {
			if _, err := f.c.pool.Exec(context.Background(), `UPDATE howdah.change_checkpoint SET n = $2, id = $3 WHERE consumer = $1`, f.name, next.Commit, next.ID); err != nil {
				return err
			}
		}
		at = next
	}
}

// sameFeed says where what a follower saw parts from the feed.
func sameFeed(want, got []changes.Change) string {
	for i := range min(len(want), len(got)) {
		if got[i].Position != want[i].Position || got[i].XID != want[i].XID || string(got[i].New) != string(want[i].New) {
			return fmt.Sprintf("change %d is %s, want %s", i, got[i].Position, want[i].Position)
		}
	}
	if len(want) != len(got) {
		return fmt.Sprintf("saw %d changes, want %d", len(got), len(want))
	}
	return ""
}
