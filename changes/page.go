package changes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// MaxPage is the most changes of one page.
const MaxPage = 1000

// maxCommits and maxChanges are how many commits one page looks at, and how many
// changes where it has a filter: one that lets nothing through must not read the whole
// log in one statement, nor all of a transaction, however large. Of a large one so many
// are fetched before the filter has seen one: more would slow down those who want them all.
//
// pageBytes is what a page holds of keys and rows, of which the last may be beyond it: a
// thousand changes can be a gigabyte. Two such pages have room in the ring of a [Tail].
const (
	maxCommits = 10_000
	maxChanges = 2 * MaxPage
	pageBytes  = ringBytes / 2
)

// Filter says which changes are wanted; the server applies it. The zero Filter
// lets everything through.
type Filter struct {
	Patterns []Pattern       // any of them matches; none = every table and topic
	Ops      []Op            // none = every operation
	Match    json.RawMessage // a JSON object that new or old contains; nil = any

	share share // of a shard of a consumer
}

// share is what of the feed a shard of a consumer is handed: the lanes that fall to
// it, and what is about a whole table. The zero share is all of the feed.
type share struct {
	shard, shards int
	except        string // what has been through this consumer is not shown; "" = all is
	until         int64  // the last commit that is looked at; 0 = none
}

// Page returns up to n changes that follow after, and the position to go on from,
// which moves on even where the filter lets nothing through. The feed has ended,
// for now, where the position returned is the one given: all that had committed
// before the call lies before it. In a transaction and on a standby, only what
// was numbered there is shown.
//
// With a filter a page looks at a limited number of changes, 2,000 or a few more, and may
// have none. What is let through of a transaction comes together if it fits into that; else
// the last of it may not be marked as such.
//
// A page ends early where its changes are large: behind about 8 MiB of them.
//
// n is from 1 to [MaxPage]. It returns ErrExpired or ErrAhead where the position
// is not in the feed any more or not yet.
func (l *Log) Page(ctx context.Context, after Position, n int, f Filter) ([]Change, Position, error) {
	const op = "changes: page"
	if n < 1 || n > MaxPage {
		return nil, after, pg.Wrap(op, pg.Refuse("limit", "%d; want 1 to %d", n, MaxPage))
	}
	if err := f.check(); err != nil {
		return nil, after, pg.Wrap(op, err)
	}
	page, next, err := l.newest(ctx, after, n, f)
	if err != nil {
		return nil, after, pg.Wrap(op, err)
	}
	return page, next, nil
}

// newest reads a page as [Log.page] does; at the end of what is numbered it first
// numbers what has committed meanwhile. Where another is at that, it waits: the
// other may have begun too early.
func (l *Log) newest(ctx context.Context, after Position, n int, f Filter) ([]Change, Position, error) {
	page, next, more, err := l.page(ctx, after, n, f)
	if err != nil || len(page) > 0 || more || next.Commit != after.Commit || pg.InTx(l.db) {
		return page, next, err
	}
	head, err := l.tick(ctx, true)
	if err != nil && !readOnly(err) {
		return nil, after, err
	}
	if err == nil && *head == after.Commit {
		return page, next, nil
	}
	page, next, _, err = l.page(ctx, after, n, f)
	return page, next, err
}

// readOnly: a standby shows what was numbered and has arrived.
func readOnly(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "25006" || errors.As(err, &pgErr) && pgErr.Code == "55000"
}

// page reads up to n changes of what is numbered, where to go on from, and whether
// more of them are known to follow.
func (l *Log) page(ctx context.Context, after Position, n int, f Filter) (page []Change, next Position, more bool, err error) {
	err = pg.Retry(ctx, l.db, func() error {
		page, next, more, err = l.readPage(ctx, after, n, f)
		return err
	})
	return page, next, more, err
}

