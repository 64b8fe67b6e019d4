package counters

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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

// table is what a look at the table found, and the settings that hold.
type table struct {
	*layout
	name          string // schema and name, quoted
	mode          Mode
	bytewise      bool   // an index has the keys in the order of their bytes
	ping          bool   // there is a ping table
	migrated      bool   // there are records, and slots
	readable      string // ownSlots, or a view of what this role may see of it
	records       string // the same of howdah.counter_tables
	separator     string
	calendar      Calendar
	granularities []Granularity
	paths         Encoding
	system        System
	striping
	retention Retention
	rollups   []Rule
	recorded  *record
	recent    *recent
	old       bool // seen by a transaction of the caller's, as of its beginning
}

// ownSlots is where slots are.
const ownSlots = "howdah.counter_slots"

// record is a row of howdah.counter_tables.
type record struct {
	TimeZone      string        `json:"time_zone"`
	WeekStart     Weekday       `json:"week_start"`
	Separator     string        `json:"separator"`
	Paths         Encoding      `json:"paths"`
	Granularities []Granularity `json:"granularities"`
	System        System        `json:"system"`
	Striped       []string      `json:"striped,omitempty"`
	Slots         int           `json:"slots,omitempty"`
	// EverStriped has a member for each name that is or was striped: there may be
	// slots of it.
	EverStriped map[string]bool `json:"ever_striped,omitempty"`
	StripedAt   float64         `json:"striped_at,omitempty"` // unix seconds, of the last change of Striped
	now         float64         // when looked at
	Retention   Retention       `json:"retention,omitempty"`
	Rollup      []Rule          `json:"rollup,omitempty"`
}

// found is the table that was looked at; it is shared by a store's copies.
type found struct {
	mu     sync.Mutex
	table  *table
	looked time.Time
	asked  time.Time // when somebody last went to look again
}

// fresh is how long what was found holds. Until twice as long it serves those who
// come while another looks again.
const fresh = 10 * time.Second

func (f *found) get() *table {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch age := time.Since(f.looked); {
	case f.table == nil, age > 2*fresh:
		return nil
	case age > fresh && time.Since(f.asked) > fresh:
		f.asked = time.Now()
		return nil
	}
	return f.table
}

// set keeps a table that was looked at not before then.
func (f *found) set(t *table, then time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.table, f.looked = t, then
}

// table returns the table. It looks at first use, and every now and then for what
// others have changed; one that is missing is Invalid.
func (s *Store) table(ctx context.Context) (*table, error) {
	t, err := s.tableIfAny(ctx)
	if t == nil && err == nil {
		err = pg.Refuse("table", "there is no %s; howdah migrate makes the default one, howdah counters setup any", s.cfg.Table.Sanitize())
	}
	return t, err
}

// still returns the table to whoever is long at work on it, and may not have heard what
// others changed. One that is laid out otherwise than before is Invalid.
func (s *Store) still(ctx context.Context, before *table) (*table, error) {
	t, err := s.table(ctx)
	if err == nil {
		err = t.sameAs(before)
	}
	return t, err
}

func (t *table) sameAs(before *table) error {
	if t.layout != before.layout {
		return pg.Refuse("table", "%s is another than it was a moment ago; try again", t.name)
	}
	return nil
}

// tableIfAny returns the table, nil where there is none.
func (s *Store) tableIfAny(ctx context.Context) (*table, error) {
	if s.bad != nil {
		return nil, s.bad
	}
	if t := s.own.get(); t != nil {
		return t, nil
	}
	if t := s.found.get(); t != nil {
		return t, nil
	}
	now := time.Now()
	t, err := s.look(ctx)
	if err != nil || t == nil {
		return nil, err
	}
	s.keep(t, now)
	return t, nil
}

// keep keeps a table that was looked at not before then.
func (s *Store) keep(t *table, then time.Time) {
	if t.old {
		s.own.set(t, then)
	} else {
		s.found.set(t, then)
	}
}

