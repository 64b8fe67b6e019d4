package changes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
)

const (
	maxAttempts = 20      // after so many a change is given up, until a person has looked
	maxError    = 4 << 10 // bytes kept of an error
)

// errorText is an error as it is kept.
func errorText(err error) string {
	return cut(strings.ReplaceAll(strings.ToValidUTF8(err.Error(), "\uFFFD"), "\x00", "\uFFFD"), maxError)
}

// inShort is an error as it is logged: parked changes hold all of it, a panic's stack too.
func inShort(err error) string {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return cut(first, 200)
}

// cut is the beginning of text, of at most n bytes.
func cut(text string, n int) string {
	if len(text) > n {
		text = strings.ToValidUTF8(text[:n], "")
	}
	return text
}

// sort tells the changes that may be handled from those that have to wait behind a
// parked one: of their key, or of a TRUNCATE of their table; and a TRUNCATE behind
// whatever of its table is parked.
func (b *batch) sort(st standing, cs []Change) (free, waiting []Change, err error) {
	if !st.parked {
		return cs, nil, nil
	}
	l := laneOf(cs)
	rows, _ := b.tx.Query(b.ctx, `
		SELECT CASE WHEN c.everything
			THEN `+anyOf("relation = c.relation")+`
			ELSE `+anyOf("lane = howdah.change_lane(c.schema_name, c.table_name, c.key::jsonb)")+` OR `+anyOf("relation = c.relation AND everything")+`
			END
		FROM (
			SELECT *, schema_name || '.' || table_name AS relation
			FROM unnest($3::text[], $4::text[], $5::text[], $6::boolean[]) WITH ORDINALITY AS u(schema_name, table_name, key, everything, i)) c
		ORDER BY c.i`, b.cfg.Name, b.n, l.schemas, l.tables, l.keys, l.everything)
	blocked, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		return nil, nil, err
	}
	held := map[string]bool{}  // tables of which something in cs waits
	whole := map[string]bool{} // and a TRUNCATE does
	for i, c := range cs {
		relation := c.Schema + "." + c.Table
		if !blocked[i] && !whole[relation] && !(l.everything[i] && held[relation]) {
			free = append(free, c)
			continue
		}
		waiting = append(waiting, c)
		held[relation] = true
		whole[relation] = whole[relation] || l.everything[i]
	}
	return free, waiting, nil
}

// lanes are what decides behind what changes wait, as statements take it.
type lanes struct {
	schemas, tables []string
	keys            []*string
	everything      []bool
}

func laneOf(cs []Change) (l lanes) {
	for _, c := range cs {
		l.schemas, l.tables = append(l.schemas, c.Schema), append(l.tables, c.Table)
		var key *string
		if c.Key != nil {
			key = new(string(c.Key))
		}
		l.keys = append(l.keys, key)
		l.everything = append(l.everything, c.Op == Truncate)
	}
	return l
}

// parking says in which state changes are parked; the zero parking is of those that
// wait unseen.
type parking struct {
	head     bool
	attempts int
	err      error
	wait     time.Duration // until the next try
}

// park puts changes aside.
func (b *batch) park(cs []Change, p parking) error {
	if len(cs) == 0 {
		return nil
	}
	l := laneOf(cs)
	var commits, ids []int64
	var texts []string
	for i := range cs {
		text, err := jsonText(&cs[i])
		if err != nil {
			return err
		}
		texts = append(texts, text)
		commits, ids = append(commits, cs[i].Position.Commit), append(ids, cs[i].Position.ID)
	}
	cause := ""
	if p.err != nil {
		cause = errorText(p.err)
	}
	_, err := b.tx.Exec(b.ctx, `
		INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head, attempts, error, next_at)
		SELECT $1, $2::int, c.n, c.id, howdah.change_lane(c.schema_name, c.table_name, c.key::jsonb), c.schema_name || '.' || c.table_name, c.everything,
			c.change::json, $3, $4, $5, clock_timestamp() + $6::interval
		FROM unnest($7::text[], $8::text[], $9::text[], $10::boolean[], $11::bigint[], $12::bigint[], $13::text[])
			WITH ORDINALITY AS c(schema_name, table_name, key, everything, n, id, change, i)
		ORDER BY c.i`,
		b.cfg.Name, b.n, p.head, p.attempts, cause, p.wait, l.schemas, l.tables, l.keys, l.everything, commits, ids, texts)
	b.reach("parked")
	return err
}

// parkedChange is a change that is tried again.
type parkedChange struct {
	Change
	place    int64
	Attempts int
}

