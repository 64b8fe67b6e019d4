package counters

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

//go:embed migrations/*.sql
var migrations embed.FS

var (
	// ErrNotNumber reports that a field which is to be added to, or compared with,
	// holds something that is no number.
	ErrNotNumber = fmt.Errorf("not a number: %w", fault.Invalid)
	// ErrSettings reports that the settings recorded for a table are others than
	// those of the Config: numbers would lie elsewhere.
	ErrSettings = fmt.Errorf("the table has other settings: %w", fault.Conflict)
	// ErrNoBeam reports that nothing is known of the state of a key.
	ErrNoBeam = fmt.Errorf("no such beam: %w", fault.NotFound)
)

// Config names a table and says how it counts. What is left out is what was recorded
// for the table by [Store.Setup], and where nothing was, the default.
type Config struct {
	Table         pgx.Identifier // default trifle_stats
	Mode          Mode           // of a table that Setup creates; one that exists tells its own; default Full
	Separator     string         // default ::
	Location      *time.Location // default UTC
	WeekStart     Weekday        // default Monday
	Granularities []Granularity  // default 1m 1h 1d 1w 1mo 1q 1y; each counts once
	Paths         Encoding       // default Raw
	System        System         // default Deferred

	// Striped are the names of hot metrics, which many add to at once; one that ends
	// in * stands for all that begin so, as in http::*. What Track adds to them goes to
	// one of Slots rows, so that few wait for each other. All Stores see it at once;
	// programs that read the table see it when a [Keeper], or Fold, has moved it there.
	// Names are striped half a minute after [Store.Setup] has recorded them, which it does
	// not do in a transaction; nil leaves what was recorded, an empty list ends it.
	Striped []string
	Slots   int // default 16, at most MaxSlots

	// Retention is for how long buckets are kept, of some granularities. They go when
	// they are pruned. nil leaves what was recorded, an empty one keeps all.
	Retention Retention
	// Rollup says how fields are made of those of finer buckets, where their names do
	// not: the first rule that covers a field holds. nil leaves what was recorded.
	Rollup []Rule
}

// MaxSlots is the most slots of one row.
const MaxSlots = 256

// System is how the events of all metrics are counted, in the rows of the key
// __system__key__: a field for each metric, and their number.
type System string

// The ways to keep system rows.
const (
	Deferred System = "deferred" // in slots, which somebody's Keeper has to fold: then other programs see it, too
	Sync     System = "sync"     // in the row itself, one event of a bucket after the other
	Off      System = "off"      // not at all
)

// Store is the counters of one table. It is safe for use by many goroutines.
type Store struct {
	db    pg.DB
	names pg.Names
	cfg   Config
	bad   error // what is wrong with cfg
	found *found
	own   *found // by a transaction that sees an old moment: nobody else's
	lane  uint32 // of slots, for all calls of a transaction; 0: each has its own
}

// New returns a Store on db. It never fails: a Config that cannot be is told, as
// Invalid, by every method.
func New(db pg.DB, cfg Config) *Store {
	if cfg.Table == nil {
		cfg.Table = defaultTable
	}
	s := &Store{db: db, names: namesOf(cfg.Table), cfg: cfg, found: new(found), own: new(found)}
	s.bad = errors.Join(s.names.Err(), cfg.check())
	return s
}

var defaultTable = pgx.Identifier{"trifle_stats"}

func namesOf(table pgx.Identifier) pg.Names {
	names := map[string]pgx.Identifier{"table": table}
	if last := len(table) - 1; last == 0 || last == 1 { // else the error is of the table
		names["ping"] = append(table[:last:last], table[last]+"_ping")
	}
	return pg.NewNames(names)
}

