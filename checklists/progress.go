package checklists

import (
	"context"
	"encoding/json"
	"iter"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Progress is how far a list is. Total = Left + Dead + Done.
type Progress struct {
	Total  int64         // that were ever put on, without those that left it dead
	Left   int64         // ready, waiting or leased
	Leased int64         // with workers now
	Dead   int64         // given up
	Done   int64         // left the list, by whomever
	Failed int64         // attempts that failed or whose lease ran out
	Rate   float64       // done per second, in the last full minute
	ETA    time.Duration // Left at Rate; 0 where the rate is 0
	Paused bool
}

// MarshalJSON implements json.Marshaler: the ETA is in seconds, and null where
// nothing is being done.
func (p Progress) MarshalJSON() ([]byte, error) {
	var eta *float64
	if p.Rate > 0 {
		eta = new(p.ETA.Round(time.Second).Seconds())
	}
	return json.Marshal(struct {
		Total  int64    `json:"total"`
		Left   int64    `json:"left"`
		Leased int64    `json:"leased"`
		Dead   int64    `json:"dead"`
		Done   int64    `json:"done"`
		Failed int64    `json:"failed"`
		Rate   float64  `json:"rate"`
		ETA    *float64 `json:"eta_seconds"`
		Paused bool     `json:"paused"`
	}{p.Total, p.Left, p.Leased, p.Dead, p.Done, p.Failed, p.Rate, eta, p.Paused})
}

// Progress returns how far list is, from counts that are kept: it takes as long
// for a million items as for ten, and a little longer the more are leased. Of an
// unknown list all is zero. It returns ErrPlain where the table has no counts.
func (s *Store) Progress(ctx context.Context, list string) (Progress, error) {
	const op = "checklists: progress"
	var p Progress
	err := s.check(list, nil)
	if err == nil {
		err = s.needColumns(ctx)
	}
	if err != nil {
		return p, pg.Wrap(op, err)
	}
	var k kept
	err = s.row(ctx, `
		SELECT `+progressColumns+`
		FROM (SELECT $1::text AS list) AS w`+standing, []any{list}, k.into()...)
	if err != nil {
		return p, pg.Wrap(op, err)
	}
	return k.progress(), nil
}

// standing joins lists w with their settings and their counts.
const standing = `
		LEFT JOIN howdah.checklist c ON c.relation = {relation} AND c.list = w.list COLLATE "C"
		CROSS JOIN LATERAL (
			SELECT coalesce(sum(items), 0)::bigint AS items, coalesce(sum(dead), 0)::bigint AS dead,
				coalesce(sum(done), 0)::bigint AS done, coalesce(sum(failed), 0)::bigint AS failed,
				coalesce(sum(done) FILTER (WHERE bucket >= now.began - interval '1 minute' AND bucket < now.began), 0)::bigint AS minute
			FROM howdah.checklist_count, (SELECT date_bin('10 seconds', statement_timestamp(), 'epoch')) AS now(began)
			WHERE relation = {relation} AND list = w.list COLLATE "C") n
		CROSS JOIN LATERAL (
			SELECT count(*) AS leased
			FROM {lists} l
			WHERE l.list = w.list AND l.lease IS NOT NULL AND l.due > statement_timestamp() AND l.due < 'infinity') l`

const progressColumns = `n.items, n.dead, n.done, n.failed, n.minute, l.leased, coalesce(c.paused, false)`

// kept is what is kept of a list.
type kept struct {
	settings                                Settings
	items, dead, done, failed, last, leased int64 // last: done in the last full minute
	paused                                  bool
}

// into are the places of progressColumns.
func (k *kept) into() []any {
	return []any{&k.items, &k.dead, &k.done, &k.failed, &k.last, &k.leased, &k.paused}
}

func (k *kept) progress() Progress {
	p := Progress{
		Total: k.items + k.done, Left: k.items - k.dead, Leased: k.leased,
		Dead: k.dead, Done: k.done, Failed: k.failed, Paused: k.paused,
	}
	if k.last > 0 {
		p.Rate = float64(k.last) / 60
		p.ETA = time.Duration(float64(p.Left) / p.Rate * float64(time.Second))
	}
	return p
}

// Watch returns how far list is: at once, and again when that has changed, at most
// once in every, which is a second where it is not positive. It ends when ctx is
// done, and with an error that is [Store.Progress]'s.
func (s *Store) Watch(ctx context.Context, list string, every time.Duration) iter.Seq2[Progress, error] {
	return func(yield func(Progress, error) bool) {
		if every <= 0 {
			every = time.Second
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		var told *Progress
		for {
			p, err := s.Progress(ctx, list)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				yield(Progress{}, err)
				return
			case told == nil || *told != p:
				if !yield(p, nil) {
					return
				}
				told = &p
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Recount mends the counts of list, or of all lists where it is empty, after a
// restore or whatever else wrote to the table with its triggers off. It reads
// every item; nobody need stop writing meanwhile.
func (s *Store) Recount(ctx context.Context, list string) error {
	const op = "checklists: recount"
	err := s.check(list, nil)
	if err == nil {
		err = s.needColumns(ctx)
	}
	if err != nil {
		return pg.Wrap(op, err)
	}
	_, err = s.run(ctx, recount, list)
	return pg.Wrap(op, err)
}

// recount is one statement because that has one snapshot, in which rows and counts of
// every transaction are there together or not at all.
const recount = `
	WITH fact AS (
		SELECT list, count(*) AS items, count(*) FILTER (WHERE due = 'infinity') AS dead
		FROM {lists}
		WHERE list = $1 OR $1 = ''
		GROUP BY list),
	kept AS (
		SELECT list, sum(items) AS items, sum(dead) AS dead
		FROM howdah.checklist_count
		WHERE relation = {relation} AND (list = $1 OR $1 = '')
		GROUP BY list)
	INSERT INTO howdah.checklist_count (relation, list, bucket, items, dead)
	SELECT {relation}, coalesce(fact.list, kept.list), '-infinity',
		coalesce(fact.items, 0) - coalesce(kept.items, 0), coalesce(fact.dead, 0) - coalesce(kept.dead, 0)
	FROM fact
	FULL JOIN kept ON fact.list COLLATE "C" = kept.list COLLATE "C"
	WHERE coalesce(fact.items, 0) <> coalesce(kept.items, 0) OR coalesce(fact.dead, 0) <> coalesce(kept.dead, 0)`