func (l *Log) readPage(ctx context.Context, after Position, n int, f Filter) (page []Change, next Position, more bool, err error) {
	var head, floor, upTo int64
	var cut *Position // where the page ends before all of the commits have been looked at
	var lost []int64  // the bounds of the lost history that after is in; nil = it is in none
	var batch pgx.Batch
	inTx := pg.InTx(l.db)
	if inTx {
		batch.Queue(kept)
	}
	// Where the last commit looked at would lie between two eras, it is the first
	// of the later one: a position in a lost history is none to go on from.
	until := after.Commit + min(maxCommits-1, math.MaxInt64-after.Commit)
	if f.share.until > 0 {
		until = min(until, f.share.until)
	}
	batch.Queue(`
		SELECT n, (SELECT ARRAY[head, first] FROM howdah.change_era WHERE head < $1::bigint AND first > $1::bigint
				AND $1::bigint <> (SELECT s.floor FROM howdah.change_state s)), -- where a rebase left off
			coalesce((SELECT first FROM howdah.change_era WHERE head < $2::bigint AND first > $2::bigint), $2::bigint), `+planned+`
		FROM howdah.change_tick
		ORDER BY tick DESC
		LIMIT 1`, after.Commit, until).
		QueryRow(func(row pgx.Row) error { return row.Scan(&head, &lost, &upTo, nil) })
	statement, args := l.statement(after, n, until, f)
	batch.Queue(statement, args...).
		Query(func(rows pgx.Rows) (err error) {
			page, cut, err = collect(rows, n, l.bytes, after)
			if large := sizeOf(page) >= l.bytes/2; large || err == nil && n >= MaxPage { // also of one that is cut off: the next takes less
				l.looks.large.Store(large)
			}
			return err
		})
	// Retention truncates, which no snapshot shields from: the floor is read after
	// the page, from where no snapshot shields it either, and a page that it has
	// reached is not whole.
	batch.Queue(`SELECT greatest(s.floor, CASE WHEN f.is_called THEN f.last_value ELSE 0 END) FROM howdah.change_state s, howdah.change_floor f`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&floor) })
	if inTx {
		batch.Queue(replanned)
	}
	if err := l.db.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, after, false, err
	}
	switch {
	case after.Commit < floor, after.Commit == floor && after.ID != 0 && floor > 0:
		return nil, after, false, fmt.Errorf("%s is before %d, where the feed begins now: %w", after, floor, ErrExpired)
	case lost != nil:
		return nil, after, false, inGap(after, lost)
	case after.Commit > head:
		return nil, after, false, fmt.Errorf("%s is behind %d, where the feed ends: %w", after, head, ErrAhead)
	}
	if cut != nil {
		return page, *cut, true, nil
	}
	// All of the commits looked at: go on after the last of them.
	next = Position{Commit: min(head, upTo)}
	if len(page) > 0 {
		next.Commit = max(next.Commit, page[len(page)-1].Position.Commit)
	}
	return page, next, false, nil
}

// statement reads one change more than n, which tells which is the last of its commit,
// of those that follow after up to the commit until. With a filter it looks at no more
// than so many, and returns the last of these even if the filter does not let it through:
// looked, which is NULL of all others, is whether it does.
func (l *Log) statement(after Position, n int, until int64, f Filter) (sql string, args []any) {
	conditions, args := f.where(after.Commit, after.within(), n+1, until, l.bytes)
	if conditions == "" {
		return l.changesOf(`
		SELECT c.n, l.*, NULL::boolean AS looked
		FROM ` + follows("$3")), args
	}
	args = append(args, max(l.scan, n+1))
	most := "$" + strconv.Itoa(len(args))
	return l.changesOf(`
		SELECT l.*, CASE WHEN nth = ` + most + `::int THEN coalesce(true` + conditions + `, false) END AS looked
		FROM (
			SELECT c.n, l.*, row_number() OVER (ORDER BY c.n, l.id) AS nth
			FROM ` + follows(most) + `) l
		WHERE nth = ` + most + `::int OR (true` + conditions + `)
		ORDER BY n, l.id
		LIMIT $3::int`), args
}

// changesOf is a statement of the changes of another, in order. Where the last page was
// large, it has nothing of the rows of those beyond what fills a page with $5 bytes, as
// they are stored: they would be fetched and sent for each page anew. To add these up takes
// a fifth as long as the rest, so that it is not done for nothing.
func (l *Log) changesOf(some string) string {
	beyond := `$5::bigint < 0`
	if l.looks.large.Load() {
		beyond = `coalesce(sum(coalesce(pg_column_size(old), 0) + coalesce(pg_column_size(new), 0))
				OVER (ORDER BY n, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) >= $5::bigint`
	}
	return `
		SELECT n, id, op::text, schema_name, table_name, key, CASE WHEN NOT beyond THEN old END, CASE WHEN NOT beyond THEN new END,
			at, xid::text, coalesce(origin, ''), meta, trimmed, missing, looked, beyond
		FROM (
			SELECT *, ` + beyond + ` AS beyond
			FROM (` + some + `) s) l
		ORDER BY n, id`
}

