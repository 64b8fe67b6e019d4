package checklists

import (
	"context"
	"encoding/json"
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
	var items, minute int64
	err = s.row(ctx, `
		WITH n AS (
			SELECT coalesce(sum(items), 0)::bigint AS items, coalesce(sum(dead), 0)::bigint AS dead,
				coalesce(sum(done), 0)::bigint AS done, coalesce(sum(failed), 0)::bigint AS failed,
				coalesce(sum(done) FILTER (WHERE bucket >= now.began - interval '1 minute' AND bucket < now.began), 0)::bigint AS minute
			FROM howdah.checklist_count, (SELECT date_bin('10 seconds', statement_timestamp(), 'epoch')) AS now(began)
			WHERE relation = {relation} AND list = $1),
		l AS (
			SELECT count(*) AS leased
			FROM {lists}
			WHERE list = $1 AND lease IS NOT NULL AND due > statement_timestamp() AND due < 'infinity')
		SELECT n.items, n.dead, n.done, n.failed, n.minute, l.leased,
			coalesce((SELECT paused FROM howdah.checklist WHERE relation = {relation} AND list = $1), false)
		FROM n, l`, []any{list}, &items, &p.Dead, &p.Done, &p.Failed, &minute, &p.Leased, &p.Paused)
	if err != nil {
		return Progress{}, pg.Wrap(op, err)
	}
	p.Left, p.Total = items-p.Dead, items+p.Done
	if minute > 0 {
		p.Rate = float64(minute) / 60
		p.ETA = time.Duration(float64(p.Left) / p.Rate * float64(time.Second))
	}
	return p, nil
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
