package counters

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// What is added to a hot row goes to one of its slots, which are rows of
// howdah.counter_slots, and from there to the row when it is folded. Whoever reads the
// row adds up what its slots hold, in the same statement, so that what is folded
// meanwhile is seen once.
//
// Locks are taken in one order: rows in that of order.go, then slots of metrics by theirs,
// then slots of system rows. Who folds holds the row first, and passes over slots that
// others hold: with a slot in hand it waits for nobody. Several calls in one transaction
// each begin anew, and may therefore meet others in a circle: so do an Import and an
// ApplyAll of more than they write at a time.

// striping says which rows have slots.
type striping struct {
	striped      []string  // names, and with a * beginnings of names
	stripedSince time.Time // when everybody has come to know them
	everStriped  []string  // those that are or were: there may be slots
	slots        int       // of each row
}

// How many slots a row has. One of the system, which has a field for each metric, has
// so many that they stay narrow. Rows must be able to read all of a row in one part.
const (
	defaultSlots = 16
	systemSlots  = 512
)

// stripe fills in what holds of slots. What is striped is what was recorded, or others
// would not know where to look; a Config only changes that.
func (t *table) stripe(cfg Config, r *record) {
	t.striped, t.everStriped = distinct(r.Striped), distinct(r.Striped)
	for name := range r.EverStriped {
		t.everStriped = append(t.everStriped, name)
	}
	t.slots = either(cfg.Slots, r.Slots, defaultSlots)
	ago := time.Duration((r.now - r.StripedAt) * float64(time.Second))
	t.stripedSince = time.Now().Add(3*fresh - ago)
}

// distinct returns names in order, each once.
func distinct(names []string) []string {
	return slices.Compact(append([]string{}, slices.Sorted(slices.Values(names))...))
}

// matches reports whether name is one of patterns, or begins as one with a *.
func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		beginning, ok := strings.CutSuffix(pattern, "*")
		return pattern == name || ok && strings.HasPrefix(name, beginning)
	})
}

// spreads reports whether what is added to a metric goes to slots.
func (t *table) spreads(name string) bool {
	return t.migrated && matches(t.striped, name) && time.Now().After(t.stripedSince)
}

// slotted reports whether there may be slots of a metric.
func (t *table) slotted(name string) bool {
	return t.migrated && (name == systemKey || matches(t.everStriped, name))
}

// slottedRow reports whether there may be slots of a row.
func (t *table) slottedRow(id rowID) bool {
	if !t.migrated || len(t.everStriped) == 0 && !strings.HasPrefix(id.key, systemKey) {
		return false
	}
	name, ok := id.key, true
	switch t.mode {
	case Full:
		name, _, _, ok = splitFull(t.separator, id.key)
	case Partial:
		name, _, ok = splitPartial(t.separator, id.key)
	}
	return ok && t.slotted(name)
}

// slottedRows are those of rows of which there may be slots: their numbers, from 1, and
// the keys of the slots.
func (t *table) slottedRows(rows []rowID) (n []int64, keys []string) {
	for i, id := range rows {
		if t.slottedRow(id) {
			n, keys = append(n, int64(i+1)), append(keys, t.full(id))
		}
	}
	return n, keys
}

// full returns the key of a row as its slots have it.
func (t *table) full(id rowID) string {
	switch t.mode {
	case Separated:
		return fullKey(t.separator, id.key, Granularity(id.granularity), id.at)
	case Partial:
		return id.key + t.separator + strconv.FormatInt(id.at, 10)
	}
	return id.key
}

// rowOf returns the row of slots with this key, false where it is the key of none.
func (t *table) rowOf(key string) (id rowID, ok bool) {
	if t.mode == Full {
		return rowID{key: key}, true
	}
	name, g, at, ok := splitFull(t.separator, key)
	if !ok {
		return id, false
	}
	id, problem := t.bucket(name, g, at)
	return id, problem == ""
}

// bySlots returns rows in the order in which their slots are locked, and the keys of
// those. The system's come last, so that who folds a metric may still defer the system's.
func (t *table) bySlots(rows []rowID) (ids []rowID, keys []string) {
	at := make(map[string]rowID, len(rows))
	for _, id := range rows {
		at[t.full(id)] = id
	}
	keys = slices.SortedFunc(maps.Keys(at), func(a, b string) int {
		switch {
		case t.ofSystem(a) == t.ofSystem(b):
			return strings.Compare(a, b)
		case t.ofSystem(a):
			return 1
		}
		return -1
	})
	for _, key := range keys {
		ids = append(ids, at[key])
	}
	return ids, keys
}

func (t *table) ofSystem(key string) bool { return strings.HasPrefix(key, systemKey+t.separator) }

// toSlots lets rows have what is added to them in slots.
func (f *fold) toSlots(rows []rowID) {
	if f.spread == nil {
		f.spread = map[rowID]bool{}
	}
	for _, id := range rows {
		f.spread[id] = true
	}
}

