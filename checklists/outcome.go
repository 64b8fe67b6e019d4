package checklists

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrLost reports that a lease no longer holds some of the items: they are done,
// or somebody else has claimed them since.
var ErrLost = fmt.Errorf("the lease no longer holds them: %w", fault.Conflict)

// Failure is what became of an attempt that failed.
type Failure struct {
	Item    string        `json:"item"`
	Error   string        `json:"error"` // why; cleaned and cut to 2,000 bytes, never refused
	RetryIn time.Duration `json:"-"`     // instead of the list's backoff; negative: dead at once
}

// Done takes items off their list as done, or without items all that the lease
// still holds, and returns how many. It returns ErrLost when they are fewer than
// asked for, or none: what the lease still held is done all the same, the rest
// is not touched.
func (s *Store) Done(ctx context.Context, l Lease, items ...string) (int64, error) {
	// By the place of the row, which spares a second search for its key. A row that
	// another has changed while this one waited for it is at a place that the snapshot
	// cannot see: where some are missing, they are searched for.
	return s.finish(ctx, "checklists: done", s.run, l, items, `
		DELETE FROM {lists}
		WHERE ctid = ANY(ARRAY(SELECT place FROM k))`, `
		DELETE FROM {lists} l
		USING k
		WHERE l.list = k.list AND l.item = k.item`)
}

// Release gives items back at once, or without items all that the lease still
// holds, as if they had never been claimed, and returns how many. ErrLost is as
// with [Store.Done].
func (s *Store) Release(ctx context.Context, l Lease, items ...string) (int64, error) {
	return s.finish(ctx, "checklists: release", s.runRinging, l, items, `
		UPDATE {lists} l
		SET lease = NULL, worker = NULL, attempts = greatest(attempts - 1, 0), due = date_trunc('milliseconds', statement_timestamp())
		FROM k
		WHERE l.list = k.list AND l.item = k.item`)
}

// finish runs a statement on k, which is some or all items of a lease, locked in
// the order that Kill, Extend and the services' other statements lock items in.
// Of several statements the last is enough; those before it know of k the places
// only, are quicker, and may leave some of the items named.
func (s *Store) finish(ctx context.Context, op string, run func(context.Context, string, ...any) (int64, error), l Lease, items []string, sqls ...string) (n int64, err error) {
	if err := s.checkHeld(ctx, l, items); err != nil {
		return 0, pg.Wrap(op, err)
	}
	args, asked := []any{l.List, l.Token}, 0
	k := func(string) string { return heldAll }
	if len(items) > 0 {
		set := sortedSet(items)
		args, asked = append(args, set), len(set)
		k = func(columns string) string {
			return locked(`unnest($3::text[]) AS f(item)`, columns, heldByOne, `FOR UPDATE`)
		}
	}
	if len(items) == 0 || !s.layout.placed() {
		sqls = sqls[len(sqls)-1:]
	}
	for i, sql := range sqls {
		those := k(`l.*`)
		if i < len(sqls)-1 {
			if those = k(`l.place`); asked >= manyHeld {
				those = heldMany
			}
		}
		var more int64
		more, err = run(ctx, `
		WITH `+those+sql, args...)
		if n += more; err != nil || n == int64(asked) {
			break
		}
	}
	if err == nil {
		err = lost(n, asked)
	}
	return n, pg.Wrap(op, err)
}

// heldByOne is the condition that lease $2 holds an item; not =, see heldBy.
const heldByOne = ` AND l.lease IS NOT DISTINCT FROM $2::uuid`

// inOrder sorts items by their bytes. Nulls, which there are none of, go to the other
// end than in the index of the key: of a list that nobody has analyzed the planner
// believes that it has one item, and would read all of it in the order of the key
// to be spared the sort.
const inOrder = `ORDER BY item COLLATE "C" NULLS FIRST`

// heldAll is the CTE k of all items that lease $2 of list $1 holds, locked.
const heldAll = `k AS MATERIALIZED (
			SELECT list, item
			FROM {lists}
			WHERE list = $1 AND lease = $2::uuid
			` + inOrder + `
			FOR UPDATE)`

// manyHeld is the number of items from which heldMany is quicker than to look for each.
const manyHeld = 100

// heldMany is the CTE k of those of the items $3 that lease $2 of list $1 holds, locked:
// the places of their rows. Where the lease holds hardly more, as when a claim is
// finished as it came, all that it holds is read; else each is looked for by its key.
// IS TRUE keeps the planner from making a join of the IN, and a choice of that.
var heldMany = `few AS MATERIALIZED (
			SELECT count(*) <= 2 * cardinality($3::text[]) AS are
			FROM (
				SELECT
				FROM {lists}
				WHERE list = $1 AND lease = $2::uuid
				LIMIT 2 * cardinality($3::text[]) + 1) held),
		k AS MATERIALIZED (
			SELECT place
			FROM (
				SELECT ctid AS place
				FROM {lists}
				WHERE list = $1 AND lease = $2::uuid AND (item IN (SELECT unnest($3::text[]))) IS TRUE AND (SELECT are FROM few)
				` + inOrder + `
				FOR UPDATE) held
			UNION ALL
			` + eachLocked(`unnest($3::text[]) AS f(item)`, `l.place`, heldByOne, `FOR UPDATE`) + `
			WHERE NOT (SELECT are FROM few))`

