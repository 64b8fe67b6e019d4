package counters

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// What tests look at beneath the exported names.

func (e Encoding) Pack(v Values, op Op) (Values, error) {
	fields, err := e.pack(v, op)
	return flat(fields), err
}

// PackJSON returns the objects that are sent, by operation.
func (e Encoding) PackJSON(v Values, op Op) (map[Op]string, error) {
	fields, err := e.pack(v, op)
	sent := map[Op]string{}
	for _, op := range []Op{OpAdd, OpPut, OpMax, OpMin} {
		if text := string(appendFields(nil, fields, op)); text != "{}" {
			sent[op] = text
		}
	}
	return sent, err
}

// Repack returns the object that puts values back.
func (e Encoding) Repack(v Values) (string, error) {
	fields, err := e.repack(v)
	return string(appendFields(nil, fields, OpPut)), err
}

func (e Encoding) Unpack(data string) (Values, error) { return newUnpacker(e).unpack([]byte(data)) }

func (e Encoding) ParsePath(text string) (segments []string, wild []bool, rendered string) {
	p := e.parsePath(text)
	return p.segments, p.wild, e.render(p)
}

func (e Encoding) Encode(segment string) string { return e.encode(segment) }
func (e Encoding) Split(stored string) []string { return e.split(stored) }

var (
	DefaultGranularities = defaultGranularities

	FullKey      = fullKey
	SplitFull    = splitFull
	SplitPartial = splitPartial
	BucketOf     = bucketOf
	RegisterOf   = registerOf
	StoredNumber = storedNumber
	ParseJSON    = parseJSON
)

func (n Number) Sub(m Number) Number { return n.sub(m) }
func (n Number) Mul(m Number) Number { return n.mul(m) }
func (n Number) Quo(m Number) Number { return n.quo(m) }
func (n Number) Sqrt() Number        { return n.sqrt() }

func (k Key) Join(separator string) string { return k.join(separator) }

// Estimate estimates the number of n members with hashes.
func Estimate(n int, hash func() uint64) uint64 {
	var s sketch
	for range n {
		i, rank := split(hash())
		s[i] = max(s[i], uint8(rank))
	}
	return s.estimate()
}

// WriterOf returns a Writer whose transactions carry at most so many calls.
func WriterOf(s *Store, cfg WriterConfig, calls int) *Writer { return newWriter(s, cfg, calls) }

// Gather lets calls share transactions, the first of which begins when Run does.
func (w *Writer) Gather() { w.running.Store(true) }

func (s *Store) DropReceipts(ctx context.Context) error { return s.dropReceipts(ctx) }

// Statement is what one statement of a fold does to rows.
type Statement struct {
	Op   Op
	Keys []string
	Data []string
}

// Fold is a fold of the events of a table that nobody asked a database about.
type Fold struct {
	t table
	f fold
}

// NewFold returns a Fold of a table with days, of which it is known
// where something is no number.
func NewFold(system System, stored map[string]map[string]any) *Fold {
	f := &Fold{t: table{layout: layouts[Full], mode: Full, separator: "::", calendar: Calendar{}, granularities: []Granularity{"1d"}, paths: Raw, system: system, recent: new(recent)}}
	for key, leaves := range stored {
		if f.f.stored == nil {
			f.f.stored = map[rowID]map[string]any{}
		}
		f.f.stored[rowID{key: key}] = leaves
	}
	return f
}

// Take takes events, all or none.
func (f *Fold) Take(events ...Event) error {
	all := make([]prepared, len(events))
	for i, e := range events {
		w, err := f.t.writes(e)
		if err != nil {
			return err
		}
		all[i] = prepared{e, w}
	}
	_, err := f.f.all(all)
	return err
}

// Statements returns the statements that write the fold.
func (f *Fold) Statements() (all []Statement) {
	s := New(nil, Config{})
	for _, q := range s.batch(&f.t, &f.f).QueuedQueries {
		for _, op := range ops {
			if q.SQL == s.names.SQL(f.t.upsert(op)) {
				all = append(all, Statement{op, q.Arguments[0].([]string), q.Arguments[1].([]string)})
			}
		}
	}
	return all
}

// Running reports whether calls share transactions.
func (w *Writer) Running() bool { return w.running.Load() }

// Span returns the instants that share the start of at's bucket.
func (c Calendar) Span(g Granularity, at int64) (from, to int64) {
	r, _ := c.rule(g)
	return r.span(at)
}

// Age makes what was found of the table older.
func (s *Store) Age(d time.Duration) {
	s.found.mu.Lock()
	defer s.found.mu.Unlock()
	s.found.looked = s.found.looked.Add(-d)
}

// Pool is what the store is on.
func (s *Store) Pool() *pgxpool.Pool { return s.db.(*pgxpool.Pool) }

// Gather is gather of rows by their keys.
func (s *Store) Gather(ctx context.Context, tx pg.DB, keys ...Key) error {
	t, err := s.table(ctx)
	if err != nil {
		return err
	}
	rows, err := t.identify(keys)
	if err != nil {
		return err
	}
	_, err = s.gather(ctx, tx, t, rows...)
	return err
}

func (s *Store) FoldRow(ctx context.Context, key Key) error {
	t, err := s.table(ctx)
	if err != nil {
		return err
	}
	rows, err := t.identify([]Key{key})
	if err == nil {
		_, err = s.foldRow(ctx, t, rows[0])
	}
	return err
}

func (s *Store) WaitingKeys(ctx context.Context) ([]string, error) {
	t, err := s.table(ctx)
	if err != nil {
		return nil, err
	}
	keys, _, err := s.waitingKeys(ctx, t, "")
	return keys, err
}

func (s *Store) Turn(ctx context.Context, name string, every time.Duration) (bool, error) {
	mine, err := s.turn(ctx, task{name: name, every: every})
	return mine != nil, err
}

// FailTurn has a turn, and gives it back on the way out.
func (s *Store) FailTurn(ctx context.Context, name string, every time.Duration) (bool, error) {
	mine, err := s.turn(ctx, task{name: name, every: every})
	if mine != nil {
		out, cancel := context.WithCancel(ctx)
		cancel()
		mine.giveBack(out)
	}
	return mine != nil, err
}

// EndTurn has a turn, and does what it is for.
func (s *Store) EndTurn(ctx context.Context, name string, every time.Duration) (bool, error) {
	mine, err := s.turn(ctx, task{name: name, every: every})
	if mine != nil {
		mine.done(ctx)
	}
	return mine != nil, err
}

func OfTheServer(err error) bool { return ofTheServer(err) }

// HeadsOf returns the granularities in which there are rows of a metric.
func (s *Store) HeadsOf(ctx context.Context, name string) (all []Granularity, err error) {
	t, err := s.table(ctx)
	if err != nil {
		return nil, err
	}
	heads, err := s.headsOf(ctx, t, name)
	for _, h := range heads {
		all = append(all, h.g)
	}
	return all, err
}