// spread takes from f the rows whose slots get what is added, and returns them and the
// rest of f, with those of the rest whose slots have to be folded first: they are
// written to otherwise than by adding. Where there are any, the metrics' rows get all
// themselves: what is folded and what is deferred would be locked in no order.
func (t *table) spread(f *fold) (rest *fold, spread, first []rowID) {
	system := false
	for id, row := range f.rows {
		switch {
		case !row.onlyAdds():
			if t.slottedRow(id) {
				first = append(first, id)
				system = system || t.ofSystem(t.full(id))
			}
		case f.spread[id]:
			spread = append(spread, id)
		}
	}
	if len(first) > 0 {
		spread = slices.DeleteFunc(spread, func(id rowID) bool { return system || !t.ofSystem(t.full(id)) })
	}
	if len(spread) == 0 {
		return f, nil, first
	}
	rest = &fold{rows: maps.Clone(f.rows)}
	for _, id := range spread {
		delete(rest.rows, id)
	}
	return rest, spread, first
}

func (r *rowFold) onlyAdds() bool {
	return len(r.rounds) == 1 && !slices.ContainsFunc(r.rounds[0].fields, func(f field) bool { return f.op != OpAdd })
}

// fill adds what f adds to rows to one slot of each, and to that of one number: two calls
// then meet in one of so many, however many rows they have in common.
func (s *Store) fill(b *pgx.Batch, t *table, f *fold, rows []rowID) {
	if len(rows) == 0 {
		return
	}
	slot := s.lane
	if slot == 0 {
		slot = rand.Uint32()
	}
	rows, keys := t.bySlots(rows)
	slots, data := make([]int16, len(rows)), make([]string, len(rows))
	for i, id := range rows {
		if t.ofSystem(keys[i]) {
			slots[i] = int16(slot % systemSlots)
		} else {
			slots[i] = int16(slot % uint32(t.slots))
		}
		data[i] = string(appendFields(nil, f.rows[id].rounds[0].fields, OpAdd))
	}
	b.Queue(`
		INSERT INTO howdah.counter_slots AS t (tbl, key, slot, data)
		SELECT $1, key, slot, data
		FROM unnest($2::text[], $3::smallint[], $4::jsonb[]) AS k(key, slot, data)
		ON CONFLICT (tbl, key, slot) DO UPDATE
		SET data = `+merges[OpAdd]+`
		WHERE EXCLUDED.data <> '{}'`, t.name, keys, slots, data)
}

// gathered is what was in slots that the transaction now holds.
type gathered struct {
	sums  fold
	keys  []string // of the slots
	slots []int16
}

// Whether who gathers waits for the slots that others hold.
const (
	waiting = "FOR UPDATE OF s"
	passing = "FOR UPDATE OF s SKIP LOCKED"
)

// hold locks rows, which are in order, and makes those that are missing; then the slots
// of those of them that are first. Who writes what does not commute with additions must
// wait for slots: one that is passed over may hold what was committed before.
func (s *Store) hold(ctx context.Context, tx pg.DB, t *table, rows, first []rowID, how string) (g gathered, err error) {
	first, keys := t.bySlots(first)
	nothing := make([]string, len(rows))
	for i := range nothing {
		nothing[i] = "{}"
	}
	b := new(pgx.Batch)
	b.Queue(s.names.SQL(t.upsert(OpAdd)), append(t.args(rows), nothing)...)
	b.Queue(`
		SELECT k.n, s.slot, s.data
		FROM unnest($2::text[]) WITH ORDINALITY AS k(key, n)
		JOIN howdah.counter_slots s ON s.key = k.key AND s.tbl = $1
		ORDER BY k.n, s.slot
		`+how, t.name, keys).Query(func(found pgx.Rows) error {
		var n int64
		var slot int16
		var data []byte
		_, err := pgx.ForEachRow(found, []any{&n, &slot, &data}, func() error {
			g.keys, g.slots = append(g.keys, keys[n-1]), append(g.slots, slot)
			fields, err := storedFields(data)
			if err != nil {
				return err
			}
			return g.sums.take(first[n-1], fields)
		})
		return err
	})
	err = tx.SendBatch(ctx, b).Close()
	return g, err
}

// after returns the statements of f after what the slots of first hold.
func (s *Store) after(ctx context.Context, tx pg.DB, t *table, f *fold, first []rowID) (b *pgx.Batch, err error) {
	g, err := s.hold(ctx, tx, t, f.sorted(), first, waiting)
	if err != nil {
		return nil, err
	}
	all := &g.sums
	for id, row := range f.rows {
		if sums := all.rows[id]; sums != nil {
			for near, later := range row.rounds[0].fields {
				if i := sums.rounds[0].find(later.path, near); i >= 0 && later.op == OpPut { // whatever was there, even what nothing can be added to
					sums.rounds[0].drop(i)
				}
			}
		}
		for _, round := range row.rounds {
			if err := all.take(id, round.fields); err != nil {
				return nil, err
			}
		}
	}
	b = s.batch(t, all)
	g.empty(b, t)
	return b, nil
}