// Fail reports attempts that failed and returns how many. Each item waits for
// the list's backoff, doubled with each attempt, or for RetryIn, and is dead when
// its attempts are used up. Of several failures of one item the last counts.
// ErrLost is as with [Store.Done]; without failures there is nothing to do.
func (s *Store) Fail(ctx context.Context, l Lease, fs ...Failure) (n int64, err error) {
	const op = "checklists: fail"
	last := make(map[string]int, len(fs))
	names := make([]string, len(fs))
	for i, f := range fs {
		last[f.Item], names[i] = i, f.Item
	}
	if err := s.checkHeld(ctx, l, names); err != nil || len(fs) == 0 {
		return 0, pg.Wrap(op, err)
	}
	names = sortedSet(names)
	texts, waits := make([]string, len(names)), make([]int64, len(names))
	for i, name := range names {
		f := fs[last[name]]
		texts[i], waits[i] = cleaned(f.Error), int64(f.RetryIn)
	}
	err = s.row(ctx, `
		WITH s AS (`+backoffSettings+`),
		`+locked(`unnest($3::text[], $4::text[], $5::bigint[]) AS f(item, error, wait)`, `l.*, f.error, f.wait`,
		heldByOne, `FOR NO KEY UPDATE`)+`,
		u AS (
			UPDATE {lists} l
			SET lease = NULL, error = k.error, due = `+dueAfterFailure+`
			FROM k, s
			WHERE l.list = k.list AND l.item = k.item
			RETURNING l.due),
		d AS (
			INSERT INTO howdah.checklist_count (relation, list, bucket, failed, dead)
			SELECT {relation}, $1, howdah.checklist_bucket(), count(*), count(*) FILTER (WHERE due = 'infinity')
			FROM u
			HAVING count(*) > 0)
		SELECT count(*) FROM u`, []any{l.List, l.Token, names, texts, waits}, &n)
	if err == nil {
		err = lost(n, len(names))
	}
	return n, pg.Wrap(op, err)
}

// backoffSettings are those of list $1 that say what follows a failure, in seconds.
const backoffSettings = `
			SELECT coalesce(max(max_attempts), 10) AS max_attempts,
				extract(epoch FROM coalesce(max(backoff), '10 seconds'))::float8 AS backoff,
				extract(epoch FROM coalesce(max(backoff_max), '1 hour'))::float8 AS backoff_max
			FROM howdah.checklist
			WHERE relation = {relation} AND list = $1`

// dueAfterFailure is when an item l is due again that failed, k.wait being the
// failure's RetryIn and s the settings.
const dueAfterFailure = `CASE
				WHEN k.wait < 0 OR s.max_attempts > 0 AND l.attempts >= s.max_attempts THEN 'infinity'
				ELSE date_trunc('milliseconds', statement_timestamp() + make_interval(secs => CASE
					WHEN k.wait > 0 THEN k.wait / 1e9::float8
					ELSE least(s.backoff_max, s.backoff * power(2, least(l.attempts, 61) - 1)) * (0.9 + 0.2 * random()) END)) END`

// Extend lets the lease of all items that it still holds end d from now, and
// returns how many. It returns ErrLost when it holds none.
func (s *Store) Extend(ctx context.Context, l Lease, d time.Duration) (int64, error) {
	const op = "checklists: extend"
	if err := checkLease(d); err != nil {
		return 0, pg.Wrap(op, err)
	}
	if err := s.checkHeld(ctx, l, nil); err != nil {
		return 0, pg.Wrap(op, err)
	}
	// It waits for locks instead of passing over them: a claim that meets an item
	// just claimed by another holds its lock to its end, and the item would run out.
	n, err := s.run(ctx, `
		WITH k AS MATERIALIZED (
			SELECT list, item
			FROM {lists}
			WHERE list = $1 AND lease = $2::uuid
			`+inOrder+`
			FOR NO KEY UPDATE)
		UPDATE {lists} l
		SET due = statement_timestamp() + $3::interval
		FROM k
		WHERE l.list = k.list AND l.item = k.item`, l.List, l.Token, d)
	if err == nil {
		err = lost(n, 0)
	}
	return n, pg.Wrap(op, err)
}

// lost is ErrLost where a lease held fewer items than asked for, or, where none
// was named, none.
func lost(held int64, asked int) error {
	switch {
	case asked == 0 && held == 0:
		return fmt.Errorf("nothing is left: %w", ErrLost)
	case held < int64(asked):
		return fmt.Errorf("lost %s of %s: %w", thousands(asked-int(held)), thousands(asked), ErrLost)
	}
	return nil
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

func (s *Store) checkHeld(ctx context.Context, l Lease, items []string) error {
	err := s.check(l.List, items)
	if err == nil && !uuid.MatchString(l.Token) {
		err = pg.Refuse("token", "no token of a claim, such as 0d6c4c0e-3a0f-4c55-9a53-5f7a3b0f5f0e")
	}
	if err != nil {
		return err
	}
	return s.needColumns(ctx)
}

// maxError is how much of an error is kept.
const maxError = 2000

// cleaned makes text storable: a failure must not fail.
func cleaned(text string) string {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "\ufffd"), "\x00", "\ufffd")
	if len(text) <= maxError {
		return text
	}
	end := maxError
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