// follows is what follows change $2 of commit $1, up to commit $4: so many changes l, in
// order. Without a limit for each commit all of a large one would be sorted.
func follows(most string) string {
	return `howdah.change_commit c
		CROSS JOIN LATERAL (
			SELECT *
			FROM howdah.change l
			WHERE l.xid = c.xid AND l.slot = c.slot
				AND l.id > CASE WHEN c.n = $1::bigint THEN $2::bigint ELSE 0 END
			ORDER BY l.id
			LIMIT ` + most + `::int) l
		WHERE c.n >= $1::bigint
			AND c.n <= coalesce((SELECT first FROM howdah.change_era WHERE head < $4::bigint AND first > $4::bigint), $4::bigint)
		ORDER BY c.n, l.id
		LIMIT ` + most + `::int`
}

// inGap says between which commits a position lies that belongs to a lost history.
func inGap(p Position, bounds []int64) error {
	return fmt.Errorf("%s is between %d and %d, where the feed went on after a failover, a restore or a rebase: %w", p, bounds[0], bounds[1], ErrAhead)
}

// To plan for every leaf takes as long as to read a page, and the plan that is kept
// must suit leaves that were empty when it was made, and large transactions, which
// with statistics of them would be sorted whole for each page: by the index, in its
// order. A caller's transaction gets back what it had; a batch outside of one is its own.
const (
	kept = `
		SELECT set_config('howdah.plan', concat_ws(' ', current_setting('plan_cache_mode'), current_setting('enable_seqscan'), current_setting('enable_sort'), current_setting('jit')), true)`
	planned = `
			concat(set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
				set_config('enable_sort', 'off', true), set_config('jit', 'off', true))`
	replanned = `
		SELECT set_config('plan_cache_mode', p[1], true), set_config('enable_seqscan', p[2], true), set_config('enable_sort', p[3], true), set_config('jit', p[4], true)
		FROM string_to_array(coalesce(nullif(current_setting('howdah.plan', true), ''), 'auto on on on'), ' ') AS p`
)

// byIndexes runs a statement that is planned as a page is: to compile one about so many
// parts takes a second, and to sort what follows in the feed as long as to read it all.
func byIndexes(ctx context.Context, db pg.DB, rows func(pgx.Rows) error, sql string, args ...any) error {
	return having(ctx, db, planned, rows, sql, args...)
}

// uncompiled runs a statement about the catalogs, of which the planner thinks that there is
// much to be found: to compile it would take a second, too.
func uncompiled(ctx context.Context, db pg.DB, rows func(pgx.Rows) error, sql string, args ...any) error {
	return having(ctx, db, `set_config('jit', 'off', true)`, rows, sql, args...)
}

// having runs a statement with settings that end with it.
func having(ctx context.Context, db pg.DB, settings string, rows func(pgx.Rows) error, sql string, args ...any) error {
	var batch pgx.Batch
	inTx := pg.InTx(db)
	if inTx {
		batch.Queue(kept)
	}
	batch.Queue(`SELECT ` + settings)
	batch.Queue(sql, args...).Query(rows)
	if inTx {
		batch.Queue(replanned)
	}
	return db.SendBatch(ctx, &batch).Close()
}

