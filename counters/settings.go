package counters

import (
	"context"

	"github.com/howdah-db/howdah/pg"
)

// Settings are what is known of a table. Mode, time zone, week start, separator and
// paths say where in it a number lies, and never change.
type Settings struct {
	Table         string        `json:"table"`
	Mode          Mode          `json:"mode"`
	TimeZone      string        `json:"time_zone"`
	WeekStart     Weekday       `json:"week_start"`
	Separator     string        `json:"separator"`
	Paths         Encoding      `json:"paths"`
	Granularities []Granularity `json:"granularities"`
	System        System        `json:"system"`
	Striped       []string      `json:"striped" nullable:"false"`
	Slots         int           `json:"slots"`
	Retention     Retention     `json:"retention,omitempty"`
	Rollup        []Rule        `json:"rollup,omitempty"`
	Recorded      bool          `json:"recorded"` // by Setup; else a program without these settings would take the defaults
}

// Settings returns what is known of the table.
func (s *Store) Settings(ctx context.Context) (Settings, error) {
	t, err := s.table(ctx)
	if err != nil {
		return Settings{}, pg.Wrap("counters: settings", err)
	}
	return t.settings(), nil
}

func (t *table) settings() Settings {
	return Settings{
		Table: t.name, Mode: t.mode, TimeZone: zoneName(t.calendar.Location), WeekStart: t.calendar.WeekStart, Separator: t.separator,
		Paths: t.paths, Granularities: t.granularities, System: t.system, Striped: t.striped, Slots: t.slots,
		Retention: t.retention, Rollup: t.rollups, Recorded: t.recorded != nil,
	}
}