// check refuses settings that cannot be.
func (c Config) check() error {
	if c.Mode != "" && layouts[c.Mode] == nil {
		return pg.Refuse("mode", "%q; want full, partial or separated", c.Mode)
	}
	if err := pg.CheckText("separator", c.Separator); err != nil {
		return err
	}
	if c.Location == time.Local {
		return pg.Refuse("time zone", "Local, which differs from machine to machine; want a name such as Europe/Bratislava or UTC")
	}
	if c.WeekStart != "" {
		if day, err := ParseWeekday(string(c.WeekStart)); err != nil {
			return err
		} else if day != c.WeekStart {
			return pg.Refuse("week start", "%q; want %s", c.WeekStart, day)
		}
	}
	for i, g := range c.Granularities {
		if err := g.check("granularities[" + strconv.Itoa(i) + "]"); err != nil {
			return err
		}
	}
	if c.Paths != "" {
		if _, err := ParseEncoding(string(c.Paths)); err != nil {
			return err
		}
	}
	if err := c.Retention.check(); err != nil {
		return err
	}
	for i, rule := range c.Rollup {
		if err := rule.check("rollup[" + strconv.Itoa(i) + "]"); err != nil {
			return err
		}
	}
	switch c.System {
	case "", Deferred, Sync, Off:
	default:
		return pg.Refuse("system", "%q; want deferred, sync or off", c.System)
	}
	for i, name := range c.Striped {
		field := "striped[" + strconv.Itoa(i) + "]"
		if name == "" {
			return pg.Refuse(field, "empty")
		}
		if err := pg.CheckText(field, name); err != nil {
			return err
		}
	}
	if c.Slots < 0 || c.Slots > MaxSlots {
		return pg.Refuse("slots", "%d; want 1 to %d", c.Slots, MaxSlots)
	}
	return nil
}

// WithTx returns a Store that works inside tx. The caller commits. A call that is
// refused leaves tx as it was before it.
func (s *Store) WithTx(tx pgx.Tx) *Store {
	c := *s
	c.db = tx
	c.own = new(found)
	c.lane = newLane()
	return &c
}

// Migrations are the files that make what all counter tables of a database need, and
// the default table where it is missing and the role may make it. Other tables, and
// other modes, are for [Store.Setup].
func (s *Store) Migrations() pg.Migrations {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the path is a constant
	}
	return pg.Migrations{Service: "counters", About: "counters", Files: files, Names: namesOf(defaultTable)}
}

// Inc adds every number of v to its field in the rows of keys, at least one, and returns
// what it added, packed: a name for each field. Rows and fields that are missing are
// made, other fields stay. A key that is given twice is counted twice. It returns
// [ErrNotNumber], and adds nothing, where a field holds something else.
func (s *Store) Inc(ctx context.Context, keys []Key, v Values) (Values, error) {
	added, err := s.writeRows(ctx, keys, v, OpAdd)
	return added, pg.Wrap("counters: inc", err)
}

// Set puts every leaf of v, any JSON, into its field in the rows of keys, at least one,
// and returns what it put, packed. Other fields stay.
func (s *Store) Set(ctx context.Context, keys []Key, v Values) (Values, error) {
	put, err := s.writeRows(ctx, keys, v, OpPut)
	return put, pg.Wrap("counters: set", err)
}

func (s *Store) writeRows(ctx context.Context, keys []Key, v Values, op Op) (Values, error) {
	t, err := s.table(ctx)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, pg.Refuse("keys", "empty; want at least one")
	}
	rows, err := t.identify(keys)
	if err != nil {
		return nil, err
	}
	fields, err := t.paths.pack(v, op)
	if err != nil {
		return nil, err
	}
	var f fold
	for _, id := range rows {
		if err := f.take(id, fields); err != nil {
			return nil, err
		}
	}
	if err := s.write(ctx, t, &f); err != nil {
		return nil, err
	}
	return flat(fields), nil
}

// Get returns what the rows of keys hold, nested: one for each key and in their
// order, empty where there is no row.
func (s *Store) Get(ctx context.Context, keys []Key) ([]Values, error) {
	const op = "counters: get"
	t, err := s.table(ctx)
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	rows, err := t.identify(keys)
	if err != nil {
		return nil, pg.Wrap(op, err)
	}
	values := make([]Values, len(rows))
	for i := range values {
		values[i] = Values{}
	}
	u := newUnpacker(t.paths)
	err = s.read(ctx, t, rows, func(i int, data []byte) (err error) {
		values[i], err = u.unpack(data)
		return err
	})
	return values, pg.Wrap(op, err)
}