// collect reads up to n changes of about so many bytes, and one more, which only tells
// whether the last is the last of its commit. They are made while the server looks for those that follow.
// cut is where to go on from if that is not behind all that was to be looked at.
func collect(rows pgx.Rows, n, most int, after Position) (page []Change, cut *Position, err error) {
	page = []Change{}
	var l line
	var looked *bool // of the last that is looked at: it is let through
	var beyond, full bool
	size := 0
	// Each row is scanned into the same places: by reflection into new ones it
	// takes half as long again.
	into := []any{&l.N, &l.ID, &l.Op, &l.Schema, &l.Table, &l.Key, &l.Old, &l.New, &l.At, &l.XID, &l.Origin, &l.Meta, &l.Trimmed, &l.Missing, &looked, &beyond}
	_, err = pgx.ForEachRow(rows, into, func() error {
		if full {
			return nil
		}
		before := len(page) - 1
		if before >= 0 {
			page[before].Last = page[before].Position.Commit != l.N
		} else {
			page = make([]Change, 0, n)
		}
		through := looked == nil || *looked
		if full = through && (len(page) == n || beyond || size >= most); through && !full {
			page = append(page, l.change())
			size += page[before+1].size()
		}
		return nil
	})
	switch {
	case full:
		cut = &page[len(page)-1].Position
	case looked != nil:
		page, cut = whole(page, Position{l.N, l.ID}, after)
	case len(page) > 0:
		page[len(page)-1].Last = true
	}
	return page, cut, err
}

// whole leaves out of a page that ends at cut what it has of the transaction in which that
// is, so that the next page begins with it. One that has begun with it ends at cut.
func whole(page []Change, cut, after Position) ([]Change, *Position) {
	first := slices.IndexFunc(page, func(c Change) bool { return c.Position.Commit == cut.Commit })
	if first >= 0 {
		before := Position{cut.Commit, page[first].Position.ID - 1}
		if before.ID > 0 && before.Compare(after) > 0 {
			return page[:first], &before
		}
	}
	return page, &cut
}

// where returns what a filter asks of a change l, and args with its values behind
// them. What it does not ask is left out: for each row of a page it would take as
// long as to fetch it. It is empty where that is all.
func (f Filter) where(args ...any) (conditions string, _ []any) {
	arg := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	if !f.namesAll() {
		var schemas, tables, ops []string
		var prefixes []bool
		for _, p := range f.Patterns {
			schemas, tables, prefixes, ops = append(schemas, p.schema), append(tables, p.table), append(prefixes, p.prefix), append(ops, codes(p.ops))
		}
		conditions += `
				AND EXISTS (
					SELECT FROM unnest(` + arg(schemas) + `::text[], ` + arg(tables) + `::text[], ` + arg(prefixes) + `::boolean[], ` + arg(ops) + `::text[]) AS p(schema_name, table_name, prefix, ops)
					WHERE (p.schema_name = '' OR p.schema_name = l.schema_name)
						AND (p.table_name = '' OR CASE WHEN p.prefix THEN starts_with(l.table_name, p.table_name) ELSE p.table_name = l.table_name END)
						AND (p.ops = '' OR strpos(p.ops, l.op::text) > 0))`
	}
	if len(f.Ops) > 0 {
		conditions += `
				AND strpos(` + arg(codes(f.Ops)) + `::text, l.op::text) > 0`
	}
	if f.Match != nil {
		match := arg(string(f.Match))
		conditions += `
				AND (l.new @> ` + match + `::jsonb OR l.old @> ` + match + `)`
	}
	if f.share.shards > 1 {
		conditions += `
				AND (l.op = 't' OR abs(howdah.change_lane(l.schema_name, l.table_name, l.key) % ` + arg(f.share.shards) + `::int) = ` + arg(f.share.shard) + `::int)`
	}
	if f.share.except != "" {
		conditions += `
				AND (l.origin IS NULL OR strpos(',' || l.origin || ',', ',' || ` + arg(f.share.except) + `::text || ',') = 0)`
	}
	return conditions, args
}

// namesAll reports whether no table or operation is left out by its patterns.
func (f Filter) namesAll() bool {
	return len(f.Patterns) == 0 || slices.ContainsFunc(f.Patterns, func(p Pattern) bool { return p.schema == "" && p.table == "" && len(p.ops) == 0 })
}

func codes(some []Op) (text string) {
	for _, op := range some {
		text += op.code()
	}
	return text
}

func (f Filter) check() error {
	for _, op := range f.Ops {
		if !slices.Contains(ops, op) {
			return pg.Refuse("op", "%q; want insert, update, delete, truncate, read or message", op)
		}
	}
	if f.Match == nil {
		return nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(f.Match, &object); err != nil || object == nil {
		return pg.Refuse("match", "%.100q; want a JSON object", f.Match)
	}
	return checkJSON("match", f.Match)
}
