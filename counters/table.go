package counters

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/pg"
)

// Mode is how a table tells its buckets apart: by its columns.
type Mode string

// The modes.
const (
	Full      Mode = "full"      // key: orders::1h::1746522000
	Partial   Mode = "partial"   // key, at: orders::1h, 2025-05-06 09:00
	Separated Mode = "separated" // key, granularity, at: orders, 1h, 2025-05-06 09:00
)

// Settings are what is known of a table. All but the mode and the granularities say
// where in it a number lies, and never change.
type Settings struct {
	Table         string        `json:"table"`
	Mode          Mode          `json:"mode"`
	TimeZone      string        `json:"time_zone"`
	WeekStart     Weekday       `json:"week_start"`
	Separator     string        `json:"separator"`
	Paths         Encoding      `json:"paths"`
	Granularities []Granularity `json:"granularities"`
	System        System        `json:"system"`
	Recorded      bool          `json:"recorded"` // by Setup; else a program without these settings would take the defaults
}

// table is what a look at the table found, and the settings that hold.
type table struct {
	*layout
	name          string // schema and name, quoted
	mode          Mode
	bytewise      bool // an index has the keys in the order of their bytes
	ping          bool // there is a ping table
	separator     string
	calendar      Calendar
	granularities []Granularity
	paths         Encoding
	system        System
	recorded      *record
	recent        recent
}

// record is a row of howdah.counter_tables.
type record struct {
	TimeZone      string        `json:"time_zone"`
	WeekStart     Weekday       `json:"week_start"`
	Separator     string        `json:"separator"`
	Paths         Encoding      `json:"paths"`
	Granularities []Granularity `json:"granularities"`
	System        System        `json:"system"`
}

// found is the table once it was looked at; it is shared by a store's copies.
type found struct {
	mu    sync.Mutex
	table *table
}

func (f *found) get() *table {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.table
}

func (f *found) set(t *table) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.table = t
}

// table returns the table. It looks once; one that is missing is Invalid.
func (s *Store) table(ctx context.Context) (*table, error) {
	if s.bad != nil {
		return nil, s.bad
	}
	if t := s.found.get(); t != nil {
		return t, nil
	}
	t, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, pg.Refuse("table", "there is no %s; howdah migrate makes the default one, howdah counters setup any", s.cfg.Table.Sanitize())
	}
	s.found.set(t)
	return t, nil
}

// look asks the catalogs, and then for the record where there are records; nil where
// there is no table.
func (s *Store) look(ctx context.Context) (*table, error) {
	t := new(table)
	var columns []string
	var records bool
	err := pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `
			SELECT format('%I.%I', n.nspname, c.relname),
				ARRAY(SELECT attname || ' ' || format_type(atttypid, NULL)
					FROM pg_attribute
					WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
				EXISTS (SELECT
					FROM pg_index i
					JOIN pg_class x ON x.oid = i.indexrelid
					JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
					JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'key' AND a.attnum = i.indkey[0]
					JOIN pg_collation l ON l.oid = i.indcollation[0] AND l.collname = 'C'
					WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL),
				to_regclass($2) IS NOT NULL,
				EXISTS (SELECT FROM pg_class r JOIN pg_namespace h ON h.oid = r.relnamespace WHERE h.nspname = 'howdah' AND r.relname = 'counter_tables')
			FROM pg_class c
			JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.oid = to_regclass($1)`, s.names.SQL("{table}"), s.names.SQL("{ping}")).Scan(&t.name, &columns, &t.bytewise, &t.ping, &records)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if t.mode = modeOf(columns); t.mode == "" {
		return nil, pg.Refuse("table", "%s is no counter table: it has the columns %s; want key and data (jsonb), and where a bucket is no part of the key, granularity and at (timestamptz)",
			t.name, strings.Join(columns, ", "))
	}
	t.layout = layouts[t.mode]
	if records {
		if t.recorded, err = s.recorded(ctx, t.name); err != nil {
			return nil, err
		}
	}
	return t, t.settle(s.cfg)
}

// modeOf returns the mode of a table with these columns and types, "" of another.
func modeOf(columns []string) Mode {
	has := func(name string, types ...string) bool {
		return slices.ContainsFunc(types, func(t string) bool { return slices.Contains(columns, name+" "+t) })
	}
	at := has("at", "timestamp with time zone")
	switch {
	case !has("key", "character varying", "text") || !has("data", "jsonb"):
		return ""
	case at && has("granularity", "character varying", "text"):
		return Separated
	case at:
		return Partial
	}
	return Full
}

// recorded returns the record of a table, nil where it has none.
func (s *Store) recorded(ctx context.Context, name string) (*record, error) {
	var text []byte
	err := pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `SELECT settings FROM howdah.counter_tables WHERE tbl = $1`, name).Scan(&text)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("the record of %s in howdah.counter_tables: %w", name, err)
	}
	return r, nil
}

// fixed are the settings that say where a number lies, as they are recorded; "" of
// those that are left out.
func (c Config) fixed() map[string]string {
	zone := ""
	if c.Location != nil {
		zone = zoneName(c.Location)
	}
	return map[string]string{"time_zone": zone, "week_start": string(c.WeekStart), "separator": c.Separator, "paths": string(c.Paths)}
}

func zoneName(loc *time.Location) string {
	if name := loc.String(); name != "GMT" {
		return name
	}
	return "UTC"
}