// look asks the catalogs, and then for the record where there are records; nil where
// there is no table.
func (s *Store) look(ctx context.Context) (*table, error) {
	t := &table{recent: new(recent)}
	var columns []string
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
				EXISTS (SELECT FROM pg_class r JOIN pg_namespace h ON h.oid = r.relnamespace WHERE h.nspname = 'howdah' AND r.relname = 'counter_tables'),
				'howdah.' || coalesce((SELECT min(r.relname::text)
					FROM pg_class r
					JOIN pg_namespace h ON h.oid = r.relnamespace
					WHERE h.nspname = 'howdah' AND has_table_privilege(r.oid, 'SELECT') AND (r.relname = 'counter_slots'
						OR r.relname = 'counter_slots_readable' AND has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid))), 'counter_slots'),
				'howdah.' || coalesce((SELECT min(r.relname::text)
					FROM pg_class r
					JOIN pg_namespace h ON h.oid = r.relnamespace
					WHERE h.nspname = 'howdah' AND has_table_privilege(r.oid, 'SELECT') AND r.relname IN ('counter_tables', 'counter_tables_readable')), 'counter_tables'),
				current_setting('transaction_isolation') IN ('repeatable read', 'serializable')
			FROM pg_class c
			JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.oid = to_regclass($1)`, s.names.SQL("{table}"), s.names.SQL("{ping}")).Scan(&t.name, &columns, &t.bytewise, &t.ping, &t.migrated, &t.readable, &t.records, &t.old)
	})
	t.old = t.old && pg.Begun(s.db)
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
	if t.migrated {
		if t.recorded, err = s.recorded(ctx, t); err != nil {
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
func (s *Store) recorded(ctx context.Context, t *table) (*record, error) {
	var text []byte
	r := new(record)
	err := pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, `
			SELECT settings, extract(epoch FROM clock_timestamp())::float8
			FROM `+t.records+`
			WHERE tbl = $1`, t.name).Scan(&text, &r.now)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("the record of %s in howdah.counter_tables: %w", t.name, err)
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
	t.system = either(cfg.System, r.System, Deferred)
	if !t.migrated && t.system == Deferred {
		t.system = Sync // there is nowhere to defer it to
	}
	t.stripe(cfg, r)
	t.retention, t.rollups = cfg.Retention, cfg.Rollup
	if t.retention == nil {
		t.retention = r.Retention
	}
	if t.rollups == nil {
		t.rollups = r.Rollup
	}
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
// table that exists keeps its mode, time zone, week start, separator and paths: where
// the Config says otherwise of them it returns [ErrSettings]. All other settings may
// change. A table that is none of counters is Invalid.
func (s *Store) Setup(ctx context.Context) error {
	return pg.Wrap("counters: setup", s.setup(ctx))
}

func (s *Store) setup(ctx context.Context) error {
	if s.bad != nil {
		return s.bad
	}
	now := time.Now()
	t, err := s.look(ctx)
	if err != nil {
		return err
	}
	if t == nil && len(s.cfg.Table) > 1 {
		var there bool
		if err := s.db.QueryRow(ctx, `SELECT to_regnamespace(quote_ident($1)) IS NOT NULL`, s.cfg.Table[0]).Scan(&there); err != nil {
			return err
		}
		if !there {
			return pg.Refuse("table", "there is no schema %s: CREATE SCHEMA makes it", s.cfg.Table[:1].Sanitize())
		}
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
	s.keep(t, now)
	return nil
}

// record keeps the settings of t, and takes over those that another kept first.
func (s *Store) record(ctx context.Context, t *table) error {
	r, err := t.record()
	if err != nil {
		return err
	}
	r.Striped, r.Slots = t.striped, s.cfg.Slots
	if r.Slots == 0 && t.recorded != nil {
		r.Slots = t.recorded.Slots
	}
	if s.cfg.Striped != nil {
		r.Striped = distinct(s.cfg.Striped)
	}
	striped := map[string]bool{}
	for _, name := range r.Striped {
		striped[name] = true
	}
	r.EverStriped = striped
	if is := t.recorded; is != nil && slices.Equal(is.Granularities, r.Granularities) && is.System == r.System && slices.Equal(is.Striped, r.Striped) && is.Slots == r.Slots &&
		maps.Equal(is.Retention, r.Retention) && slices.Equal(is.Rollup, r.Rollup) {
		return nil
	}
	if s.cfg.Striped != nil && !slices.Equal(t.striped, r.Striped) && pg.Begun(s.db) {
		return pg.Refuse("striped", "cannot change in a transaction, or others would hear of it too late")
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
	if s.cfg.Striped != nil {
		changed["striped"] = r.Striped
	}
	if s.cfg.Slots != 0 {
		changed["slots"] = r.Slots
	}
	if s.cfg.Retention != nil {
		changed["retention"] = t.retention
	}
	if s.cfg.Rollup != nil {
		changed["rollup"] = t.rollups
	}
	args := []any{t.name, r, changed, named, striped}
	for i, v := range args[1:] {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		args[i+1] = string(text) // or pgx would have to ask what it is for
	}
	err = pg.Retry(ctx, s.db, func() error {
		_, err := s.db.Exec(ctx, `
			WITH change AS (SELECT jsonb_build_object('striped_at', extract(epoch FROM clock_timestamp())) AS at)
			INSERT INTO howdah.counter_tables AS t (tbl, settings)
			SELECT $1, $2::jsonb || at
			FROM change
			ON CONFLICT (tbl) DO UPDATE
			SET settings = t.settings || $3::jsonb
				|| jsonb_build_object('ever_striped', coalesce(t.settings -> 'ever_striped', '{}') || $5::jsonb)
				|| CASE WHEN $3::jsonb -> 'striped' <> coalesce(t.settings -> 'striped', '[]') THEN jsonb_build_object('striped_at', EXCLUDED.settings -> 'striped_at') ELSE '{}' END
			WHERE t.settings @> $4::jsonb`, args...)
		return err
	})
	if err != nil {
		return err
	}
	if t.recorded, err = s.recorded(ctx, t); err != nil { // another may have been first, and have meant something else
		return err
	}
	return t.settle(s.cfg)
}

// record returns the settings of t as they are kept.
func (t *table) record() (record, error) {
	zone := zoneName(t.calendar.Location)
	_, err := LoadLocation(zone) // fails of a zone of the program's own: nobody else could read the table
	return record{TimeZone: zone, WeekStart: t.calendar.WeekStart, Separator: t.separator, Paths: t.paths, Granularities: t.granularities, System: t.system, Retention: t.retention, Rollup: t.rollups}, err
}

// told passes err on, and looks at the table again next time where it is no longer
// what it was.
func (s *Store) told(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "42P01", "42703", "42P10": // no table, no column, another key
			s.found.set(nil, time.Time{})
		}
	}
	return err
}