// due returns the parked change that has waited longest for its next try; nil where
// none is due.
func (b *batch) due() (*parkedChange, error) {
	var p parkedChange
	var text []byte
	err := b.tx.QueryRow(b.ctx, `
		SELECT place, change, attempts
		FROM howdah.change_parked
		WHERE consumer = $1 AND shard = $2::int AND head AND NOT dead AND next_at <= clock_timestamp()
		ORDER BY next_at, place
		LIMIT 1`, b.cfg.Name, b.n).Scan(&p.place, &text, &p.Attempts)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &p, json.Unmarshal(text, &p.Change)
}

// firstOf is the place of the first parked change of consumer $1 and shard $2 with
// something. Ordered, it is found by an index however many there are.
func firstOf(with string) string {
	return `(
		SELECT p.place
		FROM howdah.change_parked p
		WHERE p.consumer = $1 AND p.shard = $2::int AND ` + with + `
		ORDER BY p.place
		LIMIT 1)`
}

func anyOf(with string) string { return firstOf(with) + ` IS NOT NULL` }

// release takes parked changes of a shard, which tx holds, away, those that which
// names, and makes heads of those that waited only for them. It returns how many it took.
func release(ctx context.Context, tx pgx.Tx, name string, shard int, which string, args ...any) (int64, error) {
	rows, _ := tx.Query(ctx, `
		DELETE FROM howdah.change_parked
		WHERE consumer = $1 AND shard = $2::int AND `+which+`
		RETURNING lane, relation, everything`, append([]any{name, shard}, args...)...)
	var count, lane int64
	var relation string
	var everything bool
	lanes, relations, whole := map[int64]bool{}, map[string]bool{}, map[string]bool{}
	_, err := pgx.ForEachRow(rows, []any{&lane, &relation, &everything}, func() error {
		count++
		lanes[lane], relations[relation] = true, true
		if everything {
			whole[relation] = true
		}
		return nil
	})
	if err != nil || count == 0 {
		return count, err
	}
	// The first of each lane may go on, and the first TRUNCATE of each table.
	next := `
			SELECT ` + firstOf(`p.lane = g.lane`) + ` AS place
			FROM unnest($3::bigint[]) AS g(lane)
			UNION
			SELECT ` + firstOf(`p.relation = g.relation AND p.everything`) + `
			FROM unnest($4::text[]) AS g(relation)`
	args = []any{name, shard, slices.Collect(maps.Keys(lanes)), slices.Collect(maps.Keys(relations))}
	if len(whole) > 0 { // all that it held
		next += `
			UNION
			SELECT p.place
			FROM howdah.change_parked p
			WHERE p.consumer = $1 AND p.shard = $2::int AND p.relation = ANY ($5::text[])`
		args = append(args, slices.Collect(maps.Keys(whole)))
	}
	_, err = tx.Exec(ctx, `
		WITH next AS (`+next+`
		)
		UPDATE howdah.change_parked
		SET head = true, next_at = clock_timestamp()
		WHERE consumer = $1 AND shard = $2::int AND NOT head AND place = ANY (ARRAY(
			SELECT n.place
			FROM next
			CROSS JOIN LATERAL (
				SELECT *
				FROM howdah.change_parked
				WHERE consumer = $1 AND shard = $2::int AND place = next.place
				LIMIT 1) n
			WHERE n.place = `+firstOf(`p.lane = n.lane`)+`
				AND n.place <= coalesce(`+firstOf(`p.relation = n.relation AND p.everything`)+`, n.place)
				AND (NOT n.everything OR n.place = `+firstOf(`p.relation = n.relation`)+`)))`, args...)
	return count, err
}

// unpark takes away a parked change that has been handled, and has those go on that
// waited for it; where the shard stalled, for what failed with it too.
func (b *batch) unpark(p *parkedChange, st standing) error {
	if _, err := release(b.ctx, b.tx, b.cfg.Name, b.n, `place = $3`, p.place); err != nil {
		return err
	}
	if !st.stalls() {
		return nil
	}
	_, err := b.tx.Exec(b.ctx, `
		UPDATE howdah.change_parked
		SET next_at = clock_timestamp()
		WHERE consumer = $1 AND shard = $2::int AND head AND NOT dead AND next_at > clock_timestamp()`, b.cfg.Name, b.n)
	return err
}

// notParked says that there is nothing at the positions that were named.
func notParked(name string) error {
	return fmt.Errorf("nothing that was named is parked, or it waits behind another: howdah changes parked %s shows what is: %w", name, fault.NotFound)
}

// columns are positions as a statement takes them; nil where at is, which names none,
// and not where it is an empty list of those that are meant.
func columns(at []Position) (commits, ids []int64) {
	if at != nil {
		commits, ids = []int64{}, []int64{}
	}
	for _, p := range at {
		commits, ids = append(commits, p.Commit), append(ids, p.ID)
	}
	return commits, ids
}