// settle fills in the settings that hold: those of the Config, else those recorded,
// else the defaults. Those that say where a number lies must not differ.
func (t *table) settle(cfg Config) error {
	r := t.recorded
	if r == nil {
		r = &record{}
	}
	wanted := cfg.fixed()
	for _, setting := range []struct{ name, member, recorded string }{
		{"time zone", "time_zone", r.TimeZone},
		{"week start", "week_start", string(r.WeekStart)},
		{"separator", "separator", r.Separator},
		{"path encoding", "paths", string(r.Paths)},
	} {
		if w := wanted[setting.member]; w != "" && setting.recorded != "" && w != setting.recorded {
			return fmt.Errorf("%w: %s has the %s %q, not %q", ErrSettings, t.name, setting.name, setting.recorded, w)
		}
	}
	t.separator = either(cfg.Separator, r.Separator, "::")
	t.paths = either(cfg.Paths, r.Paths, Raw)
	t.system = either(cfg.System, r.System, Sync)
	t.calendar = Calendar{Location: cfg.Location, WeekStart: either(cfg.WeekStart, r.WeekStart, Monday)}
	if t.calendar.Location == nil {
		loc, err := LoadLocation(either(r.TimeZone, "UTC"))
		if err != nil {
			return err
		}
		t.calendar.Location = loc
	}
	t.granularities = nil
	for _, all := range [][]Granularity{cfg.Granularities, r.Granularities, defaultGranularities} {
		for _, g := range all {
			if !slices.Contains(t.granularities, g) {
				t.granularities = append(t.granularities, g)
			}
		}
		if len(all) > 0 {
			break
		}
	}
	return nil
}

// either returns the first that is not zero.
func either[T comparable](all ...T) (one T) {
	for _, one = range all {
		if one != *new(T) {
			break
		}
	}
	return one
}

// Setup creates the table, and the ping table beside it, where they are missing, and
// records the settings. It may be called any number of times, by several at once. A
// table that exists keeps its mode, and what was recorded of it; granularities and
// system rows may change. It returns [ErrSettings] where the Config says otherwise of
// the others, and Invalid where the table is none of counters.
func (s *Store) Setup(ctx context.Context) error {
	return pg.Wrap("counters: setup", s.setup(ctx))
}

func (s *Store) setup(ctx context.Context) error {
	if s.bad != nil {
		return s.bad
	}
	t, err := s.look(ctx)
	if err != nil {
		return err
	}
	if t == nil || !t.ping {
		err := pg.Retry(ctx, s.db, func() error {
			_, err := s.db.Exec(ctx, `SELECT howdah.counters_setup($1, $2, $3)`, s.names.SQL("{table}"), s.names.SQL("{ping}"), either(s.cfg.Mode, Full))
			return err
		})
		if err != nil {
			return err
		}
		if t, err = s.look(ctx); err != nil {
			return err
		}
		if t == nil {
			return pg.Refuse("table", "%s is gone again", s.cfg.Table.Sanitize())
		}
	}
	if s.cfg.Mode != "" && s.cfg.Mode != t.mode {
		return fmt.Errorf("%w: %s is %s, not %s", ErrSettings, t.name, t.mode, s.cfg.Mode)
	}
	if err := s.record(ctx, t); err != nil {
		return err
	}
	s.found.set(t)
	return nil
}

// record keeps the settings of t, and takes over those that another kept first.
func (s *Store) record(ctx context.Context, t *table) error {
	zone := zoneName(t.calendar.Location)
	if _, err := LoadLocation(zone); err != nil {
		return err // a zone of the program's own: nobody else could read the table
	}
	r := record{zone, t.calendar.WeekStart, t.separator, t.paths, t.granularities, t.system}
	if t.recorded != nil && slices.Equal(t.recorded.Granularities, r.Granularities) && t.recorded.System == r.System {
		return nil
	}
	kept, err := json.Marshal(r)
	if err != nil {
		return err
	}
	named := map[string]any{} // what must not differ
	for name, wanted := range s.cfg.fixed() {
		if wanted != "" {
			named[name] = wanted
		}
	}
	changed := map[string]any{}
	if len(s.cfg.Granularities) > 0 {
		changed["granularities"] = t.granularities
	}
	if s.cfg.System != "" {
		changed["system"] = t.system
	}
	var settings []byte
	err = pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `
			INSERT INTO howdah.counter_tables AS t (tbl, settings)
			VALUES ($1, $2)
			ON CONFLICT (tbl) DO UPDATE
			SET settings = t.settings || $3
			WHERE t.settings @> $4
			RETURNING settings`, t.name, kept, changed, named).Scan(&settings)
	})
	if errors.Is(err, pgx.ErrNoRows) { // another was first, and meant something else
		if t.recorded, err = s.recorded(ctx, t.name); err == nil {
			err = t.settle(s.cfg)
		}
		return err
	}
	if err != nil {
		return err
	}
	t.recorded = new(record)
	if err := json.Unmarshal(settings, t.recorded); err != nil {
		return err
	}
	return t.settle(s.cfg)
}

// Settings returns what is known of the table.
func (s *Store) Settings(ctx context.Context) (Settings, error) {
	t, err := s.table(ctx)
	if err != nil {
		return Settings{}, pg.Wrap("counters: settings", err)
	}
	return Settings{
		Table: t.name, Mode: t.mode, TimeZone: zoneName(t.calendar.Location), WeekStart: t.calendar.WeekStart, Separator: t.separator,
		Paths: t.paths, Granularities: t.granularities, System: t.system, Recorded: t.recorded != nil,
	}, nil
}

// told passes err on, and looks at the table again next time where it is no longer
// what it was.
func (s *Store) told(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "42P01", "42703", "42P10": // no table, no column, another key
			s.found.set(nil)
		}
	}
	return err
}