// storedFields are the additions that a slot holds.
func storedFields(data []byte) ([]field, error) {
	stored, err := parseJSON(data, false)
	if err != nil {
		return nil, err
	}
	object, _ := stored.(Values)
	fields := make([]field, 0, len(object))
	for path, leaf := range object {
		n, _ := leaf.(Number)
		fields = append(fields, field{path: path, op: OpAdd, number: n})
	}
	return fields, nil
}

// empty deletes the slots that were gathered.
func (g *gathered) empty(b *pgx.Batch, t *table) {
	if len(g.keys) > 0 {
		b.Queue(`
			DELETE FROM howdah.counter_slots s
			USING unnest($2::text[], $3::smallint[]) AS k(key, slot)
			WHERE s.key = k.key AND s.tbl = $1 AND s.slot = k.slot`, t.name, g.keys, g.slots)
	}
}

// gather adds to rows what their slots hold, of which it returns the keys, and holds both
// until tx ends: a row then has all that was added to it, but for what commits later.
// Whoever renames rows that may have slots (slottedRow) gathers first, who deletes or
// overwrites them discards. It waits for those who are adding.
//
// Where one of rows has slots, all are locked, and made where they are missing. Rows
// that tx is going to lock beside them are locked before: it must not wait for one
// while it holds slots.
func (s *Store) gather(ctx context.Context, tx pg.DB, t *table, rows ...rowID) (keys []string, err error) {
	g, err := s.held(ctx, tx, t, rows)
	if err != nil || len(g.keys) == 0 {
		return nil, err
	}
	b := s.batch(t, &g.sums)
	g.empty(b, t)
	return g.keys, s.explain(ctx, t, &g.sums, tx.SendBatch(ctx, b).Close())
}

// discard is gather for whoever has no use for what the slots hold: it goes, also where
// it could not be added.
func (s *Store) discard(ctx context.Context, tx pg.DB, t *table, rows ...rowID) (keys []string, err error) {
	g, err := s.held(ctx, tx, t, rows)
	if err != nil || len(g.keys) == 0 {
		return nil, err
	}
	b := new(pgx.Batch)
	g.empty(b, t)
	return g.keys, tx.SendBatch(ctx, b).Close()
}

// held locks rows and their slots, where there are any.
func (s *Store) held(ctx context.Context, tx pg.DB, t *table, rows []rowID) (g gathered, err error) {
	if !t.migrated {
		return g, nil
	}
	_, keys := t.bySlots(rows)
	var some bool
	err = tx.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT
			FROM howdah.counter_slots
			WHERE key = ANY ($2) AND tbl = $1)`, t.name, keys).Scan(&some)
	if err != nil || !some {
		return g, err
	}
	rows = inOrder(slices.Values(rows))
	return s.hold(ctx, tx, t, rows, rows, waiting)
}

// parts adds up what comes of each row, its own data and that of its slots, one after
// the other, and calls have with each sum.
type parts[K comparable] struct {
	have func(at K, data []byte) error
	at   K
	data [][]byte
}

func (p *parts[K]) add(at K, data []byte) error {
	if at != p.at {
		if err := p.end(); err != nil {
			return err
		}
	}
	p.at, p.data = at, append(p.data, data)
	return nil
}

func (p *parts[K]) end() error {
	if len(p.data) == 0 {
		return nil
	}
	data, err := addUp(p.data)
	p.data = p.data[:0]
	if err != nil {
		return err
	}
	return p.have(p.at, data)
}

// newLane returns the number of a slot of each row.
func newLane() uint32 { return rand.Uint32() | 1<<31 }

// addUp adds up what a row and its slots hold. A field of the row to which nothing can
// be added stays as it is.
func addUp(parts [][]byte) ([]byte, error) {
	if len(parts) == 1 {
		return parts[0], nil
	}
	sum := Values{}
	for _, data := range parts {
		read, err := parseJSON(data, false)
		if err != nil {
			return nil, err
		}
		object, _ := read.(Values)
		for path, leaf := range object {
			there, ok := sum[path]
			n, isNumber := storedNumber(leaf)
			m, wasNumber := storedNumber(there)
			switch {
			case !ok || there == nil, wasNumber && !isNumber && leaf != nil:
				sum[path] = leaf
			case wasNumber && isNumber:
				sum[path] = m.Add(n)
			}
		}
	}
	text, problem := appendJSON(nil, sum, 0)
	if problem != "" {
		return nil, errors.New(problem)
	}
	return text, nil
}
